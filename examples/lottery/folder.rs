//! The folder that a demo works in: empty at the start, removed at the end, one demo at a time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

/// Dropping it removes the folder, except files that must be kept.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    keep_log: AtomicBool,
    /// Held open: its lock says that a demo is using the folder, and ends with the process in any case.
    _lock: File,
}

impl Folder {
    /// Creates the folder and removes what an earlier demo may have left.
    pub fn prepare(path: &Path) -> Result<Folder> {
        let place = path.display();
        fs::create_dir_all(path).with_context(|| format!("cannot create {place}; choose another with --folder"))?;
        let path = path.canonicalize()?;
        let lock = File::open(&path)?;
        if lock.try_lock().is_err() {
            bail!("another demo is at work in {place}; let it end, or choose another folder with --folder");
        }
        clear(&path, None).with_context(|| format!("cannot empty {place}; remove it and try again"))?;
        Ok(Folder { path, keep_log: AtomicBool::new(true), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of the relay's log.
    pub fn relay_log(&self) -> PathBuf {
        self.path.join("relay.log")
    }

    /// All went well: nobody needs to read the relay's log.
    pub fn forget_log(&self) {
        self.keep_log.store(false, Ordering::Relaxed);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let log = self.relay_log();
        clear(&self.path, self.keep_log.load(Ordering::Relaxed).then_some(log.as_path())).ok();
        // It fails if the log is still in the folder, as intended.
        fs::remove_dir(&self.path).ok();
    }
}

fn clear(folder: &Path, but: Option<&Path>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if but == Some(entry.path().as_path()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
