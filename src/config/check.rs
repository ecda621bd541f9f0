//! Turns text into values and collects what is wrong with it: the variable, its value, what is allowed.
//!
//! A parser here never stops at a mistake: it notes it, returns the default and lets the others be checked as well.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args as _;

use super::{DestinationConfig, Flags, memory};
use crate::message::QueueKind;

/// All that is wrong with the configuration, one sentence each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// A variable's name and what it was set to.
type Setting<'a> = (&'static str, Option<&'a str>);

/// The mistakes found so far.
#[derive(Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    pub(super) fn add(&mut self, sentence: String) {
        self.0.push(sentence);
    }

    pub(super) fn into_error(self) -> ConfigError {
        ConfigError(self.0)
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        if self.0.is_empty() { Ok(value) } else { Err(self.into_error()) }
    }

    /// A misspelt variable would otherwise leave a default in force without a word.
    pub(super) fn unknown_variables(&mut self) {
        for (name, _) in std::env::vars_os() {
            if let Some(sentence) = name.to_str().and_then(unknown_variable) {
                self.add(sentence);
            }
        }
    }

    pub(super) fn number(&mut self, setting: Setting<'_>, (min, max): (usize, usize), default: usize) -> usize {
        let Some(text) = present(setting) else { return default };
        match text.parse::<usize>() {
            Ok(value) if (min..=max).contains(&value) => value,
            _ => {
                let name = setting.0;
                self.add(format!("{name}={text:?} is not allowed; use a whole number from {min} to {max}"));
                default
            }
        }
    }

    pub(super) fn duration(
        &mut self,
        setting: Setting<'_>,
        (min, max): (Duration, Duration),
        default: Duration,
    ) -> Duration {
        let Some(text) = present(setting) else { return default };
        match humantime::parse_duration(text) {
            Ok(value) if (min..=max).contains(&value) => value,
            parsed => {
                let hint = if parsed.is_err() && text.parse::<f64>().is_ok() { " (the unit is missing)" } else { "" };
                self.add(format!(
                    "{}={text:?} is not allowed{hint}; use a duration with a unit, such as {}, from {} to {}",
                    setting.0,
                    humantime::format_duration(default),
                    humantime::format_duration(min),
                    humantime::format_duration(max),
                ));
                default
            }
        }
    }

    pub(super) fn bytes(&mut self, setting: Setting<'_>, (min, max): (u64, u64)) -> Option<u64> {
        let text = present(setting)?;
        match text.parse::<ByteSize>() {
            Ok(size) if (min..=max).contains(&size.as_u64()) => Some(size.as_u64()),
            _ => {
                self.add(format!(
                    "{}={text:?} is not allowed; use a number of bytes with a unit, such as 160MiB, from {} to {}",
                    setting.0,
                    memory::shown(min),
                    memory::shown(max)
                ));
                None
            }
        }
    }

    pub(super) fn one_of<T: Copy>(&mut self, setting: Setting<'_>, choices: &[(&str, T)], default: T) -> T {
        let Some(text) = present(setting) else { return default };
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.add(format!("{}={text:?} is not allowed; use {}", setting.0, words.join(" or ")));
        default
    }

    pub(super) fn address(&mut self, setting: Setting<'_>, default: SocketAddr) -> SocketAddr {
        let Some(text) = present(setting) else { return default };
        text.parse().unwrap_or_else(|_| {
            let name = setting.0;
            self.add(format!("{name}={text:?} is not an address; use IP:PORT such as 0.0.0.0:9595 or [::]:9595"));
            default
        })
    }

    /// The SDK takes whatever it finds, and then no request can be sent.
    pub(super) fn endpoint(&mut self, setting: Setting<'_>) {
        if let Some(text) = present(setting).filter(|text| web_address(text).is_none()) {
            let (name, shown) = (setting.0, without_secret(text));
            self.add(format!("{name}={shown:?} is not an endpoint; use a URL such as http://localhost:9324"));
        }
    }

    pub(super) fn destinations(&mut self, text: Option<&str>) -> Vec<DestinationConfig> {
        const NAME: &str = "OUTBOX_RELAY_DESTINATIONS";
        let Some(text) = present((NAME, text)) else {
            self.add(format!("{NAME} is not set; name what to publish where, such as tickets=https://sqs.eu-west-1.amazonaws.com/123456789012/tickets.fifo"));
            return Vec::new();
        };
        let mut destinations: Vec<DestinationConfig> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match destination(part) {
                Ok(found) if destinations.iter().any(|known| known.name == found.name) => {
                    self.add(format!("{NAME}: destination {:?} is named twice; keep one of them", found.name));
                }
                Ok(found) => destinations.push(found),
                Err(problem) => self.add(format!("{NAME}: {:?} {problem}", without_secret(part))),
            }
        }
        if destinations.is_empty() && self.0.is_empty() {
            self.add(format!("{NAME}={text:?} names no destination; use NAME=QUEUE_URL, separated by commas"));
        }
        destinations
    }
}

/// Empty counts as not set.
fn present<'a>((_, text): Setting<'a>) -> Option<&'a str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

fn destination(part: &str) -> Result<DestinationConfig, String> {
    let Some((name, queue_url)) = part.split_once('=') else {
        return Err("has no queue URL; use NAME=QUEUE_URL".to_owned());
    };
    let (name, queue_url) = (name.trim(), queue_url.trim());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 80 || !name.chars().all(is_plain) {
        return Err("has a bad name; use 1 to 80 letters, digits, '-', '_' or '.'".to_owned());
    }
    match web_address(queue_url) {
        Some((_, path)) if !path.is_empty() => Ok(DestinationConfig {
            name: name.to_owned(),
            queue_url: queue_url.to_owned(),
            kind: QueueKind::of(queue_url),
        }),
        _ => Err("has a bad queue URL; use the URL that SQS shows, https://HOST/ACCOUNT/QUEUE".to_owned()),
    }
}

/// Host and path of a URL that requests can be sent to.
fn web_address(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    // An IPv6 address stands in brackets.
    let end = authority.find(']').map_or_else(|| authority.find(':').unwrap_or(authority.len()), |at| at + 1);
    let (host, port) = authority.split_at(end);
    let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c));
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let has_good_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    (is_host && has_good_port && !text.contains(char::is_whitespace)).then_some((host, path))
}

/// A URL may hold user and password, which are never shown.
fn without_secret(text: &str) -> &str {
    if text.contains('@') { "(not shown)" } else { text }
}

/// The variables of our own that the flags name.
pub(super) fn variables() -> Vec<String> {
    let command = Flags::augment_args(clap::Command::new("variables"));
    let names = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
    names.filter(|name| name.starts_with("OUTBOX_RELAY_")).map(str::to_owned).collect()
}

/// The sentence about a variable that looks like ours and is not.
pub(super) fn unknown_variable(name: &str) -> Option<String> {
    let rest = name.strip_prefix("OUTBOX_RELAY_")?;
    let by_kubernetes = is_of_a_service(rest);
    let known = variables();
    if by_kubernetes || known.iter().any(|known| known == name) {
        return None;
    }
    let similarity = |known: &&String| (strsim::jaro_winkler(name, known) * 1e6) as u64;
    let nearest = known.iter().max_by_key(similarity)?;
    Some(format!("{name} is not a variable of outbox-relay; did you mean {nearest}?"))
}

/// Whether Kubernetes sets this variable in every pod beside a Service whose name begins with outbox-relay, as
/// `OUTBOX_RELAY_METRICS_SERVICE_HOST` and `OUTBOX_RELAY_METRICS_PORT_9595_TCP_ADDR` for outbox-relay-metrics (Kubernetes
/// documentation, Service, environment variables). No setting ends like these.
fn is_of_a_service(rest: &str) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    let is_number = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let is_service = words.windows(2).any(|pair| matches!(pair, ["SERVICE", "HOST" | "PORT"]));
    let has_protocol =
        words.windows(3).any(|three| matches!(three, ["PORT", number, "TCP" | "UDP" | "SCTP"] if is_number(number)));
    is_service || has_protocol || words.last() == Some(&"PORT")
}
