//! The command line: commands, exit codes, and the only place that prints.
//!
//! Exit codes: 0 fine, 1 failed, 2 usage or configuration.

mod check;
mod consent;
mod dead;
mod destinations;
#[cfg(feature = "dev")]
mod dev;
mod generate;
mod quarantine;
mod replay;
mod status;
mod steer;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::config::{ConfigError, DatabaseConfig, Flags};
use crate::daemon;
use crate::http;
use crate::metrics::{LOG_LEVELS, ProcessMetrics};
use crate::outbox::{Outbox, OutboxError, script};
use crate::publisher::Misconfigured;
use crate::relay::Until;

/// How long the end waits for what runs in threads.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Publishes what PostgreSQL transactions wrote to the outbox to Amazon SQS.
#[derive(Parser)]
#[command(name = "outbox-relay", version = env!("BUILD_VERSION"), about, max_term_width = 120)]
#[command(after_help = "Every setting can be given as a flag or as the environment variable named beside it.\n\
    AWS credentials, region and endpoint are read as the AWS SDK reads them (AWS_REGION, AWS_ENDPOINT_URL_SQS, …).\n\
    Exit codes: 0 fine, 1 failed, 2 usage or configuration.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Subcommand)]
enum Command {
    /// Publish messages until told to stop
    #[command(after_help = "Examples:\n  outbox-relay run\n  outbox-relay run --until-empty\n\n\
        SIGTERM drains: what is in flight is finished, nothing new begins.")]
    Run {
        /// Exit when nothing is pending: 0, or 1 if a message died or a signal came first
        #[arg(long)]
        until_empty: bool,
    },
    /// Make the schema of the outbox in the database, or bring it up to date
    #[command(after_help = "Examples:\n  outbox-relay migrate\n  outbox-relay migrate --schema lottery_outbox\n  \
        outbox-relay migrate --print > outbox.sql")]
    Migrate {
        /// Print the SQL instead of running it
        #[arg(long)]
        print: bool,
    },
    /// List, show, redrive or discard dead messages
    Dead {
        #[command(subcommand)]
        verb: dead::Verb,
    },
    /// List or release messages in quarantine
    Quarantine {
        #[command(subcommand)]
        verb: quarantine::Verb,
    },
    /// Publish past events again, as new messages
    Replay(replay::Replay),
    /// Check everything that a relay needs, and say how to fix what is wrong
    #[command(
        after_help = "Examples:\n  outbox-relay check\n  outbox-relay check --identity\n  outbox-relay check --json\n\n\
        Exit code 0 when a relay can work, warnings or not. Nothing is changed, and nothing reaches a queue."
    )]
    Check {
        /// Print an array of JSON objects
        #[arg(long)]
        json: bool,
        /// Also ask STS whose the credentials are: the account and the ARN
        #[arg(long)]
        identity: bool,
    },
    /// List, set or remove the destinations in the database, which relays follow whose environment names none
    Destinations {
        #[command(subcommand)]
        verb: destinations::Verb,
    },
    /// Show what is pending, how fast it is delivered, and what is paused
    Status(status::Status),
    /// Stop publishing to a destination, or to all, for a time or until resumed
    Pause(steer::Pause),
    /// Resume publishing
    Resume(steer::Resume),
    /// Change a setting of all running relays, without a restart
    Set(steer::Set),
    /// Show every setting in force and where it comes from
    #[command(after_help = "Examples:\n  outbox-relay config\n  outbox-relay config --json\n\nSecrets are masked.")]
    Config {
        /// Print an array of JSON objects
        #[arg(long)]
        json: bool,
    },
    /// Ask a running relay on this host whether it is alive; for images without a shell
    #[command(after_help = "Examples:\n  outbox-relay healthcheck\n  outbox-relay healthcheck --ready\n\n\
        Exit code 0 when it answers that it is, else 1.")]
    Healthcheck {
        /// Also ask whether database and queues answer
        #[arg(long)]
        ready: bool,
    },
    /// Write man pages, shell completions or the roles for PostgreSQL
    Generate {
        #[command(subcommand)]
        what: generate::What,
    },
    /// Try it on this machine: a PostgreSQL, queues in memory and a relay, which end with this command
    #[cfg(feature = "dev")]
    Dev(dev::Dev),
    /// Not in this build
    #[cfg(not(feature = "dev"))]
    #[command(hide = true)]
    Dev {
        /// Whatever was typed
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        _arguments: Vec<String>,
    },
}

/// `dev` is a feature, so that the image for production has neither queues nor a way to start PostgreSQL.
#[cfg(not(feature = "dev"))]
const NO_DEV: &str = "this binary was built without the feature `dev`; build one that has it: \
    cargo install --path . --features dev";

/// Why a command ends with a code other than 0.
enum Failure {
    /// Code 2.
    Configuration(ConfigError),
    /// Code 1, with what to say.
    Failed(anyhow::Error),
    /// Code 1; the reason has been printed or logged.
    Silent,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Configuration(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // Found out only on use, but still an error of the configuration.
        let is_configuration =
            error.is::<Misconfigured>() || matches!(error.downcast_ref(), Some(OutboxError::Setup(_)));
        if is_configuration { Self::Configuration(ConfigError(vec![error.to_string()])) } else { Self::Failed(error) }
    }
}

impl From<OutboxError> for Failure {
    fn from(error: OutboxError) -> Self {
        if error.is_denied() {
            let remedy = "this login lacks a privilege; deploy/roles.sql has roles: outbox_relay runs, outbox_operator \
                changes; `outbox-relay generate roles` prints them for any schema";
            return Self::Failed(anyhow::anyhow!("{error}; {remedy}"));
        }
        anyhow::Error::from(error).into()
    }
}

/// Runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Configuration(error)) => {
            complain(&error.to_string());
            ExitCode::from(2)
        }
        Err(Failure::Failed(error)) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
        Err(Failure::Silent) => ExitCode::FAILURE,
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    // One thread: the work is mostly waiting, and measurements showed no gain from more threads.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(anyhow::anyhow!("the runtime cannot be started: {error}")))?;
    let done = match cli.command {
        Command::Run { until_empty } => {
            let until = if until_empty { Until::Empty } else { Until::Drained };
            runtime.block_on(run(&cli.flags, until))
        }
        Command::Migrate { print: true } => {
            cli.flags.schema().map_err(Failure::from).map(|schema| say(&script(&schema)))
        }
        Command::Migrate { print: false } => runtime.block_on(migrate_all(&cli.flags)),
        Command::Dead { verb } => runtime.block_on(dead::run(&cli.flags, verb)),
        Command::Quarantine { verb } => runtime.block_on(quarantine::run(&cli.flags, verb)),
        Command::Replay(replay) => runtime.block_on(replay::run(&cli.flags, replay)),
        Command::Check { json, identity } => runtime.block_on(check::run(&cli.flags, json, identity)),
        Command::Destinations { verb } => runtime.block_on(destinations::run(&cli.flags, verb)),
        Command::Status(status) => runtime.block_on(status::run(&cli.flags, &status)),
        Command::Pause(pause) => runtime.block_on(steer::pause(&cli.flags, pause)),
        Command::Resume(resume) => runtime.block_on(steer::resume(&cli.flags, resume)),
        Command::Set(set) => runtime.block_on(steer::set(&cli.flags, set)),
        Command::Config { json } => runtime.block_on(steer::config(&cli.flags, json)),
        Command::Generate { what } => generate::run(&cli.flags, what),
        Command::Healthcheck { ready } => runtime.block_on(healthcheck(&cli.flags, ready)),
        #[cfg(feature = "dev")]
        Command::Dev(dev) => runtime.block_on(dev::run(&cli.flags, dev)),
        #[cfg(not(feature = "dev"))]
        Command::Dev { .. } => Err(ConfigError(vec![NO_DEV.to_owned()]).into()),
    };
    // A name lookup that was given up goes on in its thread, for as long as the resolver of the system likes.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    done
}

async fn run(flags: &Flags, until: Until) -> Result<(), Failure> {
    let databases = wanted(flags)?;
    let metrics = ProcessMetrics::new().map_err(anyhow::Error::from)?;
    let lines = LOG_LEVELS.map(|level| metrics.log_lines(level));
    install_logging(flags, move |level| {
        let is_level = |name: &&&str| name.eq_ignore_ascii_case(level.as_str());
        if let Some(at) = LOG_LEVELS.iter().position(|name| is_level(&name)) {
            lines[at].inc();
        }
    })?;
    match daemon::run(databases, until, metrics).await? {
        daemon::Outcome::Done(ended) => {
            tracing::info!(delivered = ended.delivered, dead = ended.dead, "outbox-relay ends");
            if until == Until::Drained || (ended.dead == 0 && !ended.is_blocked && !ended.is_cut_short) {
                return Ok(());
            }
            if ended.is_cut_short {
                tracing::warn!("stopped while messages were pending; they wait for the next run");
            }
            if ended.is_blocked {
                tracing::warn!(
                    "messages are left pending: they wait behind dead messages of their groups, are in quarantine or are held back by hand"
                );
            }
            Err(Failure::Silent)
        }
        daemon::Outcome::Aborted => Err(Failure::Silent),
    }
}

/// What `run` serves. Mistakes that are the same for every database are told once.
fn wanted(flags: &Flags) -> Result<Vec<daemon::Wanted>, ConfigError> {
    let (mut wanted, mut mistakes): (Vec<daemon::Wanted>, Vec<String>) = (Vec::new(), Vec::new());
    for flags in flags.each_database()? {
        match flags.relay() {
            Ok(config) => {
                let settings = daemon::Settings {
                    relay: flags.shown_to_everybody(crate::logging::DEFAULT_FILTER)?,
                    surroundings: flags.connection()?.into_iter().chain(crate::config::surroundings()).collect(),
                };
                wanted.push(daemon::Wanted { config, settings });
            }
            Err(ConfigError(sentences)) => {
                let is_new = |sentence: &String| !mistakes.contains(sentence);
                let new: Vec<String> = sentences.into_iter().filter(is_new).collect();
                mistakes.extend(new);
            }
        }
    }
    mistakes.extend(twice(&wanted));
    if mistakes.is_empty() { Ok(wanted) } else { Err(ConfigError(mistakes)) }
}

/// Names of databases that are the same outbox.
fn twice(wanted: &[daemon::Wanted]) -> Option<String> {
    let databases: Vec<&DatabaseConfig> = wanted.iter().map(|wanted| &wanted.config.database).collect();
    databases.iter().enumerate().find_map(|(at, one)| {
        let other = databases[..at].iter().find(|other| other.place_of_outbox() == one.place_of_outbox())?;
        let [other, one] = [other, one].map(|database| database.name.as_deref().unwrap_or_default());
        Some(format!(
            "DATABASE_URLS_FILE: {other} and {one} are the same outbox; keep one of them, or name its schema as NAME;schema=SCHEMA"
        ))
    })
}

/// Brings the schema of every database up to date, also after one where that failed.
async fn migrate_all(flags: &Flags) -> Result<(), Failure> {
    install_logging(flags, drop)?;
    let mut ended = Ok(());
    for flags in flags.each_database()? {
        let failed = migrate(&flags).await;
        if ended.is_ok() {
            ended = failed;
        } else if let Err(Failure::Failed(error)) = failed {
            complain(&format!("{error:#}"));
        }
    }
    ended
}

async fn migrate(flags: &Flags) -> Result<(), Failure> {
    let config = flags.database()?;
    let outbox = Outbox::new(&config, 1)?;
    let applied = match outbox.migrate().await {
        Err(error) if error.is_denied() => {
            let remedy = "migrate as the owner of the schema, or the first time as a role with CREATE on the database";
            return Err(Failure::Failed(anyhow::anyhow!("{error}; {remedy}")));
        }
        applied => applied?,
    };
    for migration in &applied {
        say(&format!("applied migration {} ({}) to {}\n", migration.version, migration.name, config.place_of_outbox()));
    }
    if applied.is_empty() {
        say(&format!("{} is up to date\n", config.place_of_outbox()));
    }
    Ok(())
}

async fn healthcheck(flags: &Flags, ready: bool) -> Result<(), Failure> {
    let address = where_to_ask(flags)?;
    let root = flags.chosen_database().map(|name| format!("/databases/{name}")).unwrap_or_default();
    let path = format!("{root}/{}", if ready { "readyz" } else { "livez" });
    match http::ask(address, &path).await {
        Ok((200, body)) => {
            say(&format!("{body}\n"));
            Ok(())
        }
        Ok((status, body)) => Err(anyhow::anyhow!("{address}{path} answered {status}: {body}").into()),
        Err(error) => Err(anyhow::anyhow!("no relay answers at {address}: {error}").into()),
    }
}

/// Where the relay of this host answers. "All addresses" is valid for listening, not for asking.
fn where_to_ask(flags: &Flags) -> Result<std::net::SocketAddr, ConfigError> {
    let mut address = flags.listen()?;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(address)
}

fn install_logging(flags: &Flags, on_line: impl Fn(tracing::Level) + Send + Sync + 'static) -> Result<(), Failure> {
    let (format, filter) = flags.logging()?;
    crate::logging::install(format, filter.as_deref(), on_line)
        .map_err(|problem| Failure::Configuration(ConfigError(vec![problem])))
}

#[allow(clippy::print_stdout, reason = "commands print their result; nothing else in the crate prints")]
fn say(text: &str) {
    use std::io::Write as _;
    // A reader that has closed the pipe, such as `| head`, is no failure of this command.
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// Rows in columns as wide as their widest cell, except the last column.
fn table<const N: usize>(rows: Vec<[String; N]>) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Prints an error of a command, one line for each mistake.
fn complain(text: &str) {
    use std::io::Write as _;
    let lines: String = text.lines().map(|line| format!("outbox-relay: {line}\n")).collect();
    // If standard error is closed, the exit code still shows the failure.
    drop(std::io::stderr().write_all(lines.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
