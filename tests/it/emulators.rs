//! What `docs/emulators.md` says of the emulator that the tests run on is what it does. `make test` checks fauxqs,
//! `make test-elasticmq` and `make test-moto` the others.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::builders::SendMessageBatchRequestEntryBuilder;
use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeName, MessageSystemAttributeNameForSends, MessageSystemAttributeValue,
    QueueAttributeName, SendMessageBatchRequestEntry,
};

use support::emulator;
use support::emulator::{Product, Queues};
use support::test_bed::TestBed;

const MAX_BYTES: usize = 1_048_576;

/// Queues of an emulator, and what it answers, in the words of the page.
struct Probe {
    queues: Queues,
    standard: String,
    fifo: String,
}

/// What the emulator did, by the first column of the page's table.
type Answers = HashMap<&'static str, String>;

fn entry(id: usize, body: &str) -> SendMessageBatchRequestEntryBuilder {
    SendMessageBatchRequestEntry::builder().id(id.to_string()).message_body(body)
}

fn of_group(group: &str, deduplication_id: &str) -> SendMessageBatchRequestEntryBuilder {
    entry(0, "{}").message_group_id(group).message_deduplication_id(deduplication_id)
}

impl Probe {
    async fn new() -> Result<Probe> {
        let queues = Queues::new(emulator()?.endpoint());
        let standard = queues.create_standard("probe").await?;
        let fifo = queues.create_fifo("probe").await?;
        Ok(Probe { queues, standard, fifo })
    }

    /// What becomes of a request with these entries.
    async fn send(
        &self,
        queue_url: &str,
        entries: impl IntoIterator<Item = SendMessageBatchRequestEntryBuilder>,
    ) -> Result<String> {
        let entries = entries.into_iter().map(SendMessageBatchRequestEntryBuilder::build);
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        let answer = self.queues.client().send_message_batch().queue_url(queue_url).set_entries(Some(entries));
        Ok(match answer.send().await {
            Err(error) => {
                // The SDK takes the query protocol's code, with a namespace, from a header, or else the JSON type.
                let code = error.code().unwrap_or("no code").rsplit('.').next().unwrap_or_default();
                format!("request refused: `{code}`")
            }
            Ok(output) => match output.failed().first() {
                Some(failed) => format!("entry refused: `{}`", failed.code()),
                None => "accepted".to_owned(),
            },
        })
    }

    async fn sizes_and_characters(&self, answers: &mut Answers) -> Result<()> {
        let standard = &self.standard;
        let attribute = |value: &str| MessageAttributeValue::builder().data_type("String").string_value(value).build();
        answers.insert("a body with U+0001", self.send(standard, [entry(0, "\u{1}")]).await?);
        answers.insert("a body with a character above U+FFFF", self.send(standard, [entry(0, "🎲")]).await?);
        answers.insert("a body without a character", self.send(standard, [entry(0, "")]).await?);
        answers.insert("a body of 1 MiB", self.send(standard, [entry(0, &"x".repeat(MAX_BYTES))]).await?);
        let large = [entry(0, &"x".repeat(MAX_BYTES + 1))];
        answers.insert("a body of 1 MiB and a byte", self.send(standard, large).await?);
        let wide = [entry(0, &"漢".repeat(400_000))];
        answers.insert("a body of 400,000 characters of three bytes", self.send(standard, wide).await?);
        let attributed = entry(0, &"x".repeat(MAX_BYTES)).message_attributes("name", attribute("value")?);
        answers.insert("a body of 1 MiB and an attribute", self.send(standard, [attributed]).await?);
        let two = [0, 1].map(|id| entry(id, &"x".repeat(600_000)));
        answers.insert("two entries of 600,000 bytes", self.send(standard, two).await?);
        let small = self
            .queues
            .create(&format!("small-{}", std::process::id()), &[(QueueAttributeName::MaximumMessageSize, "1024")])
            .await?;
        let answer = self.send(&small, [entry(0, "{}"), entry(1, &"x".repeat(2000))]).await?;
        answers.insert("2,000 bytes for a queue with a `MaximumMessageSize` of 1,024", answer);
        Ok(())
    }

    async fn requests(&self, answers: &mut Answers) -> Result<()> {
        let standard = &self.standard;
        answers.insert("eleven entries", self.send(standard, (0..11).map(|id| entry(id, "{}"))).await?);
        answers.insert("two entries with one id", self.send(standard, [entry(0, "{}"), entry(0, "{}")]).await?);
        let missing = standard.replace("probe-", "missing-");
        answers.insert("no such queue", self.send(&missing, [entry(0, "{}")]).await?);
        let grouped = entry(0, "{}").message_group_id("group");
        answers.insert("a group in a standard queue", self.send(standard, [grouped]).await?);
        let without = entry(0, "{}").message_deduplication_id("without");
        answers.insert("no group in a FIFO queue", self.send(&self.fifo, [without]).await?);
        let without = entry(0, "{}").message_group_id("group");
        answers.insert("no deduplication id in a FIFO queue", self.send(&self.fifo, [without]).await?);
        let delayed = of_group("group", "delayed").delay_seconds(5);
        answers.insert("a delay in a FIFO queue", self.send(&self.fifo, [delayed]).await?);
        Ok(())
    }

    async fn fifo_queues(&self, answers: &mut Answers) -> Result<()> {
        let told = |is: bool, yes: &str, no: &str| if is { yes.to_owned() } else { no.to_owned() };
        let queue = self.queues.create_fifo("probe").await?;
        for entry in [of_group("g", "one"), of_group("g", "one"), of_group("other", "one")] {
            ensure!(self.send(&queue, [entry]).await? == "accepted");
        }
        let depth = self.queues.depth(&queue).await?.visible;
        answers.insert("a deduplication id again, also in another group", format!("queued {depth} times"));
        self.queues.drain(&queue).await?;
        self.send(&queue, [of_group("g", "one")]).await?;
        let depth = self.queues.depth(&queue).await?.visible;
        let answer = told(depth == 0, "not queued", "queued");
        answers.insert("a deduplication id again, after the message was deleted", answer);
        let entry = of_group("in-flight", "first").build()?;
        let sent = self.queues.client().send_message_batch().queue_url(&queue).entries(entry).send().await?;
        let sequence = sent.successful().first().and_then(|entry| entry.sequence_number()).is_some();
        answers.insert("the answer has a `SequenceNumber`", told(sequence, "yes", "no"));
        self.queues.drain(&queue).await?;
        for id in ["1", "2", "3"] {
            self.send(&queue, [of_group("in-flight", id)]).await?;
        }
        let receive = || self.queues.client().receive_message().queue_url(&queue).max_number_of_messages(1).send();
        ensure!(receive().await?.messages().len() == 1, "nothing was received");
        let second = receive().await?.messages().len();
        answers.insert("a message behind one in flight in its group", told(second == 0, "waits", "is received"));
        Ok(())
    }

    async fn attributes(&self, answers: &mut Answers) -> Result<()> {
        let asked = self.queues.client().get_queue_attributes().queue_url(&self.standard);
        let asked = asked.attribute_names(QueueAttributeName::All).send().await?;
        let size = asked.attributes().and_then(|all| all.get(&QueueAttributeName::MaximumMessageSize).cloned());
        answers.insert("`MaximumMessageSize` of a new queue", size.unwrap_or_else(|| "absent".to_owned()));
        let trace = "Root=1-5759e988-bd862e3fe1be46a994272793";
        let header = MessageSystemAttributeValue::builder().data_type("String").string_value(trace).build()?;
        let traced =
            entry(0, "{}").message_system_attributes(MessageSystemAttributeNameForSends::AwsTraceHeader, header);
        let queue = self.queues.create_standard("traced").await?;
        ensure!(self.send(&queue, [traced]).await? == "accepted");
        let asked = self.queues.client().receive_message().queue_url(&queue);
        let received = asked.message_system_attribute_names(MessageSystemAttributeName::All).send().await?;
        let message = received.messages().first().context("nothing was received")?;
        let kept = message.attributes().and_then(|all| all.get(&MessageSystemAttributeName::AwsTraceHeader));
        let answer = if kept.is_some_and(|kept| kept == trace) { "kept" } else { "lost" };
        answers.insert("the system attribute `AWSTraceHeader`", answer.to_owned());
        Ok(())
    }
}

/// The cells of each row of the page's table, by the first one.
fn rows(page: &str) -> HashMap<String, Vec<String>> {
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    let rows = page.lines().filter(|line| line.starts_with("| ")).map(cells);
    rows.filter_map(|cells: Vec<String>| Some((cells.first()?.clone(), cells))).collect()
}

#[tokio::test]
async fn the_emulator_does_what_the_page_says_of_it() -> Result<()> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/emulators.md"))?;
    let rows = rows(&page);
    let header = rows.get("asked").context("the page has no table")?;
    let product = Product::chosen()?.name();
    let column = header.iter().position(|name| name.to_lowercase() == product).context("no column of the emulator")?;
    let probe = Probe::new().await?;
    let mut answers = Answers::new();
    probe.sizes_and_characters(&mut answers).await?;
    probe.requests(&mut answers).await?;
    probe.fifo_queues(&mut answers).await?;
    probe.attributes(&mut answers).await?;
    let of_page = |asked: &str| rows.get(asked).and_then(|cells| cells.get(column));
    let others: Vec<_> = answers.iter().filter(|(asked, answer)| of_page(asked) != Some(answer)).collect();
    ensure!(others.is_empty(), "{product} answers otherwise than docs/emulators.md says: {others:#?}");
    Ok(())
}

#[tokio::test]
async fn check_finds_the_queues_of_the_emulator_usable() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let audit = bed.standard("audit").await?;
    let checked = bed.relay().output(&["check"]).await?;
    ensure!(checked.code == Some(0), "{checked:?}");
    let size = match Product::chosen()? {
        Product::ElasticMq => "does not say how many bytes it takes",
        Product::Fauxqs | Product::Moto => "takes 1048576 bytes",
    };
    ensure!(checked.stdout.contains(&format!("queue of audit: a standard queue, {size}")), "{checked:?}");
    ensure!(bed.queues.depth(&audit).await?.visible == 0, "the check has left a message");
    Ok(())
}
