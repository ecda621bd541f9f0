//! The settings of delivery. They are read at the start, and operators may adjust some of them while the relay runs.

use std::time::Duration;

use super::problems::{ConfigError, Problems};
use super::setting::{self, Info};
use super::{FifoMode, Flags, OnDead};

/// The settings of delivery to a destination.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Messages read at once.
    pub batch_size: usize,
    /// Entries in one request.
    pub request_size: usize,
    /// Requests in flight for each destination.
    pub max_in_flight: usize,
    /// How often an idle relay looks for work.
    pub poll_interval: Duration,
    /// Strict order within a group, or speed for a hot group.
    pub fifo_mode: FifoMode,
    /// Failed attempts before a message is dead.
    pub max_attempts: usize,
    /// What follows a dead message in its group.
    pub on_dead: OnDead,
    /// Ceiling of the first delay before a retry.
    pub retry_initial: Duration,
    /// Ceiling of all delays before a retry.
    pub retry_max: Duration,
    /// How long one SQS request may take.
    pub request_timeout: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            batch_size: setting::BATCH_SIZE.default,
            request_size: setting::REQUEST_SIZE.default,
            max_in_flight: setting::MAX_IN_FLIGHT.default,
            poll_interval: setting::POLL_INTERVAL.default,
            fifo_mode: setting::FIFO_MODE.default,
            max_attempts: setting::MAX_ATTEMPTS.default,
            on_dead: setting::ON_DEAD.default,
            retry_initial: setting::RETRY_INITIAL.default,
            retry_max: setting::RETRY_MAX.default,
            request_timeout: setting::REQUEST_TIMEOUT.default,
        }
    }
}

/// A setting that can be changed while the relay runs. The others would need another pool, listener or SQS client.
#[derive(Clone, Copy)]
pub struct Adjustable {
    pub(super) info: &'static Info,
    read: fn(&mut Tuning, &str, Option<&str>, &mut Problems),
    shown: fn(&Tuning) -> String,
}

/// The row of a setting, and the field that it fills.
macro_rules! adjustable {
    ($row:ident, $field:ident) => {
        Adjustable {
            info: &setting::$row.info,
            read: |tuning, called, text, problems| {
                tuning.$field = setting::$row.read(called, text, tuning.$field, problems);
            },
            shown: |tuning| setting::$row.shown(&tuning.$field),
        }
    };
}

impl Adjustable {
    /// All of them, in the order of `--help`.
    pub const ALL: [Self; 8] = [
        adjustable!(BATCH_SIZE, batch_size),
        adjustable!(REQUEST_SIZE, request_size),
        adjustable!(MAX_IN_FLIGHT, max_in_flight),
        adjustable!(FIFO_MODE, fifo_mode),
        adjustable!(MAX_ATTEMPTS, max_attempts),
        adjustable!(ON_DEAD, on_dead),
        adjustable!(RETRY_INITIAL, retry_initial),
        adjustable!(RETRY_MAX, retry_max),
    ];

    /// The flag without leading dashes, as in `outbox-relay set` and `outbox.settings`.
    pub fn name(&self) -> &'static str {
        self.info.name
    }

    /// The setting with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|adjustable| adjustable.name() == name)
    }
}

impl Tuning {
    /// These settings with others in their place, given by name. A wrong one is left out, and a sentence says why.
    pub fn adjusted<'a>(self, settings: impl Iterator<Item = (&'a str, &'a str)>) -> (Self, Vec<String>) {
        let (mut tuning, mut wrong) = (self, Vec::new());
        for (name, value) in settings {
            match tuning.adjust(name, value) {
                Ok(adjusted) => tuning = adjusted,
                Err(ConfigError(problems)) => wrong.extend(problems),
            }
        }
        if tuning.retry_max < tuning.retry_initial {
            wrong.push(format!(
                "retry-max={} is shorter than retry-initial={}, which is used for both; make it at least as long",
                humantime::format_duration(tuning.retry_max),
                humantime::format_duration(tuning.retry_initial)
            ));
            tuning.retry_max = tuning.retry_initial;
        }
        (tuning, wrong)
    }

    /// These settings with one changed.
    ///
    /// # Errors
    ///
    /// When the name is not that of an adjustable setting, or the value is not allowed.
    pub fn adjust(self, name: &str, value: &str) -> Result<Self, ConfigError> {
        let Some(adjustable) = Adjustable::named(name) else {
            let names = Adjustable::ALL.map(|one| one.name()).join(", ");
            return Err(ConfigError(vec![format!("{name} cannot be set while the relay runs; use one of {names}")]));
        };
        let (mut problems, mut tuning) = (Problems::default(), self);
        if value.trim().is_empty() {
            problems.add(format!("{name} has no value; unset it instead"));
        }
        (adjustable.read)(&mut tuning, name, Some(value), &mut problems);
        problems.finish(tuning)
    }

    /// The settings that were given by flag or environment variable.
    pub(super) fn typed(flags: &Flags, problems: &mut Problems) -> Self {
        let mut tuning = Self::default();
        for Adjustable { info, read, .. } in Adjustable::ALL {
            read(&mut tuning, info.variable, flags.text(info), problems);
        }
        tuning.poll_interval = problems.read(flags, &setting::POLL_INTERVAL);
        tuning.request_timeout = problems.read(flags, &setting::REQUEST_TIMEOUT);
        tuning.check(problems);
        tuning
    }

    fn check(&self, problems: &mut Problems) {
        if self.retry_max < self.retry_initial {
            problems.add(format!(
                "OUTBOX_RELAY_RETRY_MAX={} is shorter than OUTBOX_RELAY_RETRY_INITIAL={}; make it at least as long",
                humantime::format_duration(self.retry_max),
                humantime::format_duration(self.retry_initial)
            ));
        }
    }

    /// The value of a setting as it would be typed.
    pub fn shown(&self, adjustable: Adjustable) -> String {
        (adjustable.shown)(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_operators_win_and_wrong_ones_are_left_out_with_a_sentence() {
        let settings = [("batch-size", "2500"), ("max-in-flight", "0"), ("batch-sise", "1"), ("fifo-mode", "batched")];
        let (tuning, wrong) = Tuning::default().adjusted(settings.into_iter());
        assert_eq!((tuning.batch_size, tuning.max_in_flight, tuning.fifo_mode), (2500, 256, FifoMode::Batched));
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(
            wrong[0].contains("max-in-flight=\"0\" is not allowed; use a whole number from 1 to 1024"),
            "{wrong:?}"
        );
        assert!(
            wrong[1].contains("batch-sise cannot be set while the relay runs; use one of batch-size,"),
            "{wrong:?}"
        );
    }

    #[test]
    fn each_shown_value_can_be_set_again() {
        let tuning = Tuning::default();
        for adjustable in Adjustable::ALL {
            let again = tuning.adjust(adjustable.name(), &tuning.shown(adjustable)).unwrap();
            assert_eq!(again.shown(adjustable), tuning.shown(adjustable));
        }
    }
}
