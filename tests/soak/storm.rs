//! Faults of the queues, the topic and the bucket, drawn from the seed. Those of the database are in `database`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use tokio_util::sync::CancellationToken;

use crate::chronicle::Chronicle;
use support::proxy::{Choice, Fault, Proxy, Rule};

/// The longest duration of a queue's fault, and of the time without one.
const QUEUE_FAULT: Duration = Duration::from_secs(4);
const QUEUE_PAUSE: Duration = Duration::from_secs(3);

/// The source of the queues' faults.
#[derive(Debug)]
pub struct Queues {
    pub proxies: Vec<Arc<Proxy>>,
    /// Queues' URLs and topics' ARNs.
    pub targets: Vec<String>,
    pub chronicle: Arc<Chronicle>,
    pub dice: Rng,
}

impl Queues {
    /// Makes one fault after the other until it is calm; then there is none.
    pub async fn trouble(mut self, calm: CancellationToken) -> Result<()> {
        while !calm.is_cancelled() {
            pause(&calm, QUEUE_PAUSE.mul_f64(self.dice.f64())).await;
            // Either one relay's own path to SQS, or SQS for both.
            let struck: Vec<Arc<Proxy>> = match self.dice.usize(..4) {
                chosen @ 0..2 => self.proxies.get(chosen).into_iter().cloned().collect(),
                _ => self.proxies.clone(),
            };
            let (kind, refuses, seed) = (self.dice.usize(..KINDS.len()), self.dice.u32(..12) == 0, self.dice.u64(..));
            let target = self.targets[self.dice.usize(..self.targets.len())].clone();
            for proxy in &struck {
                if refuses {
                    proxy.refuse_connections().await?;
                } else {
                    proxy.script([KINDS[kind].1(&target, seed)]);
                }
            }
            let name = if refuses { "connections refused" } else { KINDS[kind].0 };
            self.chronicle.begin(name, &format!("for {} of the relays", struck.len()));
            pause(&calm, QUEUE_FAULT.mul_f64(self.dice.f64())).await;
            for proxy in &struck {
                proxy.clear();
                proxy.release();
                proxy.accept_connections().await?;
            }
        }
        Ok(())
    }
}

type Kind = (&'static str, fn(&str, u64) -> Rule);

/// From a queue's URL or a topic's ARN, and a seed. Those of buckets concern requests to S3.
const KINDS: [Kind; 20] = [
    ("entries failed", |_, seed| Rule::new(fail_entries(0.05, seed))),
    ("many entries failed", |_, seed| Rule::new(fail_entries(0.4, seed))),
    ("every entry failed", |_, seed| Rule::new(fail_entries(1.0, seed))),
    ("entries throttled", |_, seed| Rule::new(throttle_entries("RequestThrottled", seed))),
    ("entries throttled by the key", |_, seed| Rule::new(throttle_entries("KmsThrottled", seed))),
    ("throttled", |_, _| Rule::new(Fault::throttle())),
    ("throttled at times", |_, seed| Rule::new(Fault::throttle()).chance(0.3, seed)),
    ("503", |_, seed| Rule::new(Fault::status(503)).chance(0.5, seed)),
    ("queue or topic missing", |target, _| Rule::new(missing(target)).queue(target)),
    ("access denied", |target, _| Rule::new(denied(target)).queue(target)),
    ("credentials expired", |_, _| Rule::new(Fault::expired_token())),
    ("answers never", |_, seed| Rule::new(Fault::HoldAnswer).chance(0.5, seed)),
    ("cut before forwarding", |_, seed| Rule::new(Fault::CutBeforeForward).chance(0.3, seed)),
    ("cut after forwarding", |_, seed| Rule::new(Fault::CutAfterForward).chance(0.3, seed)),
    ("slow", |_, seed| Rule::new(Fault::Delay(Duration::from_millis(seed % 500)))),
    ("slower than the timeout", |_, seed| Rule::new(Fault::Delay(Duration::from_secs(4))).chance(0.1, seed)),
    ("bucket: 503", |_, seed| Rule::new(Fault::status(503)).action(TO_S3).chance(0.5, seed)),
    ("bucket missing", |_, _| Rule::new(Fault::Garble(404, NO_BUCKET)).action(TO_S3)),
    ("bucket: cut after storing", |_, seed| Rule::new(Fault::CutAfterForward).action(TO_S3).chance(0.5, seed)),
    ("bucket: answers never", |_, seed| Rule::new(Fault::HoldAnswer).action(TO_S3).chance(0.5, seed)),
];

/// Requests to S3 name no action in their head.
const TO_S3: &str = "";

const NO_BUCKET: &str = "<Error><Code>NoSuchBucket</Code><Message>from the fault proxy</Message></Error>";

fn is_topic(target: &str) -> bool {
    target.starts_with("arn:")
}

fn missing(target: &str) -> Fault {
    if is_topic(target) { Fault::error(404, "NotFound", "") } else { Fault::queue_missing() }
}

fn denied(target: &str) -> Fault {
    if is_topic(target) { Fault::error(403, "AuthorizationError", "") } else { Fault::access_denied() }
}

fn fail_entries(probability: f64, seed: u64) -> Fault {
    Fault::FailEntries { which: Choice::chance(probability, seed), code: "InternalError", sender_fault: false }
}

fn throttle_entries(code: &'static str, seed: u64) -> Fault {
    Fault::FailEntries { which: Choice::chance(0.5, seed), code, sender_fault: false }
}

/// Waits for this time, or less when it becomes calm.
pub async fn pause(calm: &CancellationToken, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = calm.cancelled() => {}
    }
}
