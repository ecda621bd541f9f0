//! The stages: for each alert a working relay, and a real fault.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use support::chosen_major;
use support::postgres::{Cluster, Options, StopMode};
use support::proxy::{Choice, Fault, Proxy, Rule};
use support::relay::Relay;
use support::test_bed::{TestBed, enqueue_range};

/// What is broken, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    KillTheRelay,
    StopPostgres,
    DeleteTheQueue,
    FailOneMessage,
    LockTheLanes,
    RefuseTheRecord,
    LockTheDead,
    ThrottleSome,
    Poison,
    HoldTheHorizon,
    Pause,
    Misspell,
    SlowAnswers,
    TurnTheNumbers,
}

/// Alert, job, fault as text, and fault. The first alert only knows the job of its rule.
const ACTS: [(&str, &str, &str, Act); 15] = [
    ("OutboxRelayDown", "outbox-relay", "the relay is killed", Act::KillTheRelay),
    (
        "OutboxRelayDeliveryDelayed",
        "delayed",
        "SQS fails one message again and again, others pass",
        Act::FailOneMessage,
    ),
    ("OutboxRelayDeliveryStuck", "stuck", "a session has the lanes locked", Act::LockTheLanes),
    ("OutboxRelayStalled", "stalled", "a session has the lanes locked", Act::LockTheLanes),
    ("OutboxRelayQuarantine", "quarantine", "a trigger refuses to record a delivery", Act::RefuseTheRecord),
    ("OutboxRelayBacklogProbeStale", "stale", "a session has the dead messages locked", Act::LockTheDead),
    ("OutboxRelayDatabaseUnreachable", "database", "PostgreSQL is stopped", Act::StopPostgres),
    ("OutboxRelayDestinationHalted", "halted", "the queue is deleted", Act::DeleteTheQueue),
    ("OutboxRelayPublishFailing", "failing", "SQS throttles a part of the requests", Act::ThrottleSome),
    ("OutboxRelayNewDeadMessages", "dead", "a message is larger than SQS takes", Act::Poison),
    ("OutboxRelayOrderBroken", "order", "the queue's sequence numbers fall", Act::TurnTheNumbers),
    ("OutboxRelayHorizonHeld", "horizon", "a transaction stays open", Act::HoldTheHorizon),
    ("OutboxRelayPausedTooLong", "paused", "an operator pauses and forgets", Act::Pause),
    ("OutboxRelayUnserved", "unserved", "messages name a destination that nobody serves", Act::Misspell),
    ("OutboxRelayLatencyBudgetBurning", "latency", "SQS answers after a second and a half", Act::SlowAnswers),
];

/// One alert's stage.
pub struct Stage {
    act: Act,
    alert: &'static str,
    job: &'static str,
    fault: &'static str,
    bed: Arc<TestBed>,
    proxy: Proxy,
    queue: String,
    relay: Option<Relay>,
    address: String,
    /// A separate cluster if PostgreSQL is stopped.
    cluster: Option<Cluster>,
    /// Sessions that hold locks or snapshots.
    sessions: Vec<Client>,
    traffic: JoinHandle<()>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.traffic.abort();
    }
}

/// Builds all stages; everything works on them, and messages flow.
pub async fn build(minute: u32) -> Result<Vec<Stage>> {
    let mut stages = Vec::new();
    for (alert, job, fault, act) in ACTS {
        stages.push(Stage::build(alert, job, fault, act, minute).await.with_context(|| format!("stage of {alert}"))?);
    }
    Ok(stages)
}

impl Stage {
    async fn build(
        alert: &'static str,
        job: &'static str,
        fault: &'static str,
        act: Act,
        minute: u32,
    ) -> Result<Stage> {
        let cluster = match act {
            Act::StopPostgres => Some(Cluster::start(&Options { major: chosen_major(), ..Options::default() })?),
            _ => None,
        };
        let bed = match &cluster {
            Some(cluster) => TestBed::on(cluster).await?,
            None => TestBed::new().await?,
        };
        let proxy = bed.proxy().await?;
        let queue = match act {
            Act::TurnTheNumbers => bed.fifo("tickets").await?,
            _ => bed.standard("tickets").await?,
        };
        // A second for a minute: a retry that would wait for a minute may wait a second here.
        let longest = format!("{minute}s");
        let relay = bed.relay().env("OUTBOX_RELAY_MAX_ATTEMPTS", "1000").env("OUTBOX_RELAY_RETRY_MAX", longest);
        let relay = relay.start().await?;
        let address = relay.address().to_owned();
        let bed = Arc::new(bed);
        let traffic = tokio::spawn(trickle(Arc::clone(&bed)));
        Ok(Stage {
            act,
            alert,
            job,
            fault,
            bed,
            proxy,
            queue,
            relay: Some(relay),
            address,
            cluster,
            sessions: Vec::new(),
            traffic,
        })
    }

    /// The alert that should fire.
    pub fn alert(&self) -> &'static str {
        self.alert
    }

    /// The scrape job.
    pub fn job(&self) -> &'static str {
        self.job
    }

    /// The fault, as text.
    pub fn fault(&self) -> &'static str {
        self.fault
    }

    /// Where the relay listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes the fault.
    pub async fn break_it(&mut self) -> Result<()> {
        match self.act {
            Act::KillTheRelay => {
                if let Some(relay) = self.relay.take() {
                    relay.kill().await?;
                }
            }
            Act::StopPostgres => {
                let cluster = self.cluster.as_ref().context("no cluster of its own")?;
                cluster.stop(StopMode::Immediate)?;
            }
            Act::DeleteTheQueue => self.bed.queues.delete(&self.queue).await?,
            Act::FailOneMessage => {
                let which = Choice::body_contains("poor");
                self.proxy.set(Fault::FailEntries { which, code: "InternalError", sender_fault: false });
                self.bed.enqueue("tickets", "{\"poor\": true}", None).await?;
            }
            Act::LockTheLanes => {
                let session = self.bed.connect().await?;
                session.batch_execute("BEGIN; SELECT FROM outbox.lanes FOR UPDATE").await?;
                self.sessions.push(session);
            }
            Act::RefuseTheRecord => {
                let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                        $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
                    CREATE TRIGGER refuse BEFORE INSERT ON outbox.messages_delivered
                        FOR EACH ROW WHEN (NEW.group_id = 'odd') EXECUTE FUNCTION refuse()";
                self.bed.client.batch_execute(refuse).await?;
                self.bed.enqueue("tickets", "{\"odd\": true}", Some("odd")).await?;
            }
            Act::LockTheDead => {
                let session = self.bed.connect().await?;
                session.batch_execute("BEGIN; LOCK TABLE outbox.messages_dead IN ACCESS EXCLUSIVE MODE").await?;
                self.sessions.push(session);
            }
            Act::ThrottleSome => self.proxy.add(Rule::new(Fault::throttle()).chance(0.3, 1)),
            Act::Poison => {
                let body = format!("{{\"poison\": \"{}\"}}", "x".repeat(1_100_000));
                self.bed.enqueue("tickets", &body, None).await?;
            }
            Act::HoldTheHorizon => {
                let session = self.bed.connect().await?;
                session
                    .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM outbox.events LIMIT 1")
                    .await?;
                self.sessions.push(session);
            }
            Act::Pause => {
                let paused = self.bed.relay().output(&["pause", "tickets", "--reason", "lunch"]).await?;
                paused.ensure_success()?;
            }
            Act::Misspell => enqueue_range(&self.bed.client, "tikets", 1..=2, 0).await?,
            Act::TurnTheNumbers => {
                self.proxy.set(Fault::FallingNumbers);
                enqueue_range(&self.bed.client, "tickets", 1..=2, 1).await?;
            }
            Act::SlowAnswers => self.proxy.set(Fault::Delay(Duration::from_millis(1500))),
        }
        Ok(())
    }
}

/// Five messages a second, while the database accepts them.
async fn trickle(bed: Arc<TestBed>) {
    for n in 0_u64.. {
        // A database that is stopped on purpose is no failure of the traffic.
        bed.enqueue("tickets", &format!("{{\"n\": {n}}}"), None).await.ok();
        // Time is the subject: a rate.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
