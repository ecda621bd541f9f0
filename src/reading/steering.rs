//! What operators have decided, and the replays that they have begun, as PostgreSQL last said.

use std::time::Duration;

/// Stands for all destinations; no destination can have this name.
pub const ALL_DESTINATIONS: &str = "*";

/// A pause that is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Pause {
    /// The destination, or [`ALL_DESTINATIONS`].
    pub destination: String,
    /// Why.
    pub reason: String,
    /// Who.
    pub actor: String,
    /// How long it has been in force, by the database's clock.
    pub age: Duration,
    /// How long it still lasts; `None` means until resumed.
    pub left: Option<Duration>,
}

/// A setting that overrides the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The destination, or [`ALL_DESTINATIONS`].
    pub destination: String,
    /// The name of the flag without the leading dashes.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Who set it.
    pub actor: String,
}

/// Everything that operators have decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steering {
    /// Pauses in force.
    pub pauses: Vec<Pause>,
    /// Settings, in the order of destinations and names.
    pub settings: Vec<Setting>,
}

impl Steering {
    /// The pause that applies to a destination: its own, or that of all. If both are in force it is the one that ends
    /// later, with the time for which the destination has been paused at all.
    pub fn pause_of(&self, destination: &str) -> Option<Pause> {
        let of = |name: &str| self.pauses.iter().find(|pause| pause.destination == name).cloned();
        match (of(destination), of(ALL_DESTINATIONS)) {
            (Some(own), Some(all)) => {
                let age = own.age.max(all.age);
                let ends = |pause: &Pause| pause.left.unwrap_or(Duration::MAX);
                let longer = if ends(&all) > ends(&own) { all } else { own };
                Some(Pause { age, ..longer })
            }
            (own, all) => own.or(all),
        }
    }

    /// The settings that apply to a destination; its own come last and so win.
    pub fn settings_of<'a>(&'a self, destination: &'a str) -> impl Iterator<Item = &'a Setting> {
        let of = |name: &'a str| self.settings.iter().filter(move |setting| setting.destination == name);
        of(ALL_DESTINATIONS).chain(of(destination))
    }
}

/// A replay that has not ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Its id.
    pub id: i64,
    /// The destination whose events are replayed.
    pub source: String,
    /// The destination they go to.
    pub destination: String,
    /// Who started it.
    pub actor: String,
    /// Where it began.
    pub start_position: i64,
    /// All events up to this position are done.
    pub position: i64,
    /// The last position of the replay.
    pub last_position: i64,
    /// The messages written so far.
    pub messages: i64,
    /// How long ago it last moved.
    pub idle: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(destination: &str, age: u64, left: Option<u64>) -> Pause {
        let (reason, actor) = (destination.to_owned(), "somebody".to_owned());
        let left = left.map(Duration::from_secs);
        Pause { destination: destination.to_owned(), reason, actor, age: Duration::from_secs(age), left }
    }

    #[test]
    fn of_two_pauses_the_one_that_ends_later_applies_with_the_start_of_the_first() {
        for (own, all, reason, left) in [
            (Some(300), None, ALL_DESTINATIONS, None),
            (None, Some(300), "tickets", None),
            (Some(9), Some(5), "tickets", Some(9)),
        ] {
            let steering = Steering {
                pauses: vec![pause("tickets", 10, own), pause(ALL_DESTINATIONS, 60, all)],
                settings: vec![],
            };
            let found = steering.pause_of("tickets").unwrap();
            assert_eq!(
                (found.reason.as_str(), found.age.as_secs(), found.left.map(|left| left.as_secs())),
                (reason, 60, left)
            );
            assert_eq!(steering.pause_of("audit").unwrap().reason, ALL_DESTINATIONS);
        }
    }
}
