//! PostgreSQL: the server that serves now, the addresses that lead to it, and the small disk that its data are on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::shop;
use crate::support::chosen_major;
use crate::support::postgres::{Cluster, Options, StopMode};
use crate::support::wire_cut::WireCut;

/// The longest that a server may need until it takes connections again.
const BACK: Duration = Duration::from_secs(60);

/// The server that serves now, and everybody's way to it.
#[derive(Debug)]
pub struct Servers {
    pub options: Options,
    current: Mutex<Arc<Cluster>>,
    /// The application's way.
    pub front: WireCut,
    /// Each relay's own.
    pub wires: Vec<WireCut>,
    /// None where this process may not mount one. Last, so that the servers end before.
    pub disk: Option<SmallDisk>,
}

impl Servers {
    /// The first server, with a way to it for each relay.
    pub async fn start(relays: usize) -> Result<Servers> {
        let disk = SmallDisk::mount();
        if disk.is_none() {
            println!("The disk will not be full in this soak: only root may mount one that is small.");
        }
        // Commits that nobody waits for are lost in a crash for as long as the log is not written.
        let settings = [("wal_writer_flush_after", "1GB"), ("wal_buffers", "64MB")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let below = disk.as_ref().map(|disk| disk.folder.clone());
        let options = Options { major: chosen_major(), settings, below, ..Options::default() };
        let chosen = options.clone();
        let cluster = tokio::task::spawn_blocking(move || Cluster::start(&chosen)).await??;
        let front = WireCut::start(cluster.port()).await?;
        let mut wires = Vec::new();
        for _ in 0..relays {
            wires.push(WireCut::start(cluster.port()).await?);
        }
        Ok(Servers { options, current: Mutex::new(Arc::new(cluster)), front, wires, disk })
    }

    pub fn current(&self) -> Arc<Cluster> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All ways lead to this server from now on; the one before is gone with its last owner.
    pub fn lead_to(&self, cluster: Cluster) {
        for wire in self.wires.iter().chain([&self.front]) {
            wire.lead_to(cluster.port());
        }
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(cluster);
    }

    /// Waits until the server takes connections; starts it where it gave up.
    pub async fn bring_back(&self) -> Result<()> {
        let url = self.current().url("postgres");
        let back = async {
            loop {
                for _ in 0..20 {
                    if let Ok(client) = shop::connect(&url).await
                        && client.batch_execute("CREATE TEMPORARY TABLE writable ()").await.is_ok()
                    {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                let cluster = self.current();
                // What fails here is tried again.
                tokio::task::spawn_blocking(move || {
                    cluster.stop(StopMode::Immediate).ok();
                    cluster.start_again().ok();
                })
                .await
                .ok();
            }
        };
        tokio::time::timeout(BACK, back).await.context("PostgreSQL did not come back")
    }
}

/// A file system in memory that can be made full.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let folder = std::env::temp_dir().join(format!("outbox-soak-{}", std::process::id()));
        std::fs::create_dir_all(&folder).ok()?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", ROOMY, "soak"]).arg(&folder).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(SmallDisk { folder });
        }
        std::fs::remove_dir(&folder).ok();
        None
    }

    /// There is hardly a page left.
    pub fn fill(&self) -> Result<()> {
        let used = Command::new("df").args(["--output=used", "-k"]).arg(&self.folder).output()?;
        let used = String::from_utf8(used.stdout)?;
        let used: u64 = used.lines().nth(1).context("df says nothing")?.trim().parse()?;
        self.remount(&format!("size={}k", used + SPARE_KIB))
    }

    /// There is room again.
    pub fn empty(&self) -> Result<()> {
        self.remount(ROOMY)
    }

    fn remount(&self, size: &str) -> Result<()> {
        let output = Command::new("mount").args(["-o", &format!("remount,{size}")]).arg(&self.folder).output()?;
        ensure!(output.status.success(), "cannot make the disk {size}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// What everything needs is far less; the memory is taken as it is used.
const ROOMY: &str = "size=16g,mode=755";

/// So much can still be written when the disk is full.
const SPARE_KIB: u64 = 64;

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmount = |folder: &Path| Command::new("umount").arg("-l").arg(folder).status();
        unmount(&self.folder).ok();
        std::fs::remove_dir(&self.folder).ok();
    }
}
