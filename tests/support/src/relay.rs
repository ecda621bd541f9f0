//! The relay as its users run it: the real binary in its own process.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::emulator::Product;
use super::test_bed::locked;
use super::{chosen_schema, eventually};

/// How long a command may run, on the usual emulator, and how long a test waits for a log line.
const PATIENCE: Duration = Duration::from_secs(120);

/// The binary under test, which Cargo builds in a folder above the tests, benches and examples that use this crate.
pub fn binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let program = std::env::current_exe().unwrap_or_default();
        let mut above = program.ancestors().skip(1).map(|folder| folder.join("outbox-relay"));
        // If the binary was not built, the error of its start shows this path.
        above.find(|path| path.is_file()).unwrap_or_else(|| program.with_file_name("outbox-relay"))
    });
    &BINARY
}

/// The status and body of a GET at `HOST:PORT`.
pub async fn get(address: &str, path: &str, timeout: Duration) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(timeout, exchange).await??;
    let (head, body) = answer.split_once("\r\n\r\n").context("an incomplete answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// A command line, with only the environment that it is given.
#[derive(Debug, Clone, Default)]
pub struct Command {
    env: BTreeMap<String, String>,
    /// A script that a shell runs first.
    first: Option<String>,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Fails with the log unless the command succeeded.
    pub fn ensure_success(&self) -> Result<()> {
        ensure!(self.code == Some(0), "ended with {:?}:\n{}", self.code, self.stderr);
        Ok(())
    }
}

impl Command {
    /// A command without environment.
    pub fn new() -> Command {
        Command::default()
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Command {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Appends to a variable.
    pub fn append(mut self, name: &str, text: &str) -> Command {
        self.env.entry(name.to_owned()).or_default().push_str(text);
        self
    }

    /// Unsets a variable.
    pub fn without(mut self, name: &str) -> Command {
        self.env.remove(name);
        self
    }

    /// Has a shell run a script first, which the program then replaces.
    pub fn after(mut self, script: &str) -> Command {
        self.first = Some(script.to_owned());
        self
    }

    /// Runs the command to its end, but not longer than [`PATIENCE`].
    pub async fn output(&self, arguments: &[&str]) -> Result<Finished> {
        let patience = PATIENCE * Product::chosen()?.slowness();
        let output = tokio::time::timeout(patience, self.prepared(arguments).output());
        let output = output.await.with_context(|| format!("{arguments:?} did not end within {patience:?}"))??;
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

    /// `run --until-empty`, which must succeed.
    pub async fn deliver_all(&self) -> Result<()> {
        self.until_empty().await?.ensure_success()
    }

    /// Starts `run`; returns once it listens.
    pub async fn start(&self) -> Result<Relay> {
        self.start_with(&["run"]).await
    }

    /// Starts a command that runs until it is killed. The caller reads its output.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        Ok(self.prepared(arguments).spawn()?)
    }

    /// Starts a command that listens, such as `run --until-empty`; returns once it listens.
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
        command.args(arguments).env_clear();
        // A name that cannot be used fails at the first session of the test.
        if let Some(schema) = chosen_schema().ok().filter(|schema| schema.is_renamed()) {
            command.env("OUTBOX_RELAY_SCHEMA", schema.name());
        }
        command.envs(&self.env);
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

/// A running relay. It is killed when this is dropped.
#[derive(Debug)]
pub struct Relay {
    child: Child,
    log: Arc<Log>,
    reader: JoinHandle<()>,
    address: String,
}

impl Relay {
    /// The address that it listens on, `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The id of the process.
    pub fn process_id(&self) -> Result<u32> {
        self.child.id().context("the relay has ended")
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        locked(&self.log.text).clone()
    }

    /// Closes the pipe that the relay logs to, as when the log collector has died.
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

    /// Sends SIGKILL; returns when the process has ended.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// Sends SIGTERM, as Kubernetes does.
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

    /// Sends SIGTERM, and expects exit code 0; returns the log.
    pub async fn stop(self) -> Result<String> {
        self.terminate().await?;
        let (status, log) = self.wait().await?;
        ensure!(status.code() == Some(0), "the relay ended with {status}:\n{log}");
        Ok(log)
    }

    /// The status and body of a GET.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        get(&self.address, path, PATIENCE).await
    }

    /// The metrics now.
    pub async fn metrics(&self) -> Result<Metrics> {
        let (status, text) = self.get("/metrics").await?;
        ensure!(status == 200, "/metrics answered {status}: {text}");
        Metrics::parse(&text)
    }

    /// Waits until a probe answers with this status.
    pub async fn wait_for_status(&self, path: &str, wanted: u16) -> Result<()> {
        let what = format!("{path} answers {wanted}");
        eventually(&what, || async { Ok(self.get(path).await?.0 == wanted) }).await
    }

    /// Waits until a metric has this value.
    pub async fn wait_for_metric(&self, series: &str, wanted: f64) -> Result<()> {
        let what = format!("{series} is {wanted}");
        // A metric that is measured in the database is absent before the first measurement.
        eventually(&what, || async { Ok(self.metrics().await?.get(series).is_ok_and(|value| value == wanted)) }).await
    }
}

/// Samples by their full names, labels included.
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

    /// The value of `name{label="value"}`, without the prefix `outbox_relay_`.
    pub fn get(&self, series: &str) -> Result<f64> {
        let name = format!("outbox_relay_{series}");
        let value = self.0.get(&name);
        value.copied().with_context(|| format!("no series {name} in {:?}", self.0.keys()))
    }

    /// The sum of all series with a name, whatever their labels.
    pub fn sum(&self, name: &str) -> f64 {
        let prefix = format!("outbox_relay_{name}{{");
        self.0.iter().filter(|(series, _)| series.starts_with(&prefix)).map(|(_, value)| value).sum()
    }
}

/// Checks that a log reports at most once a second that the database cannot be used.
pub fn ensure_reported_at_most_once_a_second(log: &str) -> Result<()> {
    let reports = log.lines().filter(|line| line.contains("the database cannot be used"));
    let seconds = reports.map(second_of_the_day).collect::<Result<Vec<f64>>>()?;
    // Lines may be written with a small delay. A negative difference comes from midnight.
    let is_hasty = |pair: &&[f64]| (0.0..0.9).contains(&(pair[1] - pair[0]));
    ensure!(seconds.windows(2).find(is_hasty).is_none(), "the same failure is reported too often:\n{log}");
    Ok(())
}

/// The seconds since midnight, from the time at the start of a line: `2026-01-31T23:59:59.123456Z`.
fn second_of_the_day(line: &str) -> Result<f64> {
    let time = line.get(11..26).with_context(|| format!("no time in {line}"))?;
    let parts = time.split(':').map(|part| Ok(part.parse()?)).collect::<Result<Vec<f64>>>()?;
    let [hours, minutes, seconds] = parts[..] else { bail!("no time in {line}") };
    Ok((hours * 60.0 + minutes) * 60.0 + seconds)
}
