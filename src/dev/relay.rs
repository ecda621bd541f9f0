//! The relay that `dev` runs: this program again, as `outbox-relay run` in a process of its own, with an environment that
//! leads to nothing but this machine. When somebody kills it, another one starts, as under Kubernetes or systemd.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::child::{Ends, Watched, Watcher};
use super::host;
use super::problem::Unusable;
use super::text;
use super::voice::Voice;
use crate::shutdown::Shutdown;

/// How long until another relay starts.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the relay may drain; its own OUTBOX_RELAY_DRAIN_TIMEOUT is usually shorter.
const DRAIN: Duration = Duration::from_secs(120);

/// How long `migrate` may take.
const MIGRATE: Duration = Duration::from_secs(120);

/// This program, and the variables it gets.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) variables: Vec<(String, String)>,
    /// The beginnings of names that it does not get.
    pub(super) without: Vec<&'static str>,
}

impl Program {
    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.path);
        host::without_variables(&mut command, &self.without);
        command.arg(verb).envs(self.variables.iter().cloned());
        command
    }

    /// `outbox-relay migrate`; what it prints is of interest only if it fails.
    pub(super) async fn migrate(&self) -> anyhow::Result<()> {
        let output = self.command("migrate").kill_on_drop(true).output();
        let Ok(output) = timeout(MIGRATE, output).await else {
            bail!("`outbox-relay migrate` takes longer than {MIGRATE:?}")
        };
        let output = output?;
        let said = String::from_utf8_lossy(&output.stderr).trim_end().replace("outbox-relay: ", "");
        match output.status.code() {
            Some(0) => Ok(()),
            Some(2) => Err(Unusable(said).into()),
            _ => bail!("the schema cannot be created: {said}"),
        }
    }

    /// Runs relays until told to drain.
    pub(super) async fn supervise(self, shutdown: Shutdown, voice: Voice) -> anyhow::Result<()> {
        let mut watcher = Watcher::start(None, None)?;
        let outcome = self.supervise_with(&mut watcher, &shutdown, &voice).await;
        watcher.end().await;
        outcome
    }

    async fn supervise_with(&self, watcher: &mut Watcher, shutdown: &Shutdown, voice: &Voice) -> anyhow::Result<()> {
        loop {
            let mut relay = watcher.spawn(&mut self.command("run"), Signal::TERM, Ends::Process).await?;
            voice.say(text::relay_runs(relay.id())).await;
            let status = tokio::select! {
                ended = relay.wait() => Some(ended?),
                () = shutdown.drain.cancelled() => {
                    end(&mut relay, shutdown).await?;
                    None
                }
            };
            watcher.forget().await;
            let Some(status) = status else { return Ok(()) };
            match status.code() {
                // Killed, or told to stop by somebody else.
                None | Some(0) => voice.say(text::relay_ended(&status.to_string())).await,
                Some(2) => {
                    return Err(Unusable("the relay refuses its configuration, as it says above".to_owned()).into());
                }
                Some(_) => bail!("the relay failed ({status}), as it says above"),
            }
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = shutdown.drain.cancelled() => return Ok(()),
            }
        }
    }
}

/// Lets the relay drain; a second signal makes it leave at once.
async fn end(relay: &mut Watched, shutdown: &Shutdown) -> anyhow::Result<()> {
    relay.end();
    tokio::select! {
        ended = relay.wait_at_most(DRAIN) => return ended.map(drop),
        () = shutdown.abort.cancelled() => relay.end(),
    }
    relay.wait_at_most(DRAIN).await.map(drop)
}
