//! What `dev` prints. Pure.

use std::time::Duration;

use super::queues::Arrival;
use crate::causes::harmless;
use crate::schema::Schema;

/// What the instructions are about.
#[derive(Clone, Debug, Default)]
pub(super) struct Setting {
    /// As it is typed in a shell: a quoted URL, or a variable.
    pub(super) database: String,
    /// What to say about the database.
    pub(super) about_database: String,
    pub(super) psql: String,
    pub(super) endpoint: String,
    pub(super) region: String,
    pub(super) metrics: String,
    /// Destination and queue URL of each queue.
    pub(super) queues: Vec<(String, String)>,
    /// The schema of the outbox.
    pub(super) schema: Schema,
    /// What another terminal needs.
    pub(super) exports: Vec<(String, String)>,
    /// Whether the relay is ours; otherwise the user starts it.
    pub(super) runs_relay: bool,
}

/// Keys that no AWS account knows.
pub(super) const KEY: &str = "dev";

/// What to type.
pub(super) fn instructions(setting: &Setting) -> String {
    let Setting { database, about_database, psql, endpoint, region, metrics, queues, schema, exports, runs_relay } =
        setting;
    let names: Vec<&str> = queues.iter().map(|(name, _)| name.as_str()).collect();
    let (first, url) = queues.first().map_or(("", ""), |(name, url)| (name.as_str(), url.as_str()));
    let exports: String = exports.iter().map(|(name, value)| format!("  export {name}={}\n", quoted(value))).collect();
    let relay = if *runs_relay {
        format!("with its page and metrics at {metrics}; another one starts if you kill it")
    } else {
        "is yours: `outbox-relay run` in another terminal, after the lines with export below".to_owned()
    };
    format!(
        r#"outbox-relay dev: for development only. What is in the queues ends with this command.

  PostgreSQL    {about_database}
  SQS           {endpoint} with the queues of {names}
  the relay     {relay}

Write a message, in another terminal:

  {psql} {database} -c "SELECT {schema}.enqueue('{first}', 'TicketPurchased', '{{\"player\": \"p-1\"}}', group_id => 'draw-7')"

Receive it, with the AWS CLI:

  AWS_ACCESS_KEY_ID={KEY} AWS_SECRET_ACCESS_KEY={KEY} aws --region {region} --endpoint-url {endpoint} sqs receive-message --message-attribute-names All --queue-url {url}

Write ten thousand messages in 100 groups, and kill the relay while they arrive (`kill -9` with its number, see below):

  {psql} {database} -c "SELECT count({schema}.enqueue('{first}', 'TicketPurchased', jsonb_build_object('n', n), group_id => 'draw-' || n % 100)) FROM generate_series(1, 10000) AS n"

For applications, and for every other command of outbox-relay, such as `outbox-relay status`:

{exports}
Each message is shown here when it arrives in its queue, and stays there until somebody deletes it. Ctrl-C ends all.

"#,
        names = names.join(", "),
    )
}

/// A value for a shell.
pub(super) fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// The relay has started.
pub(super) fn relay_runs(id: u32) -> String {
    format!("the relay runs; to kill it: kill -9 {id}\n")
}

/// The relay has ended, not because it was told to.
pub(super) fn relay_ended(status: &str) -> String {
    format!("the relay has ended ({status}); another one starts\n")
}

/// How a message is related to earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is new.
    New,
    /// The queue dropped it, because it knows its deduplication id.
    Dropped,
    /// The queue had a message of the same event before.
    Again,
}

/// A message that arrived.
pub(super) fn arrival(arrival: &Arrival, latency: Option<Latency>, kind: Kind) -> String {
    let mut line = arrival.queue.clone();
    if let Some(group) = &arrival.group {
        line.push_str(&format!("  group={}", harmless(group)));
    }
    let kind = match kind {
        Kind::New => "",
        Kind::Dropped => "  COPY, dropped by the queue",
        Kind::Again => "  AGAIN, the queue had this event before",
    };
    line.push_str(kind);
    if let Some(Latency { time, of }) = latency {
        line.push_str(&format!("  {} after its {of}", shown(time)));
    }
    line.push_str(&format!("  {}", harmless(&arrival.body)));
    for (name, value) in &arrival.attributes {
        line.push_str(&format!("  {name}={}", harmless(value)));
    }
    line.push('\n');
    line
}

/// The time from a moment in the database to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Latency {
    pub(super) time: Duration,
    /// "commit", or "INSERT" if the server does not keep the time of commits.
    pub(super) of: &'static str,
}

/// Three digits at most, so that it can be read at a glance.
fn shown(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    match millis {
        ..10.0 => format!("{millis:.1} ms"),
        10.0..1000.0 => format!("{millis:.0} ms"),
        _ => format!("{:.1} s", millis / 1000.0),
    }
}

/// What arrived in a queue altogether.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) messages: u64,
    pub(super) dropped: u64,
    pub(super) again: u64,
}

/// The last lines.
pub(super) fn tallies<'a>(tallies: impl IntoIterator<Item = (&'a String, &'a Tally)>, unshown: u64) -> String {
    let mut text = String::new();
    for (queue, Tally { messages, dropped, again }) in tallies {
        let noun = if *messages == 1 { "message" } else { "messages" };
        text.push_str(&format!("{queue}: {messages} {noun}"));
        if *dropped > 0 {
            text.push_str(&format!(", and {dropped} more as copies, dropped by the queue"));
        }
        if *again > 0 {
            text.push_str(&format!(", and {again} more again, of events that the queue had before"));
        }
        text.push('\n');
    }
    if unshown > 0 {
        text.push_str(&format!("and {unshown} more messages, which came faster than they could be shown\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        let message = Arrival {
            queue: "tickets.fifo".to_owned(),
            group: Some("draw-7".to_owned()),
            body: "{\"a\":\n\u{1b}[31m}".to_owned(),
            attributes: vec![("event_type".to_owned(), "Ticket\tPurchased".to_owned())],
            is_copy: false,
        };
        let latency = Some(Latency { time: Duration::from_micros(5240), of: "commit" });
        let line = arrival(&message, latency, Kind::New);
        assert_eq!(
            line,
            "tickets.fifo  group=draw-7  5.2 ms after its commit  {\"a\":??[31m}  event_type=Ticket?Purchased\n"
        );
        let copy = arrival(&Arrival { queue: "audit".to_owned(), ..Arrival::default() }, None, Kind::Again);
        assert_eq!(copy, "audit  AGAIN, the queue had this event before  \n");
    }

    #[test]
    fn times_have_a_unit_and_few_digits() {
        let table = [(0, "0.0 ms"), (9_940, "9.9 ms"), (12_345, "12 ms"), (999_000, "999 ms"), (61_500_000, "61.5 s")];
        for (micros, expected) in table {
            assert_eq!(shown(Duration::from_micros(micros)), expected);
        }
    }

    #[test]
    fn exported_values_are_quoted_for_a_shell() {
        let exports = vec![("X".to_owned(), "it's".to_owned())];
        let text = instructions(&Setting { exports, ..Setting::default() });
        assert!(text.contains(r"  export X='it'\''s'"), "{text}");
    }

    #[test]
    fn what_is_to_be_typed_names_the_schema() {
        let schema = Schema::parse("lottery_outbox").unwrap();
        let text = instructions(&Setting { schema, ..Setting::default() });
        assert_eq!(text.matches("lottery_outbox.enqueue(").count(), 2, "{text}");
        assert_eq!(instructions(&Setting::default()).matches(" outbox.enqueue(").count(), 1);
    }

    #[test]
    fn tallies_name_only_what_there_was() {
        let one = Tally { messages: 1, ..Tally::default() };
        let two = Tally { messages: 2, dropped: 3, again: 4 };
        let names = ["a".to_owned(), "b".to_owned()];
        let text = tallies([(&names[0], &one), (&names[1], &two)], 0);
        let expected = "a: 1 message\nb: 2 messages, and 3 more as copies, dropped by the queue, and 4 more again, of events \
                        that the queue had before\n";
        assert_eq!(text, expected);
    }
}
