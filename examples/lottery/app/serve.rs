//! The whole lottery running: database, queues, relay, instances of the command side, read models, and a page that
//! shows it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sqs::types::QueueAttributeName;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::audit;
use super::buyers::{Balancer, Crowd, Tally};
use super::processes::Process;
use super::views;
use crate::folder::Folder;
use crate::interrupts::Interrupts;
use crate::relay::{Recipe, Relay, run_to_the_end};
use crate::screen::grouped;
use support::emulator::{Emulator, Queues};
use support::lottery::shop::{connect, draw_name};
use support::postgres::{Cluster, Options, free_port};

const PAGE: &str = include_str!("page.html");

/// Read models, and so destinations and queues.
const VIEWS: [&str; 3] = ["tickets", "sales", "payouts"];

/// What a ticket costs.
const PRICE: i64 = 5;

/// After the read models have not changed for this long, what is missing will not come.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause between two checks.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the whole lottery: buyers, several instances, read models, and a page
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Tickets to sell before the draw; 0 sells until Ctrl-C
    #[arg(long, default_value_t = 0)]
    pub purchases: u64,
    /// Instances of the command side
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub instances: u16,
    /// Buyers at work at the same time
    #[arg(long, default_value_t = 6)]
    pub buyers: u64,
    /// Draws that tickets are for; each is a stream, and a group of the FIFO queues
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub draws: u64,
    /// Decides who buys what
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The address of the page
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// How long a buyer thinks
    #[arg(long, default_value = "20ms", value_parser = humantime::parse_duration)]
    pub think: Duration,
    /// Stay up after the draw, until Ctrl-C
    #[arg(long)]
    pub stay: bool,
}

/// Everything that runs; dropped in the order of the fields.
struct House {
    instances: Vec<Process>,
    views: Vec<Process>,
    relay: Option<Relay>,
    recipe: Recipe,
    queue_urls: Vec<String>,
    _emulator: Emulator,
    _cluster: Cluster,
    folder: Folder,
}

/// Sells, draws, pays, audits, rebuilds the read models and audits again; returns whether all was well.
pub async fn run(serve: &Serve, folder: &std::path::Path, relay: PathBuf, interrupts: &mut Interrupts) -> Result<bool> {
    let mut house = House::build(serve, folder, relay).await?;
    let balancer = Balancer::new(house.instances.iter().map(|instance| instance.address.clone()).collect());
    let page = house.show(serve.listen, &balancer).await?;
    for draw in 0..serve.draws {
        must(&balancer, &format!("/draws/{}", draw_name(draw)), &json!({"price": PRICE})).await?;
    }
    println!("  page                 http://{page}/");
    let tally = Arc::new(Tally::default());
    let stop = CancellationToken::new();
    let crowd = Crowd { buyers: serve.buyers, draws: serve.draws, seed: serve.seed, think: serve.think };
    let mut buyers = crowd.buy(&balancer, &tally, Instant::now(), &stop);
    while serve.purchases == 0 || tally.bought() < serve.purchases {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = interrupts.next() => break,
        }
    }
    stop.cancel();
    while buyers.join_next().await.is_some() {}
    let broken = tokio::select! {
        broken = house.finish(serve.draws, &balancer, &tally) => broken?,
        () = interrupts.next() => bail!("interrupted a second time, before everything was audited"),
    };
    if serve.stay {
        println!("Everything stays up until Ctrl-C.");
        interrupts.next().await;
    }
    house.strike().await?;
    if broken.is_empty() {
        println!("PASSED: the money adds up, nothing was sold after a draw, every read model is what the events say.");
        house.folder.forget_log();
    } else {
        println!("FAILED:");
        broken.iter().for_each(|broken| println!("  {broken}"));
    }
    Ok(broken.is_empty())
}

async fn must(balancer: &Balancer, path: &str, body: &Value) -> Result<()> {
    let (status, said) = balancer.post(path, body).await?;
    ensure!(status == 200, "{path} answered {status}: {said}");
    Ok(())
}

impl House {
    async fn build(serve: &Serve, folder: &std::path::Path, binary: PathBuf) -> Result<House> {
        let folder = Folder::prepare(folder)?;
        let below = Some(folder.path().to_owned());
        let cluster = tokio::task::spawn_blocking(|| Cluster::start(&Options { below, ..Options::default() }));
        let emulator = tokio::task::spawn_blocking(Emulator::start);
        let (cluster, emulator) = (cluster.await??, emulator.await??);
        cluster.create_database("lottery").await?;
        let queues = Queues::new(emulator.endpoint());
        let mut queue_urls = Vec::new();
        for view in VIEWS {
            // A message that a consumer did not finish comes again soon.
            let fifo = [(QueueAttributeName::FifoQueue, "true"), (QueueAttributeName::VisibilityTimeout, "5")];
            queue_urls.push(queues.create(&format!("{view}.fifo"), &fifo).await?);
        }
        let pairs: Vec<String> = VIEWS.iter().zip(&queue_urls).map(|(name, url)| format!("{name}={url}")).collect();
        let recipe = Recipe {
            binary,
            database_url: cluster.url("lottery"),
            destinations: pairs.join(","),
            sqs_endpoint: emulator.endpoint().to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
            log: folder.relay_log(),
        };
        recipe.migrate().await?;
        connect(&recipe.database_url).await?.batch_execute(views::TABLES).await?;
        let mut relay = recipe.start()?;
        relay.wait_until_ready().await?;
        let mut house = House {
            instances: Vec::new(),
            views: Vec::new(),
            relay: Some(relay),
            recipe,
            queue_urls,
            _emulator: emulator,
            _cluster: cluster,
            folder,
        };
        for view in 0..VIEWS.len() {
            let process = house.start_view(view).await?;
            house.views.push(process);
        }
        let commands = ["commands", "--database-url", &house.recipe.database_url].map(str::to_owned);
        for _ in 0..serve.instances {
            let instance = Process::start(&commands, &house.recipe.sqs_endpoint, &house.recipe.log).await?;
            house.instances.push(instance);
        }
        println!("  database, queues     {} and {}", house.recipe.database_url, house.recipe.sqs_endpoint);
        println!("  command side         {} instances", house.instances.len());
        println!("  read models          {}, a consumer each", VIEWS.join(", "));
        Ok(house)
    }

    async fn start_view(&self, view: usize) -> Result<Process> {
        let arguments =
            ["view", VIEWS[view], "--database-url", &self.recipe.database_url, "--queue", &self.queue_urls[view]];
        Process::start(&arguments.map(str::to_owned), &self.recipe.sqs_endpoint, &self.recipe.log).await
    }

    /// Serves the page; returns its address.
    async fn show(&self, listen: SocketAddr, balancer: &Balancer) -> Result<SocketAddr> {
        let listener =
            tokio::net::TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        let page = Page {
            database_url: self.recipe.database_url.clone(),
            relay: self.recipe.listen,
            balancer: balancer.clone(),
        };
        let routes = Router::new()
            .route("/", get(|| async { ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE) }))
            .route("/state", get(state))
            .route("/draws/{draw}/{what}", post(forward))
            .with_state(page);
        // It ends with the program.
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(address)
    }

    /// Draws what is left, pays, and audits; returns what is wrong.
    async fn finish(&mut self, draws: u64, balancer: &Balancer, tally: &Tally) -> Result<Vec<String>> {
        for draw in 0..draws {
            must(balancer, &format!("/draws/{}/draw", draw_name(draw)), &json!({})).await?;
            must(balancer, &format!("/draws/{}/payout", draw_name(draw)), &json!({})).await?;
        }
        self.settle(tally).await
    }

    /// Waits for the read models, audits them, rebuilds each from history, and audits again.
    async fn settle(&mut self, tally: &Tally) -> Result<Vec<String>> {
        let database = connect(&self.recipe.database_url).await?;
        let broken = caught_up(&database).await?;
        let money = audit::money(&database).await?;
        println!();
        println!("  tickets sold         {}", grouped(tally.bought()));
        println!(
            "  money in             {} = {} refunded + {} won + {} balance",
            money.paid_in, money.refunded, money.won, money.balance
        );
        if !broken.is_empty() {
            return Ok(broken);
        }
        for view in 0..VIEWS.len() {
            let broken = self.build_anew(view, &database).await?;
            if !broken.is_empty() {
                return Ok(broken);
            }
        }
        println!();
        Ok(vec![])
    }

    /// Deletes a read model with its inbox and fills it from history; returns what is wrong then.
    async fn build_anew(&mut self, view: usize, database: &tokio_postgres::Client) -> Result<Vec<String>> {
        let name = VIEWS[view];
        let forget = format!("TRUNCATE views.{name}; DELETE FROM outbox.inbox WHERE consumer = '{name}'");
        self.views.remove(view).stop().await?;
        database.batch_execute(&forget).await?;
        let process = self.start_view(view).await?;
        self.views.insert(view, process);
        let started = Instant::now();
        run_to_the_end(&self.recipe, &["replay", "--destination", name, "--yes"]).await?;
        let broken = caught_up(database).await?;
        let line = format!("{name}, rebuilt");
        println!("  {line:<20} from history in {:.1} s, with outbox-relay replay", started.elapsed().as_secs_f64());
        Ok(broken)
    }

    async fn strike(&mut self) -> Result<()> {
        for process in self.instances.drain(..).chain(self.views.drain(..)) {
            process.stop().await?;
        }
        match self.relay.take() {
            Some(relay) => relay.stop().await,
            None => Ok(()),
        }
    }
}

/// What is still wrong after the read models had time to catch up.
async fn caught_up(database: &tokio_postgres::Client) -> Result<Vec<String>> {
    let progress = "SELECT count(*) FROM outbox.inbox";
    let (mut accepted, mut since) = (-1, Instant::now());
    loop {
        let broken = audit::broken(database).await?;
        let now: i64 = database.query_one(progress, &[]).await?.get(0);
        if now != accepted {
            (accepted, since) = (now, Instant::now());
        }
        if broken.is_empty() || since.elapsed() > STALL_TIMEOUT {
            return Ok(broken);
        }
        tokio::time::sleep(PAUSE * 5).await;
    }
}

#[derive(Debug, Clone)]
struct Page {
    database_url: String,
    relay: SocketAddr,
    balancer: Balancer,
}

async fn state(State(page): State<Page>) -> impl IntoResponse {
    match page.state().await {
        Ok(state) => (StatusCode::OK, state.to_string()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, json!({"error": format!("{error:#}")}).to_string()),
    }
}

/// A button of the page.
async fn forward(
    State(page): State<Page>,
    Path((draw, what)): Path<(String, String)>,
    body: Bytes,
) -> impl IntoResponse {
    let body = serde_json::from_slice(&body).unwrap_or_default();
    match page.balancer.post(&format!("/draws/{draw}/{what}"), &body).await {
        Ok((status, said)) => (StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), said.to_string()),
        Err(error) => (StatusCode::BAD_GATEWAY, json!({"error": format!("{error:#}")}).to_string()),
    }
}

impl Page {
    /// The current figures of the read models and of the relay's metrics.
    async fn state(&self) -> Result<Value> {
        let database = connect(&self.database_url).await?;
        let query = "SELECT draw, sold, cancelled, revenue, refunds, prizes, numbers FROM views.sales ORDER BY draw";
        let draw = |row: &tokio_postgres::Row| {
            json!({
                "draw": row.get::<_, String>(0), "sold": row.get::<_, i64>(1), "cancelled": row.get::<_, i64>(2),
                "revenue": row.get::<_, i64>(3), "refunds": row.get::<_, i64>(4), "prizes": row.get::<_, i64>(5),
                "numbers": row.get::<_, Option<String>>(6),
            })
        };
        let draws: Vec<Value> = database.query(query, &[]).await?.iter().map(draw).collect();
        // A relay that does not answer has no figures, which is not the same as an empty backlog.
        let metrics = crate::relay::metrics_of(self.relay).await.unwrap_or_default();
        let of = |view: &&str| {
            json!({
                "destination": view, "lag": metrics.find("lag_seconds", view),
                "backlog": metrics.find("backlog_messages", view),
                "delivered": metrics.find("delivered_messages_total", view),
            })
        };
        Ok(json!({"draws": draws, "relay": VIEWS.iter().map(of).collect::<Vec<Value>>()}))
    }
}
