//! Turns text into values and collects the mistakes: the variable, its value, and what is allowed.
//!
//! A parser does not stop at a mistake. It notes the mistake and returns the default, so that the rest is checked as
//! well.

use super::Flags;
use super::destination::{self, DestinationConfig, without_secret};
use super::problems::Problems;
use super::setting::{ALL, DESTINATIONS, Setting, present};
use super::target::web_address;

impl Problems {
    /// Finds misspelt variables. Otherwise they would silently leave a default in force.
    pub(super) fn unknown_variables(&mut self) {
        for (name, _) in std::env::vars_os() {
            if let Some(sentence) = name.to_str().and_then(unknown_variable) {
                self.add(sentence);
            }
        }
    }

    /// The value that was given for a setting, or its default.
    pub(super) fn read<T: PartialOrd + Clone>(&mut self, flags: &Flags, setting: &Setting<T>) -> T {
        setting.read(setting.info.variable, flags.text(&setting.info), setting.default.clone(), self)
    }

    /// Checks an endpoint of the SDK. The SDK itself accepts any text, and then cannot send requests.
    pub(super) fn endpoint(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = present(text).filter(|text| web_address(text).is_none()) {
            let shown = without_secret(text);
            self.add(format!("{name}={shown:?} is not an endpoint; use a URL such as http://localhost:9324"));
        }
    }

    /// The destinations that the environment names.
    pub(super) fn destinations(&mut self, text: Option<&str>) -> Vec<DestinationConfig> {
        let name = DESTINATIONS.info.variable;
        // Then those in the table are served.
        let Some(text) = present(text) else { return Vec::new() };
        let mut destinations: Vec<DestinationConfig> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match destination::read(part) {
                Ok(found) if destinations.iter().any(|known| known.name == found.name) => {
                    self.add(format!("{name}: destination {:?} is named twice; keep one of them", found.name));
                }
                Ok(found) => destinations.push(found),
                Err(problem) => self.add(format!("{name}: {problem}")),
            }
        }
        if destinations.is_empty() && self.is_empty() {
            self.add(format!("{name}={text:?} names no destination; use NAME=QUEUE_URL, separated by commas"));
        }
        destinations
    }
}

/// The names of our own variables.
pub(super) fn variables() -> Vec<&'static str> {
    let names = ALL.iter().map(|row| row.info().variable);
    names.filter(|name| name.starts_with("OUTBOX_RELAY_")).collect()
}

/// The sentence about a variable that looks like ours but is unknown. `None` if it is known or not like ours.
pub(super) fn unknown_variable(name: &str) -> Option<String> {
    let rest = name.strip_prefix("OUTBOX_RELAY_")?;
    let by_kubernetes = is_of_a_service(rest);
    let known = variables();
    if by_kubernetes || known.contains(&name) {
        return None;
    }
    // The variables of the database have no prefix.
    let others = ["DATABASE_URL", "DATABASE_URL_FILE", "DATABASE_URLS_FILE"];
    if let Some(other) = others.iter().find(|other| **other == rest) {
        return Some(format!("{name} is not a variable of outbox-relay; did you mean {other}?"));
    }
    let similarity = |known: &&&str| (strsim::jaro_winkler(name, known) * 1e6) as u64;
    let nearest = known.iter().max_by_key(similarity)?;
    Some(format!("{name} is not a variable of outbox-relay; did you mean {nearest}?"))
}

/// Whether Kubernetes sets this variable for a Service whose name begins with outbox-relay. It sets such variables in
/// every pod beside the Service: `OUTBOX_RELAY_METRICS_SERVICE_HOST` and `OUTBOX_RELAY_METRICS_PORT_9595_TCP_ADDR` for
/// outbox-relay-metrics (Kubernetes documentation, Service, environment variables). No setting has such a name.
fn is_of_a_service(rest: &str) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    let is_number = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let is_service = words.windows(2).any(|pair| matches!(pair, ["SERVICE", "HOST" | "PORT"]));
    let has_protocol =
        words.windows(3).any(|three| matches!(three, ["PORT", number, "TCP" | "UDP" | "SCTP"] if is_number(number)));
    is_service || has_protocol || words.last() == Some(&"PORT")
}
