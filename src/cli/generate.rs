//! Man pages and shell completions, made from the definition of the command line; packages contain them. And the roles of
//! `deploy/roles.sql` for the schema.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::{Cli, Failure, say};
use crate::config::Flags;

/// The roles for the schema `outbox`.
const ROLES: &str = include_str!("../../deploy/roles.sql");

/// What to write.
#[derive(clap::Subcommand)]
pub(super) enum What {
    /// Write a man page for each command into a folder
    #[command(after_help = "Example:\n  outbox-relay generate man /usr/local/share/man/man1")]
    Man {
        /// The folder; it is made if it does not exist
        folder: PathBuf,
    },
    /// Print the completions for a shell
    #[command(after_help = "Example:\n  outbox-relay generate completions bash > \
        ~/.local/share/bash-completion/completions/outbox-relay")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print SQL that makes the roles of applications, relays, operators, readers and consumers, for the schema
    #[command(after_help = "Examples:\n  outbox-relay generate roles | psql --set ON_ERROR_STOP=1 \"$OWNER_URL\"\n  \
        outbox-relay generate roles --schema lottery_outbox > roles.sql\n\n\
        It is deploy/roles.sql. Roles are named after the schema: lottery_outbox_relay.")]
    Roles,
}

/// Runs the command.
pub(super) fn run(flags: &Flags, what: What) -> Result<(), Failure> {
    match what {
        What::Man { folder } => man(folder).map_err(Failure::from),
        What::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "outbox-relay", &mut text);
            // clap_complete spells a hyphen in the program's name in two ways, so that bash completes nothing behind a
            // command (github.com/clap-rs/clap/issues/6421).
            say(&String::from_utf8_lossy(&text).replace("outbox__subcmd__relay", "outbox__relay"));
            Ok(())
        }
        What::Roles => {
            say(&flags.schema()?.roles(ROLES));
            Ok(())
        }
    }
}

fn man(folder: PathBuf) -> anyhow::Result<()> {
    std::fs::create_dir_all(&folder).with_context(|| format!("the folder {} cannot be made", folder.display()))?;
    // Pages do not depend on who makes them: no variable of the environment is in them.
    let command = Cli::command().mut_args(|argument| argument.hide_env_values(true));
    clap_mangen::generate_to(command, &folder)
        .with_context(|| format!("the pages cannot be written to {}", folder.display()))
}
