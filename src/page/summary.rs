//! A database in one line, for the page about all databases of a process. Pure.

use super::model::View;
use super::problems::Severity;

/// What the line says.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub(super) place: String,
    /// Whether the database answers, in words, and how that is painted.
    pub(super) word: &'static str,
    pub(super) tone: &'static str,
    pub(super) destinations: usize,
    /// Messages a second, pending and dead messages of all destinations, and the largest lag; `None` while they are not known.
    pub(super) per_second: Option<f64>,
    pub(super) pending: Option<i64>,
    pub(super) dead: Option<i64>,
    pub(super) lag: Option<f64>,
    /// How many problems there are that are not mere notes, and the first of all with the thing it is about.
    pub(super) serious: usize,
    pub(super) first: Option<String>,
}

impl Summary {
    pub(super) fn of(view: &View) -> Self {
        let rows = || view.rows.iter();
        let is_measured = view.database.measured.is_some();
        let serious = || view.problems.iter().filter(|problem| problem.severity != Severity::Note);
        let first = serious().next().map(|problem| match &problem.about {
            Some(about) => format!("{about}: {}", problem.text),
            None => problem.text.clone(),
        });
        Self {
            place: view.database.place.clone(),
            word: view.database.word,
            tone: view.database.tone,
            destinations: view.rows.len() + view.more_rows,
            per_second: rows().map(|row| row.per_second).sum(),
            pending: is_measured.then(|| rows().map(|row| row.pending).sum()).flatten(),
            dead: is_measured.then(|| rows().map(|row| row.dead).sum()).flatten(),
            lag: rows().filter_map(|row| row.lag).reduce(f64::max),
            serious: serious().count(),
            first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::measured::Measured;
    use super::super::{model, samples};
    use super::*;

    #[test]
    fn numbers_of_all_destinations_are_added_and_the_oldest_message_counts() {
        let [mut one, mut other] = ["a", "b"].map(samples::destination);
        (one.pending, one.lag, one.dead) = (3, 2.0, 1);
        (other.pending, other.lag) = (4, 9.0);
        let measured = samples::healthy(vec![one, other]);
        let summary = Summary::of(&model::view(measured.clone()));
        assert_eq!((summary.pending, summary.dead, summary.lag), (Some(7), Some(1), Some(9.0)));
        assert_eq!((summary.destinations, summary.serious), (2, 1), "{:?}", summary.first);
        let unmeasured = Summary::of(&model::view(Measured { measured_ago: None, ..measured }));
        assert_eq!((unmeasured.pending, unmeasured.lag), (None, None));
    }
}
