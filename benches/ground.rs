//! The environment of the cases: a durable PostgreSQL, outboxes full of messages, relays as the real binary, and their
//! resource usage.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio_postgres::{Client, NoTls};

use crate::processes::{PeakMemory, Running, server_cpu};
use crate::stand_in::{Counts, StandIn, Wire};
use support::postgres::{Cluster, Options};

/// The destination of every case.
pub const DESTINATION: &str = "tickets";

/// The time limit of a run.
const PATIENCE: Duration = Duration::from_secs(900);

/// The approximate size of a body in bytes: that of a lottery event.
pub const BODY_BYTES: usize = 450;

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
    /// Processor seconds that PostgreSQL used.
    pub server_cpu: f64,
    pub counts: Counts,
}

impl Drained {
    /// Processor time that the relays used, in microseconds a message.
    pub fn cpu_per_message(&self) -> f64 {
        self.cpu / self.counts.entries as f64 * 1e6
    }

    /// Processor time that PostgreSQL used, in microseconds a message.
    pub fn server_cpu_per_message(&self) -> f64 {
        self.server_cpu / self.counts.entries as f64 * 1e6
    }
}

impl Ground {
    /// Starts PostgreSQL as in production: with every commit on disk.
    pub fn lay() -> Result<Ground> {
        let cluster = durable_cluster(&[])?;
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
        Ok(Running::start(relay)?.note_memory(&self.peak_mb))
    }

    /// The largest memory of a relay in megabytes since the last call; nothing if there was none.
    pub fn take_peak_mb(&self) -> Option<f64> {
        let peak = std::mem::take(&mut *self.peak_mb.lock().unwrap_or_else(PoisonError::into_inner));
        (peak > 0.0).then_some(peak)
    }

    /// Lets one relay or several drain a database; each message must arrive once, and in order in a FIFO queue.
    pub async fn drain(&self, name: &str, client: &Client, backlog: Backlog, how: &How) -> Result<Drained> {
        self.stand_in.reset(how.median, backlog.messages).await?;
        let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        let server_before = server_cpu(backend)?;
        let mut relays = Vec::new();
        for number in 0..how.relays {
            let mut command = self.command(name, how.queue, how.wire);
            // By their keys the stand-in tells relays from each other.
            command.env("AWS_ACCESS_KEY_ID", format!("relay{number}"));
            command.envs(how.settings.iter().copied());
            let endpoint = |port| ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"));
            command.envs(how.collector.map(endpoint));
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
        let server_cpu = server_cpu(backend)? - server_before;
        let counts = self.stand_in.counts().await?;
        let pending: i64 = client.query_one("SELECT count(*) FROM outbox.messages_pending", &[]).await?.get(0);
        ensure!(pending == 0, "{pending} messages are left");
        ensure!(counts.entries == backlog.messages + counts.duplicates, "{counts:?} of {}", backlog.messages);
        ensure!(counts.illegal == 0 && counts.order_breaks == 0, "{counts:?}");
        ensure!(counts.duplicates == 0, "nothing was killed, and yet: {counts:?}");
        let seconds = (ended - counts.first_at) as f64 / 1e6;
        Ok(Drained { rate: backlog.messages as f64 / seconds, peak_mb, cpu, server_cpu, counts })
    }
}

/// A PostgreSQL as in production, with more settings.
pub fn durable_cluster(more: &[(&str, &str)]) -> Result<Cluster> {
    let setting = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let settings = [
        ("shared_buffers", "1GB"),
        ("max_wal_size", "8GB"),
        ("checkpoint_timeout", "30min"),
        ("synchronous_commit", "on"),
        ("track_io_timing", "off"),
    ];
    let settings = settings.iter().chain(more).map(setting).collect();
    Cluster::start(&Options { durable: true, settings, ..Options::default() })
}

/// Which queue, by TLS or not, how slow, how many relays, and which settings.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub queue: &'static str,
    pub wire: Wire,
    pub median: Duration,
    pub relays: usize,
    pub settings: &'static [(&'static str, &'static str)],
    /// The port of this host where a collector of spans listens.
    pub collector: Option<u16>,
}

impl How {
    /// One relay with its defaults and a standard queue, by TLS.
    pub fn at(median_ms: u64) -> How {
        How {
            queue: "tickets",
            wire: Wire::Https,
            median: Duration::from_millis(median_ms),
            relays: 1,
            settings: &[],
            collector: None,
        }
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
