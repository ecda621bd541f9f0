//! A running `outbox-relay dev`, and what it prints.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use support::emulator::Queues;
use support::test_bed::connect;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// How long a test waits for a line, an answer or an end.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The folder of PostgreSQL's programs.
pub fn postgres() -> Result<&'static Path> {
    static FOLDER: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let script = support::repository().join("tests/tools/postgres.sh");
        let told = std::process::Command::new("/bin/sh").arg(&script).stderr(Stdio::inherit()).output();
        let told = told.map_err(|error| error.to_string())?;
        Ok(PathBuf::from(String::from_utf8_lossy(&told.stdout).trim_end()))
    });
    FOLDER.as_deref().map_err(|error| anyhow::anyhow!("no PostgreSQL to test with: {error}"))
}

/// The command with only the environment that it needs, on ports that nobody else uses.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
    command.arg("dev").args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("OUTBOX_RELAY_HTTP_LISTEN", "127.0.0.1:0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs it to its end, which comes by itself; the exit code and standard error.
pub async fn refused(mut command: Command) -> Result<(Option<i32>, String)> {
    let output = timeout(PATIENCE, command.output()).await.context("it did not end")??;
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}

/// A running command. When this is dropped, it is killed, and its children end by themselves.
pub struct Dev {
    child: Child,
    said: watch::Receiver<String>,
    readers: [JoinHandle<()>; 2],
    stop_reading: CancellationToken,
}

impl Dev {
    /// Starts it with a cluster of its own; returns when the relay runs, or when it waits for the user's.
    pub async fn start(arguments: &[&str]) -> Result<Dev> {
        let folder = postgres()?.to_str().context("a folder that is not text")?;
        Dev::start_command(command(&[&["--sqs-listen", "127.0.0.1:0", "--postgres", folder], arguments].concat())).await
    }

    /// Starts this command.
    pub async fn start_command(mut command: Command) -> Result<Dev> {
        let mut child = command.spawn()?;
        let (out, err) = (child.stdout.take().context("no output")?, child.stderr.take().context("no error")?);
        let (sender, said) = watch::channel(String::new());
        let errors = sender.clone();
        // Both in one text, so that a failure shows everything.
        let stop_reading = CancellationToken::new();
        let readers = [
            tokio::spawn(read(out, sender, stop_reading.clone())),
            tokio::spawn(read(err, errors, stop_reading.clone())),
        ];
        let dev = Dev { child, said, readers, stop_reading };
        dev.line("Ctrl-C ends all.").await?;
        Ok(dev)
    }

    /// Everything it has printed.
    pub fn said(&self) -> String {
        self.said.borrow().clone()
    }

    /// Waits for a line that contains the text.
    pub async fn line(&self, wanted: &str) -> Result<String> {
        self.nth_line(0, wanted).await
    }

    /// Waits for a line that contains the text, after so many others that do.
    pub async fn nth_line(&self, before: usize, wanted: &str) -> Result<String> {
        let find = |said: &str| said.lines().filter(|line| line.contains(wanted)).nth(before).map(str::to_owned);
        let mut said = self.said.clone();
        timeout(PATIENCE, said.wait_for(|said| find(said).is_some())).await.ok();
        find(&self.said()).with_context(|| format!("{wanted:?} was not printed:\n{}", self.said()))
    }

    /// The value of a variable that it says to export.
    pub fn exported(&self, name: &str) -> Result<String> {
        let said = self.said();
        let value = said.split(&format!("  export {name}='")).nth(1).and_then(|rest| rest.split('\'').next());
        value.map(str::to_owned).with_context(|| format!("{name} is not exported:\n{said}"))
    }

    /// All variables that it says to export.
    pub fn exports(&self) -> Vec<(String, String)> {
        let said = self.said();
        let pair = |line: &str| {
            let (name, value) = line.strip_prefix("  export ")?.split_once('=')?;
            Some((name.to_owned(), value.trim_matches('\'').to_owned()))
        };
        said.lines().filter_map(pair).collect()
    }

    /// A session in the database.
    pub async fn database(&self) -> Result<Client> {
        connect(&self.exported("DATABASE_URL")?).await
    }

    /// A real client of SQS.
    pub fn queues(&self) -> Result<Queues> {
        Ok(Queues::new(&self.exported("AWS_ENDPOINT_URL_SQS")?))
    }

    /// The URL of the queue of a destination.
    pub fn queue(&self, destination: &str) -> Result<String> {
        let all = self.exported("OUTBOX_RELAY_DESTINATIONS")?;
        let url = all.split(',').find_map(|one| one.strip_prefix(&format!("{destination}=")));
        url.map(str::to_owned).context("no such destination")
    }

    /// The process of the relay, after so many others.
    pub async fn relay(&self, before: usize) -> Result<u32> {
        let line = self.nth_line(before, "to kill it: kill -9 ").await?;
        Ok(line.rsplit(' ').next().context("no id")?.parse()?)
    }

    /// The folder of the cluster.
    pub fn folder(&self) -> Result<PathBuf> {
        let said = self.said();
        let line = said.lines().find(|line| line.starts_with("  PostgreSQL ")).unwrap_or_default();
        let folder = line.split(" in ").nth(1).and_then(|rest| rest.split(", ").next());
        Ok(PathBuf::from(folder.context("no folder")?))
    }

    /// The process of PostgreSQL.
    pub fn postgres(&self) -> Result<u32> {
        let file = std::fs::read_to_string(self.folder()?.join("data/postmaster.pid"))?;
        Ok(file.lines().next().context("no id")?.trim().parse()?)
    }

    /// Reads its output no more, and leaves the pipes open.
    pub fn stop_reading(&self) {
        self.stop_reading.cancel();
    }

    /// Its own process.
    pub fn id(&self) -> Result<u32> {
        self.child.id().context("it has ended")
    }

    /// Waits for its end; the status and everything it printed.
    pub async fn wait(mut self) -> Result<(ExitStatus, String)> {
        let Ok(status) = timeout(PATIENCE, self.child.wait()).await else { bail!("it did not end:\n{}", self.said()) };
        for reader in self.readers.iter_mut().filter(|_| !self.stop_reading.is_cancelled()) {
            timeout(PATIENCE, reader).await??;
        }
        Ok((status?, self.said()))
    }

    /// Ends it by a signal, and expects exit code 0; what it printed.
    pub async fn end(self, signal: &str) -> Result<String> {
        kill(signal, self.id()?).await?;
        let (status, said) = self.wait().await?;
        ensure!(status.code() == Some(0), "{status}:\n{said}");
        Ok(said)
    }
}

async fn read(pipe: impl tokio::io::AsyncRead + Unpin, said: watch::Sender<String>, stop: CancellationToken) {
    let mut lines = BufReader::new(pipe).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { return };
                said.send_modify(|said| {
                    said.push_str(&line);
                    said.push('\n');
                });
            }
            // The pipe stays open, and nobody reads it.
            () = stop.cancelled() => std::future::pending().await,
        }
    }
}

/// Sends a signal.
pub async fn kill(signal: &str, id: u32) -> Result<()> {
    let mut kill = Command::new("/bin/sh");
    kill.args(["-c", "kill -s \"$1\" \"$2\"", "kill", signal, &id.to_string()]);
    ensure!(kill.status().await?.success(), "cannot send SIG{signal} to {id}");
    Ok(())
}

/// Whether a process is there and has not ended.
pub fn is_running(id: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}
