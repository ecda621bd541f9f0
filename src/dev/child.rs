//! Processes that end with this one, whatever ends this one.
//!
//! Each is in a process group of its own, so that Ctrl-C reaches only this process, which ends everything in order. A
//! shell runs beside them and waits on a pipe. When the pipe closes, it ends the process that it was told of, and removes
//! its folder. It is started before that process, so that there is no time in which nobody watches.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use super::host::{self, Account};

/// `$1` the folder or nothing. Each line it reads is a signal and what it ends, a process or (negative) a process group,
/// instead of the line before; an empty line is nothing. After half a minute it uses force, and a little later it gives
/// up, as on a process that nobody waits for.
const WATCH: &str = r#"
signal= target=
while read -r one other; do
    signal=$one target=$other
done
if [ -n "$target" ]; then
    kill -s "$signal" -- "$target" 2>/dev/null
    tries=0
    while kill -s 0 -- "$target" 2>/dev/null && [ "$tries" -lt 350 ]; do
        tries=$((tries + 1))
        [ "$tries" -ne 300 ] || kill -s KILL -- "$target" 2>/dev/null
        sleep 0.1
    done
fi
[ -z "$1" ] || rm -rf "$1"
"#;

/// How long the shell may take to end, with what it ends.
const CLEAR: Duration = Duration::from_secs(40);

/// What the watcher ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// The process, which ends its own children.
    Process,
    /// All of its group.
    Group,
}

/// The shell that watches one process at a time. When this is dropped, it ends that process and removes its folder.
#[derive(Debug)]
pub(super) struct Watcher {
    shell: Child,
    pipe: ChildStdin,
}

impl Watcher {
    /// Starts it as this account.
    pub(super) fn start(account: Option<&Account>, folder: Option<&Path>) -> anyhow::Result<Self> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", WATCH, "watcher"]).arg(folder.unwrap_or(Path::new("")));
        shell.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        host::run_as(&mut shell, account);
        let mut shell = shell.spawn().context("/bin/sh cannot be started")?;
        let pipe = shell.stdin.take().context("a shell without a pipe")?;
        Ok(Self { shell, pipe })
    }

    /// Starts a command that ends with this signal, and watches it instead of the one before.
    pub(super) async fn spawn(&mut self, command: &mut Command, with: Signal, ends: Ends) -> anyhow::Result<Watched> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        // The watcher ends it in order; what is killed leaves children and memory behind.
        command.process_group(0).stdin(Stdio::null()).kill_on_drop(false);
        let mut child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        let id = child.id().context("a process without an id")?;
        let signal = if with == Signal::INT { "INT" } else { "TERM" };
        let sign = if ends == Ends::Group { "-" } else { "" };
        if let Err(error) = self.tell(&format!("{signal} {sign}{id}\n")).await {
            child.start_kill().ok();
            return Err(error).with_context(|| format!("{name} cannot be watched"));
        }
        Ok(Watched { child, id, ends_with: with })
    }

    /// Watches nothing, because the process has ended: its id may soon be that of another.
    pub(super) async fn forget(&mut self) {
        // A shell that somebody has ended forgets as well.
        self.tell("\n").await.ok();
    }

    /// Lets it end what it watches and remove its folder, and waits for that.
    pub(super) async fn end(mut self) {
        drop(self.pipe);
        timeout(CLEAR, self.shell.wait()).await.ok();
    }

    async fn tell(&mut self, line: &str) -> std::io::Result<()> {
        self.pipe.write_all(line.as_bytes()).await?;
        self.pipe.flush().await
    }
}

/// A process with a watcher, which ends it when the watcher is dropped.
#[derive(Debug)]
pub(super) struct Watched {
    child: Child,
    id: u32,
    ends_with: Signal,
}

impl Watched {
    /// Its id.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Waits for its end.
    pub(super) async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// Sends the signal that ends it.
    pub(super) fn end(&self) {
        self.signal(self.ends_with);
    }

    /// Waits for its end, by force after a time.
    pub(super) async fn wait_at_most(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        match timeout(patience, self.wait()).await {
            Ok(ended) => ended,
            Err(_) => {
                self.signal(Signal::KILL);
                self.wait().await
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // Until it was waited for, its id belongs to nobody else.
        if let Some(id) = self.child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)) {
            // It may have ended meanwhile.
            kill_process(id, signal).ok();
        }
    }
}
