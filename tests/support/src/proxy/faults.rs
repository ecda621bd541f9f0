//! The faults that the proxy can inject, and the rules that choose the requests.

use std::fmt;
use std::time::Duration;

use super::journal::Entry;
use super::tail::lognormal;

/// What the proxy does to a request.
#[derive(Debug)]
pub enum Fault {
    /// Nothing: lets one request of a script pass.
    Pass,
    /// Forwards after a delay.
    Delay(Duration),
    /// Forwards after the time that SQS takes: a lognormal time with this median.
    Latency(Duration, fastrand::Rng),
    /// Forwards once the test releases it.
    Hold,
    /// Forwards, but answers only once the test releases it. SQS has the messages, but the sender cannot know it.
    HoldAnswer,
    /// Closes the connection without forwarding.
    CutBeforeForward,
    /// Forwards, then closes the connection without an answer.
    CutAfterForward,
    /// Answers with an error without forwarding.
    Answer(ErrorAnswer),
    /// Answers with an error without forwarding, if the request has one of the chosen entries.
    Refuse {
        /// For which entries.
        which: Choice,
        /// The error.
        answer: ErrorAnswer,
    },
    /// Forwards, then answers with this status and these bytes instead.
    Garble(u16, &'static str),
    /// Does not forward the chosen entries, and reports them as failed among the outcomes of the others.
    FailEntries {
        /// Which entries fail.
        which: Choice,
        /// `Code` of their failure.
        code: &'static str,
        /// `SenderFault` of their failure.
        sender_fault: bool,
    },
    /// Forwards all entries, but leaves the chosen ones out of the answer.
    DropFromAnswer(Choice),
    /// Forwards, and answers with sequence numbers that fall from message to message.
    FallingNumbers,
    /// Forwards, then answers `{}`, which the SDK reads as neither successes nor failures.
    EmptyAnswer,
}

impl Fault {
    /// An answer of an overloaded or broken front end of SQS: no type, no code.
    pub fn status(status: u16) -> Fault {
        Fault::Answer(ErrorAnswer { status, kind: "", query_error: "", message: "not today" })
    }

    /// The time that SQS takes, with this median and a tail; the same seed gives the same times.
    pub fn latency(median: Duration, seed: u64) -> Fault {
        Fault::Latency(median, fastrand::Rng::with_seed(seed))
    }

    /// Too many requests.
    pub fn throttle() -> Fault {
        Fault::error(403, "com.amazonaws.sqs#RequestThrottled", "RequestThrottled;Sender")
    }

    /// Too many requests that use the queue's key.
    pub fn key_throttle() -> Fault {
        Fault::error(400, "com.amazonaws.sqs#KmsThrottled", "KMS.ThrottlingException;Sender")
    }

    /// No such queue.
    pub fn queue_missing() -> Fault {
        let code = "AWS.SimpleQueueService.NonExistentQueue;Sender";
        Fault::error(400, "com.amazonaws.sqs#QueueDoesNotExist", code)
    }

    /// The policy denies the request.
    pub fn access_denied() -> Fault {
        Fault::error(403, "com.amazon.coral.service#AccessDeniedException", "AccessDenied;Sender")
    }

    /// The token is too old.
    pub fn expired_token() -> Fault {
        Fault::error(403, "com.amazon.coral.service#ExpiredTokenException", "ExpiredToken;Sender")
    }

    /// Any other error.
    pub fn error(status: u16, kind: &'static str, query_error: &'static str) -> Fault {
        Fault::Answer(ErrorAnswer { status, kind, query_error, message: "from the fault proxy" })
    }
}

/// An error in the form of SQS.
#[derive(Debug, Clone, Copy)]
pub struct ErrorAnswer {
    /// HTTP status.
    pub status: u16,
    /// `__type` in the body; empty for none.
    pub kind: &'static str,
    /// Header `x-amzn-query-error`, which the SDK's error code comes from; empty for none.
    pub query_error: &'static str,
    /// `message` in the body.
    pub message: &'static str,
}

/// Chooses entries of a request, by position and content.
pub struct Choice(Box<Chooser>);

type Chooser = dyn FnMut(usize, &Entry) -> bool + Send;

impl Choice {
    /// Entries for which the function is true.
    pub fn by(chosen: impl FnMut(usize, &Entry) -> bool + Send + 'static) -> Choice {
        Choice(Box::new(chosen))
    }

    /// Every entry.
    pub fn every() -> Choice {
        Choice::by(|_, _| true)
    }

    /// The entries at these positions, from 0.
    pub fn at(positions: impl Into<Vec<usize>>) -> Choice {
        let positions = positions.into();
        Choice::by(move |position, _| positions.contains(&position))
    }

    /// Entries whose body contains the text.
    pub fn body_contains(text: impl Into<String>) -> Choice {
        let text = text.into();
        Choice::by(move |_, entry| entry.body.contains(&text))
    }

    /// Each entry with this probability; the same seed gives the same choices.
    pub fn chance(probability: f64, seed: u64) -> Choice {
        let mut dice = fastrand::Rng::with_seed(seed);
        Choice::by(move |_, _| dice.f64() < probability)
    }

    fn positions(&mut self, entries: &[Entry]) -> Vec<usize> {
        let chosen = entries.iter().enumerate().filter(|(position, entry)| (self.0)(*position, entry));
        chosen.map(|(position, _)| position).collect()
    }
}

impl fmt::Debug for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Choice")
    }
}

/// A fault, and the requests that get it.
#[derive(Debug)]
pub struct Rule {
    fault: Fault,
    action: &'static str,
    queue_url: Option<String>,
    key: Option<String>,
    remaining: usize,
    chance: Option<(f64, fastrand::Rng)>,
    last: bool,
}

impl Rule {
    /// Every SendMessageBatch to any queue, for as long as the rule exists.
    pub fn new(fault: Fault) -> Rule {
        let action = "SendMessageBatch";
        Rule { fault, action, queue_url: None, key: None, remaining: usize::MAX, chance: None, last: true }
    }

    /// Only the next `count` requests that get the fault. A request in which no entry is chosen does not count.
    pub fn times(mut self, count: usize) -> Rule {
        self.remaining = count;
        self
    }

    /// Only requests to this queue.
    pub fn queue(mut self, url: &str) -> Rule {
        self.queue_url = Some(url.to_owned());
        self
    }

    /// Only requests that were signed with this access key.
    pub fn signed_with(mut self, key: &str) -> Rule {
        self.key = Some(format!("Credential={key}/"));
        self
    }

    /// Another action than SendMessageBatch, such as `GetQueueAttributes`. It has no entries to choose from.
    pub fn action(mut self, action: &'static str) -> Rule {
        self.action = action;
        self
    }

    /// Each request with this probability; the same seed gives the same choices.
    pub fn chance(mut self, probability: f64, seed: u64) -> Rule {
        self.chance = Some((probability, fastrand::Rng::with_seed(seed)));
        self
    }

    /// Lets later rules apply to the same request as well. Without this, only the first rule that matches applies.
    pub fn and_more(mut self) -> Rule {
        self.last = false;
        self
    }

    pub(super) fn holds(&self) -> bool {
        matches!(self.fault, Fault::Hold | Fault::HoldAnswer)
    }

    pub(super) fn is_spent(&self) -> bool {
        self.remaining == 0
    }

    fn matches(&mut self, asked: Asked<'_>) -> bool {
        let Asked { action, queue_url, authorization } = asked;
        self.action == action
            && self.remaining > 0
            && self.key.as_ref().is_none_or(|key| authorization.contains(key))
            && self.queue_url.as_deref().is_none_or(|wanted| wanted == queue_url)
            && self.chance.as_mut().is_none_or(|(probability, dice)| dice.f64() < *probability)
    }
}

/// The parts of a request that rules look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub action: &'a str,
    pub queue_url: &'a str,
    pub authorization: &'a str,
}

/// Everything that happens to one request.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub delay: Duration,
    pub hold: bool,
    pub hold_answer: bool,
    pub failures: Vec<Failure>,
    pub omitted: Vec<usize>,
    pub numbers_fall: bool,
    pub end: End,
}

/// An entry that fails in the proxy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub position: usize,
    pub code: &'static str,
    pub sender_fault: bool,
}

/// How a request ends.
#[derive(Debug, Default, Clone, Copy)]
pub(super) enum End {
    #[default]
    Forwarded,
    CutBefore,
    CutAfter,
    Error(ErrorAnswer),
    Instead(u16, &'static str),
}

impl Plan {
    pub(super) fn of(rules: &mut [Rule], asked: Asked<'_>, entries: &[Entry]) -> Plan {
        let mut plan = Plan::default();
        for rule in rules {
            if rule.matches(asked) && plan.take(&mut rule.fault, entries) {
                rule.remaining = rule.remaining.saturating_sub(1);
                if rule.last {
                    break;
                }
            }
        }
        plan
    }

    /// Adds a fault. Returns false if it chooses no entry of the request.
    fn take(&mut self, fault: &mut Fault, entries: &[Entry]) -> bool {
        match fault {
            Fault::Pass => {}
            Fault::Delay(delay) => self.delay += *delay,
            Fault::Latency(median, dice) => self.delay += lognormal(*median, dice),
            Fault::Hold => self.hold = true,
            Fault::HoldAnswer => self.hold_answer = true,
            Fault::CutBeforeForward => self.end = End::CutBefore,
            Fault::CutAfterForward => self.end = End::CutAfter,
            Fault::Answer(answer) => self.end = End::Error(*answer),
            Fault::Refuse { which, answer } => {
                if which.positions(entries).is_empty() {
                    return false;
                }
                self.end = End::Error(*answer);
            }
            Fault::Garble(status, body) => self.end = End::Instead(*status, body),
            Fault::FallingNumbers => self.numbers_fall = true,
            Fault::EmptyAnswer => self.end = End::Instead(200, "{}"),
            Fault::FailEntries { which, code, sender_fault } => {
                let (code, sender_fault) = (*code, *sender_fault);
                let positions = which.positions(entries);
                let failures = positions.iter().map(|&position| Failure { position, code, sender_fault });
                self.failures.extend(failures);
                return !positions.is_empty();
            }
            Fault::DropFromAnswer(which) => {
                let positions = which.positions(entries);
                self.omitted.extend(&positions);
                return !positions.is_empty();
            }
        }
        true
    }
}
