//! The command line: commands, exit codes, and the only place that prints.
//!
//! Exit codes: 0 fine, 1 failed, 2 usage or configuration.

mod dead;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{ConfigError, Flags};
use crate::daemon;
use crate::http;
use crate::outbox::{Outbox, OutboxError, script};
use crate::relay::Until;
use crate::sqs::NoRegion;

/// Publishes what PostgreSQL transactions wrote to the outbox to Amazon SQS.
#[derive(Parser)]
#[command(name = "outbox-relay", version, about, max_term_width = 120)]
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
    Run {
        /// Exit when nothing is pending: 0, or 1 if a message died or a signal came first
        #[arg(long)]
        until_empty: bool,
    },
    /// Bring the schema `outbox` in the database up to date
    Migrate {
        /// Print the SQL instead of running it
        #[arg(long)]
        print: bool,
    },
    /// List, show, redrive or discard the messages that were given up
    Dead {
        #[command(subcommand)]
        verb: dead::Verb,
    },
    /// Ask a running relay on this host whether it is alive; for images without a shell
    Healthcheck {
        /// Ask whether database and queues answer, too
        #[arg(long)]
        ready: bool,
    },
}

/// Why a command ends with a code other than 0.
enum Failure {
    /// Code 2.
    Configuration(ConfigError),
    /// Code 1, with what to say.
    Failed(anyhow::Error),
    /// Code 1; it has been said.
    Silent,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Configuration(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // Found out only when it is used, but wrong in the configuration all the same.
        let is_configuration = error.is::<NoRegion>() || matches!(error.downcast_ref(), Some(OutboxError::Tls(_)));
        if is_configuration { Self::Configuration(ConfigError(vec![error.to_string()])) } else { Self::Failed(error) }
    }
}

/// Runs what the command line asks for.
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
    // One thread: the work is waiting for others, and more threads were measured not to help.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(anyhow::anyhow!("the runtime cannot be started: {error}")))?;
    match cli.command {
        Command::Run { until_empty } => {
            let until = if until_empty { Until::Empty } else { Until::Drained };
            runtime.block_on(run(&cli.flags, until))
        }
        Command::Migrate { print: true } => {
            say(&script());
            Ok(())
        }
        Command::Migrate { print: false } => runtime.block_on(migrate(&cli.flags)),
        Command::Dead { verb } => runtime.block_on(dead::run(&cli.flags, verb)),
        Command::Healthcheck { ready } => runtime.block_on(healthcheck(&cli.flags, ready)),
    }
}

async fn run(flags: &Flags, until: Until) -> Result<(), Failure> {
    let config = flags.relay()?;
    install_logging(flags)?;
    match daemon::run(config, until).await? {
        daemon::Outcome::Done(ended) => {
            tracing::info!(delivered = ended.delivered, dead = ended.dead, "outbox-relay ends");
            if until == Until::Drained || (ended.dead == 0 && !ended.is_blocked && !ended.is_cut_short) {
                return Ok(());
            }
            if ended.is_cut_short {
                tracing::warn!("told to stop before nothing was pending; what is left waits for the next run");
            }
            if ended.is_blocked {
                tracing::warn!("messages are left pending, because they wait behind dead ones of their groups");
            }
            Err(Failure::Silent)
        }
        daemon::Outcome::Aborted => Err(Failure::Silent),
    }
}

async fn migrate(flags: &Flags) -> Result<(), Failure> {
    let config = flags.database()?;
    install_logging(flags)?;
    let outbox = Outbox::new(&config, 1).map_err(anyhow::Error::from)?;
    let applied = outbox.migrate().await.map_err(anyhow::Error::from)?;
    for migration in &applied {
        say(&format!("applied migration {} ({}) to {}\n", migration.version, migration.name, config.place()));
    }
    if applied.is_empty() {
        say(&format!("{} is up to date\n", config.place()));
    }
    Ok(())
}

async fn healthcheck(flags: &Flags, ready: bool) -> Result<(), Failure> {
    let mut address = flags.listen()?;
    // "All addresses" is where to listen, not where to ask.
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let path = if ready { "/readyz" } else { "/livez" };
    match http::ask(address, path).await {
        Ok((200, body)) => {
            say(&format!("{body}\n"));
            Ok(())
        }
        Ok((status, body)) => Err(anyhow::anyhow!("{address}{path} answered {status}: {body}").into()),
        Err(error) => Err(anyhow::anyhow!("no relay answers at {address}: {error}").into()),
    }
}

fn install_logging(flags: &Flags) -> Result<(), Failure> {
    let (format, filter) = flags.logging()?;
    crate::logging::install(format, filter.as_deref())
        .map_err(|problem| Failure::Configuration(ConfigError(vec![problem])))
}

#[allow(clippy::print_stdout, reason = "commands print their result; nothing else in the crate prints")]
fn say(text: &str) {
    use std::io::Write as _;
    // A reader that has gone, as `| head`, is no failure of ours.
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// A command's complaint, one line for each mistake.
fn complain(text: &str) {
    use std::io::Write as _;
    let lines: String = text.lines().map(|line| format!("outbox-relay: {line}\n")).collect();
    // Where nobody listens, the exit code still tells.
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
