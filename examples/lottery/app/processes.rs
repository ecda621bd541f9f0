//! The application's processes: this same program with another verb, started and ended like any other server.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// From the start of a process until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a process may take to end after it was told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// One of the application's processes. It ends when this value is dropped, and when this program ends for whatever
/// reason.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Where it listens; empty for those that do not.
    pub address: String,
}

impl Process {
    /// Starts this program with other arguments and its standard error in a file. A command side is awaited until it
    /// listens.
    pub async fn start(arguments: &[String], endpoint: &str, log: &Path) -> Result<Process> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        // Settings of the user are meant for other databases and queues.
        for (name, _) in std::env::vars_os() {
            if ["AWS_", "DATABASE_URL", "PG"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.envs([
            ("AWS_ENDPOINT_URL_SQS", endpoint),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "demo"),
            ("AWS_SECRET_ACCESS_KEY", "demo"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ]);
        // Not in our process group: Ctrl-C in a terminal must reach only us.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start a process of the application")?;
        let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let mut address = String::new();
        if arguments.first().is_some_and(|verb| verb == "commands") {
            let line = tokio::time::timeout(START_TIMEOUT, lines.next_line()).await.context("it does not listen")??;
            let line = line.with_context(|| format!("{arguments:?} ended at once"))?;
            address = line.rsplit(' ').next().unwrap_or_default().to_owned();
        }
        Ok(Process { child, address })
    }

    /// SIGKILL: the process has no chance to finish anything.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// Lets it finish its work.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.context("it does not end")??;
        ensure!(status.success(), "a process of the application ended with {status}");
        Ok(())
    }
}
