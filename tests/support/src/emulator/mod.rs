//! An SQS emulator as a child process; `queues.rs` has its queues as a consumer sees them, `topics.rs` its SNS topics,
//! `buckets.rs` its S3 buckets.
//!
//! The tests and the lottery example both use this module, so it depends on neither.

mod buckets;
mod queues;
mod topics;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use buckets::Buckets;
pub use queues::{Depth, Queues, Received};
pub use topics::{Subscription, Topics};

/// How long a start may take. On an idle machine Node needs about a second to load the modules, Java five; on a busy one
/// it took Java more than a minute.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// How long an emulator may take to end once its standard input has ended.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The emulators that the tests run on; `docs/emulators.md` says what they disagree about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// The usual one, with the corrections in `tests/tools/emulator/serve.mjs`.
    Fauxqs,
    /// ElasticMQ's own server.
    ElasticMq,
    /// The server of moto.
    Moto,
}

impl Product {
    /// The one that `SQS_EMULATOR` names: `fauxqs`, which is the default, `elasticmq` or `moto`.
    pub fn chosen() -> Result<Product> {
        Ok(match std::env::var("SQS_EMULATOR").unwrap_or_default().as_str() {
            "" | "fauxqs" => Product::Fauxqs,
            "elasticmq" => Product::ElasticMq,
            "moto" => Product::Moto,
            other => bail!("SQS_EMULATOR is {other}; known are fauxqs, elasticmq and moto"),
        })
    }

    /// Its name in `SQS_EMULATOR`.
    pub fn name(self) -> &'static str {
        match self {
            Product::Fauxqs => "fauxqs",
            Product::ElasticMq => "elasticmq",
            Product::Moto => "moto",
        }
    }

    /// Whether it keeps the groups of messages in standard queues, as SQS does for fair queues.
    pub fn keeps_groups_of_standard_queues(self) -> bool {
        self != Product::Fauxqs
    }

    /// How many times as long as usual a test waits for it.
    pub fn slowness(self) -> u32 {
        if self == Product::Moto { 4 } else { 1 }
    }

    /// A command that serves on a free port of 127.0.0.1, says the address in its output, and ends when its standard
    /// input ends.
    fn command(self) -> Result<Command> {
        let folder = tools().join("emulator");
        let mut command;
        match self {
            Product::Fauxqs => {
                command = Command::new("node");
                command.arg(folder.join("serve.mjs")).arg(installed("emulator.sh")?);
            }
            Product::ElasticMq => {
                command = Command::new("/bin/sh");
                command.arg(folder.join("leash.sh")).arg("java").args(["-Xmx1g", "-XX:+UseSerialGC"]);
                command.args(["-Drest-sqs.bind-hostname=127.0.0.1", "-Drest-sqs.bind-port=0"]);
                command.args(["-Dgenerate-node-address=true", "-cp"]);
                command.arg(installed("elasticmq.sh")?.join("*")).arg("org.elasticmq.server.Main");
            }
            Product::Moto => {
                command = Command::new("/bin/sh");
                command.arg(folder.join("leash.sh")).arg(installed("moto.sh")?);
                command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]);
            }
        }
        Ok(command)
    }
}

/// A running SQS emulator. Its process ends when this is dropped, or when the owner ends.
#[derive(Debug)]
pub struct Emulator {
    child: Child,
    endpoint: String,
}

impl Emulator {
    /// Starts the chosen emulator on a free port of 127.0.0.1; returns when it answers.
    pub fn start() -> Result<Emulator> {
        let product = Product::chosen()?;
        let mut command = product.command()?;
        // When we end, its standard input closes, and it ends as well.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Not in our process group: Ctrl-C in a terminal must reach the owner only.
        command.process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let output = BufReader::new(child.stdout.take().context("the emulator has no output")?);
        let (said, address) = mpsc::channel();
        std::thread::spawn(move || {
            // Read to the end: an emulator that logs its requests must always be able to write.
            for line in output.lines().map_while(Result::ok) {
                if let Some(endpoint) = endpoint_in(&line) {
                    said.send(endpoint).ok();
                }
            }
        });
        let mut emulator = Emulator { child, endpoint: String::new() };
        let started = address.recv_timeout(START_TIMEOUT);
        emulator.endpoint = started.with_context(|| format!("{} did not start; it says why above", product.name()))?;
        Ok(emulator)
    }

    /// The emulator's address, `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + END_TIMEOUT;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The address in a line like `Started SQS rest server, bind address 127.0.0.1:9324, visible server address …`.
fn endpoint_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("127.0.0.1:")?;
    let port = rest.split(|c: char| !c.is_ascii_digit()).next().filter(|port| !port.is_empty())?;
    Some(format!("http://127.0.0.1:{port}"))
}

fn tools() -> PathBuf {
    crate::repository().join("tests/tools")
}

/// The path that a script of `tests/tools` prints once it has installed what it is for.
fn installed(script: &str) -> Result<PathBuf> {
    let script = tools().join(script);
    let output = Command::new("/bin/sh").arg(&script).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} found no SQS emulator; it says why above", script.display());
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}
