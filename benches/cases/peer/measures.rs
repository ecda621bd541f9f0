//! What is measured of a peer. Every wait is bounded, and what a peer does not reach within the bound is its result.
//!
//! Each measure begins with an empty database and with the peer delivering one message, so that a replication slot
//! exists and programs are warm.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use support::postgres::Cluster;
use tempfile::TempDir;

use super::load::{FEW, Keys, Load, MANY, write_numbers};
use super::program::{DATABASE, Peer, Place, Queue, Settings, connect};
use super::supervised::{RESTART_AFTER, Supervised};
use crate::ground::micros_since_1970;
use crate::stand_in::{Outage, StandIn};

/// SQS's median time to answer.
const MEDIAN: Duration = Duration::from_millis(10);

/// The rate of writing, unless the peer is too slow for it.
const RATE: f64 = 1000.0;

/// The part of its drain that a peer is given, if that is less: with more it could not catch up after an outage.
const PART: f64 = 0.5;

/// How long a peer may take to start and to deliver its first message.
const START_FOR: Duration = Duration::from_secs(180);

/// Messages that a transaction of a backlog writes.
const CHUNK: u64 = 10_000;

/// A transaction that stays open, older than everything that the peer does, as a backup or a report has it.
const LONG_TRANSACTION: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class";

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Spans {
    /// Messages of a drain; it ends before them after `drain`.
    pub messages: u64,
    pub drain: Duration,
    /// Written during `latency`, of which the first part is not measured.
    pub latency: Duration,
    pub unmeasured: Duration,
    pub outage: Duration,
    /// The writing before and after an interruption.
    pub around: Duration,
    /// How long after the end of the writing a message counts as missing.
    pub patience: Duration,
}

impl Spans {
    pub fn of(scale: f64) -> Spans {
        let seconds = |full: f64, least: f64| Duration::from_secs_f64((full * scale).max(least));
        Spans {
            messages: ((200_000.0 * scale) as u64).max(1000),
            drain: seconds(30.0, 6.0),
            latency: seconds(12.0, 4.0),
            unmeasured: Duration::from_secs(2),
            outage: seconds(10.0, 3.0),
            around: seconds(3.0, 2.0),
            patience: seconds(60.0, 30.0),
        }
    }
}

/// What was measured of a peer with some settings; what it did not reach is missing, and a remark says why.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Messages a second.
    pub drain: Option<f64>,
    pub peak_mb: Option<f64>,
    pub latency: Option<Latency>,
    pub outage: Option<Interrupted>,
    pub kill: Option<Interrupted>,
    /// The drain behind a long transaction, as a part of the plain one.
    pub held: Option<f64>,
    pub remarks: Vec<String>,
}

/// From the commit to the acceptance, in milliseconds, at this rate of writing.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub rate: f64,
    pub p50: f64,
    pub p99: f64,
}

/// What an interruption has cost.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted {
    /// Seconds from its end to the first message.
    pub resumed: Option<f64>,
    /// Messages that had not arrived when the patience was over.
    pub missing: u64,
    /// Messages that were sent twice.
    pub duplicates: u64,
    /// Those of them that a FIFO queue drops.
    pub deduplicated: u64,
    /// Only in a FIFO queue.
    pub order_breaks: Option<u64>,
    /// How often the peer ended by itself and was started again.
    pub restarts: u64,
}

/// A peer with some settings, and where it is measured.
pub struct Bed<'a> {
    pub peer: &'a Peer,
    pub settings: Settings,
    pub cluster: &'a Cluster,
    pub stand_in: &'a StandIn,
    pub spans: Spans,
}

impl Bed<'_> {
    /// Everything. A measure that fails is a remark, not the end of the case.
    pub async fn measure(&self) -> Results {
        let mut results = Results::default();
        let plain = self.drain(None, &mut results).await;
        results.drain = self.noted("drain", plain, &mut results.remarks);
        let Some(drain) = results.drain else { return results };
        let rate = RATE.min(drain * PART);
        let latency = self.latency(rate, &mut results).await;
        results.latency = self.noted("latency", latency, &mut results.remarks);
        let outage = self.outage(rate).await;
        results.outage = self.noted("outage", outage, &mut results.remarks);
        let kill = self.kill(rate).await;
        results.kill = self.noted("kill", kill, &mut results.remarks);
        let held = self.drain(Some(LONG_TRANSACTION), &mut results).await;
        results.held = self.noted("long transaction", held, &mut results.remarks).map(|held| held / drain);
        results
    }

    fn noted<T>(&self, measure: &str, result: Result<T>, remarks: &mut Vec<String>) -> Option<T> {
        println!("  ({}, {}: {measure} is over)", self.peer.name, self.settings.word());
        result.map_err(|error| remarks.push(format!("{measure}: {error:#}"))).ok()
    }

    /// Messages a second from the first to the last, of a backlog in a standard queue.
    async fn drain(&self, transaction: Option<&str>, results: &mut Results) -> Result<f64> {
        let work = TempDir::new()?;
        let place = self.place(Queue::Standard, &work);
        let mut running = self.warm_up(&place).await?;
        running.stop().await?;
        let client = place.connect().await?;
        let statement = client.prepare(&self.peer.write()?).await?;
        for first in (1..=self.spans.messages).step_by(CHUNK as usize) {
            let last = self.spans.messages.min(first + CHUNK - 1);
            write_numbers(&client, &statement, (first, last), MANY, &place.queue_url()).await?;
        }
        client.batch_execute("VACUUM ANALYZE").await?;
        client.batch_execute("CHECKPOINT").await?;
        let holder = place.connect().await?;
        if let Some(transaction) = transaction {
            holder.batch_execute(transaction).await?;
        }
        self.stand_in.reset_keyed(MEDIAN, self.spans.messages, MANY.0).await?;
        running.start_again()?;
        let (started, mut first) = (Instant::now(), None);
        loop {
            running.tend()?;
            let counts = self.stand_in.counts().await?;
            if counts.entries > 0 {
                first.get_or_insert_with(Instant::now);
            }
            let over = first.is_some_and(|first| first.elapsed() >= self.spans.drain);
            if over || counts.entries - counts.duplicates >= self.spans.messages {
                break;
            }
            ensure!(first.is_some() || started.elapsed() < START_FOR, "nothing came: {}", running.last_words());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let counts = self.stand_in.counts().await?;
        results.peak_mb = Some(results.peak_mb.map_or(running.peak_mb, |peak_mb| peak_mb.max(running.peak_mb)));
        running.stop().await?;
        ensure!(counts.illegal == 0, "it sent {counts:?}");
        ensure!(counts.last_at > counts.first_at, "only one request came");
        Ok((counts.entries - counts.duplicates) as f64 / ((counts.last_at - counts.first_at) as f64 / 1e6))
    }

    /// From the commit to the acceptance by a standard queue.
    async fn latency(&self, rate: f64, results: &mut Results) -> Result<Latency> {
        let work = TempDir::new()?;
        let place = self.place(Queue::Standard, &work);
        let mut running = self.warm_up(&place).await?;
        let mut load = self.load(&place, MANY, rate, self.spans.latency).await?;
        let committed = self.follow(&mut running, &mut load).await?;
        results.peak_mb = Some(results.peak_mb.map_or(running.peak_mb, |peak_mb| peak_mb.max(running.peak_mb)));
        running.stop().await?;
        let accepted = self.stand_in.accepted().await?;
        let (missing, patience) = (missing(&accepted), self.spans.patience.as_secs());
        ensure!(missing == 0, "{missing} of {} did not come within {patience} s", load.total);
        let measured = (rate * self.spans.unmeasured.as_secs_f64()) as u64;
        let measured = committed.iter().filter(|(number, _)| *number > measured);
        // SQS may have accepted the message before the writer learns of its own commit.
        let mut micros: Vec<u64> = measured.map(|&(number, at)| accepted[number as usize].saturating_sub(at)).collect();
        micros.sort_unstable();
        ensure!(!micros.is_empty(), "nothing was measured");
        let percentile = |part: f64| micros[((micros.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
        Ok(Latency { rate, p50: percentile(0.5), p99: percentile(0.99) })
    }

    /// SQS refuses everything for a while.
    async fn outage(&self, rate: f64) -> Result<Interrupted> {
        let work = TempDir::new()?;
        let place = self.place(self.peer.about.order, &work);
        let mut running = self.warm_up(&place).await?;
        let mut load = self.load(&place, FEW, rate, self.spans.around * 2 + self.spans.outage).await?;
        pass(&mut running, self.spans.around).await?;
        self.stand_in.set_outage(Outage::Begins).await?;
        pass(&mut running, self.spans.outage).await?;
        self.stand_in.set_outage(Outage::Ends).await?;
        let ended_at = micros_since_1970()?;
        self.follow(&mut running, &mut load).await?;
        self.interrupted(&mut running, ended_at).await
    }

    /// All of its processes are killed and, a second later, started again.
    async fn kill(&self, rate: f64) -> Result<Interrupted> {
        let work = TempDir::new()?;
        let place = self.place(self.peer.about.order, &work);
        let mut running = self.warm_up(&place).await?;
        let mut load = self.load(&place, FEW, rate, self.spans.around * 2 + RESTART_AFTER).await?;
        pass(&mut running, self.spans.around).await?;
        running.kill()?;
        tokio::time::sleep(RESTART_AFTER).await;
        running.start_again()?;
        let ended_at = micros_since_1970()?;
        self.follow(&mut running, &mut load).await?;
        self.interrupted(&mut running, ended_at).await
    }

    fn place<'a>(&'a self, queue: Queue, work: &'a TempDir) -> Place<'a> {
        Place { cluster: self.cluster, stand_in: self.stand_in, queue, work: work.path() }
    }

    /// An empty database, and the peer running in it, after it has delivered number 0, which no measure counts.
    async fn warm_up(&self, place: &Place<'_>) -> Result<Supervised> {
        self.empty_database().await?;
        self.peer.create_tables(place).await?;
        self.stand_in.reset_keyed(MEDIAN, 0, 1).await?;
        let log = place.work.join("log");
        let mut running = Supervised::start(self.peer.run(self.settings, place), &log)?;
        let client = place.connect().await?;
        let statement = client.prepare(&self.peer.write()?).await?;
        let (started, mut written) = (Instant::now(), None);
        while self.stand_in.counts().await?.requests == 0 {
            running.tend()?;
            let elapsed = started.elapsed();
            ensure!(elapsed < START_FOR && running.restarts < 5, "it delivered nothing: {}", running.last_words());
            // What is written before there is a replication slot never arrives.
            if written.is_none_or(|at: Instant| at.elapsed() >= Duration::from_secs(1)) {
                write_numbers(&client, &statement, (0, 0), FEW, &place.queue_url()).await?;
                written = Some(Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // More of them may be on the way, and what it has sent it may still have to record.
        let mut requests = 0;
        for _ in 0..30 {
            let before = std::mem::replace(&mut requests, self.stand_in.counts().await?.requests);
            if before == requests {
                break;
            }
            pass(&mut running, Duration::from_secs(1)).await?;
        }
        Ok(running)
    }

    /// Replication slots keep a database, and the sessions of a killed peer keep the slots for a moment.
    async fn empty_database(&self) -> Result<()> {
        let client = connect(self.cluster, "postgres").await?;
        let started = Instant::now();
        let drop_slots = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active;
            SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
        loop {
            client.batch_execute(drop_slots).await?;
            let slots = client.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await?.get::<_, i64>(0);
            if slots == 0 {
                break;
            }
            ensure!(started.elapsed() < START_FOR, "a replication slot stays in use");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.cluster.drop_database(DATABASE).await?;
        self.cluster.create_database(DATABASE).await
    }

    async fn load(&self, place: &Place<'_>, keys: Keys, rate: f64, span: Duration) -> Result<Load> {
        let seconds = span.as_secs_f64();
        self.stand_in.reset_keyed(MEDIAN, (rate * seconds).ceil() as u64, keys.0).await?;
        Load::start(place, &self.peer.write()?, keys, rate, seconds).await
    }

    /// Waits until all is written and has arrived, or the patience is over; returns when each number was committed.
    async fn follow(&self, running: &mut Supervised, load: &mut Load) -> Result<Vec<(u64, u64)>> {
        let (mut committed, mut over) = (Vec::new(), None);
        loop {
            running.tend()?;
            committed.extend(load.try_take()?);
            if load.is_over() {
                let over = *over.get_or_insert_with(Instant::now);
                let has_all = missing(&self.stand_in.accepted().await?) == 0;
                if has_all || over.elapsed() >= self.spans.patience {
                    return Ok(committed);
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn interrupted(&self, running: &mut Supervised, ended_at: u64) -> Result<Interrupted> {
        running.stop().await?;
        let (counts, accepted) = (self.stand_in.counts().await?, self.stand_in.accepted().await?);
        ensure!(counts.illegal == 0, "it sent {counts:?}");
        let resumed_at = accepted.iter().filter(|&&at| at > ended_at).min();
        Ok(Interrupted {
            resumed: resumed_at.map(|&at| (at - ended_at) as f64 / 1e6),
            missing: missing(&accepted),
            duplicates: counts.duplicates,
            deduplicated: counts.deduplicated,
            order_breaks: (self.peer.about.order == Queue::Fifo).then_some(counts.order_breaks),
            restarts: running.restarts,
        })
    }
}

/// How many of the numbers from 1 were not accepted.
fn missing(accepted: &[u64]) -> u64 {
    accepted.iter().skip(1).filter(|&&at| at == 0).count() as u64
}

/// Tends it for this long.
async fn pass(running: &mut Supervised, span: Duration) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < span {
        running.tend()?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
