//! A destination as a row of `outbox.destinations`. The rules and the sentences about mistakes are those of
//! `OUTBOX_RELAY_DESTINATIONS`: a row is written as it would be typed there, and read by the same parser.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::destination::{self, DestinationConfig, without_secret};
use super::{RelayConfig, memory};

/// A row of `outbox.destinations`, unchecked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DestinationRow {
    /// The name of the destination.
    pub name: String,
    /// A queue URL or a topic ARN.
    pub target: String,
    /// Whether a standard queue is told groups.
    pub fair: bool,
    /// The ARN of the role under which the target is used.
    pub role: Option<String>,
    /// The external id that the role asks for.
    pub external_id: Option<String>,
    /// BUCKET or BUCKET/PREFIX for large bodies.
    pub claim_check: Option<String>,
    /// Messages above this size in bytes go there.
    pub claim_check_above: Option<i64>,
    /// The ARN of the KMS key for them.
    pub claim_check_key: Option<String>,
}

impl DestinationRow {
    /// The destination that the row describes.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and the remedy.
    pub fn read(&self) -> Result<DestinationConfig, String> {
        if self.target.contains(';') {
            return Err(format!(
                "destination {:?} has a ; in its target {:?}; options have columns of their own",
                self.name,
                without_secret(&self.target)
            ));
        }
        let above = self.claim_check_above.map(|bytes| bytes.to_string());
        let options = [
            ("role", &self.role),
            ("external-id", &self.external_id),
            ("claim-check", &self.claim_check),
            ("claim-check-above", &above),
            ("claim-check-key", &self.claim_check_key),
        ];
        let mut text = format!("{}={}", self.name, self.target);
        if self.fair {
            text.push_str(";fair=true");
        }
        for (name, value) in options {
            let value = value.as_ref().map(|value| utf8_percent_encode(value.trim(), NON_ALPHANUMERIC));
            text.extend(value.map(|value| format!(";{name}={value}")));
        }
        let found = destination::read(&text)?;
        if found.name != self.name {
            let name = without_secret(&self.name);
            return Err(format!("{name:?} is a bad name; use 1 to 80 letters, digits, '-', '_' or '.'"));
        }
        Ok(found)
    }
}

/// A row that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRow {
    /// The name in the row.
    pub name: String,
    /// What is wrong, and the remedy.
    pub problem: String,
}

/// What the rows of `outbox.destinations` mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfiguredDestinations {
    /// The destinations, in the order of their names.
    pub served: Vec<DestinationConfig>,
    /// The rows that are left out: a mistake in one stops no other.
    pub refused: Vec<RefusedRow>,
}

impl ConfiguredDestinations {
    /// Reads the rows.
    pub fn read<'a>(rows: impl Iterator<Item = &'a DestinationRow>) -> Self {
        let mut found = Self::default();
        for row in rows {
            match row.read() {
                Ok(destination) => found.served.push(destination),
                Err(problem) => found.refused.push(RefusedRow { name: row.name.clone(), problem }),
            }
        }
        found
    }
}

/// How destinations differ from those before, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Only among the new ones.
    pub added: Vec<String>,
    /// Only among those before.
    pub removed: Vec<String>,
    /// With another target or other options.
    pub changed: Vec<String>,
}

impl Difference {
    /// The difference between these.
    pub fn between(before: &[DestinationConfig], now: &[DestinationConfig]) -> Self {
        let named = |all: &[DestinationConfig], name: &str| all.iter().find(|one| one.name == name).cloned();
        let names = |all: &[DestinationConfig], is_one: &dyn Fn(&DestinationConfig) -> bool| -> Vec<String> {
            all.iter().filter(|one| is_one(one)).map(|one| one.name.clone()).collect()
        };
        Self {
            added: names(now, &|one| named(before, &one.name).is_none()),
            removed: names(before, &|one| named(now, &one.name).is_none()),
            changed: names(now, &|one| named(before, &one.name).is_some_and(|before| before != *one)),
        }
    }

    /// Every name that differs.
    pub fn names(&self) -> Vec<&str> {
        [&self.added, &self.removed, &self.changed].into_iter().flatten().map(String::as_str).collect()
    }
}

impl RelayConfig {
    /// Whether the environment names no destination, so that those in `outbox.destinations` are served.
    pub fn follows_the_table(&self) -> bool {
        self.destinations.is_empty()
    }

    /// The same configuration with the destinations of the table.
    #[must_use]
    pub fn with_destinations(&self, mut destinations: Vec<DestinationConfig>) -> Self {
        memory::fit(&mut destinations, self.memory);
        Self { destinations, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::DestinationKind;

    fn row(name: &str, target: &str) -> DestinationRow {
        DestinationRow { name: name.to_owned(), target: target.to_owned(), ..DestinationRow::default() }
    }

    #[test]
    fn a_row_means_what_the_same_text_means() {
        let row = DestinationRow {
            fair: true,
            role: Some("arn:aws:iam::222222222222:role/a,b".to_owned()),
            external_id: Some("a:/=b@c,d".to_owned()),
            claim_check: Some("bodies/a/b".to_owned()),
            claim_check_above: Some(65_536),
            claim_check_key: Some("arn:aws:kms:eu-west-1:123456789012:key/0a".to_owned()),
            ..row("audit", "https://sqs.eu-west-1.amazonaws.com/1/audit")
        };
        let found = row.read().unwrap();
        assert_eq!((found.name.as_str(), found.kind), ("audit", DestinationKind::Fair));
        assert_eq!(destination::read(&found.to_string()), Ok(found));
    }

    #[test]
    fn a_wrong_row_is_left_out_and_a_difference_names_what_was_added_removed_and_changed() {
        let url = |name: &str| format!("https://sqs.eu-west-1.amazonaws.com/1/{name}");
        let rows = [row("a", &url("a")), row("b", &url("b")), row("c", "nowhere"), row("d", &url("d"))];
        let before = ConfiguredDestinations::read(rows.iter());
        assert_eq!(before.refused.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["c"]);
        let rows = [row("a", &url("a")), row("b", &url("other")), row("e", &url("e"))];
        let now = ConfiguredDestinations::read(rows.iter());
        let difference = Difference::between(&before.served, &now.served);
        let [added, removed, changed] = ["e", "d", "b"].map(|name| vec![name.to_owned()]);
        assert_eq!(difference, Difference { added, removed, changed });
        assert_eq!(Difference::between(&now.served, &now.served).names(), [""; 0]);
    }

    #[test]
    fn a_wrong_row_is_refused_with_the_remedy_and_never_read_as_another() {
        let url = "https://sqs.eu-west-1.amazonaws.com/1/audit";
        let wrong = [
            row("audit", "audit"),
            row("audit", &format!("{url};role=arn:aws:iam::222222222222:role/a")),
            row(&format!("audit={url};fair"), "true"),
            row(" audit", url),
            row("", url),
            DestinationRow { external_id: Some("abc".to_owned()), ..row("audit", url) },
            DestinationRow { role: Some(String::new()), ..row("audit", url) },
            DestinationRow { role: Some("r;fair=true".to_owned()), ..row("audit", url) },
            DestinationRow { fair: true, ..row("audit", &format!("{url}.fifo")) },
            DestinationRow { claim_check: Some("bodies".to_owned()), claim_check_above: Some(-1), ..row("audit", url) },
        ];
        for row in wrong {
            let problem = row.read().expect_err(&format!("{row:?}"));
            assert!(problem.contains("; "), "{problem}");
        }
    }
}
