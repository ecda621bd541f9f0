//! Processes that the bench starts, and what they and PostgreSQL use.

use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The largest memory of some processes in megabytes.
pub type PeakMemory = Arc<Mutex<f64>>;

/// A running relay or peer; it is killed if it is dropped.
pub struct Running {
    child: Child,
    /// Where its largest memory is noted.
    memory: Option<PeakMemory>,
}

/// The resources that a process has used.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub cpu: f64,
    pub peak_mb: f64,
}

impl Running {
    pub fn start(command: &mut Command) -> Result<Running> {
        Ok(Running { child: command.spawn().context("cannot start the relay")?, memory: None })
    }

    /// The same, and its largest memory is noted.
    pub fn note_memory(mut self, peak_mb: &PeakMemory) -> Running {
        self.memory = Some(Arc::clone(peak_mb));
        self
    }

    /// The resources used so far.
    pub fn used(&self) -> Result<Used> {
        let used = used(self.child.id())?;
        if let Some(memory) = &self.memory {
            let mut peak_mb = memory.lock().unwrap_or_else(PoisonError::into_inner);
            *peak_mb = peak_mb.max(used.peak_mb);
        }
        Ok(used)
    }

    /// Waits for its end, which must be successful.
    pub async fn wait(mut self, limit: Duration) -> Result<Used> {
        let started = Instant::now();
        let mut latest = self.used()?;
        loop {
            // A process that has ended but was not waited for has no memory left to report.
            if let Ok(used) = self.used() {
                latest = Used { cpu: used.cpu.max(latest.cpu), peak_mb: used.peak_mb.max(latest.peak_mb) };
            }
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "a relay ended with {status}");
                return Ok(latest);
            }
            if started.elapsed() > limit {
                bail!("a relay did not end within {limit:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Tells it to drain.
    pub async fn stop(self) -> Result<Used> {
        let mut kill = Command::new("kill");
        ensure!(kill.arg(self.child.id().to_string()).status()?.success(), "cannot stop the relay");
        self.wait(Duration::from_secs(30)).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Processor seconds and largest memory of a process.
pub fn used(process: u32) -> Result<Used> {
    let cpu = Stat::of(process)?.own;
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|rest| rest.split_whitespace().next()).map_or(Ok(0.0), str::parse::<f64>)?;
    Ok(Used { cpu, peak_mb: kilobytes / 1024.0 })
}

/// Processor seconds of a whole PostgreSQL server since its start: of the process that is the parent of this backend, of
/// its children, and of those that have ended.
pub fn server_cpu(backend: i32) -> Result<f64> {
    let main = Stat::of(backend.try_into()?)?.parent;
    let of_main = Stat::of(main)?;
    let numbers = std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // A process may end while the list is read.
    let children = numbers.filter_map(|process| Stat::of(process).ok()).filter(|stat| stat.parent == main);
    Ok(of_main.own + of_main.ended_children + children.map(|stat| stat.own).sum::<f64>())
}

/// What Linux counts of a process (proc(5)).
struct Stat {
    parent: u32,
    /// Processor seconds.
    own: f64,
    ended_children: f64,
}

impl Stat {
    fn of(process: u32) -> Result<Stat> {
        const TICKS_A_SECOND: f64 = 100.0;
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
        let field = |index: usize| fields.get(index).copied().context("stat is short");
        let seconds = |index: usize| -> Result<f64> {
            Ok((field(index)?.parse::<f64>()? + field(index + 1)?.parse::<f64>()?) / TICKS_A_SECOND)
        };
        Ok(Stat { parent: field(1)?.parse()?, own: seconds(11)?, ended_children: seconds(13)? })
    }
}
