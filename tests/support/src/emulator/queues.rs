//! The queues of an emulator, as a consumer sees them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::error::DisplayErrorContext;
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName, QueueAttributeName};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Product;

/// How long a drain waits for messages that another receiver has in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// How long listing a queue may take. The emulator needs seconds for a long one.
const GET_TIMEOUT: Duration = Duration::from_secs(60);

/// Receivers of one drain. The emulator has a single thread, so more of them would not be faster.
const RECEIVERS: usize = 8;

/// Receivers of one drain of moto, which gives two of them messages of one group at the same time.
const RECEIVERS_OF_MOTO: usize = 1;

/// A message as a consumer gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// SQS's own id.
    pub message_id: String,
    /// The body, byte for byte.
    pub body: String,
    /// Message attributes of the types String and Number.
    pub attributes: HashMap<String, String>,
    /// FIFO queues only.
    pub group_id: Option<String>,
    /// FIFO queues only.
    pub deduplication_id: Option<String>,
    /// FIFO queues only: the order in which the queue accepted the messages.
    pub sequence_number: Option<String>,
    /// When the queue accepted it, in milliseconds since 1970.
    pub sent_at: u64,
}

/// What a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Waiting to be received.
    pub visible: usize,
    /// Received and neither deleted nor timed out.
    pub in_flight: usize,
}

/// Creates queues on an SQS endpoint and looks into them.
#[derive(Debug, Clone)]
pub struct Queues {
    client: Client,
    /// What [`Queues::contents`] has taken out of each queue so far, by URL.
    taken: Arc<Mutex<HashMap<String, Vec<Received>>>>,
}

impl Queues {
    /// Queues behind an endpoint. The client belongs to the runtime in which it is first used, so each test creates
    /// its own.
    pub fn new(endpoint: &str) -> Queues {
        let configuration = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(endpoint)
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
            .build();
        Queues { client: Client::from_conf(configuration), taken: Arc::default() }
    }

    /// The client, for other requests.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Creates a standard queue, its name made unique; returns its URL.
    pub async fn create_standard(&self, name: &str) -> Result<String> {
        self.create(&unique(name), &[]).await
    }

    /// Creates a FIFO queue, its name made unique; returns its URL.
    pub async fn create_fifo(&self, name: &str) -> Result<String> {
        self.create(&format!("{}.fifo", unique(name)), &[(QueueAttributeName::FifoQueue, "true")]).await
    }

    /// Creates a queue of exactly this name with attributes; returns its URL.
    pub async fn create(&self, name: &str, attributes: &[(QueueAttributeName, &str)]) -> Result<String> {
        let attributes = attributes.iter().map(|(name, value)| (name.clone(), (*value).to_owned())).collect();
        let request = self.client.create_queue().queue_name(name).set_attributes(Some(attributes));
        request.send().await.map_err(plain)?.queue_url.context("the new queue has no URL")
    }

    /// Receives and deletes everything, in order within each group, until nothing is waiting or in flight.
    pub async fn drain(&self, queue_url: &str) -> Result<Vec<Received>> {
        let received = Mutex::new(Vec::new());
        let product = Product::chosen()?;
        let deadline = Instant::now() + DRAIN_TIMEOUT * product.slowness();
        let receivers = if product == Product::Moto { RECEIVERS_OF_MOTO } else { RECEIVERS };
        loop {
            let receivers = (0..receivers).map(|_| self.drain_alone(queue_url, &received));
            futures_util::future::try_join_all(receivers).await?;
            let Depth { visible, in_flight } = self.depth(queue_url).await?;
            if visible + in_flight == 0 {
                return Ok(received.into_inner().unwrap_or_else(PoisonError::into_inner));
            }
            ensure!(Instant::now() < deadline, "{queue_url} still holds {visible} + {in_flight} messages");
        }
    }

    async fn drain_alone(&self, queue_url: &str, received: &Mutex<Vec<Received>>) -> Result<()> {
        loop {
            let batch = self.receive(queue_url, Duration::ZERO).await?;
            if batch.is_empty() {
                return Ok(());
            }
            // A deletion lets another receiver have the next message of a group. So the messages are noted first, which
            // keeps the order of each group.
            let handles: Vec<_> = batch.iter().map(|(handle, _)| handle.clone()).collect();
            let messages = batch.into_iter().map(|(_, message)| message);
            received.lock().unwrap_or_else(PoisonError::into_inner).extend(messages);
            self.delete_messages(queue_url, &handles).await?;
        }
    }

    /// Receives up to ten messages with their receipt handles, waiting up to `wait` (whole seconds) for one.
    pub async fn receive(&self, queue_url: &str, wait: Duration) -> Result<Vec<(String, Received)>> {
        let request = self
            .client
            .receive_message()
            .queue_url(queue_url)
            .max_number_of_messages(10)
            .wait_time_seconds(i32::try_from(wait.as_secs())?)
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All");
        let messages = request.send().await.map_err(plain)?.messages.unwrap_or_default();
        messages.into_iter().map(received_from).collect()
    }

    /// Deletes up to ten received messages.
    pub async fn delete_messages(&self, queue_url: &str, receipt_handles: &[String]) -> Result<()> {
        let mut request = self.client.delete_message_batch().queue_url(queue_url);
        for (index, handle) in receipt_handles.iter().enumerate() {
            let entry = DeleteMessageBatchRequestEntry::builder().id(index.to_string()).receipt_handle(handle);
            request = request.entries(entry.build()?);
        }
        let failed = request.send().await.map_err(plain)?.failed;
        ensure!(failed.is_empty(), "not deleted: {failed:?}");
        Ok(())
    }

    /// How many messages a queue holds. The number is exact and current in the emulator, approximate in SQS.
    pub async fn depth(&self, queue_url: &str) -> Result<Depth> {
        let request = self.client.get_queue_attributes().queue_url(queue_url);
        let answer = request.attribute_names(QueueAttributeName::All).send().await.map_err(plain)?;
        let attributes = answer.attributes.unwrap_or_default();
        let number = |name| -> Result<usize> { Ok(attributes.get(&name).context("no such attribute")?.parse()?) };
        Ok(Depth {
            visible: number(QueueAttributeName::ApproximateNumberOfMessages)?,
            in_flight: number(QueueAttributeName::ApproximateNumberOfMessagesNotVisible)?,
        })
    }

    /// Everything a queue holds, without receiving it, for queues that are too long to drain. Each group is in order,
    /// and messages in flight come last. Only fauxqs offers this. From another emulator the messages are taken, as by a
    /// consumer, and returned with all that was taken before.
    pub async fn contents(&self, queue_url: &str) -> Result<Vec<Received>> {
        if Product::chosen()? == Product::Fauxqs {
            return contents_of_fauxqs(queue_url).await;
        }
        let received = self.drain(queue_url).await?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_queue = taken.entry(queue_url.to_owned()).or_default();
        of_queue.extend(received);
        Ok(of_queue.clone())
    }

    /// Empties a queue. Deduplication ids stay known, as in SQS.
    pub async fn purge(&self, queue_url: &str) -> Result<()> {
        self.client.purge_queue().queue_url(queue_url).send().await.map_err(plain)?;
        Ok(())
    }

    /// Deletes a queue.
    pub async fn delete(&self, queue_url: &str) -> Result<()> {
        self.client.delete_queue().queue_url(queue_url).send().await.map_err(plain)?;
        Ok(())
    }
}

/// An error with its causes: without them, those of the SDK say little.
fn plain<E: std::error::Error>(error: E) -> anyhow::Error {
    anyhow::anyhow!("{}", DisplayErrorContext(&error))
}

async fn contents_of_fauxqs(queue_url: &str) -> Result<Vec<Received>> {
    let (address, path) = queue_url.strip_prefix("http://").and_then(|url| url.split_once('/')).context("URL")?;
    let name = path.rsplit('/').next().unwrap_or_default();
    let state: Value = serde_json::from_slice(&get(address, &format!("/_fauxqs/queues/{name}")).await?)?;
    let messages = &state["messages"];
    let list = |name: &str| messages[name].as_array().into_iter().flatten();
    let in_flight = list("inflight").map(|entry| &entry["message"]);
    list("ready").chain(list("delayed")).chain(in_flight).map(inspected).collect()
}

pub(super) fn unique(name: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn received_from(message: Message) -> Result<(String, Received)> {
    let attributes = message.message_attributes.unwrap_or_default();
    let attributes = attributes.into_iter().filter_map(|(name, value)| Some((name, value.string_value?)));
    let mut system = message.attributes.unwrap_or_default();
    let sent_at = system.remove(&MessageSystemAttributeName::SentTimestamp).context("no SentTimestamp")?;
    let received = Received {
        message_id: message.message_id.context("a message without id")?,
        body: message.body.unwrap_or_default(),
        attributes: attributes.collect(),
        group_id: system.remove(&MessageSystemAttributeName::MessageGroupId),
        deduplication_id: system.remove(&MessageSystemAttributeName::MessageDeduplicationId),
        sequence_number: system.remove(&MessageSystemAttributeName::SequenceNumber),
        sent_at: sent_at.parse()?,
    };
    Ok((message.receipt_handle.context("a message without receipt handle")?, received))
}

fn inspected(message: &Value) -> Result<Received> {
    let text = |name: &str| message[name].as_str().map(str::to_owned);
    let attributes = message["messageAttributes"].as_object().into_iter().flatten();
    let attributes =
        attributes.filter_map(|(name, value)| Some((name.clone(), value["StringValue"].as_str()?.to_owned())));
    Ok(Received {
        message_id: text("messageId").context("a message without id")?,
        body: text("body").context("a message without body")?,
        attributes: attributes.collect(),
        group_id: text("messageGroupId"),
        deduplication_id: text("messageDeduplicationId"),
        sequence_number: text("sequenceNumber"),
        sent_at: message["sentTimestamp"].as_u64().context("a message without time")?,
    })
}

/// The body of a plain GET. It uses HTTP/1.0, so that the body ends with the connection.
async fn get(address: &str, path: &str) -> Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(GET_TIMEOUT, exchange).await??;
    let head_end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("an incomplete answer")?;
    let (head, body) = answer.split_at(head_end + 4);
    ensure!(head.starts_with(b"HTTP/1.1 200") || head.starts_with(b"HTTP/1.0 200"), "no answer to GET {path}");
    Ok(body.to_vec())
}
