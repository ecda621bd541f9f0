//! Control groups that limit memory, as that of a container does: version 1 or 2, whichever this machine has.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

/// A group below that of this process. It is removed when this is dropped.
#[derive(Debug)]
pub struct MemoryGroup {
    folder: PathBuf,
}

impl MemoryGroup {
    /// A group with this limit in bytes; `None` if this process may not create one.
    pub fn create(bytes: u64) -> Option<MemoryGroup> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("outbox-relay-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
            let (mount, limit) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                some if some.split(',').any(|one| one == "memory") => {
                    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
                }
                _ => return None,
            };
            let folder = Path::new(mount).join(path).join(&name);
            fs::create_dir(&folder).ok()?;
            let group = MemoryGroup { folder };
            fs::write(group.folder.join(limit), bytes.to_string()).ok()?;
            Some(group)
        })
    }

    /// The command with which a shell enters the group. Programs that the shell executes stay in it.
    pub fn enter(&self) -> String {
        format!("echo $$ > '{}'", self.folder.join("cgroup.procs").display())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.folder).ok();
    }
}

/// The most memory that a process ever had, in bytes.
pub fn peak(process_id: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process_id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}
