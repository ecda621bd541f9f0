//! The forms of single values: URLs, headers, pairs, numbers. A value that may hold a key is never shown.

use std::str::FromStr as _;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::Header;
use crate::config::destination::without_secret;
use crate::config::problems::Problems;
use crate::config::target::web_address;

/// Headers that the relay sets itself, and those of the connection.
const RESERVED: [&str; 9] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// A variable and its text, without spaces around it.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) name: String,
    pub(super) text: String,
}

impl Given {
    /// Adds the mistake that the value is not what it should be.
    pub(super) fn refuse(&self, what: &str, remedy: &str, problems: &mut Problems) {
        problems.add(format!("{}={:?} is not {what}; {remedy}", self.name, self.text));
    }

    /// The URL as it is given.
    pub(super) fn url(&self, problems: &mut Problems) -> Option<String> {
        let is_url = web_address(&self.text).is_some() && Uri::from_str(&self.text).is_ok() && !self.text.contains('#');
        if is_url {
            return Some(self.text.clone());
        }
        // A query may hold a key.
        let shown = without_secret(self.text.split('?').next().unwrap_or_default());
        let remedy = "use a URL such as http://localhost:4318 or https://collector.example";
        problems.add(format!("{}={shown:?} is not the URL of a collector; {remedy}", self.name));
        None
    }

    /// The URL with a path behind it.
    pub(super) fn base(&self, path: &str, problems: &mut Problems) -> Option<String> {
        let url = self.url(problems)?;
        if url.contains('?') {
            let name = &self.name;
            let remedy = "give the whole URL as OTEL_EXPORTER_OTLP_TRACES_ENDPOINT instead";
            problems.add(format!("{name} has a query, and {path} is to be put behind it; {remedy}"));
        }
        Some(format!("{}/{path}", url.trim_end_matches('/')))
    }

    /// A whole number within bounds.
    pub(super) fn number(&self, (min, max): (u64, u64), unit: &str, otherwise: u64, problems: &mut Problems) -> u64 {
        let number = self.text.parse().ok().filter(|number| (min..=max).contains(number));
        number.unwrap_or_else(|| {
            self.refuse("allowed", &format!("use a whole number of {unit} from {min} to {max}"), problems);
            otherwise
        })
    }

    /// A share.
    pub(super) fn ratio(&self, problems: &mut Problems) -> f64 {
        let ratio = self.text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.unwrap_or_else(|| {
            self.refuse("allowed", "use a number from 0 to 1, such as 0.25", problems);
            1.0
        })
    }

    /// Headers, `NAME=VALUE` with percent signs for odd characters, separated by commas.
    pub(super) fn headers(&self, problems: &mut Problems) -> Vec<Header> {
        let mut headers = Vec::new();
        for (number, entry) in self.entries() {
            match header(entry) {
                Ok(header) => headers.push(header),
                Err(problem) => problems.add(format!("{}: header number {number} {problem}", self.name)),
            }
        }
        headers
    }

    /// Names and values, `NAME=VALUE` with percent signs for odd characters, separated by commas.
    pub(super) fn pairs(&self, problems: &mut Problems) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for (number, entry) in self.entries() {
            match entry.split_once('=').map(|(name, value)| (decoded(name), decoded(value))) {
                Some((Some(name), Some(value))) if !name.is_empty() => pairs.push((name, value)),
                _ => problems.add(format!(
                    "{}: attribute number {number} is {entry:?}; use NAME=VALUE, with %2C for a comma in a value",
                    self.name
                )),
            }
        }
        pairs
    }

    /// The entries of a list, numbered from 1. Empty ones are passed over.
    fn entries(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.split(',').map(str::trim)).filter(|(_, entry)| !entry.is_empty())
    }
}

fn header(entry: &str) -> Result<Header, String> {
    let (name, value) =
        entry.split_once('=').ok_or("is not NAME=VALUE; use NAME=VALUE, with %2C for a comma in a value")?;
    let name = HeaderName::from_str(name.trim())
        .map_err(|_| "has a name that HTTP does not allow; use letters, digits and hyphens")?;
    if RESERVED.contains(&name.as_str()) {
        return Err(format!("is {name}, which the relay sets itself; leave it out"));
    }
    let value = decoded(value).filter(|value| HeaderValue::from_str(value).is_ok());
    let value = value.ok_or_else(|| {
        format!("({name}) has a value that HTTP does not allow; use printable characters without a line break")
    })?;
    Ok(Header { name: name.as_str().to_owned(), value })
}

fn decoded(text: &str) -> Option<String> {
    percent_decode_str(text.trim()).decode_utf8().ok().map(|text| text.into_owned())
}
