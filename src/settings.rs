//! The settings in force: those that were given, and those that operators have set over them in the database. Pure.
//!
//! `outbox-relay config` and the status page show them. [`crate::relay`] follows them by itself.

use std::collections::{HashMap, HashSet};

use crate::config::{Adjustable, Origin, Shown, Tuning};
use crate::reading::{ALL_DESTINATIONS, Setting, Steering};

/// The settings of operators that relays know, by destination: the others change nothing, and there may be any number.
#[derive(Debug)]
pub struct Known<'a>(HashMap<&'a str, Vec<&'a Setting>>);

impl<'a> Known<'a> {
    /// Those among what operators have decided.
    pub fn of(steering: &'a Steering) -> Self {
        let mut known: HashMap<&str, Vec<&Setting>> = HashMap::new();
        for setting in steering.settings.iter().filter(|setting| Adjustable::named(&setting.name).is_some()) {
            known.entry(&setting.destination).or_default().push(setting);
        }
        Self(known)
    }

    /// The settings that a destination follows, and a sentence for each that it refuses; its own come last and so win.
    pub fn adjusted(&self, baseline: Tuning, destination: &str) -> (Tuning, Vec<String>) {
        let own = self.0.get(destination).filter(|_| destination != ALL_DESTINATIONS);
        let settings = self.0.get(ALL_DESTINATIONS).into_iter().chain(own).flatten();
        baseline.adjusted(settings.map(|setting| (setting.name.as_str(), setting.value.as_str())))
    }
}

/// What was given, with what operators have set over it; `baseline` is what was given, as values. A setting that relays
/// refuse is marked. One that no relay knows comes last. At most `most` lines, and how many more there are: anybody who
/// may set something decides how many there are.
pub fn in_force(given: Vec<Shown>, baseline: Tuning, steering: &Steering, most: usize) -> (Vec<Shown>, usize) {
    let names: HashSet<String> = given.iter().map(|shown| shown.name.clone()).collect();
    let unknown = steering.settings.iter().filter(|setting| !names.contains(&setting.name)).map(Line::Set);
    let mut lines: Vec<Line<'_>> =
        given.into_iter().flat_map(|shown| with_settings(shown, &steering.settings)).collect();
    lines.extend(unknown);
    let more = lines.len().saturating_sub(most);
    lines.truncate(most);
    let known = Known::of(steering);
    let mut refused = HashMap::new();
    let shown = lines.into_iter().map(|line| match line {
        Line::Given(shown) => shown,
        Line::Set(setting) => {
            let refused = refused.entry(setting.destination.as_str());
            judged(setting, baseline, refused.or_insert_with(|| known.adjusted(baseline, &setting.destination).1))
        }
    });
    (shown.collect(), more)
}

/// A line before it is judged, which costs more than counting it.
#[derive(Debug)]
enum Line<'a> {
    Given(Shown),
    Set(&'a Setting),
}

/// Marks a setting that relays refuse, alone or in combination with the others of its destination.
fn judged(setting: &Setting, baseline: Tuning, refused: &[String]) -> Shown {
    let Setting { destination, name, value, actor } = setting;
    let is_refused = baseline.adjust(name, value).is_err()
        || refused.iter().any(|sentence| sentence.starts_with(&format!("{name}={value} ")));
    let mark = if is_refused { " (not followed)" } else { "" };
    Shown {
        name: name.clone(),
        destination: (destination != ALL_DESTINATIONS).then(|| destination.clone()),
        value: format!("{value}{mark}"),
        origin: Origin::Database { actor: actor.clone() },
    }
}

/// A setting for all destinations replaces the line; settings for one destination follow it.
fn with_settings(shown: Shown, settings: &[Setting]) -> Vec<Line<'_>> {
    let of_name: Vec<&Setting> = settings.iter().filter(|setting| setting.name == shown.name).collect();
    let (for_all, for_one): (Vec<&Setting>, Vec<&Setting>) =
        of_name.into_iter().partition(|setting| setting.destination == ALL_DESTINATIONS);
    let first = for_all.last().map_or(Line::Given(shown), |setting| Line::Set(setting));
    std::iter::once(first).chain(for_one.into_iter().map(Line::Set)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(destination: &str, name: &str, value: &str) -> Setting {
        let [destination, name, value, actor] = [destination, name, value, "ada"].map(str::to_owned);
        Setting { destination, name, value, actor }
    }

    fn given(name: &str, value: &str) -> Shown {
        Shown { name: name.to_owned(), destination: None, value: value.to_owned(), origin: Origin::Default }
    }

    fn texts(lines: &[Shown]) -> Vec<String> {
        let text =
            |line: &Shown| format!("{} {}={}", line.destination.as_deref().unwrap_or("all"), line.name, line.value);
        lines.iter().map(text).collect()
    }

    #[test]
    fn a_setting_for_all_replaces_the_environments_and_others_follow_and_refused_ones_are_marked() {
        let settings = vec![
            setting("*", "batch-size", "10"),
            setting("*", "nonsense", "1"),
            setting("audit", "batch-size", "0"),
            setting("audit", "retry-initial", "2m"),
            setting("audit", "retry-max", "1m"),
            setting("tickets", "retry-max", "1m"),
        ];
        let names = [given("batch-size", "2000"), given("retry-initial", "1s"), given("retry-max", "5m")];
        let steering = Steering { pauses: Vec::new(), settings };
        let (lines, more) = in_force(names.to_vec(), Tuning::default(), &steering, usize::MAX);
        let expected = [
            "all batch-size=10",
            "audit batch-size=0 (not followed)",
            "all retry-initial=1s",
            "audit retry-initial=2m",
            "all retry-max=5m",
            "audit retry-max=1m (not followed)",
            "tickets retry-max=1m",
            "all nonsense=1 (not followed)",
        ];
        assert_eq!((texts(&lines), more), (expected.map(str::to_owned).to_vec(), 0));
        assert_eq!(lines[0].origin.to_string(), "database, set by ada");
        let (lines, more) = in_force(names.to_vec(), Tuning::default(), &steering, 3);
        assert_eq!((texts(&lines), more), (expected[..3].iter().map(ToString::to_string).collect(), 5));
    }

    #[test]
    fn settings_that_no_relay_knows_are_not_looked_at_for_each_destination() {
        let unknown = (0..3000).map(|n| setting("*", &format!("unknown-{n}"), "1"));
        let settings =
            unknown.chain([setting("*", "batch-size", "10"), setting("audit", "batch-size", "20")]).collect();
        let steering = Steering { pauses: Vec::new(), settings };
        let known = Known::of(&steering);
        assert_eq!(known.0.values().map(Vec::len).sum::<usize>(), 2);
        let size = |destination| known.adjusted(Tuning::default(), destination).0.batch_size;
        assert_eq!((size("audit"), size("tickets"), size("*")), (20, 10, 10));
    }
}
