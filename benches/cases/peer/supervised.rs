//! A peer under supervision, as systemd or Kubernetes would run it: started again a second after it ended, and all of
//! its processes watched, ended and killed together.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use super::program::last_line;

/// The pause before it is started again.
pub const RESTART_AFTER: Duration = Duration::from_secs(1);

/// How long it may take to end when it is asked to.
const STOP_FOR: Duration = Duration::from_secs(10);

const PAGE_BYTES: f64 = 4096.0;

/// Programs that start it and watch its standard input.
const HELPERS: [&str; 2] = ["(sh", "(cat"];

pub struct Supervised {
    command: Command,
    child: Child,
    log: PathBuf,
    /// When it ended without being asked to.
    ended_at: Option<Instant>,
    /// How often it was started again after it had ended by itself.
    pub restarts: u64,
    /// The most memory that its processes had together, in megabytes.
    pub peak_mb: f64,
}

impl Supervised {
    /// Starts it in a process group of its own; `log` gets its output.
    pub fn start(mut command: Command, log: &Path) -> Result<Supervised> {
        let output = File::options().create(true).append(true).open(log)?;
        command.process_group(0).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().context("cannot start it")?;
        let log = log.to_owned();
        Ok(Supervised { command, child, log, ended_at: None, restarts: 0, peak_mb: 0.0 })
    }

    /// Notes its memory, and starts it again if it has ended.
    pub fn tend(&mut self) -> Result<()> {
        self.peak_mb = self.peak_mb.max(self.memory_mb()?);
        match self.ended_at {
            None if self.child.try_wait()?.is_some() => {
                self.signal(Signal::KILL);
                self.ended_at = Some(Instant::now());
            }
            Some(at) if at.elapsed() >= RESTART_AFTER => {
                self.restarts += 1;
                self.start_again()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Kills all of its processes at once, as when the machine fails.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL);
        self.child.wait()?;
        Ok(())
    }

    /// Starts it after it was killed.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = self.command.spawn().context("cannot start it again")?;
        self.ended_at = None;
        Ok(())
    }

    /// Asks it to end, and kills it if it does not.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM);
        let started = Instant::now();
        while self.child.try_wait()?.is_none() && started.elapsed() < STOP_FOR {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.kill()
    }

    /// What it wrote last.
    pub fn last_words(&self) -> String {
        last_line(&self.log).unwrap_or_else(|| "it wrote nothing".to_owned())
    }

    /// Its process group may have ended meanwhile, which is no failure.
    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process_group(group, signal).ok();
        }
    }

    /// The resident memory of its processes (proc(5)), without the shells that start it.
    fn memory_mb(&self) -> Result<f64> {
        let mut pages = 0.0;
        for entry in std::fs::read_dir("/proc")?.flatten() {
            // A process may end at any time.
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
            let Some((name, fields)) = stat.rsplit_once(')') else { continue };
            let fields: Vec<&str> = fields.split_whitespace().collect();
            let starts_it = HELPERS.iter().any(|helper| name.ends_with(helper));
            if !starts_it && fields.get(2).is_some_and(|group| *group == self.child.id().to_string()) {
                pages += fields.get(21).map_or(Ok(0.0), |pages| pages.parse::<f64>())?;
            }
        }
        Ok(pages * PAGE_BYTES / 1024.0 / 1024.0)
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.kill().ok();
    }
}
