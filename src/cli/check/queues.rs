//! The AWS half of `outbox-relay check`: the whole way to each queue, one line for each step. A step that several queues
//! share, such as the way to their endpoint, is taken and said once. After a step that failed the later ones are not tried.

use std::collections::HashMap;

use super::{Findings, Verdict};
use crate::config::{self, RelayConfig, RoleConfig};
use crate::message::{DestinationKind, Fault, FaultKind};
use crate::publisher::{self, Publisher, QueueAttributes, Refused, Unidentified};
use crate::way::{Step, Trouble};

/// Checks the queues of all destinations; `asks_identity` is whether STS is asked whose the credentials are.
pub(super) async fn check(config: &RelayConfig, asks_identity: bool, findings: &mut Findings) {
    let queues = match publisher::connect(
        &config.destinations,
        config.ca_bundle.as_deref(),
        config.tuning.request_timeout,
    )
    .await
    {
        Ok(queues) => queues,
        Err(error) => return findings.add("SQS", Verdict::Bad, error.to_string(), ""),
    };
    let ca_bundle = config.ca_bundle.as_deref();
    let mut walk = Walk { ca_bundle, asks_identity, findings, ways: HashMap::new(), credentials: HashMap::new() };
    for (destination, queue) in config.destinations.iter().zip(&queues) {
        walk.to(&destination.name, queue).await;
    }
}

/// A walk to all queues.
struct Walk<'a> {
    ca_bundle: Option<&'a [u8]>,
    asks_identity: bool,
    findings: &'a mut Findings,
    /// Whether the endpoint at this URL can be reached.
    ways: HashMap<String, bool>,
    /// Whether there are credentials for this role; `None` for the relay's own.
    credentials: HashMap<Option<RoleConfig>, bool>,
}

impl Walk<'_> {
    async fn to(&mut self, name: &str, queue: &Publisher) {
        let what = format!("queue of {name}");
        let endpoint = match queue.endpoint().await {
            Ok(endpoint) => endpoint,
            Err(trouble) => return self.bad(what, trouble),
        };
        if let Some(proxy) = queue.proxy() {
            self.findings.good(what.clone(), format!("goes through the proxy {proxy}"));
        }
        if !self.is_reached(&endpoint).await {
            let remedy = format!("mend the way to {endpoint} first, as said above");
            return self
                .bad(what, Trouble { says: "not asked, because its endpoint is not reached".to_owned(), remedy });
        }
        if !self.has_credentials(queue).await {
            let remedy = "mend the credentials first, as said above".to_owned();
            return self.bad(what, Trouble { says: "not asked, because there are no credentials".to_owned(), remedy });
        }
        self.judge(what.clone(), queue.kind(), queue.attributes().await);
        match queue.may_send().await {
            Ok(()) => self.findings.good(what, "this relay may send"),
            Err(fault) => {
                self.findings.add(what, Verdict::Bad, format!("this relay cannot send: {fault}"), remedy_of(&fault));
            }
        }
    }

    async fn is_reached(&mut self, endpoint: &str) -> bool {
        if let Some(&is_reached) = self.ways.get(endpoint) {
            return is_reached;
        }
        let mut is_reached = true;
        for step in publisher::walk(endpoint, self.ca_bundle).await {
            is_reached &= self.step(step.what, step.result);
        }
        self.ways.insert(endpoint.to_owned(), is_reached);
        is_reached
    }

    async fn has_credentials(&mut self, queue: &Publisher) -> bool {
        let role = queue.role().cloned();
        if let Some(&has_some) = self.credentials.get(&role) {
            return has_some;
        }
        let of_role = role.as_ref().map(|role| format!(" of the role {}", role.arn)).unwrap_or_default();
        let given = queue.credentials(&config::profile()).await;
        let mut has_some = true;
        for Step { what, result } in given {
            has_some &= self.step(what, result);
        }
        if has_some && self.asks_identity {
            let what = format!("identity{of_role}");
            match queue.identity().await {
                Ok(says) => self.findings.good(what, says),
                Err(Unidentified::Refused(trouble)) => has_some = self.step(what, Err(trouble)),
                Err(Unidentified::Unasked(Trouble { says, remedy })) => {
                    self.findings.add(what, Verdict::Warning, says, remedy);
                }
            }
        }
        self.credentials.insert(role, has_some);
        has_some
    }

    /// Adds the result of a step; returns whether it is good.
    fn step(&mut self, what: String, result: Result<String, Trouble>) -> bool {
        match result {
            Ok(says) => {
                self.findings.good(what, says);
                true
            }
            Err(trouble) => {
                self.bad(what, trouble);
                false
            }
        }
    }

    fn bad(&mut self, what: String, Trouble { says, remedy }: Trouble) {
        self.findings.add(what, Verdict::Bad, says, remedy);
    }

    fn judge(&mut self, what: String, expected: DestinationKind, attributes: Result<QueueAttributes, Refused>) {
        let findings = &mut self.findings;
        let attributes = match attributes {
            Ok(attributes) => attributes,
            Err(refused) => {
                // The relay itself does not need them.
                let says = format!("its attributes cannot be read: {}: {}", refused.code, refused.detail);
                let is_denied = refused.code.contains("AccessDenied");
                let remedy = if is_denied { "allow sqs:GetQueueAttributes to have them checked" } else { "" };
                return findings.add(what, Verdict::Warning, says, remedy);
            }
        };
        let kind = if attributes.is_fifo { "a FIFO queue" } else { "a standard queue" };
        if attributes.is_fifo != (expected == DestinationKind::Fifo) {
            let remedy = "give the queue's own URL; that of a FIFO queue ends with .fifo";
            findings.add(what.clone(), Verdict::Bad, format!("{kind}, but its URL says otherwise"), remedy);
        } else {
            // SQS always says it, ElasticMQ never.
            let size = attributes
                .most_bytes
                .map_or("does not say how many bytes it takes".to_owned(), |most| format!("takes {most} bytes"));
            findings.good(what.clone(), format!("{kind}, {size}, encryption: {}", attributes.encryption));
        }
        if attributes.needs_key {
            let remedy = "allow kms:GenerateDataKey and kms:Decrypt on it; without them the destination halts";
            let says = "permissions on its key cannot be tested without sending";
            findings.add(what.clone(), Verdict::Warning, says, remedy);
        }
        if attributes.is_small() {
            let bytes = attributes.most_bytes.unwrap_or_default();
            let remedy = "raise MaximumMessageSize to 1048576, or keep events small; larger ones become dead messages";
            findings.add(what, Verdict::Warning, format!("takes no message above {bytes} bytes"), remedy);
        }
    }
}

/// What helps against a fault of sending.
fn remedy_of(fault: &Fault) -> &'static str {
    match fault.code.rsplit(['.', '#']).next().unwrap_or_default() {
        "NonExistentQueue" | "QueueDoesNotExist" | "InvalidAddress" => {
            "create the queue, or correct its URL in OUTBOX_RELAY_DESTINATIONS"
        }
        "AccessDenied" | "AccessDeniedException" => {
            "allow sqs:SendMessage to the relay's identity (check --identity shows it), and in the queue's own policy"
        }
        "ExpiredToken" | "ExpiredTokenException" => {
            "the credentials have expired, whatever they say; renew them where the line on credentials says they come from"
        }
        "InvalidClientTokenId" | "UnrecognizedClientException" | "InvalidAccessKeyId" => {
            "AWS does not know this key; use one that exists, with its own session token, in this partition of AWS"
        }
        "SignatureDoesNotMatch" | "InvalidSignatureException" => "correct the secret key, or the clock of this host",
        _ => match fault.kind {
            FaultKind::Outage | FaultKind::ServerError | FaultKind::Ambiguous => {
                "docs/operations.md, \"SQS is down or cannot be reached\""
            }
            _ => "docs/operations.md, \"A destination is halted\"",
        },
    }
}
