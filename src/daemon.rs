//! The daemon: builds everything from the configuration, supervises it, and shuts it down in order.
//!
//! Shutdown: the relays take no more messages, finish the requests in flight and record the outcomes; then the janitor
//! and the HTTP server stop. The last spans are exported in between, for two seconds at most. The drain timeout or a second
//! signal cuts this short. Nothing is lost then, but messages in flight are published again.
//!
//! When `outbox.destinations` changes (`table.rs`), the relays are drained in the same way, everything is assembled again
//! (`assembly.rs`), and the HTTP server shows the new parts. Metrics stay.

mod assembly;
mod table;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use assembly::Settings;
use assembly::{Assembly, Process, assemble};
use table::Source;

use crate::clock::Time;
use crate::config::{ConfiguredDestinations, RelayConfig};
use crate::files::{self, TooFew};
use crate::http;
use crate::metrics::Metrics;
use crate::relay::{RelayError, RunSummary, Until};
use crate::shutdown::{self, Shutdown, Signals};
use crate::traces::{Exporting, Spans};

/// How the daemon ended, for the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It drained, or everything was delivered.
    Done(RunSummary),
    /// The drain timeout or a second signal came first.
    Aborted,
}

/// How the work on one set of destinations ended.
enum Ended {
    /// With the process.
    Finally(Outcome),
    /// Other destinations are to be served.
    Changed(RunSummary, ConfiguredDestinations),
}

/// Runs until a signal, or until everything is delivered.
///
/// # Errors
///
/// When something cannot be set up, or a vital task fails.
pub async fn run(config: RelayConfig, settings: Settings, until: Until, metrics: Metrics) -> anyhow::Result<Outcome> {
    let shutdown = Shutdown::default();
    // Installed first: before anybody can see the process and stop it.
    let signals = Signals::install().context("signals cannot be received")?;
    let signals = tokio::spawn(shutdown::watch(signals, shutdown.clone()));
    let metrics = Arc::new(metrics);
    let (spans, exporter) = Spans::new(config.traces.as_ref(), &metrics).map_err(anyhow::Error::msg)?;
    let process = Process { config, settings, until, metrics, spans, started: Time::now() };
    let assembly = assemble(&process, None).await?;
    let listener = TcpListener::bind(process.config.http_listen)
        .await
        .with_context(|| format!("cannot listen on OUTBOX_RELAY_HTTP_LISTEN={}", process.config.http_listen))?;
    announce(&process.config, &listener);
    let (shown, current) = watch::channel(assembly.shown.clone());
    let stop = CancellationToken::new();
    let server = tokio::spawn(http::serve(listener, current, stop.clone()));
    let drained_since = AbortOnDropHandle::new(tokio::spawn(noted(shutdown.drain.clone())));
    let exporting = exporter.start();
    let mut frame = Frame { shutdown, signals, server };
    let outcome = serve(&process, assembly, &shown, &mut frame).await;
    finish(exporting, &outcome, &frame.shutdown, drained_since, process.config.drain_timeout).await;
    stop.cancel();
    frame.signals.abort();
    // It stops at once when told; a scraper that holds its connection open must not keep the process alive.
    if tokio::time::timeout(Duration::from_secs(1), &mut frame.server).await.is_err() {
        frame.server.abort();
    }
    outcome
}

/// When the process began to drain.
async fn noted(drain: CancellationToken) -> Instant {
    drain.cancelled().await;
    Instant::now()
}

/// Exports the last spans. Once everything is delivered, spans alone must not make the end late.
async fn finish(
    exporting: Exporting,
    outcome: &anyhow::Result<Outcome>,
    shutdown: &Shutdown,
    drained_since: AbortOnDropHandle<Instant>,
    drain_timeout: Duration,
) {
    let cut = async {
        if matches!(outcome, Ok(Outcome::Aborted)) {
            return;
        }
        let left = async {
            let since = drained_since.await.unwrap_or_else(|_| Instant::now());
            tokio::time::sleep(drain_timeout.saturating_sub(since.elapsed())).await;
        };
        tokio::select! {
            () = left => {}
            () = shutdown.abort.cancelled() => {}
        }
    };
    exporting.finish(cut).await;
}

/// The tasks that go on while destinations change.
struct Frame {
    shutdown: Shutdown,
    signals: JoinHandle<()>,
    server: JoinHandle<()>,
}

/// Works on one set of destinations after the other.
async fn serve(
    process: &Process,
    mut assembly: Assembly,
    shown: &watch::Sender<http::Shown>,
    frame: &mut Frame,
) -> anyhow::Result<Outcome> {
    let mut before = RunSummary::default();
    loop {
        let names = assembly.names.clone();
        match work(process, assembly, frame).await? {
            Ended::Finally(Outcome::Done(summary)) => return Ok(Outcome::Done(both(before, summary))),
            Ended::Finally(Outcome::Aborted) => return Ok(Outcome::Aborted),
            Ended::Changed(summary, table) => {
                // It was cut short by the change, and goes on.
                before = both(before, RunSummary { is_cut_short: false, is_blocked: false, ..summary });
                assembly = assemble(process, Some(table)).await?;
                shown.send_replace(assembly.shown.clone());
                // Not before: the old page would start the series again.
                names
                    .iter()
                    .filter(|name| !assembly.names.contains(name))
                    .for_each(|name| process.metrics.forget(name));
            }
        }
    }
}

/// Runs all parts until the process is to end, or until other destinations are to be served.
async fn work(process: &Process, assembly: Assembly, frame: &mut Frame) -> anyhow::Result<Ended> {
    let stop = CancellationToken::new();
    let Assembly { relays, source, is_known, .. } = assembly;
    let mut vital = Vital::new();
    let page = Arc::clone(&assembly.shown.page).remember(assembly.memory, stop.clone());
    let (janitor, poller) = (assembly.janitor.run(stop.clone()), assembly.poller.run(stop.clone()));
    let (timer, control) = (assembly.timer.run(stop.clone()), assembly.control.run(stop.clone()));
    vital.spawn(async move {
        page.await;
        "the memory of the status page ended".to_owned()
    });
    vital.spawn(async move {
        control.await;
        "the control poller ended".to_owned()
    });
    vital.spawn(async move {
        janitor.await;
        "the janitor ended".to_owned()
    });
    vital.spawn(async move {
        poller.await;
        "the poller ended".to_owned()
    });
    vital.spawn(async move {
        timer.await;
        "the timer ended".to_owned()
    });
    let drain = frame.shutdown.drain.child_token();
    let mut running = JoinSet::new();
    // With nothing to serve, `--until-empty` is done as soon as it knows that.
    let waits = relays.is_empty() && !(is_known && process.until == Until::Empty);
    for relay in relays {
        running.spawn(relay.run(process.until, drain.clone()));
    }
    let joined = async {
        if waits {
            drain.cancelled().await;
        }
        join_relays(&mut running, &drain).await
    };
    let ended = until_ended(joined, source, (&mut vital, frame), (&drain, process.config.drain_timeout)).await;
    stop.cancel();
    running.shutdown().await;
    // These stop at once when told.
    let all_ended = async { while vital.join_next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(1), all_ended).await.ok();
    vital.shutdown().await;
    ended
}

/// Waits until the relays have ended, and tells them to drain when other destinations are to be served.
async fn until_ended(
    joined: impl Future<Output = anyhow::Result<RunSummary>>,
    source: Source,
    (vital, frame): (&mut Vital, &mut Frame),
    (drain, drain_timeout): (&CancellationToken, Duration),
) -> anyhow::Result<Ended> {
    let changed = source.changed();
    tokio::pin!(joined, changed);
    let mut next = None;
    loop {
        tokio::select! {
            ended = &mut joined => return ended.map(|summary| ended_with(frame, summary, next)),
            () = deadline(drain, &frame.shutdown.abort, drain_timeout) => {
                return Ok(match next {
                    Some(table) if !frame.shutdown.drain.is_cancelled() => Ended::Changed(RunSummary::default(), table),
                    _ => Ended::Finally(Outcome::Aborted),
                });
            }
            table = &mut changed, if next.is_none() => {
                next = Some(table?);
                drain.cancel();
            }
            // None of these ends on its own while the relays run.
            problem = first_to_end(vital) => return Err(problem),
            ended = &mut frame.signals => return Err(anyhow::anyhow!("signals cannot be received: {ended:?}")),
            ended = &mut frame.server => return Err(anyhow::anyhow!("the HTTP server ended: {ended:?}")),
        }
    }
}

/// A signal that comes while destinations change ends the process all the same.
fn ended_with(frame: &Frame, summary: RunSummary, next: Option<ConfiguredDestinations>) -> Ended {
    match next {
        Some(table) if !frame.shutdown.drain.is_cancelled() => Ended::Changed(summary, table),
        _ => Ended::Finally(Outcome::Done(summary)),
    }
}

/// The sum of two summaries.
fn both(one: RunSummary, other: RunSummary) -> RunSummary {
    RunSummary {
        delivered: one.delivered + other.delivered,
        dead: one.dead + other.dead,
        quarantined: one.quarantined + other.quarantined,
        is_blocked: one.is_blocked || other.is_blocked,
        is_cut_short: one.is_cut_short || other.is_cut_short,
    }
}

/// Tasks that the daemon cannot do without; each returns the message to report when it ends.
type Vital = JoinSet<String>;

async fn first_to_end(vital: &mut Vital) -> anyhow::Error {
    match vital.join_next().await {
        Some(Ok(sentence)) => anyhow::anyhow!(sentence),
        Some(Err(crash)) => anyhow::anyhow!("a part of the daemon crashed: {crash}"),
        None => std::future::pending().await,
    }
}

/// Says that everything is ready, and whether too few files may be open.
fn announce(config: &RelayConfig, listener: &TcpListener) {
    tracing::info!(
        version = env!("BUILD_VERSION"),
        database = %config.database.place(),
        schema = %config.database.schema,
        destinations = %names(config),
        listen = %listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string()),
        "outbox-relay starts"
    );
    if let Err(TooFew { may_open, needed }) = files::raise_limit(config) {
        tracing::warn!(
            may_open,
            needed,
            "too few files may be open at a time; raise the limit (ulimit -n, LimitNOFILE), or lower OUTBOX_RELAY_MAX_IN_FLIGHT"
        );
    }
}

fn names(config: &RelayConfig) -> String {
    if config.follows_the_table() {
        return "outbox.destinations".to_owned();
    }
    let names: Vec<&str> = config.destinations.iter().map(|destination| destination.name.as_str()).collect();
    names.join(",")
}

/// Waits for all relays. When one gives up, the others finish their requests in flight, so that those are not published
/// again.
async fn join_relays(
    relays: &mut JoinSet<Result<RunSummary, RelayError>>,
    drain: &CancellationToken,
) -> anyhow::Result<RunSummary> {
    let (mut total, mut failure) = (RunSummary::default(), None);
    while let Some(joined) = relays.join_next().await {
        match joined.context("a relay crashed").and_then(|ended| Ok(ended?)) {
            Ok(ended) => {
                total = both(total, ended);
            }
            Err(error) => {
                // Logged here as well, because the drain timeout may come before the end that reports it.
                tracing::warn!(error = %error, "the relay of a destination gave up; what is in flight is finished");
                drain.cancel();
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(total), Err)
}

/// Completes when draining took too long, or when the second signal came.
async fn deadline(drain: &CancellationToken, abort: &CancellationToken, drain_timeout: Duration) {
    drain.cancelled().await;
    tokio::select! {
        () = tokio::time::sleep(drain_timeout) => {
            tracing::warn!(?drain_timeout, "not drained in time; what is in flight may be published again");
        }
        () = abort.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn when_one_relay_gives_up_the_others_finish_what_is_in_flight() {
        let drain = CancellationToken::new();
        let finished = CancellationToken::new();
        let mut relays = JoinSet::new();
        let halted = RelayError::Halted { destination: "tickets".to_owned(), reason: "no such queue".to_owned() };
        relays.spawn(async { Err(halted) });
        let (told, done) = (drain.clone(), finished.clone());
        relays.spawn(async move {
            told.cancelled().await;
            done.cancel();
            Ok(RunSummary::default())
        });
        let error = join_relays(&mut relays, &drain).await.unwrap_err();
        assert!(error.to_string().contains("no such queue"), "{error}");
        assert!(finished.is_cancelled(), "the other one was not awaited");
    }

    #[tokio::test]
    async fn a_crashed_vital_task_is_reported_and_the_others_can_still_be_awaited() {
        let stop = CancellationToken::new();
        let mut vital = Vital::new();
        vital.spawn(async { std::panic::resume_unwind(Box::new("a bug")) });
        let told = stop.clone();
        vital.spawn(async move {
            told.cancelled().await;
            "told".to_owned()
        });
        assert!(first_to_end(&mut vital).await.to_string().contains("crashed"));
        stop.cancel();
        assert_eq!(vital.join_next().await.unwrap().unwrap(), "told");
        assert!(vital.join_next().await.is_none());
    }
}
