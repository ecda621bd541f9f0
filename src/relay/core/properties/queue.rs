//! A simulated queue of SQS: what it accepts, in which order, and how it fails.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::message::{Fault, FaultKind, MessageKey};

/// What arrives of a message.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) uid: u64,
    pub(super) key: MessageKey,
    pub(super) group: Option<Arc<str>>,
}

/// How the queue fails for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueFault {
    /// Nobody answers at its address.
    NotConnected,
    /// It refuses everybody.
    Denied,
    /// It asks for fewer requests.
    Throttled,
    /// It answers 500, and has accepted the request or has not.
    ServerError { accepts: bool },
    /// It does not answer in time, and has accepted the request or has not.
    Silent { accepts: bool },
    /// So many of a hundred entries fail.
    Entries { percent: u8 },
    /// So many of a hundred entries are throttled.
    EntriesThrottled { percent: u8 },
}

/// What becomes of a request.
pub(super) enum Answer {
    Entries(Vec<Result<String, Fault>>),
    Failed(Fault),
    None,
}

/// What was accepted, and why other things are not.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Each message's answers, the first one counts.
    pub(super) accepted: HashMap<u64, Vec<String>>,
    pub(super) fault: Option<QueueFault>,
    /// Messages that it can never take.
    pub(super) refused: HashSet<u64>,
    /// Messages that fail so many times more.
    pub(super) failing: BTreeMap<u64, u32>,
    /// How often each has failed by itself; many times for those that can never be taken.
    pub(super) failures: HashMap<u64, u32>,
    ids: u64,
}

impl Queue {
    /// A request arrives; returns the answer and what was accepted for the first time, in order.
    pub(super) fn arrive(&mut self, sent: &[Sent], dice: &mut fastrand::Rng) -> (Answer, Vec<Sent>) {
        let fault = |kind, code: &str| Answer::Failed(Fault::new(kind, code, "simulated"));
        match self.fault {
            Some(QueueFault::NotConnected) => (fault(FaultKind::Outage, "NotConnected"), Vec::new()),
            Some(QueueFault::Denied) => (fault(FaultKind::Destination, "AccessDenied"), Vec::new()),
            Some(QueueFault::Throttled) => (fault(FaultKind::Throttle, "RequestThrottled"), Vec::new()),
            Some(QueueFault::ServerError { accepts }) => {
                let new = if accepts { self.accept_all(sent) } else { Vec::new() };
                (fault(FaultKind::ServerError, "InternalError"), new)
            }
            Some(QueueFault::Silent { accepts }) => {
                let new = if accepts { self.accept_all(sent) } else { Vec::new() };
                (Answer::None, new)
            }
            _ => self.judge(sent, dice),
        }
    }

    fn judge(&mut self, sent: &[Sent], dice: &mut fastrand::Rng) -> (Answer, Vec<Sent>) {
        let (mut results, mut new) = (Vec::new(), Vec::new());
        for message in sent {
            let fails = self.fails(message.uid);
            let fault = match self.fault {
                _ if self.refused.contains(&message.uid) => {
                    Some((FaultKind::MessagePermanent, "InvalidMessageContents"))
                }
                _ if fails => Some((FaultKind::MessageTransient, "InternalError")),
                Some(QueueFault::Entries { percent }) if dice.u8(0..100) < percent => {
                    Some((FaultKind::MessageTransient, "InternalError"))
                }
                Some(QueueFault::EntriesThrottled { percent }) if dice.u8(0..100) < percent => {
                    Some((FaultKind::Throttle, "RequestThrottled"))
                }
                _ => None,
            };
            match fault {
                Some((FaultKind::MessagePermanent, _)) => drop(self.failures.insert(message.uid, u32::MAX)),
                Some((FaultKind::MessageTransient, _)) => {
                    let failures = self.failures.entry(message.uid).or_default();
                    *failures = failures.saturating_add(1);
                }
                _ => {}
            }
            results.push(match fault {
                Some((kind, code)) => Err(Fault::new(kind, code, "simulated")),
                None => Ok(self.accept(message, &mut new)),
            });
        }
        (Answer::Entries(results), new)
    }

    fn fails(&mut self, uid: u64) -> bool {
        let Some(times) = self.failing.get_mut(&uid) else { return false };
        *times = times.saturating_sub(1);
        *times > 0
    }

    fn accept_all(&mut self, sent: &[Sent]) -> Vec<Sent> {
        let mut new = Vec::new();
        for message in sent {
            self.accept(message, &mut new);
        }
        new
    }

    fn accept(&mut self, message: &Sent, new: &mut Vec<Sent>) -> String {
        self.ids += 1;
        let ids = self.accepted.entry(message.uid).or_default();
        if ids.is_empty() {
            new.push(message.clone());
        }
        ids.push(format!("m{}", self.ids));
        ids.last().unwrap().clone()
    }
}
