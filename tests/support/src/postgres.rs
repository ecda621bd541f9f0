//! A private PostgreSQL cluster with its own folder and its own port on 127.0.0.1. It ends with its owner.
//!
//! The tests and the lottery example both use this module, so it depends on neither. It never touches another cluster
//! on the machine: it uses only ports and folders of its own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::server_home::{Account, become_account, create_home, find_binaries, reachable_binaries, write_for};

/// The superuser's password. Tests search for it where no secret may appear, so it is easy to recognise.
pub const PASSWORD: &str = "the-secret-of-this-cluster";

/// How long an order may take. The guardian limits its own steps to 60 s, so it takes longer only if it hangs.
const ORDER_TIMEOUT: Duration = Duration::from_secs(90);

/// The longest path of a socket's folder. A socket's path has at most 107 bytes on Linux and 103 on macOS, with
/// `/.s.PGSQL.12345`.
const SOCKET_FOLDER_LIMIT: usize = 103 - "/.s.PGSQL.12345".len();

/// The options of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The major version, from npm. `None` means the installed PostgreSQL.
    pub major: Option<String>,
    /// Whether fsync stays on. Without it, the cluster is faster and survives everything but a crash of the machine.
    pub durable: bool,
    /// More lines of postgresql.conf. They override the lines that this module writes.
    pub settings: Vec<(String, String)>,
    /// Where to create the cluster's folder. The system's folder for temporary files is used if this is `None`, or if
    /// the unprivileged account that must run PostgreSQL instead of root cannot work there.
    pub below: Option<PathBuf>,
}

/// How the server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// It ends the sessions and writes a checkpoint.
    Fast,
    /// It ends as in a crash. The next start recovers from the write-ahead log.
    Immediate,
}

impl StopMode {
    fn word(self) -> &'static str {
        match self {
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        }
    }
}

/// A running cluster. When this is dropped, the server stops and its folder is removed.
#[derive(Debug)]
pub struct Cluster {
    home: PathBuf,
    port: u16,
    guardian: Mutex<Guardian>,
}

impl Cluster {
    /// Creates and starts a cluster; returns when it accepts connections.
    pub fn start(options: &Options) -> Result<Cluster> {
        Cluster::start_with(options, |guardian, _| guardian.order("create").context("initdb failed"))
    }

    /// Starts a standby that streams from this server. This server stops for a moment, so that its data can be copied.
    /// Give the options of this server.
    pub fn start_standby(&self, options: &Options) -> Result<Cluster> {
        let mut options = options.clone();
        let primary = format!("host=127.0.0.1 port={} user=postgres password={PASSWORD}", self.port);
        options.settings.push(("primary_conninfo".to_owned(), primary));
        Cluster::start_with(&options, |_, home| {
            self.stop(StopMode::Fast)?;
            let copied = copy_all(&self.home.join("data"), &home.join("data"));
            self.start_again()?;
            copied?;
            become_standby(home)
        })
    }

    fn start_with(options: &Options, fill: impl FnOnce(&mut Guardian, &Path) -> Result<()>) -> Result<Cluster> {
        let binaries = find_binaries(options.major.as_deref())?;
        let (home, account) = create_home(options.below.as_deref())?;
        match Cluster::start_in(&home, account, &binaries, options, fill) {
            Ok(cluster) => Ok(cluster),
            Err(error) => {
                let error = error.context(log_tails(&home));
                // If the guardian was started, it removes the folder as well.
                fs::remove_dir_all(&home).ok();
                Err(error)
            }
        }
    }

    fn start_in(
        home: &Path,
        account: Option<Account>,
        binaries: &Path,
        options: &Options,
        fill: impl FnOnce(&mut Guardian, &Path) -> Result<()>,
    ) -> Result<Cluster> {
        let binaries = reachable_binaries(binaries, home, account)?;
        write_for(home, "password", &format!("{PASSWORD}\n"), account)?;
        let mut guardian = Guardian::spawn(&binaries, home, account)?;
        fill(&mut guardian, home)?;
        let configuration = home.join("data/postgresql.conf");
        let defaults = fs::read_to_string(&configuration)?;
        let mut last_error = None;
        // Another process may take the port before PostgreSQL does.
        for _ in 0..5 {
            let port = free_port()?;
            fs::write(&configuration, format!("{defaults}\n{}", settings(home, port, options)))?;
            match guardian.order("start") {
                Ok(()) => {
                    let home = home.to_owned();
                    return Ok(Cluster { home, port, guardian: Mutex::new(guardian) });
                }
                Err(error) => last_error = Some(error),
            }
        }
        Err(last_error.context("PostgreSQL did not start")?).context("PostgreSQL did not start")
    }

    /// The URL of a database, as superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// The port on 127.0.0.1; it stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's own log.
    pub fn log_path(&self) -> PathBuf {
        self.home.join("log")
    }

    /// The folder of the Unix socket. The server trusts everyone who can enter the folder.
    pub fn socket_folder(&self) -> &Path {
        &self.home
    }

    /// Writes a file into the folder of the data, readable for the server only. It takes effect at the next restart.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.home.join("data").join(name);
        let owner = fs::metadata(self.home.join("data/postgresql.conf"))?;
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid()))?;
        Ok(())
    }

    /// Puts lines before those of `pg_hba.conf`, and restarts the server.
    pub fn authenticate(&self, lines: &str) -> Result<()> {
        let before = fs::read_to_string(self.home.join("data/pg_hba.conf"))?;
        self.write("pg_hba.conf", &format!("{lines}\n{before}"))?;
        self.restart(StopMode::Fast)
    }

    /// Stops the server; the data stays.
    pub fn stop(&self, mode: StopMode) -> Result<()> {
        self.order(&format!("stop {}", mode.word()))
    }

    /// Starts a stopped server on the same port; returns when it accepts connections.
    pub fn start_again(&self) -> Result<()> {
        self.order("start")
    }

    /// Stops and starts.
    pub fn restart(&self, mode: StopMode) -> Result<()> {
        self.stop(mode)?;
        self.start_again()
    }

    /// Keeps a copy of the data. The server must be stopped.
    pub fn keep_data(&self) -> Result<()> {
        copy_all(&self.home.join("data"), &self.home.join("kept"))
    }

    /// Replaces the data by the kept copy. The server must be stopped.
    pub fn go_back_to_kept_data(&self) -> Result<()> {
        fs::remove_dir_all(self.home.join("data"))?;
        copy_all(&self.home.join("kept"), &self.home.join("data"))
    }

    /// Fills a data file with zeros, as a broken disk does, and returns what it contained. The server must be stopped.
    pub fn blank(&self, file: &str) -> Result<Vec<u8>> {
        let path = self.home.join("data").join(file);
        let kept = fs::read(&path)?;
        fs::write(path, vec![0; kept.len()])?;
        Ok(kept)
    }

    /// Restores a file that was filled with zeros. The server must be stopped.
    pub fn put_back(&self, file: &str, kept: &[u8]) -> Result<()> {
        Ok(fs::write(self.home.join("data").join(file), kept)?)
    }

    /// The server starts as a standby next time, until it is promoted.
    pub fn become_standby(&self) -> Result<()> {
        become_standby(&self.home)
    }

    /// Creates an empty database.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        self.execute(&format!("CREATE DATABASE {}", quoted(name))).await
    }

    /// Copies a database that nobody is connected to.
    pub async fn create_database_from_template(&self, name: &str, template: &str) -> Result<()> {
        self.execute(&format!("CREATE DATABASE {} TEMPLATE {}", quoted(name), quoted(template))).await
    }

    /// Removes a database, after ending the sessions in it.
    pub async fn drop_database(&self, name: &str) -> Result<()> {
        self.execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(name))).await
    }

    async fn execute(&self, statement: &str) -> Result<()> {
        let (client, connection) = tokio_postgres::connect(&self.url("postgres"), tokio_postgres::NoTls).await?;
        let connection = tokio::spawn(connection);
        let outcome = client.batch_execute(statement).await;
        drop(client);
        connection.await??;
        outcome.with_context(|| statement.to_owned())
    }

    fn order(&self, order: &str) -> Result<()> {
        let outcome = self.guardian.lock().unwrap_or_else(PoisonError::into_inner).order(order);
        outcome.with_context(|| log_tails(&self.home))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.guardian.lock().unwrap_or_else(PoisonError::into_inner).dismiss();
        // An unprivileged guardian cannot remove the folder from a parent that only we may write to.
        fs::remove_dir_all(&self.home).ok();
    }
}

/// The shell process of `guardian.sh`. It outlives the owner just long enough to clean up.
#[derive(Debug)]
struct Guardian {
    child: Child,
    orders: Option<ChildStdin>,
    answers: mpsc::Receiver<String>,
}

impl Guardian {
    fn spawn(binaries: &Path, home: &Path, account: Option<Account>) -> Result<Guardian> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(include_str!("guardian.sh")).arg("guardian").arg(binaries).arg(home);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).current_dir("/");
        // Not in our process group: Ctrl-C in a terminal must reach the owner only.
        command.process_group(0);
        // PG* variables concern other servers.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        become_account(&mut command, account);
        let mut child = command.spawn().context("cannot start /bin/sh")?;
        let orders = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("the guardian has no output")?).lines();
        let (answer, answers) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| answer.send(line)));
        Ok(Guardian { child, orders, answers })
    }

    fn order(&mut self, order: &str) -> Result<()> {
        let orders = self.orders.as_mut().context("the cluster is gone")?;
        writeln!(orders, "{order}").context("the cluster's guardian is gone")?;
        let answer = self.answers.recv_timeout(ORDER_TIMEOUT).context("the cluster's guardian is silent")?;
        ensure!(answer == "done", "PostgreSQL could not {order}");
        Ok(())
    }

    fn dismiss(&mut self) {
        self.orders = None;
        self.child.wait().ok();
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.dismiss();
    }
}

/// The server in this folder starts as a standby next time.
fn become_standby(home: &Path) -> Result<()> {
    // It is a copy of another file, so that it has the right owner: this process may run as another user.
    copy_all(&home.join("data/PG_VERSION"), &home.join("data/standby.signal"))
}

/// Copies with owners, permissions and times, as PostgreSQL needs them.
fn copy_all(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(copied.success(), "cannot copy {} to {}", from.display(), to.display());
    Ok(())
}

fn settings(home: &Path, port: u16, options: &Options) -> String {
    let socket_folder = if home.as_os_str().len() <= SOCKET_FOLDER_LIMIT { home } else { Path::new("") };
    let mut lines = vec![
        format!("port = {port}"),
        "listen_addresses = '127.0.0.1'".to_owned(),
        format!("unix_socket_directories = '{}'", socket_folder.display()),
        "max_connections = 200".to_owned(),
        "log_line_prefix = '%m [%p] %d %a '".to_owned(),
    ];
    if !options.durable {
        lines.push("fsync = off".to_owned());
        lines.push("full_page_writes = off".to_owned());
    }
    for (name, value) in &options.settings {
        lines.push(format!("{name} = '{}'", value.replace('\'', "''")));
    }
    lines.join("\n") + "\n"
}

/// A free port below the range that the system uses for outgoing connections. So no client can take it while a server
/// is restarting.
pub fn free_port() -> Result<u16> {
    (0..200)
        .map(|_| fastrand::u16(15_000..32_000))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .context("no free port on 127.0.0.1")
}

fn log_tails(home: &Path) -> String {
    let mut tails = String::from("the cluster's logs end with");
    for name in ["initdb.log", "pg_ctl.log", "log"] {
        let text = fs::read_to_string(home.join(name)).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(8)..] {
            tails.push_str(&format!("\n  {name}: {line}"));
        }
    }
    tails
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
