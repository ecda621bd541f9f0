//! `outbox-relay dev`: everything that a first message needs, on this machine alone. A PostgreSQL of its own (or the one of
//! DATABASE_URL), a small SQS in memory, and the relay as `outbox-relay run` in a process of its own.
//!
//! It is a feature of the build and is not in the production image. It prints through a function of [`crate::cli`].
//! Read next: `relay.rs` and `cluster.rs` for the processes, `queues/` for SQS, `printer.rs` for what is shown.

mod binaries;
mod child;
mod cluster;
mod database;
mod host;
mod plan;
mod printer;
mod problem;
mod queues;
mod relay;
mod text;
mod voice;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Flags;
use crate::shutdown::{self, Shutdown, Signals};
use database::Database;
pub use plan::{Plan, RelayBy, Served};
use printer::Printer;
pub use problem::Unusable;
use queues::Server;
use relay::Program;
use text::{KEY, Setting};
pub use voice::Say;
use voice::Voice;

/// The region that is signed for; it does not matter.
const REGION: &str = "eu-west-1";

/// Where the relay's page is, unless a setting says otherwise or somebody else is there.
const METRICS_PORT: u16 = 9595;

/// How many messages may wait to be shown.
const TAP: usize = 20_000;

/// How long clients may hold their connections open at the end.
const LINGER: Duration = Duration::from_secs(1);

/// Settings that lead to a database; a cluster of our own needs none of them.
const DATABASE: [&str; 2] = ["DATABASE_URL", "OUTBOX_RELAY_DATABASE_"];

/// Runs until a signal, or until so many messages have arrived.
///
/// # Errors
///
/// [`Unusable`] when the user can put it right; anything else that cannot be started or ends by itself.
pub async fn run(flags: &Flags, plan: &Plan, say: Say) -> anyhow::Result<()> {
    let shutdown = Shutdown::default();
    // Installed first, so that nothing that was started outlives a signal.
    let signals = Signals::install().context("signals cannot be received")?;
    let watching = tokio::spawn(shutdown::watch(signals, shutdown.clone()));
    let hangups = signal(SignalKind::hangup()).context("signals cannot be received")?;
    let hanging = tokio::spawn(drain_on(hangups, shutdown.drain.clone()));
    let listener = listen(plan.sqs_listen).await?;
    let Some(mut database) = Database::start(flags, plan, &shutdown.drain).await? else { return Ok(()) };
    let (voice, speaker) = voice::start(say);
    let outcome = run_with(flags, plan, listener, &mut database, &shutdown, voice).await;
    // In any case, and last.
    let ended = database.end().await;
    speaker.end().await;
    watching.abort();
    hanging.abort();
    outcome.and(ended)
}

/// A terminal that is closed ends the command as SIGTERM does.
async fn drain_on(mut hangups: Signal, drain: CancellationToken) {
    hangups.recv().await;
    drain.cancel();
}

async fn run_with(
    flags: &Flags,
    plan: &Plan,
    listener: TcpListener,
    database: &mut Database,
    shutdown: &Shutdown,
    voice: Voice,
) -> anyhow::Result<()> {
    let (tap, arrivals) = mpsc::channel(TAP);
    let stop = CancellationToken::new();
    let endpoint = format!("http://{}", listener.local_addr()?);
    let server = Server::new(endpoint.clone(), REGION, tap, stop.clone());
    let queues = create(&server, &plan.queues)?;
    let metrics = metrics_address(flags)?;
    let exports = exports(database, &endpoint, &queues, metrics);
    let program = Program {
        path: host::this_program()?,
        variables: variables(flags, database.url().is_some(), exports.clone()),
        without: if database.url().is_some() { [&["AWS_", "PG"], &DATABASE[..]].concat() } else { vec!["AWS_"] },
    };
    let names: Vec<&str> = queues.iter().map(|(name, _)| name.as_str()).collect();
    tokio::select! {
        migrated = database.migrate(&program, plan, &names) => migrated?,
        () = shutdown.drain.cancelled() => return Ok(()),
    }
    let setting = Setting {
        database: database.typed(),
        about_database: database.about.clone(),
        psql: database.psql.clone(),
        endpoint,
        region: REGION.to_owned(),
        metrics: format!("http://{metrics}"),
        queues,
        schema: database.outbox.schema().clone(),
        exports,
        runs_relay: plan.relay == RelayBy::Us,
    };
    voice.say(text::instructions(&setting)).await;
    let supervised = match plan.relay {
        RelayBy::Us => tokio::spawn(program.supervise(shutdown.clone(), voice.clone())),
        RelayBy::User => tokio::spawn(nobody(shutdown.drain.clone())),
    };
    let serving = tokio::spawn(server.clone().serve(listener));
    let printer = Printer::new(arrivals, database.outbox.clone(), voice);
    let parts = Parts { supervised, serving, printer, server, stop };
    parts.run(database, plan.until_messages, shutdown).await
}

/// Binds the queues' address. Nothing there is checked, so nobody else may reach it.
async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    if !address.ip().is_loopback() {
        let sentence = format!(
            "--sqs-listen {address} can be reached by other machines, and the queues check no credentials; use an address such \
             as 127.0.0.1:9324"
        );
        return Err(Unusable(sentence).into());
    }
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = "use another, such as --sqs-listen 127.0.0.1:0";
        Unusable(format!("cannot listen on --sqs-listen {address}: {error}; {remedy}")).into()
    })
}

/// Creates the queues; each destination with its queue's URL.
fn create(server: &Server, names: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let mut queues: Vec<(String, String)> = Vec::new();
    if names.is_empty() {
        return Err(Unusable("--queues names no queue; name some, such as tickets.fifo,audit".to_owned()).into());
    }
    for name in names {
        let destination = name.strip_suffix(".fifo").unwrap_or(name);
        let unusable = |why: String| {
            Unusable(format!("--queues {name:?} cannot be used: {why}; name queues such as tickets.fifo,audit"))
        };
        if queues.iter().any(|(known, _)| known == destination) {
            return Err(unusable(format!("there are two queues for the destination {destination:?}")).into());
        }
        queues.push((destination.to_owned(), server.create(name).map_err(unusable)?));
    }
    Ok(queues)
}

/// Where the relay's page is: where the setting says, else on a port that is free.
fn metrics_address(flags: &Flags) -> anyhow::Result<SocketAddr> {
    let is_given = flags.given().any(|(name, _)| name == "OUTBOX_RELAY_HTTP_LISTEN");
    let mut address = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
    if is_given {
        address = flags.listen().map_err(|error| Unusable(error.to_string()))?;
    }
    if address.port() == 0 || (!is_given && !host::is_free(METRICS_PORT)) {
        address.set_port(host::free_port()?);
    }
    Ok(address)
}

/// The variables that lead a relay, an application and the AWS CLI to what runs here.
fn exports(
    database: &Database,
    endpoint: &str,
    queues: &[(String, String)],
    metrics: SocketAddr,
) -> Vec<(String, String)> {
    let destinations: Vec<String> = queues.iter().map(|(name, url)| format!("{name}={url}")).collect();
    let mut exports: Vec<(&str, String)> = Vec::new();
    exports.extend(database.url().map(|url| ("DATABASE_URL", url)));
    let schema = database.outbox.schema();
    exports.extend(schema.is_renamed().then(|| ("OUTBOX_RELAY_SCHEMA", schema.to_string())));
    exports.extend([
        ("OUTBOX_RELAY_DESTINATIONS", destinations.join(",")),
        ("OUTBOX_RELAY_HTTP_LISTEN", metrics.to_string()),
        ("AWS_ENDPOINT_URL_SQS", endpoint.to_owned()),
        ("AWS_REGION", REGION.to_owned()),
        // The first version of the AWS CLI reads only this one.
        ("AWS_DEFAULT_REGION", REGION.to_owned()),
        ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", KEY.to_owned()),
    ]);
    exports.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What the relay gets besides: the settings that were given here, and nothing that leads to the real AWS.
fn variables(flags: &Flags, has_cluster: bool, exports: Vec<(String, String)>) -> Vec<(String, String)> {
    let is_for_database = |name: &str| DATABASE.iter().any(|prefix| name.starts_with(prefix));
    let given = flags.given().filter(|(name, _)| !has_cluster || !is_for_database(name));
    let mut variables: Vec<(String, String)> = given.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    // Later ones win. Profiles could hold another endpoint or a role.
    variables.extend(exports);
    for name in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
        variables.push((name.to_owned(), "/dev/null".to_owned()));
    }
    variables
}

/// In place of a relay that the user runs.
async fn nobody(drain: CancellationToken) -> anyhow::Result<()> {
    drain.cancelled().await;
    Ok(())
}

/// What runs.
struct Parts {
    supervised: JoinHandle<anyhow::Result<()>>,
    serving: JoinHandle<std::io::Result<()>>,
    printer: Printer,
    server: Server,
    stop: CancellationToken,
}

/// Why it ends.
enum Ending {
    /// A signal, or enough messages.
    Told,
    /// The relay cannot be run.
    Relay(anyhow::Result<()>),
    /// Something else failed.
    Failed(anyhow::Error),
}

impl Parts {
    /// Shows messages until something ends; then the relay drains, and the queues end after it.
    async fn run(mut self, database: &mut Database, until: Option<u64>, shutdown: &Shutdown) -> anyhow::Result<()> {
        let ending = self.until_ended(database, until, shutdown).await;
        shutdown.drain.cancel();
        let outcome = match ending {
            Ending::Told => self.drain().await,
            Ending::Relay(ended) => ended,
            Ending::Failed(error) => self.drain().await.and(Err(error)),
        };
        self.stop.cancel();
        if !self.serving.is_finished() {
            timeout(LINGER, &mut self.serving).await.ok();
        }
        self.serving.abort();
        self.printer.end(self.server.unshown()).await;
        outcome
    }

    async fn until_ended(&mut self, database: &mut Database, until: Option<u64>, shutdown: &Shutdown) -> Ending {
        loop {
            tokio::select! {
                _ = self.printer.step() => {
                    if until.is_some_and(|until| self.printer.messages() >= until) {
                        return Ending::Told;
                    }
                }
                () = shutdown.drain.cancelled() => return Ending::Told,
                ended = &mut self.supervised => {
                    return Ending::Relay(ended.context("the task that runs the relay crashed").and_then(|ended| ended));
                }
                ended = &mut self.serving => return Ending::Failed(anyhow::anyhow!("the queues ended: {ended:?}")),
                error = database.failed() => return Ending::Failed(error),
            }
        }
    }

    /// Waits for the relay, and goes on showing what it still sends.
    async fn drain(&mut self) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                ended = &mut self.supervised => return ended.context("the task that runs the relay crashed")?,
                _ = self.printer.step() => {}
            }
        }
    }
}
