//! How much memory the process may use: the configured number, or the limit of its control group (cgroup v1 and v2, see
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>).

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use super::DestinationConfig;

const MIB: u64 = 1024 * 1024;

/// The limit if none is configured and the control group has none.
const DEFAULT: u64 = 256 * MIB;

/// The lowest and the highest limit that may be configured.
pub(super) const BOUNDS: (u64, u64) = (64 * MIB, 1 << 40);

/// What the process needs for everything but messages: the program, its connections, the metrics.
const BASE: u64 = 48 * MIB;

/// Messages get six tenths of the rest. The remainder is for copies that are made while messages are read and sent.
const SHARE: (u64, u64) = (6, 10);

/// The least memory for messages: enough for a few of SQS's largest size.
const LEAST: u64 = 8 * MIB;

/// The most memory for messages: no setting needs more.
const MOST: u64 = 1024 * MIB;

/// What each further database of a process needs beside messages (docs/limits.md).
pub(super) const OF_A_DATABASE: u64 = 10 * MIB;

/// Bytes of messages that may be in memory if the process may use `process` bytes.
pub(super) fn for_messages(process: u64) -> usize {
    let share = process.saturating_sub(BASE) / SHARE.1 * SHARE.0;
    usize::try_from(share.clamp(LEAST, MOST)).unwrap_or(usize::MAX)
}

/// Limits what destinations may send to buckets to what fits into the memory for messages.
pub(super) fn fit(destinations: &mut [DestinationConfig], process: u64) {
    let claim_checks = destinations.iter_mut().filter_map(|destination| destination.claim_check.as_mut());
    claim_checks.for_each(|claim_check| claim_check.fit(for_messages(process)));
}

/// Bytes that the process may use if nothing is configured.
pub(super) fn default() -> u64 {
    allowed(Path::new("/")).unwrap_or(DEFAULT)
}

/// The number of bytes as it would be typed.
pub(super) fn shown(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (MIB, "MiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}

/// The lowest limit of this process's control group and of those around it.
fn allowed(root: &Path) -> Option<u64> {
    let groups = read_to_string(root.join("proc/self/cgroup")).ok()?;
    let files = groups.lines().filter_map(|line| {
        // ID:CONTROLLERS:PATH; version 2 has one line, without controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        if controllers.is_empty() {
            Some(("sys/fs/cgroup", "memory.max", path))
        } else if controllers.split(',').any(|controller| controller == "memory") {
            Some(("sys/fs/cgroup/memory", "memory.limit_in_bytes", path))
        } else {
            None
        }
    });
    let limits = files.flat_map(|(mount, file, path)| {
        let mount = root.join(mount);
        // In a container the path may be that of the host, but only the group itself is mounted.
        let groups = Path::new(path).ancestors().map(|group| group.strip_prefix("/").unwrap_or(group));
        let files: Vec<PathBuf> = groups.map(|group| mount.join(group).join(file)).collect();
        files.into_iter().filter_map(|file| limit(&file))
    });
    limits.min()
}

/// The limit in one file. "max" means none, and so does a number that exceeds any machine.
fn limit(file: &Path) -> Option<u64> {
    read_to_string(file).ok()?.trim().parse().ok().filter(|bytes| *bytes < BOUNDS.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_lowest_limit_of_the_groups_around_it_counts() {
        let second = files(&[
            ("proc/self/cgroup", "0::/pod/relay\n"),
            ("sys/fs/cgroup/pod/relay/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "167772160\n"),
        ]);
        assert_eq!(allowed(second.path()), Some(160 * MIB));
        let first = files(&[
            ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/pod\n0::/\n"),
            ("sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "134217728\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(allowed(first.path()), Some(128 * MIB));
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_top() {
        let root = files(&[
            ("proc/self/cgroup", "0::/kubepods/burstable/pod7\n"),
            ("sys/fs/cgroup/memory.max", "167772160\n"),
        ]);
        assert_eq!(allowed(root.path()), Some(160 * MIB));
    }

    #[test]
    fn no_limit_is_found_where_none_is_set() {
        assert_eq!(allowed(files(&[("proc/self/cgroup", "0::/\n")]).path()), None);
        assert_eq!(allowed(files(&[]).path()), None);
    }

    #[test]
    fn messages_get_a_part_of_the_memory_of_the_process() {
        assert_eq!(for_messages(160 * MIB) as u64 / MIB, 67);
        assert_eq!(for_messages(20 * MIB) as u64, LEAST);
        assert_eq!(for_messages(BOUNDS.1) as u64, MOST);
    }
}
