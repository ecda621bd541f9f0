//! All queues, and the actions of SQS on them: JSON in, JSON out. A function of its state, the request and the time.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value as Json, json};

use super::arrival::Arrival;
use super::message::{self, Attribute, Draft, text};
use super::queue::{Queue, Received, Sent, digests};
use super::refusal::{self, Refusal};
use super::settings::Settings;

/// The account in the queues' URLs.
pub(super) const ACCOUNT: &str = "000000000000";

/// The most queues.
const MAX_QUEUES: usize = 1000;

/// The most bytes of all messages together, roughly. More are refused, so that the sender waits.
const MAX_BYTES: usize = 256 << 20;

/// The most entries in a request.
const MAX_ENTRIES: usize = 10;

/// The longest visibility timeout, in seconds.
const MAX_VISIBILITY: u64 = 43_200;

/// The queues by their names.
#[derive(Debug)]
pub(super) struct Queues {
    base: String,
    region: &'static str,
    queues: BTreeMap<String, Queue>,
    dice: fastrand::Rng,
    max_bytes: usize,
}

/// What an action did.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) answer: Json,
    /// What came into the queues.
    pub(super) arrivals: Vec<Arrival>,
}

impl From<Json> for Done {
    fn from(answer: Json) -> Self {
        Self { answer, arrivals: Vec::new() }
    }
}

type Answer = Result<Done, Refusal>;

impl Queues {
    /// No queues. `base` is where the server listens, as URLs begin; `seed` determines the ids of messages.
    pub(super) fn new(base: String, region: &'static str, seed: u64) -> Self {
        let dice = fastrand::Rng::with_seed(seed);
        Self { base, region, queues: BTreeMap::new(), dice, max_bytes: MAX_BYTES }
    }

    /// Does one action of SQS.
    pub(super) fn act(&mut self, action: &str, request: &Json, now: u64) -> Answer {
        match action {
            "CreateQueue" => self.create(request, now),
            "GetQueueUrl" => {
                let name = text(request, "QueueName").ok_or_else(|| Refusal::missing("QueueName"))?;
                self.queue(name)?;
                Ok(json!({"QueueUrl": self.url(name)}).into())
            }
            "ListQueues" => {
                let prefix = text(request, "QueueNamePrefix").unwrap_or_default();
                let names = self.queues.keys().filter(|name| name.starts_with(prefix));
                Ok(json!({"QueueUrls": names.map(|name| self.url(name)).collect::<Vec<String>>()}).into())
            }
            "SendMessage" => {
                let name = name_of(request)?.to_owned();
                let (answer, arrival) = self.send(&name, Draft::read(request), now)?;
                Ok(Done { answer, arrivals: vec![arrival] })
            }
            "SendMessageBatch" => self.send_batch(request, now),
            "ReceiveMessage" => self.receive(request, now),
            "DeleteMessage" => self.each(request, |queue, request| queue.delete(handle_of(request)?, now)),
            "ChangeMessageVisibility" => self.each(request, |queue, request| {
                queue.change_visibility(handle_of(request)?, required_visibility(request)?, now)
            }),
            "DeleteMessageBatch" => self.each_entry(request, |queue, entry| queue.delete(handle_of(entry)?, now)),
            "ChangeMessageVisibilityBatch" => self.each_entry(request, |queue, entry| {
                queue.change_visibility(handle_of(entry)?, required_visibility(entry)?, now)
            }),
            "GetQueueAttributes" => self.attributes(request, now),
            "PurgeQueue" => self.each(request, |queue, _| {
                queue.purge();
                Ok(())
            }),
            other => {
                let sentence = format!("{other:?} is not offered by outbox-relay dev.");
                Err(Refusal::new(refusal::UNSUPPORTED, sentence))
            }
        }
    }

    /// How long ReceiveMessage waits for a message, in milliseconds.
    pub(super) fn wait_of(&self, request: &Json) -> u64 {
        let own = name_of(request).ok().and_then(|name| self.queues.get(name)).map_or(0, |queue| queue.settings.wait);
        request["WaitTimeSeconds"].as_u64().map_or(own, |seconds| seconds * 1000)
    }

    fn url(&self, name: &str) -> String {
        format!("{}/{ACCOUNT}/{name}", self.base)
    }

    fn queue(&mut self, name: &str) -> Result<&mut Queue, Refusal> {
        let missing = || Refusal::new(refusal::NO_QUEUE, "The specified queue does not exist.");
        self.queues.get_mut(name).ok_or_else(missing)
    }

    fn create(&mut self, request: &Json, now: u64) -> Answer {
        let name = text(request, "QueueName").ok_or_else(|| Refusal::missing("QueueName"))?;
        let settings = Settings::read(name, &request["Attributes"])?;
        match self.queues.get(name) {
            Some(known) if known.settings != settings => {
                let sentence = "A queue already exists with the same name and a different value for an attribute.";
                return Err(Refusal::new(refusal::EXISTS, sentence));
            }
            Some(_) => {}
            None if self.queues.len() >= MAX_QUEUES => {
                return Err(Refusal::new(refusal::OVER_LIMIT, format!("There are {MAX_QUEUES} queues already.")));
            }
            None => drop(self.queues.insert(name.to_owned(), Queue::new(settings, now))),
        }
        Ok(json!({"QueueUrl": self.url(name)}).into())
    }

    fn send(&mut self, name: &str, draft: Result<Draft, Refusal>, now: u64) -> Result<(Json, Arrival), Refusal> {
        let bytes: usize = self.queues.values_mut().map(|queue| queue.bytes(now)).sum();
        let max_bytes = self.max_bytes;
        let id = uuid(&mut self.dice);
        let queue = self.queue(name)?;
        let draft = draft?;
        if bytes + draft.bytes() > max_bytes {
            let sentence = "The queues of outbox-relay dev are full: receive and delete messages, or purge a queue; deduplication ids go after five minutes.";
            return Err(Refusal::new(refusal::OVER_LIMIT, sentence));
        }
        let (body, attributes, system) = digests(&draft);
        let mut arrival = Arrival::of(name, &draft);
        let Sent { message_id, sequence_number, is_copy } = queue.send(draft, id, now)?;
        arrival.is_copy = is_copy;
        let pairs = [
            ("MessageId", Some(message_id)),
            ("MD5OfMessageBody", Some(body)),
            ("MD5OfMessageAttributes", attributes),
            ("MD5OfMessageSystemAttributes", system),
            ("SequenceNumber", sequence_number),
        ];
        Ok((object(pairs), arrival))
    }

    fn send_batch(&mut self, request: &Json, now: u64) -> Answer {
        let name = name_of(request)?.to_owned();
        self.queue(&name)?;
        let drafts: Vec<(&str, Result<Draft, Refusal>)> =
            entries(request)?.into_iter().map(|(id, entry)| (id, Draft::read(entry))).collect();
        let bytes: usize = drafts.iter().filter_map(|(_, draft)| draft.as_ref().ok()).map(Draft::bytes).sum();
        if bytes > crate::message::MAX_MESSAGE_BYTES {
            let sentence = format!("Batch requests cannot be longer than 1048576 bytes. You have sent {bytes} bytes.");
            return Err(Refusal::new(refusal::BATCH_TOO_LONG, sentence));
        }
        let mut results = Results::default();
        let mut arrivals = Vec::new();
        for (id, draft) in drafts {
            let sent = self.send(&name, draft, now).map(|(answer, arrival)| {
                arrivals.push(arrival);
                answer
            });
            results.add(id, sent);
        }
        Ok(Done { answer: results.answer(), arrivals })
    }

    fn receive(&mut self, request: &Json, now: u64) -> Answer {
        let queue = self.queue(name_of(request)?)?;
        let number = |name: &str, range: std::ops::RangeInclusive<u64>, otherwise: u64| match &request[name] {
            Json::Null => Ok(otherwise),
            value => value.as_u64().filter(|value| range.contains(value)).ok_or_else(|| {
                Refusal::value(name, value, &format!("must be between {} and {}", range.start(), range.end()))
            }),
        };
        let most = number("MaxNumberOfMessages", 1..=10, 1)?;
        number("WaitTimeSeconds", 0..=20, 0)?;
        let visibility = number("VisibilityTimeout", 0..=MAX_VISIBILITY, queue.settings.visibility / 1000)? * 1000;
        let received = queue.receive(most as usize, visibility, now);
        let messages: Vec<Json> = received.into_iter().map(|one| received_as_json(one, request)).collect();
        Ok(if messages.is_empty() { json!({}).into() } else { json!({"Messages": messages}).into() })
    }

    fn each(&mut self, request: &Json, act: impl Fn(&mut Queue, &Json) -> Result<(), Refusal>) -> Answer {
        act(self.queue(name_of(request)?)?, request)?;
        Ok(json!({}).into())
    }

    fn each_entry(&mut self, request: &Json, act: impl Fn(&mut Queue, &Json) -> Result<(), Refusal>) -> Answer {
        let queue = self.queue(name_of(request)?)?;
        let mut results = Results::default();
        for (id, entry) in entries(request)? {
            results.add(id, act(queue, entry).map(|()| json!({})));
        }
        Ok(results.answer().into())
    }

    fn attributes(&mut self, request: &Json, now: u64) -> Answer {
        let region = self.region;
        let name = name_of(request)?;
        let queue = self.queue(name)?;
        let counts = queue.counts(now);
        let created = (queue.created_at / 1000).to_string();
        let mut all = queue.settings.as_json();
        let more = [
            ("ApproximateNumberOfMessages", counts.visible.to_string()),
            ("ApproximateNumberOfMessagesNotVisible", counts.in_flight.to_string()),
            ("ApproximateNumberOfMessagesDelayed", counts.delayed.to_string()),
            ("CreatedTimestamp", created.clone()),
            ("LastModifiedTimestamp", created),
            ("MessageRetentionPeriod", "345600".to_owned()),
            ("QueueArn", format!("arn:aws:sqs:{region}:{ACCOUNT}:{name}")),
        ];
        all.extend(more.map(|(name, value)| (name.to_owned(), Json::String(value))));
        let wanted = names(request, "AttributeNames");
        let is_wanted = |name: &String| wanted.iter().any(|wanted| *wanted == "All" || wanted == name);
        all.retain(|name, _| is_wanted(name));
        Ok(if all.is_empty() { json!({}).into() } else { json!({"Attributes": all}).into() })
    }
}

/// The results of the entries of a batch.
#[derive(Default)]
struct Results {
    successful: Vec<Json>,
    failed: Vec<Json>,
}

impl Results {
    fn add(&mut self, id: &str, result: Result<Json, Refusal>) {
        match result {
            Ok(mut answer) => {
                answer["Id"] = json!(id);
                self.successful.push(answer);
            }
            Err(Refusal { code, message }) => {
                let is_of_sender = code != refusal::OVER_LIMIT;
                self.failed
                    .push(json!({"Id": id, "SenderFault": is_of_sender, "Code": code.legacy, "Message": message}));
            }
        }
    }

    fn answer(self) -> Json {
        json!({"Successful": self.successful, "Failed": self.failed})
    }
}

/// The name at the end of the queue's URL, whatever its host.
fn name_of(request: &Json) -> Result<&str, Refusal> {
    let url = text(request, "QueueUrl").ok_or_else(|| Refusal::missing("QueueUrl"))?;
    let name = url.rsplit('/').next().filter(|name| !name.is_empty());
    name.ok_or_else(|| Refusal::new(refusal::BAD_ADDRESS, format!("The address {url} is not valid for this endpoint.")))
}

fn handle_of(request: &Json) -> Result<&str, Refusal> {
    text(request, "ReceiptHandle").ok_or_else(|| Refusal::missing("ReceiptHandle"))
}

/// In milliseconds.
fn required_visibility(request: &Json) -> Result<u64, Refusal> {
    let value = &request["VisibilityTimeout"];
    let seconds = value.as_u64().filter(|seconds| *seconds <= MAX_VISIBILITY);
    seconds.map(|seconds| seconds * 1000).ok_or_else(|| match value {
        Json::Null => Refusal::missing("VisibilityTimeout"),
        value => Refusal::value("VisibilityTimeout", value, "must be between 0 and 43200"),
    })
}

/// The entries of a batch with their ids, if the batch as a whole can be taken.
fn entries(request: &Json) -> Result<Vec<(&str, &Json)>, Refusal> {
    let entries: Vec<&Json> = request["Entries"].as_array().into_iter().flatten().collect();
    if entries.is_empty() {
        return Err(Refusal::new(refusal::BATCH_EMPTY, "There should be at least one entry in the request."));
    }
    if entries.len() > MAX_ENTRIES {
        let sentence = format!("Maximum number of entries per request are 10. You have sent {}.", entries.len());
        return Err(Refusal::new(refusal::BATCH_TOO_MANY, sentence));
    }
    let mut ids = HashSet::new();
    for entry in &entries {
        let id = text(entry, "Id").unwrap_or_default();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if id.is_empty() || id.len() > 80 || !id.bytes().all(is_plain) {
            let sentence =
                "A batch entry id can only contain alphanumeric characters, hyphens and underscores, at most 80.";
            return Err(Refusal::new(refusal::BAD_BATCH_ID, sentence));
        }
        if !ids.insert(id) {
            return Err(Refusal::new(refusal::BATCH_IDS_TWICE, format!("Id {id} repeated.")));
        }
    }
    Ok(entries.into_iter().map(|entry| (text(entry, "Id").unwrap_or_default(), entry)).collect())
}

/// A list of names.
fn names<'a>(request: &'a Json, member: &str) -> Vec<&'a str> {
    request[member].as_array().into_iter().flatten().filter_map(Json::as_str).collect()
}

/// A received message with the attributes that the request asks for.
fn received_as_json(received: Received, request: &Json) -> Json {
    let Received { message_id, handle, draft, sent_at, first_received_at, times, sequence_number } = received;
    let wanted = names(request, "MessageAttributeNames");
    let is_wanted = |name: &str| {
        wanted.iter().any(|wanted| {
            let prefix = wanted.strip_suffix(".*");
            *wanted == "All"
                || *wanted == ".*"
                || *wanted == name
                || prefix.is_some_and(|prefix| name.starts_with(prefix))
        })
    };
    let attributes: Vec<(&String, &Attribute)> = draft.attributes.iter().filter(|(name, _)| is_wanted(name)).collect();
    let digest = super::digest::of_attributes(attributes.iter().copied());
    let trace = draft.system.get("AWSTraceHeader").and_then(|trace| match &trace.value {
        message::Value::Text(text) => Some(text.clone()),
        message::Value::Bytes(_) => None,
    });
    let system = [
        ("SenderId", Some("outbox-relay-dev".to_owned())),
        ("SentTimestamp", Some(sent_at.to_string())),
        ("ApproximateReceiveCount", Some(times.to_string())),
        ("ApproximateFirstReceiveTimestamp", Some(first_received_at.to_string())),
        ("SequenceNumber", sequence_number),
        ("MessageGroupId", draft.group.clone()),
        ("MessageDeduplicationId", draft.deduplication.clone()),
        ("AWSTraceHeader", trace),
    ];
    // The older name of the member still counts.
    let mut wanted = names(request, "MessageSystemAttributeNames");
    wanted.extend(names(request, "AttributeNames"));
    let system = system.into_iter().filter(|(name, _)| wanted.iter().any(|wanted| *wanted == "All" || wanted == name));
    let system = object(system);
    let pairs = [
        ("MessageId", Some(message_id)),
        ("ReceiptHandle", Some(handle)),
        ("MD5OfBody", Some(super::digest::of_text(&draft.body))),
        ("Body", Some(draft.body.clone())),
        ("MD5OfMessageAttributes", digest),
    ];
    let mut shown = object(pairs);
    if system.as_object().is_some_and(|system| !system.is_empty()) {
        shown["Attributes"] = system;
    }
    if !attributes.is_empty() {
        shown["MessageAttributes"] = message::as_json(attributes);
    }
    shown
}

/// An object of the members that have a value.
fn object<'a>(pairs: impl IntoIterator<Item = (&'a str, Option<String>)>) -> Json {
    let members = pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Json::String(value?))));
    Json::Object(members.collect::<Map<String, Json>>())
}

/// RFC 9562 version 4.
fn uuid(dice: &mut fastrand::Rng) -> String {
    let bits = dice.u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let digits = format!("{bits:032x}");
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[cfg(test)]
mod tests;
