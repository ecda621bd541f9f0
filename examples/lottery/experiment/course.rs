//! One variant: a database, queues behind a proxy, instances, consumers, buyers, and the faults at their times.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use aws_sdk_sqs::types::QueueAttributeName;
use clap::ValueEnum as _;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::outcome::{self, Outcome, Trouble};
use super::{Experiment, Variant};
use crate::app::audit;
use crate::app::buyers::{Balancer, Crowd, Tally};
use crate::app::commands::Publishing;
use crate::app::processes::Process;
use crate::app::views;
use crate::folder::Folder;
use crate::relay::{Recipe, Relay};
use support::emulator::{Emulator, Queues};
use support::lottery::shop::{connect, draw_name};
use support::postgres::{Cluster, Options, StopMode, free_port};
use support::proxy::{Fault, Proxy, Rule};

/// Consumers, and so destinations and queues.
pub const VIEWS: [&str; 2] = ["tickets", "sales"];

const INSTANCES: usize = 3;

/// When the faults begin, as fractions of the time, and how long they last.
const KILLED_AT: f64 = 20.0 / 180.0;
const THROTTLED_AT: f64 = 60.0 / 180.0;
const UNREACHABLE_AT: f64 = 100.0 / 180.0;
const RESTARTED_AT: f64 = 140.0 / 180.0;
const THROTTLED_FOR: Duration = Duration::from_secs(10);
const UNREACHABLE_FOR: Duration = Duration::from_secs(10);

/// How long it takes until a killed process is restarted.
const STARTED_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The share of requests that a throttling queue refuses.
const THROTTLED_SHARE: f64 = 0.7;

/// After nothing has arrived for this long, nothing more will: it is longer than queues hide received messages.
const QUIET: Duration = Duration::from_secs(12);

/// Everything that runs; dropped in the order of the fields.
struct House {
    instances: Vec<Process>,
    _views: Vec<Process>,
    relay: Option<Relay>,
    recipe: Recipe,
    proxy: Proxy,
    latency: Duration,
    commands: Vec<String>,
    _emulator: Emulator,
    cluster: Arc<Cluster>,
    folder: Folder,
}

/// Runs a variant and returns its outcome.
pub async fn run(experiment: &Experiment, variant: Variant, folder: &Path, relay: PathBuf) -> Result<Outcome> {
    let mut house = House::build(experiment, variant, folder, relay).await?;
    let balancer = Balancer::new(house.instances.iter().map(|instance| instance.address.clone()).collect());
    for draw in 0..experiment.draws {
        let (status, said) = balancer.post(&format!("/draws/{}", draw_name(draw)), &json!({"price": 5})).await?;
        anyhow::ensure!(status == 200, "a draw cannot be opened: {said}");
    }
    let tally = Arc::new(Tally::default());
    let stop = CancellationToken::new();
    let crowd =
        Crowd { buyers: experiment.buyers, draws: experiment.draws, seed: experiment.seed, think: experiment.think };
    let time = Duration::from_secs(experiment.seconds);
    let clock = Instant::now();
    let mut buyers = crowd.buy(&balancer, &tally, clock, &stop);
    let mut troubles = Vec::new();
    if variant.with_faults {
        house.trouble(clock, time, &balancer, &mut troubles).await?;
    }
    tokio::time::sleep_until((clock + time).into()).await;
    let time = clock.elapsed();
    stop.cancel();
    while buyers.join_next().await.is_some() {}
    let database = connect(&house.recipe.database_url).await?;
    house.until_quiet(&database).await?;
    let broken = audit::broken_by_events(&database).await?;
    anyhow::ensure!(broken.is_empty(), "the application broke its own rules: {}", broken.join("; "));
    let outcome = outcome::of(&database, &tally.samples(), time, troubles).await?;
    if let Some(relay) = house.relay.take() {
        relay.stop().await?;
    }
    house.folder.forget_log();
    Ok(outcome)
}

impl House {
    async fn build(experiment: &Experiment, variant: Variant, folder: &Path, binary: PathBuf) -> Result<House> {
        let folder = Folder::prepare(folder)?;
        let below = Some(folder.path().to_owned());
        let options = Options { below, durable: true, ..Options::default() };
        let cluster = tokio::task::spawn_blocking(move || Cluster::start(&options));
        let emulator = tokio::task::spawn_blocking(Emulator::start);
        let (cluster, emulator) = (cluster.await??, emulator.await??);
        cluster.create_database("lottery").await?;
        let queues = Queues::new(emulator.endpoint());
        let mut pairs = Vec::new();
        let mut urls = Vec::new();
        for view in VIEWS {
            // A message that a consumer did not finish comes again soon.
            let url = queues.create(view, &[(QueueAttributeName::VisibilityTimeout, "5")]).await?;
            pairs.push(format!("{view}={url}"));
            urls.push(url);
        }
        let proxy = Proxy::start(emulator.endpoint()).await?;
        let recipe = Recipe {
            binary,
            database_url: cluster.url("lottery"),
            destinations: pairs.join(","),
            sqs_endpoint: proxy.endpoint(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
            log: folder.relay_log(),
        };
        recipe.migrate().await?;
        connect(&recipe.database_url).await?.batch_execute(views::TABLES).await?;
        let publish = variant.publishing.to_possible_value().context("no such way")?;
        let commands =
            ["commands", "--database-url", &recipe.database_url, "--publish", publish.get_name(), "--queues"];
        let mut commands = commands.map(str::to_owned).to_vec();
        commands.push(pairs.join(","));
        let mut house = House {
            instances: Vec::new(),
            _views: Vec::new(),
            relay: None,
            recipe,
            proxy,
            latency: experiment.latency,
            commands,
            _emulator: emulator,
            cluster: Arc::new(cluster),
            folder,
        };
        house.network(&[]);
        let endpoint = queues_endpoint(&urls[0]);
        for (view, url) in VIEWS.iter().zip(&urls) {
            let mut arguments: Vec<String> =
                ["view", view, "--database-url", &house.recipe.database_url, "--queue", url, "--account"]
                    .map(str::to_owned)
                    .to_vec();
            // A system that publishes without an outbox has no inbox either.
            if variant.publishing != Publishing::Outbox {
                arguments.push("--without-inbox".to_owned());
            }
            house._views.push(Process::start(&arguments, &endpoint, &house.recipe.log).await?);
        }
        if variant.publishing == Publishing::Outbox {
            let mut relay = house.recipe.start()?;
            relay.wait_until_ready().await?;
            house.relay = Some(relay);
        }
        for _ in 0..INSTANCES {
            let instance = house.start_instance().await?;
            house.instances.push(instance);
        }
        Ok(house)
    }

    async fn start_instance(&self) -> Result<Process> {
        Process::start(&self.commands, &self.recipe.sqs_endpoint, &self.recipe.log).await
    }

    /// What requests to the queue experience: the latency of SQS, and a share of refusals.
    fn network(&self, throttled: &[f64]) {
        let mut rules = Vec::new();
        for action in ["SendMessage", "SendMessageBatch"] {
            rules.push(Rule::new(Fault::latency(self.latency, 5)).action(action).and_more());
            for share in throttled {
                rules.push(Rule::new(Fault::throttle()).action(action).chance(*share, 7));
            }
        }
        self.proxy.script(rules);
    }

    /// The faults, at their times.
    async fn trouble(
        &mut self,
        clock: Instant,
        time: Duration,
        balancer: &Balancer,
        troubles: &mut Vec<Trouble>,
    ) -> Result<()> {
        let at = |part: f64| tokio::time::sleep_until((clock + time.mul_f64(part)).into());
        let noted = |what: &'static str, began: (Instant, SystemTime)| Trouble {
            what,
            began: began.0 - clock,
            ended: clock.elapsed(),
            began_at: began.1,
            ended_at: SystemTime::now(),
        };
        let now = || (Instant::now(), SystemTime::now());

        at(KILLED_AT).await;
        let began = now();
        self.instances.remove(0).kill().await?;
        let relay = self.relay.take().map(Relay::kill).transpose()?;
        tokio::time::sleep(STARTED_AGAIN_AFTER).await;
        if relay.is_some() {
            let mut relay = self.recipe.start()?;
            relay.wait_until_ready().await?;
            self.relay = Some(relay);
        }
        let instance = self.start_instance().await?;
        balancer.replace(0, &instance.address);
        self.instances.insert(0, instance);
        troubles.push(noted("publisher killed", began));

        at(THROTTLED_AT).await;
        let began = now();
        self.network(&[THROTTLED_SHARE]);
        tokio::time::sleep(THROTTLED_FOR).await;
        self.network(&[]);
        troubles.push(noted("queue throttled", began));

        at(UNREACHABLE_AT).await;
        let began = now();
        self.proxy.refuse_connections().await?;
        tokio::time::sleep(UNREACHABLE_FOR).await;
        self.proxy.accept_connections().await?;
        troubles.push(noted("queue unreachable", began));

        at(RESTARTED_AT).await;
        let began = now();
        let cluster = Arc::clone(&self.cluster);
        tokio::task::spawn_blocking(move || cluster.restart(StopMode::Fast)).await??;
        troubles.push(noted("PostgreSQL restarted", began));
        Ok(())
    }

    /// Waits until everything that will arrive has arrived.
    async fn until_quiet(&self, database: &tokio_postgres::Client) -> Result<()> {
        let progress = "SELECT (SELECT coalesce(sum(arrivals), 0) FROM views.accounts)::bigint,
            (SELECT count(*) FROM outbox.messages_pending)";
        let (mut last, mut since) = ((-1, -1), Instant::now());
        while since.elapsed() < QUIET {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let row = database.query_one(progress, &[]).await?;
            let seen: (i64, i64) = (row.get(0), row.get(1));
            if seen != last {
                (last, since) = (seen, Instant::now());
            }
        }
        Ok(())
    }
}

/// Consumers use the emulator directly: the faults are between it and the publishers.
fn queues_endpoint(url: &str) -> String {
    url.split('/').take(3).collect::<Vec<_>>().join("/")
}
