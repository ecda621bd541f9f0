//! What `outbox-relay status` says of hot groups: how many there are, the relay of this host tells; which groups are the
//! longest, the database knows. The relay's page must not name them, because everybody who reaches the port can read it.

use clap::ValueEnum as _;
use serde_json::{Value, json};

use super::super::consent::printable;
use crate::config::FifoMode;
use crate::message::MessageId;
use crate::outbox::{LOOKED_AT, Outbox, OutboxError};
use crate::reading::ByLane;

/// How many groups are named.
const NAMED: i64 = 3;

/// What the relay of this host tells of its hot groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Told {
    groups: u64,
    /// Messages a second that each of them gets.
    per_second: f64,
    mode: FifoMode,
}

impl Told {
    /// Reads it from the row of a destination on the status page; `None` if no group is hot.
    pub(super) fn read(row: &Value) -> Option<Self> {
        let groups = row["hot_groups"].as_u64().filter(|groups| *groups > 0)?;
        let per_second = row["hot_group_messages_per_second"].as_f64()?;
        let mode = FifoMode::from_str(row["fifo_mode"].as_str()?, false).ok()?;
        Some(Self { groups, per_second, mode })
    }
}

/// The hot groups of a destination.
#[derive(Debug)]
pub(super) struct Hot {
    told: Told,
    /// The groups with the most messages to send, and how many each has.
    longest: Vec<(String, i64)>,
}

impl Hot {
    /// Finds the longest groups above these floors.
    pub(super) async fn find(
        told: Told,
        outbox: &Outbox,
        destination: &str,
        floors: &ByLane<MessageId>,
    ) -> Result<Self, OutboxError> {
        Ok(Self { told, longest: outbox.longest_groups(destination, floors, NAMED).await? })
    }

    /// A line for people.
    pub(super) fn as_text(&self, destination: &str) -> String {
        let Told { groups, per_second, mode } = self.told;
        let (noun, each) = if groups == 1 { ("group", "") } else { ("groups", " each") };
        let counted = |messages: i64| if messages >= LOOKED_AT { format!("{messages}+") } else { messages.to_string() };
        let named = |(name, messages): &(String, i64)| format!("{name} ({} to send)", counted(*messages));
        let longest: Vec<String> = self.longest.iter().map(named).collect();
        // They may have been sent since the relay was asked.
        let longest = if longest.is_empty() { String::new() } else { format!("; the longest: {}", longest.join(", ")) };
        let line = format!(
            "{destination}: OUTBOX_RELAY_FIFO_MODE={} limits {groups} hot {noun} to {per_second:.1} \
             messages/s{each}{longest}. Remedy: {}",
            mode.word(),
            mode.remedy()
        );
        printable(&line) + "\n"
    }

    /// The same for machines.
    pub(super) fn as_json(&self) -> Value {
        let Told { groups, per_second, mode } = self.told;
        let longest = |(name, messages): &(String, i64)| json!({"group": name, "to_send": messages, "to_send_is_capped": *messages >= LOOKED_AT});
        json!({
            "groups": groups,
            "messages_per_second_each": per_second,
            "fifo_mode": mode.word(),
            "longest": self.longest.iter().map(longest).collect::<Vec<Value>>(),
            "remedy": mode.remedy(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_groups_are_read_from_the_row_of_a_page() {
        let row =
            |groups: i64| json!({"hot_groups": groups, "hot_group_messages_per_second": 8.25, "fifo_mode": "strict"});
        assert_eq!(Told::read(&row(6)), Some(Told { groups: 6, per_second: 8.25, mode: FifoMode::Strict }));
        for none in [row(0), row(-1), json!({}), json!({"hot_groups": 3}), json!(7)] {
            assert_eq!(Told::read(&none), None, "{none}");
        }
    }

    #[test]
    fn a_line_names_the_groups_the_rate_and_what_lifts_the_limit() {
        let told = Told { groups: 2, per_second: 8.25, mode: FifoMode::Strict };
        let longest = vec![("draw-1\u{1b}[2J".to_owned(), LOOKED_AT), ("draw-2".to_owned(), 70)];
        let strict = Hot { told, longest: longest.clone() };
        assert_eq!(
            strict.as_text("tickets"),
            "tickets: OUTBOX_RELAY_FIFO_MODE=strict limits 2 hot groups to 8.2 messages/s each; the longest: draw-1 [2J \
             (10000+ to send), draw-2 (70 to send). Remedy: OUTBOX_RELAY_FIFO_MODE=batched sends up to ten of a group in a request; \
             more groups help as well\n"
        );
        let batched = Hot { told: Told { groups: 1, mode: FifoMode::Batched, ..told }, longest };
        let text = batched.as_text("tickets");
        assert!(text.contains("1 hot group to 8.2 messages/s;") && text.contains("only more groups help"), "{text}");
    }
}
