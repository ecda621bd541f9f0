//! A peer as its folder of `benches/peers` describes it:
//!
//! | file | |
//! |---|---|
//! | `peer.json` | version, needed programs, queue for the order, `wal_level`, the settings in a line |
//! | `install.sh` | installs that version into `$PEER_HOME`; the last line it complains is why it cannot |
//! | `create.sql` or `create.sh` | creates its tables |
//! | `write.sql` | writes messages: `$1` first and `$2` last number, `$3` how many keys, `$4` the queue's URL |
//! | `defaults.sh`, `best.sh` | run it with its defaults, or with its best documented settings, until it is ended |
//!
//! The relay itself is one of them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use support::postgres::Cluster;

use crate::stand_in::{StandIn, Wire};

/// How long an installation may take: one downloads 800 MB.
const INSTALL_FOR: Duration = Duration::from_secs(1800);

/// How long its tables may take.
const CREATE_FOR: Duration = Duration::from_secs(60);

/// The database of the peer that runs.
pub const DATABASE: &str = "peer";

/// The settings that a peer runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settings {
    Defaults,
    Best,
}

impl Settings {
    pub fn word(self) -> &'static str {
        match self {
            Settings::Defaults => "defaults",
            Settings::Best => "best",
        }
    }
}

/// Whether it sends to a FIFO queue, so that the order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Queue {
    Fifo,
    Standard,
}

/// The `wal_level` that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalLevel {
    Replica,
    Logical,
}

/// What `peer.json` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    #[serde(default)]
    version: String,
    #[serde(default)]
    needs: Vec<String>,
    pub order: Queue,
    pub wal_level: WalLevel,
    /// Its settings, as the table describes them.
    #[serde(default)]
    defaults: String,
    #[serde(default)]
    best: String,
}

impl About {
    /// These settings in a line.
    pub fn of(&self, settings: Settings) -> &str {
        match settings {
            Settings::Defaults => &self.defaults,
            Settings::Best => &self.best,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Peer {
    pub name: String,
    pub about: About,
    folder: PathBuf,
    /// Where it is installed.
    home: PathBuf,
}

impl Peer {
    /// All of them, this relay first.
    pub fn all() -> Result<Vec<Peer>> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut peers = Vec::new();
        for entry in std::fs::read_dir(root.join("benches/peers"))? {
            let folder = entry?.path();
            let name = folder.file_name().and_then(|name| name.to_str()).context("a folder without a name")?.to_owned();
            let about = std::fs::read(folder.join("peer.json")).with_context(|| format!("peer {name}"))?;
            let about = serde_json::from_slice(&about).with_context(|| format!("peer {name}: peer.json"))?;
            let home = root.join("target/peers").join(&name);
            peers.push(Peer { name, about, folder, home });
        }
        peers.sort_by_key(|peer| (peer.name != "outbox-relay", peer.name.clone()));
        Ok(peers)
    }

    /// Its name and version.
    pub fn title(&self) -> String {
        format!("{} {}", self.name, self.about.version).trim_end().to_owned()
    }

    /// The settings that its folder has.
    pub fn settings(&self) -> Vec<Settings> {
        let has = |settings: &Settings| self.folder.join(format!("{}.sh", settings.word())).exists();
        [Settings::Defaults, Settings::Best].into_iter().filter(has).collect()
    }

    /// Installs it unless it is; why it cannot run here.
    pub async fn obstacle(&self) -> Result<Option<String>> {
        if let Some(missing) = self.about.needs.iter().find(|program| !is_installed(program)) {
            return Ok(Some(format!("{missing} is missing")));
        }
        let install = self.folder.join("install.sh");
        let (stamp, wanted) = (self.home.join("installed"), self.sources()?);
        if install.exists() && !std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
            std::fs::create_dir_all(&self.home)?;
            let log = self.home.join("install.log");
            let mut command = Command::new("sh");
            command.arg(&install).envs([("PEER_HOME", &self.home), ("PEER_FOLDER", &self.folder)]);
            command.env("VERSION", &self.about.version).stdin(Stdio::null()).stdout(Stdio::null());
            if !ends_well(command.stderr(File::create(&log)?), INSTALL_FOR).await? {
                return Ok(Some(last_line(&log).unwrap_or_else(|| "install.sh failed without a word".to_owned())));
            }
            std::fs::write(stamp, wanted)?;
        }
        if self.settings().is_empty() {
            return Ok(Some("it can be installed, but nobody has written how it is run".to_owned()));
        }
        Ok(None)
    }

    /// Everything that decides what is installed.
    fn sources(&self) -> Result<Vec<u8>> {
        let mut files =
            ["peer.json", "install.sh", "Cargo.toml", "Cargo.lock", "src/main.rs"].map(|file| self.folder.join(file));
        files.sort();
        Ok(files.iter().filter(|file| file.exists()).map(std::fs::read).collect::<std::io::Result<Vec<_>>>()?.concat())
    }

    /// Creates its tables in an empty database.
    pub async fn create_tables(&self, place: &Place<'_>) -> Result<()> {
        if let Ok(statements) = std::fs::read_to_string(self.folder.join("create.sql")) {
            return Ok(place.connect().await?.batch_execute(&statements).await?);
        }
        let log = place.work.join("create.log");
        let mut command = Command::new("sh");
        command.arg(self.folder.join("create.sh"));
        self.set_environment(&mut command, place);
        if !ends_well(command.stderr(File::create(&log)?), CREATE_FOR).await? {
            bail!("create.sh failed: {}", last_line(&log).unwrap_or_default());
        }
        Ok(())
    }

    /// The statement that writes messages.
    pub fn write(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.join("write.sql"))?)
    }

    /// How it is run: until its standard input ends, which is when the bench does.
    pub fn run(&self, settings: Settings, place: &Place<'_>) -> Command {
        const UNTIL_THE_END: &str = "exec 3<&0; (cat <&3; kill -KILL 0) & exec 3<&-; exec sh \"$0\" </dev/null";
        let script = self.folder.join(format!("{}.sh", settings.word()));
        let mut command = Command::new("sh");
        command.args(["-c", UNTIL_THE_END]).arg(script);
        self.set_environment(&mut command, place);
        command.stdin(Stdio::piped());
        command
    }

    fn set_environment(&self, command: &mut Command, place: &Place<'_>) {
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        let authority = place.stand_in.authority();
        command.envs([
            ("PEER_HOME", self.home.as_path()),
            ("PEER_FOLDER", &self.folder),
            ("WORK", place.work),
            // boto3 and the relay read the one, OpenSSL, rustls and Go the other.
            ("AWS_CA_BUNDLE", &authority),
            ("SSL_CERT_FILE", &authority),
        ]);
        command.envs([
            ("DATABASE_URL", place.cluster.url(DATABASE)),
            ("PGPORT", place.cluster.port().to_string()),
            ("ENDPOINT", place.stand_in.endpoint(Wire::Https).to_owned()),
            ("QUEUE_URL", place.queue_url()),
        ]);
        command.envs([
            ("PGHOST", "127.0.0.1"),
            ("PGUSER", "postgres"),
            ("PGPASSWORD", support::postgres::PASSWORD),
            ("PGDATABASE", DATABASE),
            ("RELAY", env!("CARGO_BIN_EXE_outbox-relay")),
            ("PATH", "/usr/bin:/bin"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "bench"),
            ("AWS_SECRET_ACCESS_KEY", "bench"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]);
    }
}

/// Where a peer runs: its PostgreSQL, its queue, and a folder for its files.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub cluster: &'a Cluster,
    pub stand_in: &'a StandIn,
    pub queue: Queue,
    pub work: &'a Path,
}

impl Place<'_> {
    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        connect(self.cluster, DATABASE).await
    }

    pub fn queue_url(&self) -> String {
        let name = match self.queue {
            Queue::Fifo => "tickets.fifo",
            Queue::Standard => "tickets",
        };
        self.stand_in.queue(Wire::Https, name)
    }
}

/// A session in a database of this cluster.
pub async fn connect(cluster: &Cluster, database: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(&cluster.url(database), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Runs it to its end; false if it failed or took too long.
async fn ends_well(command: &mut Command, limit: Duration) -> Result<bool> {
    let mut child = command.spawn()?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The last line of a log that says something.
pub fn last_line(log: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&std::fs::read(log).ok()?).into_owned();
    text.lines().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim().chars().take(200).collect())
}
