//! The environment of the cases: a durable PostgreSQL, outboxes full of messages, relays as the real binary, and their
//! resource usage.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::{Client, NoTls};

use crate::stand_in::{Counts, StandIn, Wire};
use support::postgres::{Cluster, Options};

/// The destination of every case.
pub const DESTINATION: &str = "tickets";

/// The time limit of a run.
const PATIENCE: Duration = Duration::from_secs(900);

/// The approximate size of a body in bytes: that of a lottery event.
pub const BODY_BYTES: usize = 450;

type PeakMemory = Arc<Mutex<f64>>;

/// The environment that all cases share.
pub struct Ground {
    pub cluster: Cluster,
    pub stand_in: StandIn,
    /// The largest memory of a relay in megabytes since a case began.
    peak_mb: PeakMemory,
    /// Databases that are copied for the cases.
    templates: tokio::sync::Mutex<BTreeMap<String, ()>>,
}

/// The pending messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    pub messages: u64,
    /// How many groups they belong to.
    pub groups: u64,
}

/// The result of a drain.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    /// Messages a second, from the first request to the end of the relay, when everything is recorded.
    pub rate: f64,
    /// The relay's largest memory in megabytes.
    pub peak_mb: f64,
    /// Processor seconds that the relays used.
    pub cpu: f64,
    pub counts: Counts,
}

impl Drained {
    /// Processor time that the relays used, in microseconds a message.
    pub fn cpu_per_message(&self) -> f64 {
        self.cpu / self.counts.entries as f64 * 1e6
    }
}

impl Ground {
    /// Starts PostgreSQL as in production: with every commit on disk.
    pub fn lay() -> Result<Ground> {
        let setting = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let settings = [
            ("shared_buffers", "1GB"),
            ("max_wal_size", "8GB"),
            ("checkpoint_timeout", "30min"),
            ("synchronous_commit", "on"),
            ("track_io_timing", "off"),
        ];
        let settings = settings.map(setting).to_vec();
        let cluster = Cluster::start(&Options { durable: true, settings, ..Options::default() })?;
        Ok(Ground {
            cluster,
            stand_in: StandIn::start()?,
            peak_mb: PeakMemory::default(),
            templates: tokio::sync::Mutex::default(),
        })
    }

    /// A session in a database.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        let (client, connection) = tokio_postgres::connect(&self.cluster.url(database), NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A separate database with this backlog, vacuumed: a copy of one that is filled once.
    pub async fn filled(&self, name: &str, backlog: Backlog) -> Result<Client> {
        let template = format!("backlog_{}_{}", backlog.messages, backlog.groups);
        let mut templates = self.templates.lock().await;
        if !templates.contains_key(&template) {
            self.cluster.create_database(&template).await?;
            self.migrate(&template)?;
            fill(&self.connect(&template).await?, backlog).await?;
            templates.insert(template.clone(), ());
        }
        self.cluster.drop_database(name).await?;
        // The session that filled it may still be ending.
        let started = Instant::now();
        while let Err(error) = self.cluster.create_database_from_template(name, &template).await {
            ensure!(started.elapsed() < Duration::from_secs(10), "cannot copy {template}: {error:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let client = self.connect(name).await?;
        client.batch_execute("CHECKPOINT").await?;
        Ok(client)
    }

    /// Removes the databases that were copied.
    pub async fn forget_templates(&self) -> Result<()> {
        for template in std::mem::take(&mut *self.templates.lock().await).into_keys() {
            self.cluster.drop_database(&template).await?;
        }
        Ok(())
    }

    /// An empty outbox.
    pub async fn empty(&self, name: &str) -> Result<Client> {
        self.cluster.drop_database(name).await?;
        self.cluster.create_database(name).await?;
        self.migrate(name)?;
        self.connect(name).await
    }

    fn migrate(&self, database: &str) -> Result<()> {
        let status = self.command(database, "q", Wire::Https).arg("migrate").status()?;
        ensure!(status.success(), "cannot migrate {database}");
        Ok(())
    }

    /// The relay's binary with its default settings. Other programs that talk to the stand-in get the same environment.
    pub fn command(&self, database: &str, queue: &str, wire: Wire) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        command.envs([
            ("DATABASE_URL", self.cluster.url(database)),
            ("OUTBOX_RELAY_DESTINATIONS", format!("{DESTINATION}={}", self.stand_in.queue(wire, queue))),
            ("OUTBOX_RELAY_HTTP_LISTEN", "127.0.0.1:0".to_owned()),
            ("AWS_ENDPOINT_URL_SQS", self.stand_in.endpoint(wire).to_owned()),
            ("AWS_CA_BUNDLE", self.stand_in.authority().to_string_lossy().into_owned()),
            ("RUST_LOG", "warn".to_owned()),
        ]);
        command.envs([
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "bench"),
            ("AWS_SECRET_ACCESS_KEY", "bench"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]);
        command
    }

    /// Starts a relay whose memory counts as that of the case.
    pub fn start(&self, relay: &mut Command) -> Result<Running> {
        let mut running = Running::start(relay)?;
        running.memory = Some(Arc::clone(&self.peak_mb));
        Ok(running)
    }

    /// The largest memory of a relay in megabytes since the last call; nothing if there was none.
    pub fn take_peak_mb(&self) -> Option<f64> {
        let peak = std::mem::take(&mut *self.peak_mb.lock().unwrap_or_else(PoisonError::into_inner));
        (peak > 0.0).then_some(peak)
    }

    /// Lets one relay or several drain a database; each message must arrive once, and in order in a FIFO queue.
    pub async fn drain(&self, name: &str, client: &Client, backlog: Backlog, how: &How) -> Result<Drained> {
        self.stand_in.reset(how.median, backlog.messages).await?;
        let mut relays = Vec::new();
        for _ in 0..how.relays {
            let mut command = self.command(name, how.queue, how.wire);
            command.envs(how.settings.iter().copied());
            relays.push(self.start(command.args(["run", "--until-empty"]))?);
        }
        let started = Instant::now();
        let (mut cpu, mut peak_mb) = (0.0, 0.0_f64);
        for relay in relays {
            let used = relay.wait(PATIENCE.saturating_sub(started.elapsed())).await?;
            cpu += used.cpu;
            peak_mb = peak_mb.max(used.peak_mb);
        }
        let ended = micros_since_1970()?;
        let counts = self.stand_in.counts().await?;
        let pending: i64 = client.query_one("SELECT count(*) FROM outbox.messages_pending", &[]).await?.get(0);
        ensure!(pending == 0, "{pending} messages are left");
        ensure!(counts.entries == backlog.messages + counts.duplicates, "{counts:?} of {}", backlog.messages);
        ensure!(counts.illegal == 0 && counts.order_breaks == 0, "{counts:?}");
        ensure!(counts.duplicates == 0, "nothing was killed, and yet: {counts:?}");
        let seconds = (ended - counts.first_at) as f64 / 1e6;
        Ok(Drained { rate: backlog.messages as f64 / seconds, peak_mb, cpu, counts })
    }
}

/// Which queue, by TLS or not, how slow, how many relays, and which settings.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub queue: &'static str,
    pub wire: Wire,
    pub median: Duration,
    pub relays: usize,
    pub settings: &'static [(&'static str, &'static str)],
}

impl How {
    /// One relay with its defaults and a standard queue, by TLS.
    pub fn at(median_ms: u64) -> How {
        How { queue: "tickets", wire: Wire::Https, median: Duration::from_millis(median_ms), relays: 1, settings: &[] }
    }
}

/// Microseconds since 1970, as the stand-in counts them.
pub fn micros_since_1970() -> Result<u64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH)?.as_micros() as u64)
}

/// Fills an outbox in chunks, so that no statement runs without end, and leaves it as after a vacuum.
async fn fill(client: &Client, backlog: Backlog) -> Result<()> {
    const SLICE: u64 = 200_000;
    let statement = "WITH event AS (
            INSERT INTO outbox.events (event_type, payload, metadata)
            SELECT 'TicketPurchased', jsonb_build_object('n', n, 'ticket', repeat(md5(n::text), $4::int)),
                '{\"traceparent\": \"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\"}'
            FROM generate_series($1::bigint, $2::bigint) AS n
            RETURNING position, (payload ->> 'n')::bigint AS n
        )
        INSERT INTO outbox.messages (destination, event_position, group_id)
        SELECT $5, position, 'g' || n % $3::bigint FROM event ORDER BY n";
    let repeats = i32::try_from((BODY_BYTES - 24) / 32)?;
    let mut from = 1;
    while from <= backlog.messages {
        let to = backlog.messages.min(from + SLICE - 1);
        let (first, last, groups) = (i64::try_from(from)?, i64::try_from(to)?, i64::try_from(backlog.groups)?);
        client.execute(statement, &[&first, &last, &groups, &repeats, &DESTINATION]).await?;
        from = to + 1;
    }
    client.batch_execute("VACUUM ANALYZE").await?;
    Ok(())
}

/// A running relay or peer; it is killed if it is dropped.
pub struct Running {
    child: Child,
    /// Where its largest memory is noted.
    memory: Option<PeakMemory>,
}

/// The resources that a process has used.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub cpu: f64,
    pub peak_mb: f64,
}

impl Running {
    pub fn start(command: &mut Command) -> Result<Running> {
        Ok(Running { child: command.spawn().context("cannot start the relay")?, memory: None })
    }

    /// The resources used so far.
    pub fn used(&self) -> Result<Used> {
        let used = used(self.child.id())?;
        if let Some(memory) = &self.memory {
            let mut peak_mb = memory.lock().unwrap_or_else(PoisonError::into_inner);
            *peak_mb = peak_mb.max(used.peak_mb);
        }
        Ok(used)
    }

    /// Waits for its end, which must be successful.
    pub async fn wait(mut self, limit: Duration) -> Result<Used> {
        let started = Instant::now();
        let mut latest = self.used()?;
        loop {
            // A process that has ended but was not waited for has no memory left to report.
            if let Ok(used) = self.used() {
                latest = Used { cpu: used.cpu.max(latest.cpu), peak_mb: used.peak_mb.max(latest.peak_mb) };
            }
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "a relay ended with {status}");
                return Ok(latest);
            }
            if started.elapsed() > limit {
                bail!("a relay did not end within {limit:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Tells it to drain.
    pub async fn stop(self) -> Result<Used> {
        let mut kill = Command::new("kill");
        ensure!(kill.arg(self.child.id().to_string()).status()?.success(), "cannot stop the relay");
        self.wait(Duration::from_secs(30)).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Processor seconds and largest memory of a process, as Linux counts them (proc(5)).
pub fn used(process: u32) -> Result<Used> {
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64> { Ok(fields.get(index).context("stat is short")?.parse()?) };
    let cpu = (ticks(11)? + ticks(12)?) / TICKS_A_SECOND;
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|rest| rest.split_whitespace().next()).map_or(Ok(0.0), str::parse::<f64>)?;
    Ok(Used { cpu, peak_mb: kilobytes / 1024.0 })
}
