//! One database: its relays and all that goes with them run until the process drains, or until other destinations are to
//! be served; then everything is assembled again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use super::assembly::{Assembly, Setup, assemble};
use super::table::Source;
use crate::config::ConfiguredDestinations;
use crate::http;
use crate::relay::{RelayError, RunSummary, Until};
use crate::shutdown::Shutdown;

/// How the daemon, or its work on one database, ended.
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

/// Works on one set of destinations after the other.
///
/// # Errors
///
/// When something cannot be set up, or a vital task fails.
pub(super) async fn serve(
    setup: &Setup,
    mut assembly: Assembly,
    shown: watch::Sender<http::Shown>,
    shutdown: &Shutdown,
) -> anyhow::Result<Outcome> {
    let mut before = RunSummary::default();
    loop {
        let names = assembly.names.clone();
        match work(setup, assembly, shutdown).await? {
            Ended::Finally(Outcome::Done(summary)) => return Ok(Outcome::Done(both(before, summary))),
            Ended::Finally(Outcome::Aborted) => return Ok(Outcome::Aborted),
            Ended::Changed(summary, table) => {
                // It was cut short by the change, and goes on.
                before = both(before, RunSummary { is_cut_short: false, is_blocked: false, ..summary });
                assembly = assemble(setup, Some(table)).await?;
                shown.send_replace(assembly.shown.clone());
                // Not before: the old page would start the series again.
                names.iter().filter(|name| !assembly.names.contains(name)).for_each(|name| setup.metrics.forget(name));
            }
        }
    }
}

/// Runs all parts until the process is to end, or until other destinations are to be served.
async fn work(setup: &Setup, assembly: Assembly, shutdown: &Shutdown) -> anyhow::Result<Ended> {
    let span = Span::current();
    let stop = CancellationToken::new();
    let Assembly { relays, source, is_known, .. } = assembly;
    let mut vital = Vital::new();
    let page = Arc::clone(&assembly.shown.page).remember(assembly.memory, stop.clone());
    let (janitor, poller) = (assembly.janitor.run(stop.clone()), assembly.poller.run(stop.clone()));
    let (timer, control) = (assembly.timer.run(stop.clone()), assembly.control.run(stop.clone()));
    keep(&mut vital, page, "the memory of the status page ended", &span);
    keep(&mut vital, control, "the control poller ended", &span);
    keep(&mut vital, janitor, "the janitor ended", &span);
    keep(&mut vital, poller, "the poller ended", &span);
    keep(&mut vital, timer, "the timer ended", &span);
    let drain = shutdown.drain.child_token();
    let mut running = JoinSet::new();
    // With nothing to serve, `--until-empty` is done as soon as it knows that.
    let waits = relays.is_empty() && !(is_known && setup.until == Until::Empty);
    for relay in relays {
        running.spawn(relay.run(setup.until, drain.clone()).instrument(span.clone()));
    }
    let joined = async {
        if waits {
            drain.cancelled().await;
        }
        join_relays(&mut running, &drain).await
    };
    let ended = until_ended(joined, source, (&mut vital, shutdown), (&drain, setup.config.drain_timeout)).await;
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
    (vital, shutdown): (&mut Vital, &Shutdown),
    (drain, drain_timeout): (&CancellationToken, Duration),
) -> anyhow::Result<Ended> {
    let changed = source.changed();
    tokio::pin!(joined, changed);
    let mut next = None;
    loop {
        tokio::select! {
            ended = &mut joined => return ended.map(|summary| ended_with(shutdown, summary, next)),
            () = deadline(drain, &shutdown.abort, drain_timeout) => {
                return Ok(match next {
                    Some(table) if !shutdown.drain.is_cancelled() => Ended::Changed(RunSummary::default(), table),
                    _ => Ended::Finally(Outcome::Aborted),
                });
            }
            // Not while the process drains: its time is counted from the signal.
            table = &mut changed, if next.is_none() && !drain.is_cancelled() => {
                next = Some(table?);
                drain.cancel();
            }
            // None of these ends on its own while the relays run.
            problem = first_to_end(vital) => return Err(problem),
        }
    }
}

/// A signal that comes while destinations change ends the process all the same.
fn ended_with(shutdown: &Shutdown, summary: RunSummary, next: Option<ConfiguredDestinations>) -> Ended {
    match next {
        Some(table) if !shutdown.drain.is_cancelled() => Ended::Changed(summary, table),
        _ => Ended::Finally(Outcome::Done(summary)),
    }
}

/// The sum of two summaries.
pub(super) fn both(one: RunSummary, other: RunSummary) -> RunSummary {
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

/// Runs a part of which it must be said that it ended.
fn keep(vital: &mut Vital, part: impl Future<Output = ()> + Send + 'static, sentence: &'static str, span: &Span) {
    let watched = async move {
        part.await;
        sentence.to_owned()
    };
    vital.spawn(watched.instrument(span.clone()));
}

async fn first_to_end(vital: &mut Vital) -> anyhow::Error {
    match vital.join_next().await {
        Some(Ok(sentence)) => anyhow::anyhow!(sentence),
        Some(Err(crash)) => anyhow::anyhow!("a part of the daemon crashed: {crash}"),
        None => std::future::pending().await,
    }
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
