//! A private PostgreSQL cluster with its own folder, its own port of 127.0.0.1 and a password that nobody can guess.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::binaries::Binaries;
use super::child::{Ends, Watched, Watcher};
use super::host::{self, Account};
use super::problem::Unusable;

/// How long `initdb` may take, and the server to start, which recovers after a crash.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the server may take to end; it writes a checkpoint.
const END: Duration = Duration::from_secs(30);

/// How often to look whether the server is ready.
const LOOK: Duration = Duration::from_millis(20);

/// How often to try another port, if somebody else takes the one that was free.
const TRIES: u32 = 5;

/// The user and the database of the cluster.
const NAME: &str = "postgres";

/// A running server. [`Cluster::end`] ends it in order; when it is dropped, its watcher ends it.
#[derive(Debug)]
pub(super) struct Cluster {
    server: Watched,
    password: String,
    port: u16,
    home: Home,
}

impl Cluster {
    /// Starts a new cluster in a temporary folder, or the one in `data`, which is created if it is not there. `None` if
    /// it is told to stop meanwhile.
    pub(super) async fn start(
        binaries: &Binaries,
        data: Option<&Path>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let account = host::account()?;
        let mut home = match data {
            Some(data) => Home::kept(data, account)?,
            None => Home::temporary(account).await?,
        };
        let started = tokio::select! {
            started = home.serve(binaries) => started.map(Some),
            () = stop.cancelled() => Ok(None),
        };
        match started {
            Ok(Some((server, port, password))) => Ok(Some(Self { server, password, port, home })),
            Ok(None) => {
                home.end().await;
                Ok(None)
            }
            Err(error) => {
                home.end().await;
                Err(error)
            }
        }
    }

    /// Its URL.
    pub(super) fn url(&self) -> String {
        format!("postgres://{NAME}:{}@127.0.0.1:{}/{NAME}?sslmode=disable", self.password, self.port)
    }

    /// The folder, and what becomes of it.
    pub(super) fn place(&self) -> String {
        let fate = if self.home.is_temporary { "removed at the end" } else { "kept" };
        format!("in {}, {fate}", self.home.folder.display())
    }

    /// Completes when the server ends by itself.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match self.server.wait().await {
            Ok(status) => anyhow::anyhow!("PostgreSQL ended ({status}):\n{}", host::tail(&self.home.log())),
            Err(error) => error,
        }
    }

    /// Ends the server, and removes a temporary folder.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        self.server.end();
        let ended = self.server.wait_at_most(END).await;
        if ended.is_ok() {
            self.home.watcher.forget().await;
        }
        self.home.end().await;
        ended.map(drop)
    }
}

/// The folder of a cluster, the account that works there, and who ends what runs there.
#[derive(Debug)]
struct Home {
    folder: PathBuf,
    is_temporary: bool,
    account: Option<Account>,
    watcher: Watcher,
}

impl Home {
    async fn temporary(account: Option<Account>) -> anyhow::Result<Self> {
        let mut refused = Vec::new();
        for place in host::temporary_places() {
            let folder = place.join(format!("outbox-relay-dev-{:08x}", fastrand::u32(..)));
            if let Err(error) = fs::create_dir(&folder) {
                refused.push(format!("{}: {error}", folder.display()));
                continue;
            }
            // Not earlier: if the folder were somebody else's, the watcher would remove it.
            let watcher = Watcher::start(account.as_ref(), Some(&folder))?;
            let home = Self { folder, is_temporary: true, account: account.clone(), watcher };
            match home.settle() {
                Ok(()) => return Ok(home),
                Err(error) => refused.push(error.to_string()),
            }
            home.end().await;
        }
        bail!("there is no place for a PostgreSQL cluster: {}; name one with --data DIR", refused.join("; "))
    }

    fn kept(data: &Path, account: Option<Account>) -> anyhow::Result<Self> {
        let unusable = |why: String| Unusable(format!("--data {} {why}", data.display()));
        fs::create_dir_all(data)
            .map_err(|error| unusable(format!("cannot be created: {error}; name another folder")))?;
        let folder = data.canonicalize()?;
        let watcher = Watcher::start(account.as_ref(), None)?;
        let home = Self { folder, is_temporary: false, account, watcher };
        let is_empty = fs::read_dir(&home.folder)?.next().is_none();
        if !is_empty && !home.folder.join("password").is_file() {
            return Err(unusable("holds something else; name an empty folder or one of this command".to_owned()).into());
        }
        home.settle().map_err(|error| unusable(format!("cannot be used: {error}; name another folder")))?;
        Ok(home)
    }

    /// Ends what still runs there, and removes a temporary folder.
    async fn end(self) {
        self.watcher.end().await;
        if self.is_temporary {
            // The account of the watcher may be unable to remove the folder itself.
            fs::remove_dir_all(&self.folder).ok();
        }
    }

    /// Starts the server, with a new cluster if there is none; its port and its password.
    async fn serve(&mut self, binaries: &Binaries) -> anyhow::Result<(Watched, u16, String)> {
        self.check_programs(binaries).await?;
        let password = self.password()?;
        if !self.data().exists() {
            self.create(binaries).await?;
        }
        for _ in 0..TRIES {
            let port = host::free_port()?;
            if let Some(server) = self.start(binaries, port).await? {
                return Ok((server, port, password));
            }
            self.watcher.forget().await;
        }
        bail!("PostgreSQL does not start in {}:\n{}", self.folder.display(), host::tail(&self.log()))
    }

    /// Hands the folder to the account, and finds out whether that can work there.
    fn settle(&self) -> anyhow::Result<()> {
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700))?;
        let Some(Account { user, group, name }) = &self.account else { return Ok(()) };
        std::os::unix::fs::chown(&self.folder, Some(*user), Some(*group))?;
        let mut probe = Command::new("/bin/sh");
        probe.args(["-c", ": >\"$1\"/probe && rm \"$1\"/probe", "probe"]).arg(&self.folder);
        host::run_as(&mut probe, self.account.as_ref());
        let probed = probe.as_std_mut().stderr(Stdio::null()).status()?;
        let why = "which runs PostgreSQL instead of root, cannot work there";
        ensure!(probed.success(), "{}: the account {name}, {why}", self.folder.display());
        Ok(())
    }

    /// The account may be unable to enter the folder of the programs.
    async fn check_programs(&self, binaries: &Binaries) -> anyhow::Result<()> {
        let Some(Account { name, .. }) = &self.account else { return Ok(()) };
        let mut probe = self.command(binaries, "postgres");
        let status = probe.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        if status.is_ok_and(|status| status.success()) {
            return Ok(());
        }
        let folder = binaries.folder.display();
        let remedy = "name another folder with --postgres DIR, or run this command as another user";
        Err(Unusable(format!("{folder} cannot be entered by {name}, which runs PostgreSQL instead of root; {remedy}"))
            .into())
    }

    /// The password of the cluster, made if there is none yet.
    fn password(&self) -> anyhow::Result<String> {
        let path = self.folder.join("password");
        let known = if path.is_file() { fs::read_to_string(&path)? } else { String::new() };
        // Empty if the command was killed before it wrote it.
        if !known.trim_end().is_empty() {
            return Ok(known.trim_end().to_owned());
        }
        let password = host::secret()?;
        fs::write(&path, "")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        fs::write(&path, format!("{password}\n"))?;
        if let Some(Account { user, group, .. }) = &self.account {
            std::os::unix::fs::chown(&path, Some(*user), Some(*group))?;
        }
        Ok(password)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn command(&self, binaries: &Binaries, program: &str) -> Command {
        let mut command = Command::new(binaries.folder.join(program));
        host::run_as(&mut command, self.account.as_ref());
        // PG* variables concern other servers.
        host::without_variables(&mut command, &["PG"]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Under another name until it is complete, so that an interruption leaves nothing that looks like a cluster.
    async fn create(&mut self, binaries: &Binaries) -> anyhow::Result<()> {
        let new = self.folder.join("data.new");
        if new.exists() {
            fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
        }
        let mut initdb = self.command(binaries, "initdb");
        initdb.arg("-D").arg(&new).arg("--pwfile").arg(self.folder.join("password"));
        initdb.args(["--username", NAME, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]);
        if self.is_temporary {
            initdb.arg("--no-sync");
        }
        initdb.stdout(Stdio::null()).stderr(self.open_log()?);
        // It leaves its children to themselves.
        let mut initdb = self.watcher.spawn(&mut initdb, Signal::TERM, Ends::Group).await?;
        let status = timeout(PATIENCE, initdb.wait()).await.context("initdb takes too long")??;
        self.watcher.forget().await;
        let folder = self.folder.display();
        ensure!(status.success(), "initdb failed in {folder}:\n{}", host::tail(&self.log()));
        fs::rename(&new, self.data()).with_context(|| format!("cannot rename {}", new.display()))
    }

    fn open_log(&self) -> anyhow::Result<fs::File> {
        fs::File::options().create(true).append(true).open(self.log()).context("the log of PostgreSQL")
    }

    /// Starts the server; `None` if it has ended, as when somebody else has taken the port.
    async fn start(&mut self, binaries: &Binaries, port: u16) -> anyhow::Result<Option<Watched>> {
        let log = self.open_log()?;
        let mut server = self.command(binaries, "postgres");
        server.arg("-D").arg(self.data()).args(["-p", &port.to_string()]);
        // Only on this machine. The time of each commit is kept, for the latency that is shown.
        let mut settings = vec!["listen_addresses=127.0.0.1", "unix_socket_directories=", "track_commit_timestamp=on"];
        if self.is_temporary {
            settings.extend(["fsync=off", "full_page_writes=off"]);
        }
        for setting in settings {
            server.args(["-c", setting]);
        }
        server.stdout(log.try_clone()?).stderr(log);
        let mut server = self.watcher.spawn(&mut server, Signal::INT, Ends::Process).await?;
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready(server.id()) {
            ensure!(
                Instant::now() < deadline,
                "PostgreSQL is not ready after {PATIENCE:?}:\n{}",
                host::tail(&self.log())
            );
            tokio::select! {
                ended = server.wait() => {
                    ended?;
                    return Ok(None);
                }
                () = sleep(LOOK) => {}
            }
        }
        Ok(Some(server))
    }

    /// As pg_ctl finds out: the server writes its id in the first line of a file and its state in the eighth.
    fn is_ready(&self, id: u32) -> bool {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.first() == Some(&id.to_string().as_str()) && lines.get(7) == Some(&"ready")
    }
}
