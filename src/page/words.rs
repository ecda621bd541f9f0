//! Durations, times and counts as people read them. Pure.

use std::time::{Duration, SystemTime};

use crate::reading::COUNT_LIMIT;
use crate::way;

/// The longest text of others that is shown, in characters: reasons, names, values.
const LONGEST: usize = 300;

/// An end farther away than this is none: somebody has to resume.
const FARTHEST: Duration = Duration::from_secs(366 * 86_400);

/// The two largest units.
pub(super) fn lasting(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => two((minutes, "min"), (seconds % 60, "s")),
        (0, hours, minutes) => two((hours, "h"), (minutes, "min")),
        (days, hours, _) => two((days, "d"), (hours, "h")),
    }
}

fn two((large, unit): (u64, &str), (small, smaller): (u64, &str)) -> String {
    if small == 0 { format!("{large} {unit}") } else { format!("{large} {unit} {small} {smaller}") }
}

/// A short time with a fraction, a long one in units.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        seconds if !seconds.is_finite() || seconds <= 0.0 => "0 s".to_owned(),
        seconds if seconds < 0.095 => format!("{:.0} ms", seconds * 1000.0),
        seconds if seconds < 9.95 => format!("{seconds:.1} s"),
        seconds => lasting(Duration::try_from_secs_f64(seconds.round()).unwrap_or(Duration::MAX)),
    }
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count that stops at a limit.
pub(super) fn counted(number: i64) -> String {
    let sign = if number >= COUNT_LIMIT { "+" } else { "" };
    format!("{}{sign}", grouped(u64::try_from(number).unwrap_or(0)))
}

/// Messages a second.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate >= 99.95 => grouped(rate.round() as u64),
        rate if rate > 0.0 && rate < 0.05 => "<0.1".to_owned(),
        rate => format!("{rate:.1}"),
    }
}

/// "1 message", "2 messages", "100,000+ messages".
pub(super) fn messages(number: i64) -> String {
    format!("{} message{}", counted(number), if number == 1 { "" } else { "s" })
}

/// The day and time in UTC, as logs have it. What lies beyond the year 9999 is written as its end.
pub(super) fn stamp(time: SystemTime) -> String {
    way::moment(time)
}

/// When a pause with this much time left ends; `None` if that is never, or so far away that it comes to the same.
pub(super) fn end(now: SystemTime, left: Option<Duration>) -> Option<SystemTime> {
    now.checked_add(left.filter(|left| *left <= FARTHEST)?)
}

/// The time of the day in UTC.
pub(super) fn clock(time: SystemTime) -> String {
    stamp(time).chars().skip(11).take(8).collect()
}

/// The time of the day, with the day if that is another one.
pub(super) fn moment(time: SystemTime, now: SystemTime) -> String {
    let (then, today) = (stamp(time), stamp(now));
    if then.get(..10) == today.get(..10) {
        clock(time)
    } else {
        format!("{} {}", then.get(..10).unwrap_or(""), clock(time))
    }
}

/// A text of others, in one line and not longer than the page can bear.
pub(super) fn short(text: &str) -> String {
    let mut shown: String = text.chars().take(LONGEST).map(plain).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

/// Characters that would change the direction or the lines of what follows.
fn plain(c: char) -> char {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let breaks = matches!(c, '\u{2028}' | '\u{2029}');
    if c.is_control() || turns || breaks { '\u{fffd}' } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_two_units_at_most() {
        let table = [
            (0.0, "0 s"),
            (0.004, "4 ms"),
            (0.094, "94 ms"),
            (0.4, "0.4 s"),
            (9.94, "9.9 s"),
            (9.96, "10 s"),
            (59.4, "59 s"),
            (60.0, "1 min"),
            (3599.0, "59 min 59 s"),
            (3600.0, "1 h"),
            (7260.0, "2 h 1 min"),
            (90_000.0, "1 d 1 h"),
            (f64::NAN, "0 s"),
            (f64::INFINITY, "0 s"),
        ];
        for (value, text) in table {
            assert_eq!(seconds(value), text, "{value}");
        }
    }

    #[test]
    fn numbers_are_grouped_and_marked_where_counting_stopped() {
        assert_eq!([0, 12, 999, 1000, 1_234_567].map(grouped), ["0", "12", "999", "1,000", "1,234,567"]);
        assert_eq!([-1, 99_999, 100_000].map(counted), ["0", "99,999", "100,000+"]);
        assert_eq!([0.0, 0.01, 0.05, 99.94, 99.96, 1234.4].map(rate), ["0.0", "<0.1", "0.1", "99.9", "100", "1,234"]);
        assert_eq!([0, 1, 2].map(messages), ["0 messages", "1 message", "2 messages"]);
    }

    #[test]
    fn another_day_is_named() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 + 43_200);
        assert_eq!(moment(noon, noon + Duration::from_secs(60)), "12:00:00");
        assert_eq!(moment(noon, noon + Duration::from_secs(86_400)), "1970-01-02 12:00:00");
    }

    #[test]
    fn every_time_can_be_written_and_an_end_beyond_a_year_is_none() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let year = Duration::from_secs(366 * 86_400);
        let far = now + 9000 * year;
        assert_eq!((stamp(far).as_str(), clock(far).as_str()), ("9999-12-31T23:59:59Z", "23:59:59"));
        assert_eq!(stamp(SystemTime::UNIX_EPOCH - year), "1970-01-01T00:00:00Z");
        assert_eq!(end(now, Some(year)), Some(now + year));
        for none in [None, Some(year + Duration::from_secs(1)), Some(Duration::MAX)] {
            assert_eq!(end(now, none), None, "{none:?}");
        }
    }

    #[test]
    fn a_text_of_others_is_cut_and_turns_nothing_around() {
        assert_eq!(short("a\nb\u{202e}c\u{7}"), "a\u{fffd}b\u{fffd}c\u{fffd}");
        assert_eq!(short(&"ä".repeat(300)).chars().count(), 300);
        assert_eq!(short(&"ä".repeat(301)).chars().count(), 301, "with the mark of what is left out");
    }
}
