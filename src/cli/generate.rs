//! Man pages and shell completions, made from the definition of the command line. Packages contain them.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::{Cli, Failure, say};

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
}

/// Runs the command.
pub(super) fn run(what: What) -> Result<(), Failure> {
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
    }
}

fn man(folder: PathBuf) -> anyhow::Result<()> {
    std::fs::create_dir_all(&folder).with_context(|| format!("the folder {} cannot be made", folder.display()))?;
    // Pages do not depend on who makes them: no variable of the environment is in them.
    let command = Cli::command().mut_args(|argument| argument.hide_env_values(true));
    clap_mangen::generate_to(command, &folder)
        .with_context(|| format!("the pages cannot be written to {}", folder.display()))
}
