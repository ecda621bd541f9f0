//! Where a PostgreSQL server of the tests lives: its folder, the account that it runs as, and its program files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// An unprivileged account. PostgreSQL refuses to run as root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account {
    user: u32,
    group: u32,
}

/// The command runs as this account.
pub(super) fn become_account(command: &mut Command, account: Option<Account>) {
    if let Some(Account { user, group }) = account {
        command.uid(user).gid(group);
    }
}

fn find_account() -> Result<Account> {
    let accounts = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    for wanted in ["postgres", "nobody"] {
        for fields in accounts.lines().map(|line| line.split(':').collect::<Vec<_>>()) {
            if let [name, _, user, group, ..] = fields[..]
                && name == wanted
            {
                return Ok(Account { user: user.parse()?, group: group.parse()? });
            }
        }
    }
    bail!("PostgreSQL does not run as root, and /etc/passwd has neither a postgres nor a nobody to run it as")
}

/// Creates the cluster's folder, in a place where the account that will run the server can work.
pub(super) fn create_home(below: Option<&Path>) -> Result<(PathBuf, Option<Account>)> {
    let temporary = std::env::temp_dir();
    let mut refused = Vec::new();
    for parent in below.into_iter().chain([temporary.as_path(), Path::new("/tmp")]) {
        match create_home_below(parent) {
            Ok(created) => return Ok(created),
            Err(error) => refused.push(format!("{}: {error:#}", parent.display())),
        }
    }
    bail!("no place for a PostgreSQL cluster: {}", refused.join("; "))
}

fn create_home_below(parent: &Path) -> Result<(PathBuf, Option<Account>)> {
    fs::create_dir_all(parent)?;
    let parent = parent.canonicalize()?;
    let home = (0..100)
        .map(|_| parent.join(format!("outbox-pg-{}-{:08x}", std::process::id(), fastrand::u32(..))))
        .find(|home| fs::create_dir(home).is_ok())
        .context("cannot create a folder")?;
    let settle = || {
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
        // The owner of a folder that we created is our user, which is found without unsafe code in this way.
        let account = if fs::metadata(&home)?.uid() == 0 { Some(find_account()?) } else { None };
        if let Some(Account { user, group }) = account {
            std::os::unix::fs::chown(&home, Some(user), Some(group))?;
        }
        let mut probe = Command::new("/bin/sh");
        probe.args(["-c", "cd \"$1\" && : >probe && rm probe", "probe"]).arg(&home);
        become_account(&mut probe, account);
        let probed = probe.current_dir("/").stderr(Stdio::null()).status()?;
        ensure!(probed.success(), "the account that runs PostgreSQL cannot work there");
        Ok(account)
    };
    match settle() {
        Ok(account) => Ok((home, account)),
        Err(error) => {
            fs::remove_dir_all(&home).ok();
            Err(error)
        }
    }
}

/// Writes a file that only this account may read.
pub(super) fn write_for(home: &Path, name: &str, text: &str, account: Option<Account>) -> Result<()> {
    let path = home.join(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    if let Some(Account { user, group }) = account {
        std::os::unix::fs::chown(&path, Some(user), Some(group))?;
    }
    Ok(())
}

/// The folder with initdb, postgres and pg_ctl of this major version, or of any.
pub(super) fn find_binaries(major: Option<&str>) -> Result<PathBuf> {
    let script = crate::repository().join("tests/tools/postgres.sh");
    let output = Command::new("/bin/sh").arg(&script).args(major).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} found no PostgreSQL; it says why above", script.display());
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}

/// The binaries, or a copy of them in `home` if the account cannot reach them, as below a closed home folder. A copy
/// works because PostgreSQL finds its libraries relative to its own place.
pub(super) fn reachable_binaries(binaries: &Path, home: &Path, account: Option<Account>) -> Result<PathBuf> {
    let mut probe = Command::new(binaries.join("postgres"));
    probe.arg("--version").current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
    become_account(&mut probe, account);
    if probe.status().is_ok_and(|status| status.success()) {
        return Ok(binaries.to_owned());
    }
    ensure!(account.is_some(), "{} does not run", binaries.join("postgres").display());
    let installation = binaries.parent().context("PostgreSQL's folder has no parent")?;
    let copy = home.join("installation");
    let copied = Command::new("cp").args(["-R", "-P"]).arg(installation).arg(&copy).status()?;
    ensure!(copied.success(), "cannot copy {} to {}", installation.display(), copy.display());
    let Account { user, group } = account.context("only root copies")?;
    let owner = format!("{user}:{group}");
    let owned = Command::new("chown").args(["-R", &owner]).arg(&copy).status()?;
    ensure!(owned.success(), "cannot hand {} to {owner}", copy.display());
    Ok(copy.join("bin"))
}
