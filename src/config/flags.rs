//! The text that was given for each setting, by its flag or its environment variable. Nothing is checked here.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Command};

use super::setting::{ALL, DATABASE, DATABASE_URL, DATABASE_URL_FILE, DATABASE_URLS_FILE, Info, Row, present};
use super::{ConfigError, database};

/// Every setting as text. Empty counts as not set.
#[derive(Clone, Default)]
pub struct Flags {
    typed: BTreeMap<&'static str, String>,
}

impl Flags {
    /// These flags with one more setting, by the name of its flag. An unknown name changes nothing.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        let row = ALL.iter().find(|row| row.info().name == name);
        debug_assert!(row.is_some(), "there is no setting {name}");
        self.typed.extend(row.map(|row| (row.info().name, value.into())));
        self
    }

    /// Every setting that was given: its environment variable and the text.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let given = |row: &'static &'static dyn Row| Some((row.info().variable, self.text(row.info())?));
        ALL.iter().filter_map(given)
    }

    /// Whether a database was named by a flag, a variable or a file, apart from libpq's own variables.
    pub fn has_database(&self) -> bool {
        let settings = [&DATABASE_URL.info, &DATABASE_URL_FILE.info, &DATABASE_URLS_FILE.info];
        settings.iter().any(|info| self.text(info).is_some())
    }

    /// The flags for each database that they name: these, unless `DATABASE_URLS_FILE` has several and none was chosen.
    ///
    /// # Errors
    ///
    /// When the file cannot be used.
    pub fn each_database(&self) -> Result<Vec<Flags>, ConfigError> {
        let (file, chosen) = (self.text(&DATABASE_URLS_FILE.info), self.text(&DATABASE.info));
        let Some(path) = file.filter(|_| chosen.is_none()) else { return Ok(vec![self.clone()]) };
        let names = database::names(path).map_err(|problem| ConfigError(vec![problem]))?;
        Ok(names.iter().map(|name| self.clone().with(DATABASE.info.name, name)).collect())
    }

    /// The chosen database of `DATABASE_URLS_FILE`, if that may be a name.
    pub fn chosen_database(&self) -> Option<&str> {
        self.text(&DATABASE.info).filter(|name| database::is_name(name))
    }

    /// The text that was given for a setting, if any.
    pub(super) fn text(&self, info: &Info) -> Option<&str> {
        present(self.typed.get(info.name).map(String::as_str))
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let arguments = ALL.iter().map(|row| {
            let Info { name, variable, value_name, help, is_secret } = *row.info();
            let help = format!("{help}{}", row.allowed());
            Arg::new(name)
                .long(name)
                .env(variable)
                .value_name(value_name)
                .help(help)
                .hide_env_values(is_secret)
                .global(true)
        });
        command.next_help_heading("Settings").args(arguments)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let typed = ALL.iter().filter_map(|row| {
            let name = row.info().name;
            Some((name, matches.get_one::<String>(name)?.clone()))
        });
        self.typed.extend(typed);
        Ok(())
    }
}
