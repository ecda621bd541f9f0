//! The relay as an operator sees it: a process with an environment, a log and a few URLs.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use support::relay::get;

/// Migrating an empty database takes a fraction of a second.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(60);

/// Any other command; a replay of a long history takes minutes.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(3600);

/// From the start of the process until database and queues have answered it.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Longer than the relay's own drain timeout of 20 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(25);

/// A probe's answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// A draw is one stream, because what may be sold and paid depends on all that happened in it, and so it is one group of
/// a FIFO queue; and a lottery sells tickets for few draws at a time. In strict mode each draw would get one message per
/// round trip to SQS. What batched mode promises less costs nothing here, because the read models are the same in
/// whatever order the events of a draw arrive (`app/views.rs`). It has no effect on the standard queues of the experiment.
const FIFO_MODE: &str = "batched";

/// How to start a relay, any number of times.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub binary: PathBuf,
    pub database_url: String,
    /// `NAME=QUEUE_URL,…`
    pub destinations: String,
    pub sqs_endpoint: String,
    pub listen: SocketAddr,
    pub log: PathBuf,
}

impl Recipe {
    /// Creates the outbox's tables.
    pub async fn migrate(&self) -> Result<()> {
        let mut child = self.command("migrate")?.spawn().context("cannot start the relay")?;
        let status = wait(&mut child, MIGRATE_TIMEOUT).await?;
        ensure!(status.success(), "outbox-relay migrate: {status}{}", self.log_tail());
        Ok(())
    }

    /// Starts `outbox-relay run`.
    pub fn start(&self) -> Result<Relay> {
        let child = self.command("run")?.spawn().context("cannot start the relay")?;
        let guardian = Guardian::watch(child.id());
        let mut relay = Relay { recipe: self.clone(), started: Instant::now(), child, guardian: None };
        relay.guardian = Some(guardian?);
        Ok(relay)
    }

    fn command(&self, verb: &str) -> Result<Command> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.binary);
        command.arg(verb).stdin(Stdio::null()).stdout(File::try_clone(&log)?).stderr(log);
        // Not in our process group: Ctrl-C in a terminal must reach only the demo.
        command.process_group(0);
        // Settings of the user are meant for other relays, queues and servers.
        for (name, _) in std::env::vars_os() {
            let theirs = ["AWS_", "DATABASE_URL", "OUTBOX_RELAY_", "PG"];
            if theirs.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.envs([
            ("DATABASE_URL", self.database_url.as_str()),
            ("OUTBOX_RELAY_DESTINATIONS", &self.destinations),
            ("OUTBOX_RELAY_HTTP_LISTEN", &self.listen.to_string()),
            ("OUTBOX_RELAY_FIFO_MODE", FIFO_MODE),
            ("AWS_ENDPOINT_URL_SQS", &self.sqs_endpoint),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "demo"),
            ("AWS_SECRET_ACCESS_KEY", "demo"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
            ("NO_COLOR", "1"),
            ("NO_PROXY", "127.0.0.1"),
        ]);
        Ok(command)
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(5)..];
        tail.iter().map(|line| format!("\n  relay.log: {line}")).collect()
    }
}

/// A running relay; it is killed when this value is dropped and when the demo dies.
#[derive(Debug)]
pub struct Relay {
    recipe: Recipe,
    started: Instant,
    child: Child,
    guardian: Option<Guardian>,
}

impl Relay {
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if the process has ended by itself.
    pub fn ensure_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the relay ended by itself, {status}{}", self.recipe.log_tail());
        }
        Ok(())
    }

    /// Waits until it says that database and queues answer.
    pub async fn wait_until_ready(&mut self) -> Result<()> {
        while !get(&self.recipe.listen.to_string(), "/readyz", ASK_TIMEOUT).await.is_ok_and(|(status, _)| status == 200)
        {
            self.ensure_alive()?;
            ensure!(self.started.elapsed() < READY_TIMEOUT, "the relay is not ready{}", self.recipe.log_tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// The current text of `/metrics`; `None` when it was just started and does not listen yet.
    pub async fn metrics(&self) -> Result<Option<Metrics>> {
        match get(&self.recipe.listen.to_string(), "/metrics", ASK_TIMEOUT).await {
            Ok((200, text)) => Ok(Some(Metrics(text))),
            Ok((status, _)) => bail!("/metrics answered {status}"),
            Err(_) if self.started.elapsed() < READY_TIMEOUT => Ok(None),
            Err(error) => Err(error).context("/metrics"),
        }
    }

    /// The peak resident memory of the process in bytes, if /proc shows it.
    pub fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024)
    }

    /// SIGKILL: the process has no chance to finish anything.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM: the process finishes the requests in flight and ends with 0.
    pub async fn stop(mut self) -> Result<()> {
        let told =
            Command::new("/bin/sh").args(["-c", "kill -TERM \"$1\"", "stop", &self.child.id().to_string()]).status()?;
        ensure!(told.success(), "the relay has gone before it was stopped");
        let status = wait(&mut self.child, STOP_TIMEOUT).await.context("the relay did not stop")?;
        ensure!(status.success(), "the relay did not stop well: {status}{}", self.recipe.log_tail());
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        // Not earlier: until here the process id was the relay's.
        if let Some(guardian) = self.guardian.take() {
            guardian.dismiss();
        }
    }
}

async fn wait(child: &mut Child, timeout: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("still running after {timeout:?}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A shell that kills the relay when the demo is gone for whatever reason: that closes the pipe between them.
#[derive(Debug)]
struct Guardian(Child);

impl Guardian {
    fn watch(process_id: u32) -> Result<Guardian> {
        let script = "trap '' HUP; read -r word || kill -KILL \"$1\"";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "guardian", &process_id.to_string()]);
        command.stdin(Stdio::piped()).current_dir("/").process_group(0);
        Ok(Guardian(command.spawn().context("cannot start /bin/sh")?))
    }

    fn dismiss(mut self) {
        if let Some(mut orders) = self.0.stdin.take() {
            writeln!(orders, "dismissed").ok();
        }
        self.0.wait().ok();
    }
}

/// A page of metrics.
#[derive(Debug, Default, Clone)]
pub struct Metrics(String);

impl Metrics {
    /// The value of a series that has only the label `destination`.
    pub fn value(&self, name: &str, destination: &str) -> f64 {
        self.find(name, destination).unwrap_or(0.0)
    }

    /// The same, or `None` if there is no such series.
    pub fn find(&self, name: &str, destination: &str) -> Option<f64> {
        let series = format!("outbox_relay_{name}{{destination=\"{destination}\"}} ");
        self.0.lines().find_map(|line| line.strip_prefix(&series))?.parse().ok()
    }
}

/// Runs another command of the relay, such as `replay`, to its end.
pub async fn run_to_the_end(recipe: &Recipe, arguments: &[&str]) -> Result<()> {
    let (verb, others) = arguments.split_first().context("no command")?;
    let mut child = recipe.command(verb)?.args(others).spawn().context("cannot start the relay")?;
    let status = wait(&mut child, COMMAND_TIMEOUT).await?;
    ensure!(status.success(), "outbox-relay {verb}: {status}{}", recipe.log_tail());
    Ok(())
}

/// The page of metrics of the relay that listens there.
pub async fn metrics_of(listen: SocketAddr) -> Result<Metrics> {
    Ok(Metrics(get(&listen.to_string(), "/metrics", ASK_TIMEOUT).await?.1))
}
