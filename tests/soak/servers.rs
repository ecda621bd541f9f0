//! PostgreSQL: the current server, the addresses that lead to it, and the small disk that holds its data.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use support::chosen_major;
use support::lottery::shop;
use support::postgres::{Cluster, Options, StopMode};
use support::wire_cut::WireCut;

/// The longest that a server may need until it accepts connections again.
const BACK: Duration = Duration::from_secs(60);

/// The current server, and the paths of all clients to it.
#[derive(Debug)]
pub struct Servers {
    pub options: Options,
    current: Mutex<Arc<Cluster>>,
    /// The application's path.
    pub front: WireCut,
    /// The path of each relay.
    pub wires: Vec<WireCut>,
    /// `None` if this process may not mount one. Last, so that the servers end before.
    pub disk: Option<SmallDisk>,
}

impl Servers {
    /// Starts the first server, with a path to it for each relay.
    pub async fn start(relays: usize) -> Result<Servers> {
        let disk = SmallDisk::mount();
        if disk.is_none() {
            println!("The disk will not be full in this soak: only root may mount one that is small.");
        }
        // Asynchronous commits are lost in a crash while the log is not written.
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

    /// All paths lead to this server from now on; the previous one ends with its last owner.
    pub fn lead_to(&self, cluster: Cluster) {
        for wire in self.wires.iter().chain([&self.front]) {
            wire.lead_to(cluster.port());
        }
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(cluster);
    }

    /// Waits until the server accepts connections; restarts it if it gave up.
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
                // A failure here is retried.
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

/// A file system in memory that can be filled.
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

    /// Leaves hardly a page of free space.
    pub fn fill(&self) -> Result<()> {
        let used = Command::new("df").args(["--output=used", "-k"]).arg(&self.folder).output()?;
        let used = String::from_utf8(used.stdout)?;
        let used: u64 = used.lines().nth(1).context("df says nothing")?.trim().parse()?;
        self.remount(&format!("size={}k", used + SPARE_KIB))
    }

    /// Frees the space again.
    pub fn empty(&self) -> Result<()> {
        self.remount(ROOMY)
    }

    fn remount(&self, size: &str) -> Result<()> {
        let output = Command::new("mount").args(["-o", &format!("remount,{size}")]).arg(&self.folder).output()?;
        ensure!(output.status.success(), "cannot make the disk {size}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// Far more than everything needs; the memory is allocated as it is used.
const ROOMY: &str = "size=16g,mode=755";

/// How much can still be written when the disk is full.
const SPARE_KIB: u64 = 64;

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmount = |folder: &Path| Command::new("umount").arg("-l").arg(folder).status();
        unmount(&self.folder).ok();
        std::fs::remove_dir(&self.folder).ok();
    }
}
