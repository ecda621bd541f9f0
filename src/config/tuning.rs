//! What steers the flow: read from the environment at the start, and what operators may adjust while the relay runs.

use std::time::Duration;

use super::check::{ConfigError, Problems};
use super::{FifoMode, OnDead};

/// What steers the flow of every destination.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Messages read at once.
    pub batch_size: usize,
    /// Entries in one request.
    pub request_size: usize,
    /// Requests in flight for each destination.
    pub max_in_flight: usize,
    /// How often an idle relay looks.
    pub poll_interval: Duration,
    /// Order within a group against the speed of a hot group.
    pub fifo_mode: FifoMode,
    /// Message faults before a message is dead.
    pub max_attempts: i16,
    /// What follows a dead message in its group.
    pub on_dead: OnDead,
    /// Ceiling of the first delay.
    pub retry_initial: Duration,
    /// Ceiling of all delays.
    pub retry_max: Duration,
    /// One SQS call.
    pub request_timeout: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            batch_size: 2000,
            request_size: 10,
            max_in_flight: 256,
            poll_interval: Duration::from_millis(20),
            fifo_mode: FifoMode::Strict,
            max_attempts: 10,
            on_dead: OnDead::Skip,
            retry_initial: Duration::from_millis(200),
            retry_max: Duration::from_secs(60),
            request_timeout: Duration::from_secs(5),
        }
    }
}

/// A setting that can be changed while the relay runs. The others would take another pool, listener or client of SQS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adjustable {
    /// Messages read at once.
    BatchSize,
    /// Entries in one request.
    RequestSize,
    /// Requests in flight.
    MaxInFlight,
    /// Order against the speed of a hot group.
    FifoMode,
    /// Message faults before a message is dead.
    MaxAttempts,
    /// What follows a dead message.
    OnDead,
    /// Ceiling of the first delay.
    RetryInitial,
    /// Ceiling of all delays.
    RetryMax,
}

impl Adjustable {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::BatchSize,
        Self::RequestSize,
        Self::MaxInFlight,
        Self::FifoMode,
        Self::MaxAttempts,
        Self::OnDead,
        Self::RetryInitial,
        Self::RetryMax,
    ];

    /// The environment variable that sets it.
    pub fn variable(self) -> &'static str {
        self.names().1
    }

    /// The flag without dashes in front, as `outbox-relay set` and `outbox.settings` name it.
    pub fn name(self) -> &'static str {
        self.names().0
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::BatchSize => ("batch-size", "OUTBOX_RELAY_BATCH_SIZE"),
            Self::RequestSize => ("request-size", "OUTBOX_RELAY_REQUEST_SIZE"),
            Self::MaxInFlight => ("max-in-flight", "OUTBOX_RELAY_MAX_IN_FLIGHT"),
            Self::FifoMode => ("fifo-mode", "OUTBOX_RELAY_FIFO_MODE"),
            Self::MaxAttempts => ("max-attempts", "OUTBOX_RELAY_MAX_ATTEMPTS"),
            Self::OnDead => ("on-dead", "OUTBOX_RELAY_ON_DEAD"),
            Self::RetryInitial => ("retry-initial", "OUTBOX_RELAY_RETRY_INITIAL"),
            Self::RetryMax => ("retry-max", "OUTBOX_RELAY_RETRY_MAX"),
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|adjustable| adjustable.name() == name)
    }
}

impl Tuning {
    /// These settings with others on top, by name. What is wrong is left out, each with a sentence.
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
                "retry-max={} is shorter than retry-initial={}, which is taken for both; make it at least as long",
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
    /// When there is no such setting, or the value is not allowed.
    pub fn adjust(self, name: &str, value: &str) -> Result<Self, ConfigError> {
        let Some(adjustable) = Adjustable::named(name) else {
            let names = Adjustable::ALL.map(Adjustable::name).join(", ");
            return Err(ConfigError(vec![format!("{name} cannot be set while the relay runs; use one of {names}")]));
        };
        let (mut problems, mut tuning) = (Problems::default(), self);
        if value.trim().is_empty() {
            problems.add(format!("{name} has no value; unset it instead"));
        }
        tuning.read((adjustable, adjustable.name(), Some(value)), &mut problems);
        problems.finish(tuning)
    }

    /// Takes a setting from its text; what is absent stays as it is.
    pub(super) fn read(
        &mut self,
        (adjustable, shown, text): (Adjustable, &'static str, Option<&str>),
        problems: &mut Problems,
    ) {
        let ms = Duration::from_millis;
        let setting = (shown, text);
        match adjustable {
            Adjustable::BatchSize => self.batch_size = problems.number(setting, (1, 10_000), self.batch_size),
            Adjustable::RequestSize => self.request_size = problems.number(setting, (1, 10), self.request_size),
            Adjustable::MaxInFlight => self.max_in_flight = problems.number(setting, (1, 1024), self.max_in_flight),
            Adjustable::MaxAttempts => {
                let attempts = usize::try_from(self.max_attempts).unwrap_or(1);
                self.max_attempts = i16::try_from(problems.number(setting, (1, 1000), attempts)).unwrap_or(i16::MAX);
            }
            Adjustable::FifoMode => {
                let modes = [("strict", FifoMode::Strict), ("batched", FifoMode::Batched)];
                self.fifo_mode = problems.one_of(setting, &modes, self.fifo_mode);
            }
            Adjustable::OnDead => {
                let modes = [("skip", OnDead::Skip), ("block", OnDead::Block)];
                self.on_dead = problems.one_of(setting, &modes, self.on_dead);
            }
            Adjustable::RetryInitial => {
                self.retry_initial = problems.duration(setting, (ms(1), ms(3_600_000)), self.retry_initial);
            }
            Adjustable::RetryMax => {
                self.retry_max = problems.duration(setting, (ms(1), ms(86_400_000)), self.retry_max);
            }
        }
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        if self.retry_max < self.retry_initial {
            problems.add(format!(
                "OUTBOX_RELAY_RETRY_MAX={} is shorter than OUTBOX_RELAY_RETRY_INITIAL={}; make it at least as long",
                humantime::format_duration(self.retry_max),
                humantime::format_duration(self.retry_initial)
            ));
        }
    }

    /// The value of a setting, as one would write it.
    pub fn shown(&self, adjustable: Adjustable) -> String {
        let duration = |duration| humantime::format_duration(duration).to_string();
        match adjustable {
            Adjustable::BatchSize => self.batch_size.to_string(),
            Adjustable::RequestSize => self.request_size.to_string(),
            Adjustable::MaxInFlight => self.max_in_flight.to_string(),
            Adjustable::MaxAttempts => self.max_attempts.to_string(),
            Adjustable::FifoMode => match self.fifo_mode {
                FifoMode::Strict => "strict".to_owned(),
                FifoMode::Batched => "batched".to_owned(),
            },
            Adjustable::OnDead => match self.on_dead {
                OnDead::Skip => "skip".to_owned(),
                OnDead::Block => "block".to_owned(),
            },
            Adjustable::RetryInitial => duration(self.retry_initial),
            Adjustable::RetryMax => duration(self.retry_max),
        }
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
    fn what_is_shown_can_be_set_again() {
        let tuning = Tuning::default();
        for adjustable in Adjustable::ALL {
            let again = tuning.adjust(adjustable.name(), &tuning.shown(adjustable)).unwrap();
            assert_eq!(again.shown(adjustable), tuning.shown(adjustable));
        }
    }
}
