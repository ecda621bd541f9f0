//! PgBouncer in transaction mode in front of a cluster: each transaction may run in another session of the server.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::postgres::{Cluster, PASSWORD, free_port};
use super::server_home::{Account, become_account, create_home, write_for};

/// Sessions of the server for each database: fewer than a relay and its test would use.
pub const POOL_SIZE: usize = 4;

/// How long a start may take.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the program $1 in the folder $2 until the owner has ended for any reason, which closes the pipe.
const GUARDIAN: &str = r#"
cd "$2" || exit 1
"$1" pgbouncer.ini >output 2>&1 </dev/null &
finish() {
    trap '' HUP TERM
    kill "$!" 2>/dev/null
    wait
    cd /
    rm -rf "$2" 2>/dev/null
    exit 0
}
trap 'finish "$@"' HUP TERM
read -r _
finish "$@"
"#;

/// A running PgBouncer. Its process ends when this is dropped, or when the owner ends.
#[derive(Debug)]
pub struct PgBouncer {
    server: u16,
    port: u16,
    home: PathBuf,
    guardian: Child,
    orders: Option<ChildStdin>,
}

impl PgBouncer {
    /// Starts PgBouncer on a free port of 127.0.0.1. It connects to every database of the cluster.
    pub fn start(cluster: &Cluster) -> Result<PgBouncer> {
        PgBouncer::start_with(cluster, "")
    }

    /// The same with more lines in its configuration; they override.
    pub fn start_with(cluster: &Cluster, lines: &str) -> Result<PgBouncer> {
        let program = find_program()?;
        let mut last_error = None;
        // Another process may take the port before PgBouncer does.
        for _ in 0..5 {
            match PgBouncer::start_at(&program, cluster.port(), free_port()?, lines) {
                Ok(started) => return Ok(started),
                Err(error) => last_error = Some(error),
            }
        }
        Err(last_error.context("PgBouncer did not start")?)
    }

    fn start_at(program: &Path, server: u16, port: u16, lines: &str) -> Result<PgBouncer> {
        let (home, account) = create_home(None)?;
        write_for(&home, "pgbouncer.ini", &(settings(server, port) + lines), account)?;
        write_for(&home, "users", &format!("\"postgres\" \"{PASSWORD}\"\n"), account)?;
        let guardian = spawn(program, &home, account)?;
        let mut started = PgBouncer { server, port, home, guardian, orders: None };
        started.orders = started.guardian.stdin.take();
        started.wait_until_it_listens()?;
        Ok(started)
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let log = self.home.join("log");
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            // Another process may listen on this port; the log shows whether it is ours.
            if said.contains("process up") && TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            ensure!(!said.contains("FATAL") && Instant::now() < deadline, "PgBouncer did not start:\n{said}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The same address through PgBouncer.
    pub fn url(&self, direct: &str) -> String {
        direct.replace(&format!(":{}/", self.server), &format!(":{}/", self.port))
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of its console.
    pub fn console(&self) -> String {
        format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}/pgbouncer", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.orders = None;
        self.guardian.wait().ok();
        // An unprivileged guardian cannot remove the folder from a parent that only we may write to.
        fs::remove_dir_all(&self.home).ok();
    }
}

/// Finds the program. Debian installs it in a folder that is not in the PATH of ordinary users.
fn find_program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = folders.map(|folder| folder.join("pgbouncer")).find(|program| program.is_file());
    found.context("pgbouncer is missing; tests/tools/debian.sh installs it, or: apt-get install pgbouncer")
}

fn spawn(program: &Path, home: &Path, account: Option<Account>) -> Result<Child> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", GUARDIAN, "guardian"]).arg(program).arg(home);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).current_dir("/");
    // Not in our process group: Ctrl-C in a terminal must reach the owner only.
    command.process_group(0);
    become_account(&mut command, account);
    command.spawn().context("cannot start /bin/sh")
}

fn settings(server: u16, port: u16) -> String {
    // Unused sessions are closed soon, because a hundred databases share the connections of the server.
    format!(
        "[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = users
admin_users = postgres
pool_mode = transaction
default_pool_size = {POOL_SIZE}
max_client_conn = 1000
server_idle_timeout = 2
logfile = log
"
    )
}
