//! The relay as its users have it: the real binary in a process of its own.

use std::collections::{BTreeMap, HashMap};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::bed::locked;
use super::eventually;

/// The longest that a command may run and a log line may be awaited.
const PATIENCE: Duration = Duration::from_secs(120);

/// The binary under test.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_outbox-relay")
}

/// A command line to be run, with no more environment than it is given.
#[derive(Debug, Clone, Default)]
pub struct Command {
    env: BTreeMap<String, String>,
    /// What a shell does first.
    first: Option<String>,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// None when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Fails with the log unless the command went well.
    pub fn ensure_success(&self) -> Result<()> {
        ensure!(self.code == Some(0), "ended with {:?}:\n{}", self.code, self.stderr);
        Ok(())
    }
}

impl Command {
    /// Nothing is set.
    pub fn new() -> Command {
        Command::default()
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Command {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Unsets a variable.
    pub fn without(mut self, name: &str) -> Command {
        self.env.remove(name);
        self
    }

    /// Has a shell do something first, in whose place the program then is.
    pub fn after(mut self, script: &str) -> Command {
        self.first = Some(script.to_owned());
        self
    }

    /// Runs to the end, in bounded time.
    pub async fn output(&self, arguments: &[&str]) -> Result<Finished> {
        let output = tokio::time::timeout(PATIENCE, self.prepared(arguments).output());
        let output = output.await.with_context(|| format!("{arguments:?} did not end within {PATIENCE:?}"))??;
        Ok(Finished {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        })
    }

    /// `run --until-empty`.
    pub async fn until_empty(&self) -> Result<Finished> {
        self.output(&["run", "--until-empty"]).await
    }

    /// `run --until-empty`, which must go well.
    pub async fn deliver_all(&self) -> Result<()> {
        self.until_empty().await?.ensure_success()
    }

    /// Starts `run`; returns once it listens.
    pub async fn start(&self) -> Result<Relay> {
        self.start_with(&["run"]).await
    }

    /// Starts a command that goes on until it is killed; its output is for the caller to read.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        Ok(self.prepared(arguments).spawn()?)
    }

    /// Starts a command that listens, as `run --until-empty`.
    pub async fn start_with(&self, arguments: &[&str]) -> Result<Relay> {
        let mut child = self.prepared(arguments).spawn()?;
        let stderr = child.stderr.take().context("no standard error")?;
        let log = Arc::new(Log::default());
        let reader = tokio::spawn(read_log(BufReader::new(stderr).lines(), Arc::clone(&log)));
        let mut relay = Relay { child, log, reader, address: String::new() };
        let line = relay.wait_for_log("listen=").await?;
        let address = line.split("listen=").nth(1).and_then(|rest| rest.split_whitespace().next());
        relay.address = address.context("no address in the log")?.to_owned();
        Ok(relay)
    }

    fn prepared(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = match &self.first {
            None => tokio::process::Command::new(binary()),
            Some(first) => {
                let mut shell = tokio::process::Command::new("sh");
                shell.arg("-ec").arg(format!("{first}; exec \"$0\" \"$@\"")).arg(binary());
                shell
            }
        };
        command.args(arguments).env_clear().envs(&self.env);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        command
    }
}

/// What a relay has logged so far.
#[derive(Debug, Default)]
struct Log {
    text: Mutex<String>,
    changed: watch::Sender<()>,
}

async fn read_log(mut lines: Lines<BufReader<ChildStderr>>, log: Arc<Log>) {
    while let Ok(Some(line)) = lines.next_line().await {
        {
            let mut text = locked(&log.text);
            text.push_str(&line);
            text.push('\n');
        }
        log.changed.send_replace(());
    }
}

/// A running relay; dropping it kills it.
#[derive(Debug)]
pub struct Relay {
    child: Child,
    log: Arc<Log>,
    reader: JoinHandle<()>,
    address: String,
}

impl Relay {
    /// Where it listens, `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The process.
    pub fn process_id(&self) -> Result<u32> {
        self.child.id().context("the relay has ended")
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        locked(&self.log.text).clone()
    }

    /// Closes the pipe that the relay logs to, as when whoever collects logs has died.
    pub async fn close_log(&mut self) {
        self.reader.abort();
        (&mut self.reader).await.ok();
        self.reader = tokio::spawn(async {});
    }

    /// Waits for a line that contains the text; returns that line.
    pub async fn wait_for_log(&self, wanted: &str) -> Result<String> {
        let mut changed = self.log.changed.subscribe();
        let found = || self.log().lines().find(|line| line.contains(wanted)).map(str::to_owned);
        let wait = changed.wait_for(|()| found().is_some() || self.reader.is_finished());
        tokio::time::timeout(PATIENCE, wait).await.ok();
        found().with_context(|| format!("{wanted:?} is not in the log:\n{}", self.log()))
    }

    /// SIGKILL; returns when the process is gone.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// Asks the process to stop, as Kubernetes does.
    pub async fn terminate(&self) -> Result<()> {
        self.signal("TERM").await
    }

    /// Sends a signal by its name.
    pub async fn signal(&self, name: &str) -> Result<()> {
        let mut kill = tokio::process::Command::new("/bin/sh");
        kill.args(["-c", "kill -s \"$1\" \"$2\"", "kill", name, &self.process_id()?.to_string()]);
        ensure!(kill.status().await?.success(), "cannot send SIG{name}");
        Ok(())
    }

    /// Waits for the process to end by itself; returns its status and its whole log.
    pub async fn wait(mut self) -> Result<(ExitStatus, String)> {
        let Ok(status) = tokio::time::timeout(PATIENCE, self.child.wait()).await else {
            bail!("the relay did not end within {PATIENCE:?}:\n{}", self.log())
        };
        // The pipe may still hold the last lines.
        tokio::time::timeout(PATIENCE, &mut self.reader).await??;
        Ok((status?, self.log()))
    }

    /// Ends the relay by SIGTERM and expects it to leave well.
    pub async fn stop(self) -> Result<String> {
        self.terminate().await?;
        let (status, log) = self.wait().await?;
        ensure!(status.code() == Some(0), "the relay ended with {status}:\n{log}");
        Ok(log)
    }

    /// The status and body of a GET.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let exchange = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await??;
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// What `/metrics` shows now.
    pub async fn metrics(&self) -> Result<Metrics> {
        let (status, text) = self.get("/metrics").await?;
        ensure!(status == 200, "/metrics answered {status}: {text}");
        Metrics::parse(&text)
    }

    /// Waits until a probe answers with this status; returns the body.
    pub async fn wait_for_status(&self, path: &str, wanted: u16) -> Result<()> {
        let what = format!("{path} answers {wanted}");
        eventually(&what, || async { Ok(self.get(path).await?.0 == wanted) }).await
    }

    /// Waits until a metric has this value.
    pub async fn wait_for_metric(&self, series: &str, wanted: f64) -> Result<()> {
        let what = format!("{series} is {wanted}");
        // What is measured in the table is absent until it was.
        eventually(&what, || async { Ok(self.metrics().await?.get(series).is_ok_and(|value| value == wanted)) }).await
    }
}

/// Samples by their full name, labels included.
#[derive(Debug, Clone)]
pub struct Metrics(HashMap<String, f64>);

impl Metrics {
    fn parse(text: &str) -> Result<Metrics> {
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            Ok((series.to_owned(), value.parse()?))
        };
        Ok(Metrics(samples.map(sample).collect::<Result<_>>()?))
    }

    /// The value of `name{label="value"}`; `outbox_relay_` goes without saying.
    pub fn get(&self, series: &str) -> Result<f64> {
        let name = format!("outbox_relay_{series}");
        let value = self.0.get(&name);
        value.copied().with_context(|| format!("no series {name} in {:?}", self.0.keys()))
    }

    /// The sum of all series of a name, whatever their labels.
    pub fn sum(&self, name: &str) -> f64 {
        let prefix = format!("outbox_relay_{name}{{");
        self.0.iter().filter(|(series, _)| series.starts_with(&prefix)).map(|(_, value)| value).sum()
    }
}

/// Whether a log says at most once a second that the database cannot be used, however often the relay noticed.
pub fn ensure_told_calmly(log: &str) -> Result<()> {
    let told = log.lines().filter(|line| line.contains("the database cannot be used"));
    let seconds = told.map(second_of_the_day).collect::<Result<Vec<f64>>>()?;
    // A line is written a little later than it is decided on. The night after midnight is nobody's second.
    let is_hasty = |pair: &&[f64]| (0.0..0.9).contains(&(pair[1] - pair[0]));
    ensure!(seconds.windows(2).find(is_hasty).is_none(), "the same trouble is told again and again:\n{log}");
    Ok(())
}

/// A line begins with the time, `2026-01-31T23:59:59.123456Z`.
fn second_of_the_day(line: &str) -> Result<f64> {
    let time = line.get(11..26).with_context(|| format!("no time in {line}"))?;
    let parts = time.split(':').map(|part| Ok(part.parse()?)).collect::<Result<Vec<f64>>>()?;
    let [hours, minutes, seconds] = parts[..] else { bail!("no time in {line}") };
    Ok((hours * 60.0 + minutes) * 60.0 + seconds)
}
