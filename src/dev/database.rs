//! The database: a cluster of `dev`'s own, or the one that DATABASE_URL names.

use tokio_util::sync::CancellationToken;

use super::binaries::Binaries;
use super::cluster::Cluster;
use super::host;
use super::plan::{Plan, Served};
use super::problem::Unusable;
use super::relay::Program;
use super::text::quoted;
use crate::config::{ConfigError, DatabaseConfig, Flags};
use crate::outbox::{MIGRATIONS, Outbox};

/// A database that is there.
#[derive(Debug)]
pub(super) struct Database {
    /// `None` for the user's own.
    cluster: Option<Cluster>,
    config: DatabaseConfig,
    pub(super) outbox: Outbox,
    /// The client to type.
    pub(super) psql: String,
    /// A sentence about it.
    pub(super) about: String,
}

impl Database {
    /// Starts a cluster, unless the flags name a database.
    /// `None` if it is told to stop meanwhile.
    pub(super) async fn start(flags: &Flags, plan: &Plan, stop: &CancellationToken) -> anyhow::Result<Option<Self>> {
        if flags.has_database() {
            if plan.data.is_some() || plan.postgres.is_some() {
                let sentence =
                    "DATABASE_URL names the database, so --data and --postgres are of no use; unset one or the other";
                return Err(Unusable(sentence.to_owned()).into());
            }
            let config = flags.database().map_err(unusable)?;
            let outbox = Outbox::new(&config, 1)?;
            let about = format!("{}, as DATABASE_URL says", config.place());
            return Ok(Some(Self { cluster: None, config, outbox, psql: "psql".to_owned(), about }));
        }
        let binaries = Binaries::find(plan.postgres.as_deref(), host::postgres_folders())?;
        let Some(cluster) = Cluster::start(&binaries, plan.data.as_deref(), stop).await? else { return Ok(None) };
        let schema = flags.schema().map_err(unusable)?;
        let given = Flags::default().with("database-url", cluster.url()).with("schema", schema.name());
        let config = given.database().map_err(unusable)?;
        let outbox = Outbox::new(&config, 1)?;
        let about = format!("{} {}", binaries.version, cluster.place());
        let beside = binaries.folder.join("psql");
        let psql = if host::is_in_path("psql") || !beside.is_file() { "psql".into() } else { beside };
        Ok(Some(Self { cluster: Some(cluster), config, outbox, psql: psql.display().to_string(), about }))
    }

    /// The URL of the cluster; that of the user's database is not shown.
    pub(super) fn url(&self) -> Option<String> {
        self.cluster.as_ref().map(Cluster::url)
    }

    /// How a shell names the database.
    pub(super) fn typed(&self) -> String {
        self.url().map_or_else(|| "\"$DATABASE_URL\"".to_owned(), |url| quoted(&url))
    }

    /// Brings the schema up to date. An outbox of others is refused before anything changes.
    pub(super) async fn migrate(&self, program: &Program, plan: &Plan, names: &[&str]) -> anyhow::Result<()> {
        if self.cluster.is_none() && plan.served == Served::Refused {
            self.refuse_outbox(names).await?;
        }
        program.migrate().await
    }

    async fn refuse_outbox(&self, names: &[&str]) -> anyhow::Result<()> {
        let ours = MIGRATIONS.last().map_or(0, |migration| migration.version);
        match self.outbox.schema_version().await? {
            None => Ok(()),
            Some(version) if version == ours => self.refuse_served(names).await,
            Some(version) => {
                let place = self.config.place();
                Err(Unusable(format!(
                    "{place} has an outbox with schema version {version}, and this outbox-relay has {ours}; use an empty \
                     database, or --take-messages if this outbox may be migrated and its messages may go to queues that end \
                     with this command"
                ))
                .into())
            }
        }
    }

    /// Messages of an outbox in use would be marked as delivered and end in queues that are soon gone.
    async fn refuse_served(&self, names: &[&str]) -> anyhow::Result<()> {
        let served = self.outbox.destinations().await?;
        let served = served.iter().map(|one| one.name.as_str()).find(|name| names.contains(name));
        served.map_or(Ok(()), |name| {
            let place = self.config.place();
            Err(Unusable(format!(
                "{place} has an outbox with the destination {name:?}, whose messages would go to queues that end with this \
                 command; use an empty database, other --queues, or --take-messages if they may go there"
            ))
            .into())
        })
    }

    /// Completes when the server ends by itself.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match &mut self.cluster {
            Some(cluster) => cluster.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Ends the cluster.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        // Its connections first.
        drop(self.outbox);
        match self.cluster {
            Some(cluster) => cluster.end().await,
            None => Ok(()),
        }
    }
}

fn unusable(error: ConfigError) -> anyhow::Error {
    Unusable(error.to_string()).into()
}
