//! A simulated SQS queue: what it accepts, in which order, and how it fails.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::message::{Fault, FaultKind, MessageKey, SequenceNumber};
use crate::publisher::Accepted;

/// A message as it arrives.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) uid: u64,
    pub(super) key: MessageKey,
    pub(super) group: Option<Arc<str>>,
    /// Tells the copies of a message apart, as its deduplication id does.
    pub(super) superseded: Option<SequenceNumber>,
}

/// A copy of a message in the queue.
#[derive(Clone, Debug)]
pub(super) struct InQueue {
    superseded: Option<SequenceNumber>,
    pub(super) number: SequenceNumber,
    /// How often SQS has accepted it. Only the first acceptance counts.
    pub(super) times: usize,
}

/// How the queue fails for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueFault {
    /// Connections to it are refused.
    NotConnected,
    /// It denies access.
    Denied,
    /// It throttles requests.
    Throttled,
    /// It answers 500, whether or not it accepts the request.
    ServerError { accepts: bool },
    /// It does not answer in time, whether or not it accepts the request.
    Silent { accepts: bool },
    /// This share of entries fails, drawn at random.
    Entries { percent: u8 },
    /// This share of entries fails, drawn at random, and half of the answers are lost.
    LosesAnswers { percent: u8 },
    /// This share of entries is throttled.
    EntriesThrottled { percent: u8 },
    /// This share of entries fails or is throttled.
    EntriesMixed { percent: u8 },
}

/// The answer to a request.
pub(super) enum Answer {
    Entries(Vec<Result<Accepted, Fault>>),
    Failed(Fault),
    None,
}

/// The state of the queue: what it has accepted, and what it fails.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By uid: its copies, in the order in which they arrived.
    pub(super) accepted: HashMap<u64, Vec<InQueue>>,
    pub(super) fault: Option<QueueFault>,
    /// The uids of messages that it can never accept.
    pub(super) refused: HashSet<u64>,
    /// By uid: how many more attempts it takes until one is accepted.
    pub(super) failing: BTreeMap<u64, u32>,
    /// By uid: how often the message itself has failed; `u32::MAX` if it can never be accepted.
    pub(super) failures: HashMap<u64, u32>,
    last: SequenceNumber,
}

impl Queue {
    /// A request arrives. Returns the answer, and the copies of messages that were accepted for the first time, in
    /// order.
    pub(super) fn arrive(&mut self, sent: &[Sent], rng: &mut fastrand::Rng) -> (Answer, Vec<Sent>) {
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
            Some(QueueFault::LosesAnswers { .. }) => {
                let (answer, new) = self.judge(sent, rng);
                (if rng.bool() { Answer::None } else { answer }, new)
            }
            _ => self.judge(sent, rng),
        }
    }

    fn judge(&mut self, sent: &[Sent], rng: &mut fastrand::Rng) -> (Answer, Vec<Sent>) {
        let (mut results, mut new) = (Vec::new(), Vec::new());
        for message in sent {
            let fails = self.fails(message.uid);
            let fault = match self.fault {
                _ if self.refused.contains(&message.uid) => {
                    Some((FaultKind::MessagePermanent, "InvalidMessageContents"))
                }
                _ if fails => Some((FaultKind::MessageTransient, "InternalError")),
                Some(QueueFault::Entries { percent } | QueueFault::LosesAnswers { percent })
                    if rng.u8(0..100) < percent =>
                {
                    Some((FaultKind::MessageTransient, "InternalError"))
                }
                Some(QueueFault::EntriesMixed { percent }) if rng.u8(0..100) < percent => match rng.bool() {
                    true => Some((FaultKind::MessageTransient, "InternalError")),
                    false => Some((FaultKind::Throttle, "RequestThrottled")),
                },
                Some(QueueFault::EntriesThrottled { percent }) if rng.u8(0..100) < percent => {
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

    fn accept(&mut self, message: &Sent, new: &mut Vec<Sent>) -> Accepted {
        let copies = self.accepted.entry(message.uid).or_default();
        let number = match copies.iter_mut().find(|copy| copy.superseded == message.superseded) {
            Some(copy) => {
                copy.times += 1;
                copy.number
            }
            None => {
                self.last = self.last.next();
                copies.push(InQueue { superseded: message.superseded, number: self.last, times: 1 });
                new.push(message.clone());
                self.last
            }
        };
        Accepted { sqs_message_id: format!("m{number}"), sequence_number: Some(number) }
    }
}
