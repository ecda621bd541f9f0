//! The view: what the page says, in words and numbers, made from what was measured. Pure, and knows no markup.
//!
//! `html.rs` and `json.rs` render it. `problems.rs` says what is wrong.

use std::time::SystemTime;

use super::chart::{self, Chart};
use super::measured::{Destination, Measured};
use super::problems::{self, Problem};
use super::words;
use crate::config::{FifoMode, Shown};
use crate::health::Activity;
use crate::message::DestinationKind;
use crate::reading::Replay;

/// The most destinations in the table, and those of them that have charts; the page must stay small.
const MOST_DESTINATIONS: usize = 200;
const MOST_CHARTS: usize = 50;

/// The most lines of the other tables.
pub(super) const MOST_SETTINGS: usize = 300;
const MOST_RELAYS: usize = 200;
const MOST_REPLAYS: usize = 50;

/// What a destination is doing, in one word for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Working,
    Idle,
    Elsewhere,
    Held,
    Starting,
    Paused,
    Waiting,
    Halted,
    Stalled,
}

impl State {
    /// The word that the page and `outbox-relay status` show.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::Idle => "idle",
            Self::Elsewhere => "at other relays",
            Self::Held => "held",
            Self::Starting => "starting",
            Self::Paused => "paused",
            Self::Waiting => "waiting for the database",
            Self::Halted => "halted",
            Self::Stalled => "stalled",
        }
    }

    /// How it is painted.
    pub(super) fn tone(self) -> &'static str {
        match self {
            Self::Working => "good",
            Self::Idle | Self::Elsewhere | Self::Starting => "calm",
            Self::Paused | Self::Held => "warn",
            Self::Waiting | Self::Halted | Self::Stalled => "bad",
        }
    }
}

/// A row of the table of destinations.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) target: String,
    pub(super) state: State,
    /// Whether nothing keeps it from delivering but a pause.
    pub(super) is_well: bool,
    /// Since when, why and by whom, as far as the state has that.
    pub(super) since: Option<SystemTime>,
    pub(super) detail: String,
    /// The next are `None` while they are not measured.
    pub(super) per_second: Option<f64>,
    pub(super) delivered: u64,
    pub(super) pending: Option<i64>,
    pub(super) lag: Option<f64>,
    pub(super) dead: Option<i64>,
    pub(super) quarantined: Option<i64>,
    /// Messages that died since the start, by reason; only reasons that occurred.
    pub(super) died: Vec<(&'static str, u64)>,
    pub(super) in_flight: i64,
    pub(super) in_flight_limit: i64,
    pub(super) lanes_held: i64,
    pub(super) hot_groups: i64,
    pub(super) hot_group_rate: f64,
    pub(super) fifo_mode: FifoMode,
    /// Rate, pending and lag; `None` for destinations beyond the limit.
    pub(super) charts: Option<[Chart; 3]>,
}

/// What is known of the database.
#[derive(Clone, Debug)]
pub(super) struct DatabaseView {
    pub(super) place: String,
    pub(super) schema: String,
    pub(super) server: Option<String>,
    pub(super) word: &'static str,
    pub(super) tone: &'static str,
    pub(super) in_use: i64,
    pub(super) idle: i64,
    pub(super) max: i64,
    /// How long ago the table was measured.
    pub(super) measured: Option<String>,
}

/// The whole page.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) now: SystemTime,
    pub(super) started: SystemTime,
    /// The name of the database, if the process has several.
    pub(super) name: Option<String>,
    pub(super) relay: String,
    pub(super) database: DatabaseView,
    pub(super) problems: Vec<Problem>,
    pub(super) rows: Vec<Row>,
    pub(super) more_rows: usize,
    pub(super) relays: Option<Vec<String>>,
    pub(super) more_relays: usize,
    pub(super) replays: Option<Vec<Replay>>,
    pub(super) more_replays: usize,
    pub(super) neighbours_age: String,
    pub(super) settings: Vec<Shown>,
    pub(super) more_settings: usize,
    pub(super) surroundings: Vec<Shown>,
}

/// Cuts a list; returns how many were left out.
fn cut<T>(list: &mut Vec<T>, most: usize) -> usize {
    let more = list.len().saturating_sub(most);
    list.truncate(most);
    more
}

/// The view of what was measured.
pub(super) fn view(measured: Measured) -> View {
    let problems = problems::of(&measured);
    let database = database(&measured);
    let is_measured = measured.measured_ago.is_some();
    let more_rows = measured.destinations.len().saturating_sub(MOST_DESTINATIONS);
    let shown = measured.destinations.iter().take(MOST_DESTINATIONS).enumerate();
    let rows =
        shown.map(|(index, destination)| row(destination, &measured, is_measured, index < MOST_CHARTS)).collect();
    let Measured { now, running_for, name, relay, mut relays, mut replays, mut settings, surroundings, .. } = measured;
    View {
        now,
        started: now.checked_sub(running_for).unwrap_or(now),
        name,
        relay,
        database,
        problems,
        rows,
        more_rows,
        more_relays: relays.as_mut().map_or(0, |relays| cut(relays, MOST_RELAYS)),
        relays,
        more_replays: replays.as_mut().map_or(0, |replays| cut(replays, MOST_REPLAYS)),
        replays,
        neighbours_age: words::lasting(measured.neighbours_age),
        more_settings: measured.more_settings + cut(&mut settings, MOST_SETTINGS),
        settings,
        surroundings,
    }
}

fn database(measured: &Measured) -> DatabaseView {
    let database = &measured.database;
    let (word, tone) = match (&database.outage, database.has_answered) {
        (Some(_), _) => ("does not answer", "bad"),
        (None, true) => ("answers", "good"),
        (None, false) => ("has not answered yet", "calm"),
    };
    // One that is the only one is named in the place already.
    let server = database.server.clone().filter(|server| !database.place.starts_with(&format!("{server}/")));
    DatabaseView {
        place: database.place.clone(),
        schema: database.schema.clone(),
        server,
        word,
        tone,
        in_use: database.in_use,
        idle: database.idle,
        max: database.max,
        measured: measured.measured_ago.map(words::lasting),
    }
}

fn row(destination: &Destination, measured: &Measured, is_measured: bool, has_charts: bool) -> Row {
    let state = state(destination, measured);
    let (ago, detail) = detail(state, destination, measured);
    let shown = |number: i64| is_measured.then_some(number);
    let per_second = destination.past.rate(|point| point.delivered, destination.delivered);
    let current =
        [per_second, shown(destination.pending).map(|pending| pending as f64), is_measured.then_some(destination.lag)];
    Row {
        name: words::short(&destination.name),
        kind: match destination.kind {
            DestinationKind::Fifo => "FIFO",
            DestinationKind::Fair => "fair",
            DestinationKind::Standard => "standard",
        },
        target: words::short(&destination.target),
        state,
        // What is paused would not deliver without its database either.
        is_well: !matches!(state, State::Halted | State::Stalled | State::Waiting)
            && measured.database.outage.is_none(),
        since: ago.and_then(|ago| measured.now.checked_sub(ago)),
        detail,
        per_second,
        delivered: destination.delivered,
        pending: shown(destination.pending),
        lag: is_measured.then_some(destination.lag),
        dead: shown(destination.dead),
        quarantined: shown(destination.quarantined),
        died: destination.died.iter().filter(|(_, messages)| *messages > 0).copied().collect(),
        in_flight: destination.in_flight,
        in_flight_limit: destination.in_flight_limit,
        lanes_held: destination.lanes_held,
        hot_groups: destination.hot_groups,
        hot_group_rate: destination.hot_group_rate,
        fifo_mode: destination.fifo_mode,
        charts: has_charts.then(|| chart::all(&destination.past, current)),
    }
}

/// What a destination is doing. A pause comes first, because it is why nothing else happens. One that has delivered
/// something in the last seconds is working, although it may have nothing to do at this very moment.
pub(super) fn state(destination: &Destination, measured: &Measured) -> State {
    let is_held = measured.measured_ago.is_some()
        && destination.pending > 0
        && destination.ready_lag.is_some_and(|ready_lag| ready_lag <= 0.0);
    let is_empty = measured.measured_ago.is_some() && destination.pending == 0;
    let is_moving =
        destination.past.rate(|point| point.delivered, destination.delivered).is_some_and(|rate| rate > 0.0);
    match destination.activity {
        _ if destination.pause.is_some() => State::Paused,
        _ if destination.outage.is_some() => State::Halted,
        _ if measured.database.outage.is_some() => State::Waiting,
        _ if destination.stalled.is_some() => State::Stalled,
        // It is not known yet whether it is paused.
        None | Some(Activity::Paused) => State::Starting,
        Some(Activity::LanesAreElsewhere) => State::Elsewhere,
        // A moment ago its messages could not be sent, and none is on its way now.
        Some(_) if is_held && destination.in_flight == 0 => State::Held,
        Some(_) if is_moving => State::Working,
        Some(Activity::Idle) => State::Idle,
        Some(_) if is_empty && destination.in_flight == 0 => State::Idle,
        Some(_) => State::Working,
    }
}

/// How long the state has lasted, and what there is to say about it.
fn detail(state: State, destination: &Destination, measured: &Measured) -> (Option<std::time::Duration>, String) {
    match (state, &destination.pause, &destination.outage, &measured.database.outage) {
        (State::Paused, Some(pause), outage, _) => {
            let mut text = format!("by {}", words::short(&pause.actor));
            match words::end(measured.now, pause.left) {
                Some(end) => text.push_str(&format!(", until {} UTC", words::moment(end, measured.now))),
                None => text.push_str(", until resumed"),
            }
            if !pause.reason.is_empty() {
                text.push_str(&format!(": {}", words::short(&pause.reason)));
            }
            if let Some(outage) = outage {
                text.push_str(&format!(" (was halted before: {})", words::short(&outage.reason)));
            }
            (Some(pause.age), text)
        }
        (State::Halted, _, Some(outage), _) => (Some(outage.lasting), words::short(&outage.reason)),
        (State::Waiting, _, _, Some(outage)) => (Some(outage.lasting), String::new()),
        (State::Stalled, ..) => (destination.stalled, "messages are due, and no known reason explains it".to_owned()),
        (State::Held, ..) => {
            let why = "every pending message waits: for a retry, for an earlier one of its group, or held by hand";
            (None, why.to_owned())
        }
        (State::Elsewhere, ..) => (None, "they hold all lanes with messages".to_owned()),
        _ => (None, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::measured::{Database, Ongoing};
    use super::super::samples;
    use super::*;
    use crate::reading::Pause;

    fn outage(reason: &str) -> Option<Ongoing> {
        Some(Ongoing { lasting: Duration::from_secs(60), reason: reason.to_owned() })
    }

    fn only(destination: Destination) -> Row {
        view(samples::healthy(vec![destination])).rows.remove(0)
    }

    #[test]
    fn each_condition_has_its_word() {
        let base = || samples::destination("tickets");
        let delivering = Activity::Delivering { lanes: 16, known: 1, in_flight: 1, is_closing: false };
        let pending = Destination { pending: 5, lag: 3.0, ..base() };
        let table = [
            (base(), State::Idle),
            (Destination { delivered: 1101, ..base() }, State::Working),
            (Destination { activity: None, ..base() }, State::Starting),
            (Destination { activity: Some(Activity::Paused), ..base() }, State::Starting),
            (Destination { activity: Some(delivering), in_flight: 1, ..base() }, State::Working),
            (Destination { activity: Some(delivering), ready_lag: Some(3.0), ..pending.clone() }, State::Working),
            (Destination { activity: Some(Activity::LanesAreElsewhere), ..pending.clone() }, State::Elsewhere),
            (Destination { ready_lag: Some(0.0), ..pending.clone() }, State::Held),
            (Destination { outage: outage("NonExistentQueue"), ..base() }, State::Halted),
            (Destination { stalled: Some(Duration::from_secs(40)), ..pending }, State::Stalled),
            (Destination { pause: Some(samples::pause("ada", "")), outage: outage("x"), ..base() }, State::Paused),
        ];
        for (destination, state) in table {
            assert_eq!(only(destination.clone()).state, state, "{destination:?}");
        }
    }

    #[test]
    fn a_pause_says_who_until_when_and_why_and_since_when() {
        let paused =
            only(Destination { pause: Some(samples::pause("ada", "they migrate")), ..samples::destination("a") });
        let now = samples::healthy(Vec::new()).now;
        let end = words::clock(now + Duration::from_secs(600));
        assert_eq!(paused.detail, format!("by ada, until {end} UTC: they migrate"));
        assert_eq!(paused.since, Some(now - Duration::from_secs(300)));
        for left in [None, Some(Duration::from_secs(9000 * 366 * 86_400)), Some(Duration::MAX)] {
            let forever = Pause { left, ..samples::pause("ada", "") };
            let paused = only(Destination { pause: Some(forever), ..samples::destination("a") });
            assert_eq!(paused.detail, "by ada, until resumed", "{left:?}");
        }
    }

    #[test]
    fn nothing_is_well_while_the_database_does_not_answer_also_in_a_pause() {
        let paused = Destination { pause: Some(samples::pause("ada", "")), ..samples::destination("a") };
        let up = samples::healthy(vec![samples::destination("b"), paused]);
        let is_well = |measured| view(measured).rows.iter().map(|row| row.is_well).collect::<Vec<bool>>();
        assert_eq!(is_well(up.clone()), [true, true]);
        let database = Database { outage: outage("refused"), ..up.database.clone() };
        assert_eq!(is_well(Measured { database, ..up }), [false, false]);
    }

    #[test]
    fn the_highest_value_of_a_chart_is_not_below_the_value_beside_it() {
        let growing = Destination { pending: 2, lag: 3.0, delivered: 1200, ..samples::destination("a") };
        let row = only(growing.clone());
        let highest = row.charts.unwrap().map(|chart| chart.highest);
        assert_eq!(
            highest,
            [format!("{}/s", words::rate(row.per_second.unwrap())), "2".to_owned(), "3.0 s".to_owned()]
        );
        let unmeasured = Measured { measured_ago: None, ..samples::healthy(vec![growing]) };
        let highest = view(unmeasured).rows.remove(0).charts.unwrap().map(|chart| chart.highest);
        assert_eq!(highest[1..], ["0", "0 s"], "what is not measured now is not in the chart");
    }

    #[test]
    fn what_is_not_measured_is_not_shown_as_a_number() {
        let tickets = Destination { pending: 7, lag: 3.0, dead: 2, quarantined: 1, ..samples::destination("tickets") };
        let database = Database { outage: outage("refused"), ..samples::healthy(Vec::new()).database };
        let down = Measured { measured_ago: None, database, ..samples::healthy(vec![tickets]) };
        let row = view(down).rows.remove(0);
        assert_eq!((row.pending, row.lag, row.dead, row.quarantined), (None, None, None, None));
        assert_eq!((row.state, row.delivered), (State::Waiting, 1100), "counters stay");
    }

    #[test]
    fn a_page_for_any_number_of_destinations_relays_and_settings_is_bounded() {
        let destinations = (0..1000).map(|n| samples::destination(&format!("d{n}"))).collect();
        let whole = samples::healthy(destinations);
        let setting = Shown {
            name: "batch-size".to_owned(),
            destination: None,
            value: "x".repeat(100_000),
            origin: crate::config::Origin::Default,
        };
        let settings = vec![setting; 5000];
        let relays = Some((0..5000).map(|n| format!("host/{n}")).collect());
        let view = view(Measured { settings, relays, ..whole });
        assert_eq!((view.rows.len(), view.more_rows), (200, 800));
        assert_eq!(view.rows.iter().filter(|row| row.charts.is_some()).count(), 50);
        assert_eq!((view.more_settings, view.more_relays), (4700, 4800));
        let page = super::super::html::page(&view);
        assert!(page.len() < 600_000, "{}", page.len());
    }
}
