//! What commands that change many messages share: points in time, rates, counts, and the confirmation.

use std::io::{IsTerminal as _, Write as _};
use std::time::SystemTime;

use anyhow::Context as _;

use super::Failure;
use crate::config::ConfigError;

/// Parses a day or a time in UTC.
pub(super) fn moment(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339_weak(text)
        .or_else(|_| humantime::parse_rfc3339_weak(&format!("{text}T00:00:00Z")))
        .map_err(|_| "use a day or a time in UTC as 2026-11-25 or 2026-11-25T09:00:00Z".to_owned())
}

/// Parses a number of messages per second.
pub(super) fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "use a whole number of messages per second, such as 50/s".to_owned())
}

/// A number of messages, for a sentence.
pub(super) fn messages(count: i64) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}

/// Asks the person at the terminal. The question goes to standard error, so that the output of a command stays clean.
/// Without a terminal it is an error; `instead` names the flag to use, such as "--yes".
pub(super) fn ask(question: &str, instead: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        let sentence = format!("{question} There is no terminal to answer on; use {instead}");
        return Err(ConfigError(vec![sentence]).into());
    }
    let shown = std::io::stderr().write_all(format!("{question} [y/N] ").as_bytes());
    shown.context("the question cannot be shown")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("the answer cannot be read")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Escapes user input so that it cannot control the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_day_or_a_time() {
        for text in ["2026-11-25", "2026-11-25T09:00:00Z", "2026-11-25 09:00:00"] {
            assert!(moment(text).is_ok(), "{text}");
        }
        for text in ["", "yesterday", "12", "2026-13-01"] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_is_a_number_of_messages_per_second() {
        assert_eq!((rate("50/s"), rate("7")), (Ok(50), Ok(7)));
        for text in ["", "0/s", "-1", "1/m", "fast"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
