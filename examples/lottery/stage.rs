//! The stage of the demo: PostgreSQL, the queues, the shop, the relay and the consumers, and what happens to them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_sqs::types::QueueAttributeName;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Flags;
use crate::folder::Folder;
use crate::relay::{Metrics, Recipe, Relay};
use crate::screen::{Outage, Report, Screen, State, grouped, spoken};
use support::emulator::{Emulator, Queues};
use support::lottery::consumer::{self, Inbox};
use support::lottery::ledger::Account;
use support::lottery::shop::{self, Season, Till};
use support::postgres::{Cluster, Options, free_port};

/// The pause between two checks of the progress.
const PAUSE: Duration = Duration::from_millis(50);

/// The pause between two reads of the relay's metrics.
const METRICS_PAUSE: Duration = Duration::from_millis(500);

/// How long the shop has no relay at least, so that one can see messages wait.
const OUTAGE: Duration = Duration::from_secs(1);

/// What a killed relay leaves behind, in PostgreSQL and on its way to the queues, is gone much sooner than this.
const AFTERMATH_TIMEOUT: Duration = Duration::from_secs(20);

/// When nothing arrives for this long, missing messages count as lost.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that runs. Dropped in the order of the fields, so that nothing loses what it depends on.
#[derive(Debug)]
pub struct Stage {
    relay: Option<Relay>,
    emulator: Emulator,
    /// With the folder that contains it, which must not be removed first even if the cluster is still starting.
    _cluster: (Cluster, Arc<Folder>),
    folder: Arc<Folder>,
    recipe: Recipe,
    queue_urls: [String; 2],
}

impl Stage {
    /// Starts PostgreSQL, the emulator and the relay, and opens the shop.
    pub async fn set(flags: &Flags) -> Result<Stage> {
        let started = Instant::now();
        let folder = Arc::new(Folder::prepare(&flags.folder()?)?);
        let binary = flags.relay()?;
        let cluster = tokio::task::spawn_blocking({
            let folder = Arc::clone(&folder);
            move || {
                let options = Options { below: Some(folder.path().to_owned()), ..Options::default() };
                anyhow::Ok((Cluster::start(&options)?, folder))
            }
        });
        let emulator = tokio::task::spawn_blocking(Emulator::start);
        let (cluster, emulator) = (cluster.await??, emulator.await??);
        cluster.0.create_database("lottery").await?;
        let database_url = cluster.0.url("lottery");
        let version = server_version(&database_url).await?;
        println!("  PostgreSQL {version:<8}  a private cluster on port {}", cluster.0.port());

        let queues = Queues::new(emulator.endpoint());
        let fifo = [(QueueAttributeName::FifoQueue, "true")];
        let queue_urls = [queues.create("tickets.fifo", &fifo).await?, queues.create("audit", &[]).await?];
        println!("  SQS emulator         {}, queues tickets.fifo and audit", emulator.endpoint());

        let recipe = Recipe {
            binary,
            database_url,
            destinations: format!("tickets={},audit={}", queue_urls[0], queue_urls[1]),
            sqs_endpoint: emulator.endpoint().to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
            log: folder.relay_log(),
        };
        recipe.migrate().await?;
        shop::open(&recipe.database_url, flags.season().draws).await?;
        let mut relay = recipe.start()?;
        relay.wait_until_ready().await?;
        let took = spoken(started.elapsed());
        println!("  outbox-relay         migrated and running as process {} (after {took})", relay.process_id());
        Ok(Stage { relay: Some(relay), emulator, _cluster: cluster, folder, recipe, queue_urls })
    }

    /// Sells and delivers everything, with an outage half-way.
    pub async fn play(&mut self, season: Season) -> Result<Report> {
        let clock = Instant::now();
        let mut scene = Scene::open(self, season, clock).await?;
        let outage = scene.outage(season.purchases / 2).await?;
        let selling = scene.sell_out().await?;
        scene.arrive().await?;
        scene.close(outage, selling, season.draws).await
    }

    /// Prints how to look around a stage that stays up.
    pub fn print_urls(&self) {
        let Recipe { database_url, listen, sqs_endpoint, .. } = &self.recipe;
        let [tickets, audit] = &self.queue_urls;
        println!("Everything stays up until Ctrl-C; the consumers have gone home.");
        println!();
        println!("  database      {database_url}");
        println!("  tickets       {tickets}");
        println!("  audit         {audit}");
        println!("  metrics       http://{listen}/metrics");
        println!("  probes        http://{listen}/livez  http://{listen}/readyz");
        println!("  relay's log   {}", self.folder.relay_log().display());
        println!();
        println!("Send a message and receive it:");
        println!();
        println!(
            "  psql '{database_url}' -c \"SELECT outbox.enqueue('audit', 'Greeted', '{{\\\"hello\\\": \\\"world\\\"}}')\""
        );
        println!("  AWS_ACCESS_KEY_ID=demo AWS_SECRET_ACCESS_KEY=demo AWS_DEFAULT_REGION=us-east-1 \\");
        println!("    aws --endpoint-url {sqs_endpoint} sqs receive-message --queue-url {audit}");
        println!();
    }

    /// Stops the relay as an operator would; everything else ends by being dropped.
    pub async fn strike(&mut self) -> Result<()> {
        if let Some(relay) = self.relay.take() {
            relay.stop().await?;
        }
        Ok(())
    }

    /// The file of the relay's log.
    pub fn relay_log(&self) -> PathBuf {
        self.folder.relay_log()
    }

    /// All went well: nothing needs to be kept.
    pub fn forget_log(&self) {
        self.folder.forget_log();
    }

    fn relay(&mut self) -> Result<&mut Relay> {
        self.relay.as_mut().context("there is no relay")
    }
}

async fn server_version(database_url: &str) -> Result<String> {
    let client = shop::connect(database_url).await?;
    let version: String = client.query_one("SHOW server_version", &[]).await?.get(0);
    Ok(version.split(' ').next().unwrap_or_default().to_owned())
}

/// The scenario while it runs.
struct Scene<'stage> {
    stage: &'stage mut Stage,
    screen: Screen,
    clock: Instant,
    till: Arc<Till>,
    /// Tickets and audit.
    inboxes: [Arc<Inbox>; 2],
    writers: JoinSet<Result<()>>,
    receivers: [JoinSet<Result<()>>; 2],
    stop_receivers: CancellationToken,
    queues: Queues,
    metrics: Metrics,
    next_metrics: Instant,
    peak_memory: Option<u64>,
}

impl<'stage> Scene<'stage> {
    async fn open(stage: &'stage mut Stage, season: Season, clock: Instant) -> Result<Scene<'stage>> {
        let endpoint = stage.emulator.endpoint().to_owned();
        let stop_receivers = CancellationToken::new();
        let inboxes = [Arc::default(), Arc::default()];
        let receive = |index: usize| {
            consumer::receive(&endpoint, &stage.queue_urls[index], &inboxes[index], clock, &stop_receivers)
        };
        let receivers = [receive(0), receive(1)];
        let till = Arc::default();
        let writers = shop::sell(&stage.recipe.database_url, season, clock, &till).await?;
        Ok(Scene {
            stage,
            screen: Screen::open(clock),
            clock,
            till,
            inboxes,
            writers,
            receivers,
            stop_receivers,
            queues: Queues::new(&endpoint),
            metrics: Metrics::default(),
            next_metrics: clock,
            peak_memory: None,
        })
    }

    /// Waits until this many purchases are made, kills the relay, and starts another.
    async fn outage(&mut self, purchases: u64) -> Result<Outage> {
        while self.till.committed() + self.till.rolled_back() < purchases {
            self.pass().await?;
        }
        self.look_at_relay().await?;
        let unclear = self.unclear();
        let relay = self.stage.relay.take().context("there is no relay")?;
        let process_id = relay.process_id();
        let killed_at = self.clock.elapsed();
        relay.kill()?;
        self.metrics = Metrics::default();
        self.screen.say(&format!("kill -9 {process_id}: the relay is gone, the shop goes on selling"));
        let in_flight = self.aftermath(killed_at).await?;
        self.stage.relay = Some(self.stage.recipe.start()?);
        let lasted = self.clock.elapsed().saturating_sub(killed_at);
        let process_id = self.stage.relay()?.process_id();
        let again = grouped((in_flight[0] + in_flight[1]) as u64);
        self.screen
            .say(&format!("process {process_id} takes over, and sends again what was in flight ({again} messages)"));
        Ok(Outage { killed_at, lasted, in_flight, unclear })
    }

    /// Lets everything finish that the dead relay had under way, and counts the messages that a queue has accepted
    /// without the outbox knowing.
    async fn aftermath(&mut self, killed_at: Duration) -> Result<[usize; 2]> {
        let client = shop::connect(&self.stage.recipe.database_url).await?;
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'outbox-relay%'";
        let mut quiet = 0;
        while quiet < 3 || self.clock.elapsed() < killed_at + OUTAGE {
            self.pass().await?;
            let left: i64 = client.query_one(sessions, &[]).await?.get(0);
            quiet = if left == 0 && self.queues_are_empty().await? { quiet + 1 } else { 0 };
            ensure!(
                self.clock.elapsed() < killed_at + AFTERMATH_TIMEOUT,
                "{left} sessions of the killed relay are left, or a queue does not run empty"
            );
        }
        let pending = "SELECT (e.payload ->> 'ticket')::bigint
            FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
            WHERE m.status = 'pending' AND m.destination = $1";
        let mut in_flight = [0, 0];
        for (index, destination) in ["tickets", "audit"].iter().enumerate() {
            let rows = client.query(pending, &[destination]).await?;
            let received = |row: &&tokio_postgres::Row| self.inboxes[index].has(row.get::<_, i64>(0).cast_unsigned());
            in_flight[index] = rows.iter().filter(received).count();
        }
        Ok(in_flight)
    }

    /// Waits for the writers; returns how long all the selling took.
    async fn sell_out(&mut self) -> Result<Duration> {
        while !self.writers.is_empty() {
            self.pass().await?;
        }
        Ok(self.clock.elapsed())
    }

    /// Waits until everything has arrived and nothing more can come, or until nothing comes any more.
    async fn arrive(&mut self) -> Result<()> {
        let client = shop::connect(&self.stage.recipe.database_url).await?;
        let mut seen = [0, 0];
        let mut changed = Instant::now();
        loop {
            self.pass().await?;
            let arrived = [self.inboxes[0].tickets(), self.inboxes[1].tickets()];
            if arrived != seen {
                (seen, changed) = (arrived, Instant::now());
            }
            let pending = "SELECT EXISTS (SELECT FROM outbox.messages WHERE status = 'pending')";
            let all = arrived.iter().all(|count| *count as u64 >= self.till.committed());
            if all && !client.query_one(pending, &[]).await?.get::<_, bool>(0) && self.queues_are_empty().await? {
                return Ok(());
            }
            if changed.elapsed() > STALL_TIMEOUT {
                self.screen.say("nothing has arrived for a long time; what is missing counts as lost");
                return Ok(());
            }
        }
    }

    /// Stops the consumers and computes the accounts.
    async fn close(mut self, outage: Outage, selling: Duration, draws: u64) -> Result<Report> {
        self.look_at_relay().await?;
        // Each receiver waits a last second at its queue: a late duplicate is still recorded.
        self.stop_receivers.cancel();
        while self.receivers.iter().any(|receivers| !receivers.is_empty()) {
            self.pass().await?;
        }
        self.screen.close(&self.state());
        let sales = shop::audit(&self.stage.recipe.database_url, &self.till).await?;
        let unclear = outage.unclear + self.unclear();
        Ok(Report {
            committed: sales.len(),
            rolled_back: self.till.rolled_back(),
            tickets: Account::of(&sales, &self.inboxes[0].receipts()),
            audit: Account::of(&sales, &self.inboxes[1].receipts()),
            draws,
            selling,
            outage: Outage { unclear, ..outage },
            peak_memory: self.peak_memory,
        })
    }

    /// Waits a moment: fails if a task failed, and shows the progress.
    async fn pass(&mut self) -> Result<()> {
        tokio::time::sleep(PAUSE).await;
        while let Some(ended) = self.writers.try_join_next() {
            ended?.context("a writer failed")?;
        }
        for receivers in &mut self.receivers {
            while let Some(ended) = receivers.try_join_next() {
                ended?.context("a receiver failed")?;
            }
        }
        if self.next_metrics < Instant::now() {
            self.next_metrics = Instant::now() + METRICS_PAUSE;
            self.look_at_relay().await?;
        }
        let state = self.state();
        self.screen.show(&state);
        Ok(())
    }

    async fn look_at_relay(&mut self) -> Result<()> {
        if let Some(relay) = self.stage.relay.as_mut() {
            relay.ensure_alive()?;
            self.peak_memory = self.peak_memory.max(relay.peak_memory());
            if let Some(metrics) = relay.metrics().await? {
                self.metrics = metrics;
            }
        }
        Ok(())
    }

    fn state(&self) -> State {
        let value = |name, destination| self.metrics.value(name, destination);
        let backlog = || {
            let backlog = value("backlog_messages", "tickets") + value("backlog_messages", "audit");
            (backlog, value("lag_seconds", "tickets").max(value("lag_seconds", "audit")))
        };
        State {
            committed: self.till.committed(),
            rolled_back: self.till.rolled_back(),
            tickets: self.inboxes[0].tickets(),
            audit: self.inboxes[1].tickets(),
            backlog: self.stage.relay.is_some().then(backlog),
        }
    }

    /// Entries at the standard queue that may have arrived although no answer said so.
    fn unclear(&self) -> usize {
        self.metrics.value("possible_duplicates_total", "audit") as usize
    }

    async fn queues_are_empty(&self) -> Result<bool> {
        for queue_url in &self.stage.queue_urls {
            let depth = self.queues.depth(queue_url).await?;
            if depth.visible + depth.in_flight > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
