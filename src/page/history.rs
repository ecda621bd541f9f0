//! The last quarter of an hour: counters and measurements of each destination, copied every few seconds. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Time;

/// The period that is kept and shown.
pub(super) const SPAN: Duration = Duration::from_secs(15 * 60);

/// How often a sample is taken.
pub(super) const EVERY: Duration = Duration::from_secs(5);

/// The period of the current rate: two samples, so that a single late one does not matter.
const RATE_SPAN: Duration = Duration::from_secs(10);

/// The shortest period from which a rate is computed.
const SHORTEST: Duration = Duration::from_secs(1);

/// The most samples; the oldest one begins the first rate of the period.
const MOST: usize = (SPAN.as_secs() / EVERY.as_secs()) as usize + 1;

/// What is copied of one destination. The counters are those of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) delivered: u64,
    pub(super) requests: u64,
    pub(super) failures: u64,
    /// Seconds; `None` while nothing is measured.
    pub(super) lag: Option<f32>,
    pub(super) pending: Option<u32>,
}

/// All destinations at one moment.
#[derive(Clone, Debug)]
struct Sample {
    at: Time,
    points: Box<[Point]>,
}

/// The samples, oldest first; at most as many as the period has.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
}

/// One destination's part of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Past {
    /// How long ago each point was copied; oldest first.
    pub(super) points: Vec<(Duration, Point)>,
}

impl History {
    /// Adds a sample and drops those that are too old.
    pub(super) fn add(&mut self, at: Time, points: Vec<Point>) {
        while self.samples.len() >= MOST {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { at, points: points.into() });
    }

    /// The past of the destination with this index, by the clock of the machine.
    pub(super) fn of(&self, index: usize, now: Time) -> Past {
        let of = |sample: &Sample| Some((now.since(sample.at), *sample.points.get(index)?));
        Past { points: self.samples.iter().filter_map(of).filter(|(ago, _)| *ago <= SPAN + EVERY).collect() }
    }
}

impl Past {
    /// What a counter grew by a second lately, if `now` is its value now. `None` until a second has been seen.
    pub(super) fn rate(&self, counter: impl Fn(&Point) -> u64, now: u64) -> Option<f64> {
        let long_enough = self.points.iter().rev().find(|(ago, _)| *ago >= RATE_SPAN);
        let (ago, point) = long_enough.or(self.points.first()).filter(|(ago, _)| *ago >= SHORTEST)?;
        Some(now.saturating_sub(counter(point)) as f64 / ago.as_secs_f64())
    }

    /// What a counter grew by within a period, or within what is known of it.
    pub(super) fn growth(&self, counter: impl Fn(&Point) -> u64, now: u64, within: Duration) -> u64 {
        let first = self.points.iter().find(|(ago, _)| *ago <= within);
        first.map_or(0, |(_, point)| now.saturating_sub(counter(point)))
    }

    /// The rates between the samples: how long ago each period ended, and messages a second in it.
    pub(super) fn rates(&self, counter: impl Fn(&Point) -> u64) -> Vec<(Duration, Option<f64>)> {
        let rate = |pair: &[(Duration, Point)]| {
            let [(earlier, before), (later, after)] = pair else { return None };
            let seconds = earlier.saturating_sub(*later).as_secs_f64();
            let grown = counter(after).saturating_sub(counter(before)) as f64;
            (seconds > 0.0).then(|| (*later, Some(grown / seconds)))
        };
        self.points.windows(2).filter_map(rate).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(delivered: u64) -> Point {
        Point { delivered, requests: 0, failures: 0, lag: None, pending: None }
    }

    fn history(values: &[(u64, u64)]) -> (History, Time) {
        let start = Time::now();
        let (mut history, mut now) = (History::default(), start);
        for (second, delivered) in values {
            now = start + Duration::from_secs(*second);
            history.add(now, vec![point(*delivered)]);
        }
        (history, now)
    }

    #[test]
    fn a_day_takes_no_more_room_than_a_quarter_of_an_hour() {
        let values: Vec<(u64, u64)> = (0..24 * 720).map(|sample| (sample * 5, sample)).collect();
        let (history, now) = history(&values);
        assert_eq!(history.samples.len(), MOST);
        let past = history.of(0, now);
        assert_eq!(past.points.first().map(|(ago, _)| *ago), Some(SPAN));
        assert_eq!(past.points.last().map(|(ago, _)| *ago), Some(Duration::ZERO));
    }

    #[test]
    fn what_is_too_old_is_not_shown_after_the_machine_was_suspended() {
        let (history, now) = history(&[(0, 1), (5, 2), (10_000, 3)]);
        assert_eq!(history.of(0, now).points, [(Duration::ZERO, point(3))]);
    }

    #[test]
    fn the_rate_is_over_ten_seconds_or_what_is_known() {
        let (history, now) = history(&[(0, 0), (5, 1000), (10, 1050), (15, 1100)]);
        let past = history.of(0, now);
        assert_eq!(past.rate(|point| point.delivered, 1100), Some(10.0));
        let young = history.of(0, now.before(Duration::from_secs(15)));
        assert_eq!(young.rate(|point| point.delivered, 0), None, "nothing is known of a second");
        assert_eq!(history.of(1, now).rate(|point| point.delivered, 5), None, "no such destination");
    }

    #[test]
    fn the_rates_between_samples_add_up_to_what_the_counter_grew() {
        let (history, now) = history(&[(0, 7), (5, 17), (11, 17), (15, 117), (20, 120)]);
        let past = history.of(0, now);
        let rates = past.rates(|point| point.delivered);
        let periods = [5.0, 6.0, 4.0, 5.0];
        let sum: f64 = rates.iter().zip(periods).map(|((_, rate), seconds)| rate.unwrap_or(0.0) * seconds).sum();
        assert!((sum - 113.0).abs() < 1e-9, "{sum}");
        assert_eq!(past.growth(|point| point.delivered, 121, Duration::from_secs(9)), 104);
        assert_eq!(past.growth(|point| point.delivered, 121, Duration::from_secs(900)), 114);
    }
}
