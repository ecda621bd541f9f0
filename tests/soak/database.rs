//! Faults of the database, drawn from the seed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use tokio_util::sync::CancellationToken;

use crate::chronicle::Chronicle;
use crate::servers::Servers;
use crate::storm::pause;
use support::lottery::shop;
use support::postgres::StopMode;

/// How long a relay may still send after its session or server has gone, before it notices.
const NOTICE: Duration = Duration::from_secs(1);

/// The longest time without a fault of the database.
const PAUSE: Duration = Duration::from_secs(15);

/// The longest that a report or a backup keeps its snapshot.
const LONG_READ: Duration = Duration::from_secs(12);

/// The longest that a standby is behind, that commits are asynchronous, and that the disk is full.
const BEHIND: Duration = Duration::from_secs(4);

/// The longest that a relay cannot reach the database: longer than its claim lives.
const CUT: Duration = Duration::from_secs(9);

/// How long changes made before a standby was cut off had to reach it.
const STREAMING: Duration = Duration::from_secs(1);

/// The source of the database's faults.
#[derive(Debug)]
pub struct Database {
    pub servers: Arc<Servers>,
    /// The application's address.
    pub url: String,
    pub chronicle: Arc<Chronicle>,
    pub dice: Rng,
}

impl Database {
    /// Makes one fault after the other until it is calm; then the database works.
    pub async fn trouble(mut self, calm: CancellationToken) -> Result<()> {
        while !calm.is_cancelled() {
            pause(&calm, PAUSE.mul_f64(self.dice.f64())).await;
            if calm.is_cancelled() {
                return Ok(());
            }
            match self.dice.u32(..16) {
                0..2 => self.restart("PostgreSQL crashed", StopMode::Immediate).await?,
                2..4 => self.restart("PostgreSQL restarted", StopMode::Fast).await?,
                4..6 => self.read_for_long(&calm).await?,
                6..7 => self.end_sessions("one session ended", "LIMIT 1").await?,
                7..8 => self.end_sessions("all sessions ended", "").await?,
                8..10 => self.lose_commits(&calm).await?,
                10..12 => self.fail_over(&calm).await?,
                12..14 => self.cut(&calm).await?,
                _ => self.fill_disk(&calm).await?,
            }
        }
        Ok(())
    }

    async fn restart(&mut self, name: &'static str, mode: StopMode) -> Result<()> {
        self.chronicle.begin(name, "");
        let began_at = Instant::now();
        let (cluster, down_for) = (self.servers.current(), Duration::from_secs_f64(self.dice.f64()));
        let restarted = tokio::task::spawn_blocking(move || {
            cluster.stop(mode)?;
            std::thread::sleep(down_for);
            cluster.start_again()
        });
        restarted.await??;
        self.end(None, began_at).await;
        Ok(())
    }

    async fn end_sessions(&mut self, name: &'static str, limit: &str) -> Result<()> {
        self.chronicle.begin(name, "");
        let began_at = Instant::now();
        let client = shop::connect(&self.url).await?;
        let query = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name LIKE 'outbox-relay%' ORDER BY random() {limit}"
        );
        client.execute(&query, &[]).await?;
        self.end(None, began_at).await;
        Ok(())
    }

    /// Holds a snapshot that vacuum has to respect.
    async fn read_for_long(&mut self, calm: &CancellationToken) -> Result<()> {
        self.chronicle.begin("long transaction", "");
        let client = shop::connect(&self.url).await?;
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM outbox.messages LIMIT 1").await?;
        pause(calm, LONG_READ.mul_f64(self.dice.f64())).await;
        client.batch_execute("COMMIT").await?;
        Ok(())
    }

    /// A crash while commits are asynchronous: the last of them are lost.
    async fn lose_commits(&mut self, calm: &CancellationToken) -> Result<()> {
        let time = BEHIND.mul_f64(self.dice.f64());
        self.chronicle.begin("commits lost in a crash", &format!("of at most {time:.1?}"));
        let began_at = Instant::now();
        self.configure(&["synchronous_commit = off", "wal_writer_delay = 10000"]).await?;
        pause(calm, time).await;
        let cluster = self.servers.current();
        tokio::task::spawn_blocking(move || cluster.restart(StopMode::Immediate)).await??;
        self.chronicle.lose(began_at);
        self.configure(&["synchronous_commit = on", "wal_writer_delay = 200"]).await?;
        // Sessions that had not learnt of the setting yet did not commit asynchronously, and no crash could lose
        // anything.
        self.end(None, began_at).await;
        Ok(())
    }

    async fn configure(&self, settings: &[&str]) -> Result<()> {
        let client = shop::connect(&self.servers.current().url("postgres")).await?;
        for setting in settings {
            client.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await?;
        }
        client.batch_execute("SELECT pg_reload_conf()").await?;
        Ok(())
    }

    /// A standby streams, falls behind, and takes over: what it did not receive is lost.
    async fn fail_over(&mut self, calm: &CancellationToken) -> Result<()> {
        let behind = BEHIND.mul_f64(self.dice.f64());
        self.chronicle.begin("standby took over", &format!("{behind:.1?} behind"));
        let restarted_at = Instant::now();
        let primary = self.servers.current();
        let (origin, options) = (Arc::clone(&primary), self.servers.options.clone());
        let standby = tokio::task::spawn_blocking(move || origin.start_standby(&options)).await??;
        self.end(None, restarted_at).await;
        let standby = tokio::task::spawn_blocking(move || standby.stop(StopMode::Fast).map(|()| standby));
        let began_at = Instant::now().checked_sub(STREAMING).context("the clock has just begun")?;
        let standby = standby.await??;
        pause(calm, behind).await;
        let standby = tokio::task::spawn_blocking(move || {
            primary.stop(StopMode::Immediate)?;
            standby.start_again().map(|()| standby)
        });
        let standby = standby.await??;
        let url = standby.url("postgres");
        // Sometimes everyone finds a read-only server at first.
        let is_known_before = self.dice.bool();
        let mut promoted = Some(standby);
        if is_known_before && let Some(standby) = promoted.take() {
            self.servers.lead_to(standby);
            pause(calm, NOTICE).await;
        }
        shop::connect(&url).await?.query_one("SELECT pg_promote()", &[]).await?;
        if let Some(standby) = promoted {
            self.servers.lead_to(standby);
        }
        self.chronicle.lose(began_at);
        self.end(None, began_at).await;
        Ok(())
    }

    /// Nothing from one relay, or from both, reaches the database, and no connection is closed.
    async fn cut(&mut self, calm: &CancellationToken) -> Result<()> {
        let (time, count) = (CUT.mul_f64(self.dice.f64()), self.servers.wires.len());
        let chosen = Some(self.dice.usize(..=count)).filter(|relay| *relay < count);
        let whose = chosen.map_or("of all relays".to_owned(), |relay| format!("of relay {relay}"));
        self.chronicle.begin("network to PostgreSQL cut", &format!("{whose} for {time:.1?}"));
        let began_at = Instant::now();
        let is_meant = |relay: usize| chosen.is_none_or(|chosen| chosen == relay);
        let wires = self.servers.wires.iter().enumerate().filter(|(relay, _)| is_meant(*relay));
        let wires: Vec<_> = wires.map(|(_, wire)| wire).collect();
        wires.iter().for_each(|wire| wire.go_silent());
        pause(calm, time).await;
        wires.iter().for_each(|wire| wire.serve_new_connections());
        wires.iter().for_each(|wire| wire.close_silent_connections());
        self.end(chosen, began_at).await;
        Ok(())
    }

    /// Nothing can be written until there is space again; a server that gave up meanwhile is restarted.
    async fn fill_disk(&mut self, calm: &CancellationToken) -> Result<()> {
        let Some(disk) = &self.servers.disk else { return Ok(()) };
        let time = BEHIND.mul_f64(self.dice.f64());
        self.chronicle.begin("disk full", &format!("for {time:.1?}"));
        let began_at = Instant::now();
        disk.fill()?;
        pause(calm, time).await;
        disk.empty()?;
        self.servers.bring_back().await?;
        self.end(None, began_at).await;
        Ok(())
    }

    /// A fault has ended; a relay, or all, may have forgotten what they knew since it began.
    async fn end(&self, relay: Option<usize>, began_at: Instant) {
        tokio::time::sleep(NOTICE).await;
        self.chronicle.disturb(relay, began_at);
    }
}
