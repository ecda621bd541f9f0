//! Composing: turns a message into an entry for SQS, and checks every rule of SQS that can be checked before sending.
//!
//! A message that SQS can never accept is refused here, alone and with a reason, before it can spoil a request with
//! nine others. For the rules see SendMessageBatch and "Amazon SQS message metadata" in the SQS documentation.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::attribute::{Attribute, is_allowed, is_text};
use super::claim_check::{self, Offloaded};
use super::classify;
use super::metadata::{TRACE_HEADER, attributes};
use super::pack::Size;
use crate::message::{
    Accepts, BodyForm, ClaimCheck, Content, DestinationKind, Message, MessageId, MessageKey, SequenceNumber, Service,
};
use crate::message::{Fault, FaultKind};

/// The least that a queue may be told to take, in bytes (SQS API reference, SetQueueAttributes, "MaximumMessageSize").
const LEAST_LIMIT: usize = 1024;

/// Longest MessageGroupId.
const MAX_GROUP: usize = 128;

/// The parameters for FIFO queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FifoIds {
    pub(super) group: String,
    /// The deduplication id of the first copy.
    pub(super) deduplication: String,
    /// The number of the last copy that SQS accepted too early.
    pub(super) superseded: Option<SequenceNumber>,
}

impl FifoIds {
    /// The deduplication id. A copy that follows one that came too early has its own, or SQS would drop it; but always
    /// the same, so that SQS drops the second one if the first one's answer is lost.
    pub(super) fn deduplication_id(&self) -> String {
        match self.superseded {
            None => self.deduplication.clone(),
            Some(number) => format!("{}-{number}", self.deduplication),
        }
    }
}

/// One entry of a request: a message in SQS's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    key: MessageKey,
    bytes: usize,
    pub(super) body: String,
    pub(super) attributes: Vec<Attribute>,
    pub(super) trace_header: Option<String>,
    pub(super) fifo: Option<FifoIds>,
    /// The MessageGroupId for a fair queue.
    pub(super) fair_group: Option<String>,
    /// The original body, which goes to a bucket.
    offloaded: Option<Box<Offloaded>>,
    /// Where the body may go; `None` for a destination without a bucket.
    claim_check: Option<Arc<ClaimCheck>>,
}

impl Entry {
    /// The message it is made of.
    pub fn key(&self) -> MessageKey {
        self.key
    }

    /// The number of the last copy that SQS accepted too early, if there was one.
    pub fn superseded(&self) -> Option<SequenceNumber> {
        self.fifo.as_ref().and_then(|fifo| fifo.superseded)
    }

    /// SQS has accepted it too early, under this number if it gave one; from now on it is a copy with another
    /// deduplication id. Returns the number that identifies the copy: the one given, or one above the last one if the
    /// given one is not above it.
    pub fn supersede(&mut self, number: Option<SequenceNumber>) -> SequenceNumber {
        let least = self.superseded().unwrap_or(SequenceNumber::NONE).next();
        let number = number.map_or(least, |number| number.max(least));
        if let Some(fifo) = &mut self.fifo {
            fifo.superseded = Some(number);
        }
        // A consumer may delete the object of the earlier copy together with that copy.
        let name = self.object_name();
        if let (Some(claim_check), Some(offloaded)) = (&self.claim_check, &mut self.offloaded) {
            offloaded.key = claim_check::key(claim_check, &name);
            self.body = claim_check::pointer(claim_check, &offloaded.key);
            self.bytes = size(&self.body, &self.attributes);
        }
        number
    }

    /// What its object is called in a bucket: another name for each message of an event and for each copy that follows one
    /// that came too early, so that a consumer that deletes its object takes none from another.
    fn object_name(&self) -> String {
        match &self.fifo {
            Some(fifo) => fifo.deduplication_id(),
            None => format!("{}-{}", self.attribute("event_id").unwrap_or_default(), self.key.id.0),
        }
    }

    /// Sends a large body to the bucket, if there is one; returns how many attributes had to go.
    ///
    /// # Errors
    ///
    /// What is too large, and for whom.
    fn fit(&mut self, accepts: &Accepts) -> Result<usize, String> {
        let mut dropped_attributes = 0;
        if let Some(claim_check) = accepts.claim_check.as_deref().filter(|claim_check| self.bytes > claim_check.above) {
            if self.body.len() > claim_check.max_bytes {
                return Err(too_long(self.body.len() as u64, accepts));
            }
            dropped_attributes = self.offload(claim_check);
        }
        let (bytes, of_attributes) = (self.bytes, self.bytes - self.body.len());
        match bytes > accepts.max_bytes() {
            true if self.offloaded.is_some() || of_attributes > accepts.max_bytes() => {
                Err(too_many_attributes(of_attributes, accepts))
            }
            true => Err(too_long(bytes as u64, accepts)),
            false => Ok(dropped_attributes),
        }
    }

    /// The service has refused it with this fault. If its size may be the reason, as with a queue that takes less than others
    /// (`MaximumMessageSize`), its body goes to the bucket from now on. Returns how many attributes had to go, or `None` if
    /// the body stays where it is.
    pub fn offload_after(&mut self, fault: &Fault) -> Option<usize> {
        let claim_check = self.claim_check.clone()?;
        let may_be_too_large = self.offloaded.is_none()
            && self.bytes > LEAST_LIMIT
            && self.body.len() <= claim_check.max_bytes
            && classify::may_be_about_size(fault);
        if !may_be_too_large {
            return None;
        }
        Some(self.offload(&claim_check))
    }

    /// Sends its body to the bucket and a pointer in its place; returns how many attributes had to go.
    fn offload(&mut self, claim_check: &ClaimCheck) -> usize {
        let body = std::mem::take(&mut self.body);
        let pointer = claim_check::offload(claim_check, &self.object_name(), body, &mut self.attributes);
        self.body = pointer.body;
        self.offloaded = Some(Box::new(pointer.offloaded));
        self.bytes = size(&self.body, &self.attributes);
        pointer.dropped_attributes
    }

    /// The value of a message attribute, if it has one of this name.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|attribute| attribute.name == name).map(|attribute| attribute.value.as_str())
    }

    /// Group, deduplication id and attributes as text.
    pub fn described(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        if let Some(fifo) = &self.fifo {
            lines.push(("MessageGroupId", fifo.group.clone()));
            lines.push(("deduplication id", fifo.deduplication_id()));
        }
        lines.extend(self.fair_group.iter().map(|group| ("MessageGroupId", group.clone())));
        let attributes = self.attributes.iter();
        lines.extend(attributes.map(|a| ("attribute", format!("{} = {} ({})", a.name, a.value, a.kind))));
        lines.extend(self.trace_header.iter().map(|header| (TRACE_HEADER, header.clone())));
        lines
    }

    /// The size that SQS and SNS count: the body and each attribute's name, type and value.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much of a request it takes.
    pub fn size(&self) -> Size {
        Size { bytes: self.bytes, offloaded: self.offloaded_bytes().unwrap_or_default() }
    }

    /// The memory that it takes: the same, and the body that goes to a bucket.
    pub fn memory_bytes(&self) -> usize {
        self.bytes + self.offloaded_bytes().unwrap_or_default()
    }

    /// The length of the body that goes to a bucket, if it does.
    pub fn offloaded_bytes(&self) -> Option<usize> {
        self.offloaded().map(|offloaded| offloaded.body.len())
    }

    /// The body that goes to a bucket.
    pub(super) fn offloaded(&self) -> Option<&Offloaded> {
        self.offloaded.as_deref()
    }
}

/// An entry, and how much could not be put into it.
#[derive(Clone, Debug)]
pub struct Composed {
    /// The entry.
    pub entry: Entry,
    /// The number of metadata members that SQS cannot take, or that are too many.
    pub dropped_attributes: usize,
}

/// Makes an entry of a message.
///
/// # Errors
///
/// A permanent fault when SQS can never accept the message.
pub fn compose(message: Message, accepts: &Accepts) -> Result<Composed, Fault> {
    let permanent = |code: &str, detail: String| Fault::new(FaultKind::MessagePermanent, code, detail);
    let key = message.key;
    let event = match message.content {
        Content::Event(event) => event,
        Content::Missing => {
            return Err(permanent("EventMissing", "the event of this message does not exist".to_owned()));
        }
        Content::TooLarge { bytes } => return Err(permanent("MessageTooLong", too_long(bytes, accepts))),
        Content::Unreadable { reason } => return Err(Fault::new(FaultKind::Internal, "NotRead", reason)),
        Content::Held => return Err(Fault::new(FaultKind::Internal, "NotRead", "its group is held up")),
    };
    let fifo = match accepts.kind {
        DestinationKind::Standard | DestinationKind::Fair => None,
        DestinationKind::Fifo => Some(FifoIds {
            group: group_id(message.group.as_deref(), key.id),
            // Unique per message, so that two messages of one event (a replay) both arrive, and across databases, so
            // that two outboxes can share a queue.
            deduplication: format!("{}-{}", event.event_id, key.id.0),
            superseded: message.superseded,
        }),
    };
    // A message without a group has none here: to SQS it is then a tenant of its own.
    let fair_group =
        message.group.filter(|_| accepts.kind == DestinationKind::Fair).map(|group| group_id(Some(&group), key.id));
    let (attributes, trace_header, mut dropped_attributes) = attributes(&event);
    // SNS has no system attributes.
    let trace_header = trace_header.filter(|_| {
        let has_place = accepts.service == Service::Sqs;
        dropped_attributes += usize::from(!has_place);
        has_place
    });
    let body = match event.form {
        BodyForm::Json => printable(event.body),
        BodyForm::Text | BodyForm::Base64 if is_text(&event.body) => event.body,
        // The trigger of the table refuses them, if it has not been turned off.
        BodyForm::Text | BodyForm::Base64 => return Err(permanent("InvalidMessageContents", not_text(&event.body))),
    };
    let bytes = size(&body, &attributes);
    let claim_check = accepts.claim_check.clone();
    let mut entry =
        Entry { key, bytes, body, attributes, trace_header, fifo, fair_group, offloaded: None, claim_check };
    dropped_attributes += entry.fit(accepts).map_err(|detail| permanent("MessageTooLong", detail))?;
    Ok(Composed { entry, dropped_attributes })
}

/// The size that SQS and SNS count.
fn size(body: &str, attributes: &[Attribute]) -> usize {
    body.len() + attributes.iter().map(Attribute::bytes).sum::<usize>()
}

fn too_long(bytes: u64, accepts: &Accepts) -> String {
    if let Some(claim_check) = &accepts.claim_check {
        let most = claim_check.max_bytes;
        return format!(
            "{bytes} bytes, the relay takes {most} to S3; raise OUTBOX_RELAY_MEMORY, a part of which it is"
        );
    }
    format!("{bytes} bytes with attributes, {} takes {}", accepts.service.name(), accepts.max_bytes())
}

fn too_many_attributes(bytes: usize, accepts: &Accepts) -> String {
    let (service, most) = (accepts.service.name(), accepts.max_bytes());
    format!("attributes of {bytes} bytes, {service} takes {most} with the body; shorten metadata")
}

/// Why a body is no text for SQS.
fn not_text(body: &str) -> String {
    match body.chars().zip(1..).find(|(c, _)| !is_allowed(*c)) {
        Some((c, place)) => format!("the body has U+{:04X} at character {place}", u32::from(c)),
        None => "the body is empty".to_owned(),
    }
}

/// SQS allows letters, digits and ASCII punctuation, 128 at most. Any other group is replaced by its hash, which keeps
/// groups distinct and their order intact. A message without a group is a group of its own.
fn group_id(group: Option<&str>, id: MessageId) -> String {
    match group {
        None => id.0.to_string(),
        Some(group) if group.len() <= MAX_GROUP && group.chars().all(|c| c.is_ascii_graphic()) => group.to_owned(),
        Some(group) => {
            let digest = Sha256::digest(group.as_bytes());
            format!("sha256-{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
    }
}

/// JSON text from PostgreSQL escapes control characters but not U+FFFE and U+FFFF, which SQS refuses. They can only
/// occur inside strings, where the escape has the same meaning.
fn printable(json: String) -> String {
    // Both begin with this byte, and searching for a byte costs a tenth of searching for characters.
    if memchr::memchr(0xef, json.as_bytes()).is_some() && json.contains(['\u{fffe}', '\u{ffff}']) {
        json.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff")
    } else {
        json
    }
}

#[cfg(test)]
mod tests;
