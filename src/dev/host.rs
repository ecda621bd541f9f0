//! What `dev` knows of the machine: programs, folders, ports, the account. The only file of `dev` that reads the
//! environment.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::process::Command;

/// Ports below the range that the system uses for outgoing connections, so that no client takes one in between.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// An unprivileged account. PostgreSQL refuses to run as root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) user: u32,
    pub(super) group: u32,
}

/// The account to use instead of root; `None` for everybody else.
pub(super) fn account() -> anyhow::Result<Option<Account>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let remedy = "PostgreSQL does not run as root, and /etc/passwd has neither a postgres nor a nobody to run it as";
    find_account(&accounts).map(Some).context(remedy)
}

fn find_account(accounts: &str) -> Option<Account> {
    let account = |line: &str| {
        let mut fields = line.split(':');
        let (name, user, group) = (fields.next()?, fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Account { name: name.to_owned(), user, group })
    };
    let all: Vec<Account> = accounts.lines().filter_map(account).filter(|account| account.user != 0).collect();
    ["postgres", "nobody"].iter().find_map(|wanted| all.iter().find(|account| account.name == *wanted)).cloned()
}

/// The command runs as this account, in no folder that the account may not enter.
pub(super) fn run_as(command: &mut Command, account: Option<&Account>) {
    command.current_dir("/");
    if let Some(Account { user, group, .. }) = account {
        command.uid(*user).gid(*group);
    }
}

/// Folders in which PostgreSQL may be, the preferred first.
pub(super) fn postgres_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let told = std::process::Command::new("pg_config").arg("--bindir").stderr(std::process::Stdio::null()).output();
    folders.extend(told.ok().and_then(|told| Some(PathBuf::from(String::from_utf8(told.stdout).ok()?.trim_end()))));
    for (parent, rest) in
        [("/usr/lib/postgresql", "bin"), ("/usr", "bin"), ("/opt/homebrew/opt", "bin"), ("/usr/local/opt", "bin")]
    {
        let mut versions: Vec<(u32, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.trim_start_matches("postgresql@").trim_start_matches("pgsql-");
            versions.extend(number.parse().ok().map(|version| (version, entry.path().join(rest))));
        }
        versions.sort_unstable_by(|a, b| b.cmp(a));
        folders.extend(versions.into_iter().map(|(_, folder)| folder));
    }
    folders.retain(|folder| folder.is_absolute());
    folders
}

/// A program that can be typed without its folder.
pub(super) fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// This program.
pub(super) fn this_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("the path of this program is not known")
}

/// Where temporary folders go, the preferred place first.
pub(super) fn temporary_places() -> [PathBuf; 2] {
    [std::env::temp_dir(), PathBuf::from("/tmp")]
}

/// Takes variables away that concern another server: names that begin with one of these.
pub(super) fn without_variables(command: &mut Command, prefixes: &[&str]) {
    for (name, _) in std::env::vars_os() {
        if prefixes.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
}

/// A port of 127.0.0.1 that is free now.
pub(super) fn free_port() -> anyhow::Result<u16> {
    let mut tries = (0..200).map(|_| fastrand::u16(PORTS));
    tries.find(|port| is_free(*port)).context("no port of 127.0.0.1 is free")
}

/// Whether a port of 127.0.0.1 is free now.
pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// 128 bits that nobody can guess, in hexadecimal digits.
pub(super) fn secret() -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut bits = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bits));
    read.context("cannot read /dev/urandom")?;
    Ok(format!("{:032x}", u128::from_be_bytes(bits)))
}

/// The last lines of a file, for an error.
pub(super) fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(6)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_is_preferred_to_nobody_and_root_is_never_chosen() {
        let nobody = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65533::/:/bin/false\n";
        let postgres = format!("{nobody}postgres:x:104:105:,,,:/var/lib/postgresql:/bin/bash\nodd line\n");
        let found = |accounts: &str| find_account(accounts).map(|account| (account.name, account.user, account.group));
        assert_eq!(found(&postgres), Some(("postgres".to_owned(), 104, 105)));
        assert_eq!(found(nobody), Some(("nobody".to_owned(), 65534, 65533)));
        assert_eq!(found("postgres:x:0:0::/:/bin/sh\n"), None);
    }
}
