//! The AWS half of `outbox-relay check`: the whole way to each queue and topic, one line for each step. A step that several
//! of them share, such as the way to their endpoint, is taken and said once. After a step that failed the later ones are not
//! tried.

use std::collections::HashMap;

use super::{Findings, Verdict};
use crate::config::{self, RelayConfig, RoleConfig, Target};
use crate::message::{Accepts, DestinationKind, Fault, FaultKind, Service};
use crate::publisher::{self, Publisher, Refused, TargetAttributes, Unidentified};
use crate::way::{Step, Trouble};

/// Checks the queues and topics of all destinations; `asks_identity` is whether STS is asked whose the credentials are.
pub(super) async fn check(config: &RelayConfig, asks_identity: bool, findings: &mut Findings) {
    let (timeout, ca_bundle) = (config.tuning.request_timeout, config.ca_bundle.as_deref());
    let publishers = match publisher::connect(&config.destinations, ca_bundle, timeout).await {
        Ok(publishers) => publishers,
        Err(error) => return findings.add("AWS", Verdict::Bad, error.to_string(), ""),
    };
    for error in publishers.iter().filter_map(|publisher| publisher.as_ref().err()) {
        findings.add("AWS", Verdict::Bad, error.to_string(), "");
    }
    let mut walk = Walk { ca_bundle, asks_identity, findings, ways: HashMap::new(), credentials: HashMap::new() };
    for (destination, publisher) in config.destinations.iter().zip(&publishers) {
        let Ok(publisher) = publisher else { continue };
        walk.to(&destination.name, publisher).await;
    }
}

/// A walk to all of them.
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
    async fn to(&mut self, name: &str, publisher: &Publisher) {
        let what = format!("{} of {name}", publisher.target().noun());
        let endpoint = match publisher.endpoint().await {
            Ok(endpoint) => endpoint,
            Err(trouble) => return self.bad(what, trouble),
        };
        if let Some(proxy) = Publisher::proxy(&endpoint) {
            self.findings.good(what.clone(), format!("goes through the proxy {proxy}"));
        }
        if !self.is_reached(&endpoint).await {
            let remedy = format!("mend the way to {endpoint} first, as said above");
            return self
                .bad(what, Trouble { says: "not asked, because its endpoint is not reached".to_owned(), remedy });
        }
        if !self.has_credentials(publisher).await {
            let remedy = "mend the credentials first, as said above".to_owned();
            return self.bad(what, Trouble { says: "not asked, because there are no credentials".to_owned(), remedy });
        }
        self.judge(what.clone(), publisher.target(), publisher.accepts(), publisher.attributes().await);
        if let Some(bucket) = publisher.bucket() {
            self.judge_bucket(format!("bucket {bucket} of {name}"), publisher).await;
        }
        match publisher.may_send().await {
            Ok(()) => self.findings.good(what, "this relay may send"),
            Err(fault) => {
                let remedy = remedy_of(&fault, publisher.accepts().service);
                self.findings.add(what, Verdict::Bad, format!("this relay cannot send: {fault}"), remedy);
            }
        }
    }

    async fn judge_bucket(&mut self, what: String, publisher: &Publisher) {
        match publisher.endpoint_of_bucket().await {
            Ok(Some(endpoint)) => self.findings.good(what.clone(), format!("is at {endpoint}")),
            Ok(None) => {}
            Err(trouble) => return self.bad(what, trouble),
        }
        match publisher.may_store().await {
            Ok(()) => self.findings.good(what.clone(), "this relay may store bodies"),
            Err(fault) => {
                let says = format!("this relay cannot store bodies: {fault}");
                self.findings.add(what.clone(), Verdict::Bad, says, remedy_of_bucket(&fault));
            }
        }
        if publisher.names_key_of_bucket() {
            let remedy = "allow kms:GenerateDataKey on it; without it the destination halts at the first large body";
            let says = "permissions on its key cannot be tested without storing";
            self.findings.add(what, Verdict::Warning, says, remedy);
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

    async fn has_credentials(&mut self, publisher: &Publisher) -> bool {
        let role = publisher.role().cloned();
        if let Some(&has_some) = self.credentials.get(&role) {
            return has_some;
        }
        let of_role = role.as_ref().map(|role| format!(" of the role {}", role.arn)).unwrap_or_default();
        let given = publisher.credentials(&config::profile()).await;
        let mut has_some = true;
        for Step { what, result } in given {
            has_some &= self.step(what, result);
        }
        if has_some && self.asks_identity {
            let what = format!("identity{of_role}");
            match publisher.identity().await {
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

    fn judge(
        &mut self,
        what: String,
        target: &Target,
        accepts: &Accepts,
        attributes: Result<TargetAttributes, Refused>,
    ) {
        let noun = target.noun();
        let attributes = match attributes {
            Ok(attributes) => attributes,
            Err(refused) => {
                // The relay itself does not need them.
                let says = format!("its attributes cannot be read: {}: {}", refused.code, refused.detail);
                let is_denied = refused.code.contains("AccessDenied") || refused.code == "AuthorizationError";
                let remedy = match accepts.service {
                    _ if !is_denied => "",
                    Service::Sqs => "allow sqs:GetQueueAttributes to have them checked",
                    Service::Sns => "allow sns:GetTopicAttributes to have them checked",
                };
                let is_gone = ["NotFound", "NonExistentQueue", "QueueDoesNotExist"]
                    .iter()
                    .any(|code| refused.code.ends_with(code));
                if is_gone {
                    let says = format!("it does not exist ({})", refused.code);
                    return self.findings.add(what, Verdict::Bad, says, missing(accepts.service));
                }
                return self.findings.add(what, Verdict::Warning, says, remedy);
            }
        };
        let kind = if attributes.is_fifo { format!("a FIFO {noun}") } else { format!("a standard {noun}") };
        if attributes.is_fifo != (accepts.kind == DestinationKind::Fifo) {
            let (name, remedy) = match accepts.service {
                Service::Sqs => ("URL", "give the queue's own URL; that of a FIFO queue ends with .fifo"),
                Service::Sns => ("ARN", "give the topic's own ARN; that of a FIFO topic ends with .fifo"),
            };
            self.findings.add(what.clone(), Verdict::Bad, format!("{kind}, but its {name} says otherwise"), remedy);
        } else {
            let size = match (accepts.service, attributes.most_bytes) {
                (Service::Sns, _) => format!("takes {} bytes", accepts.max_bytes()),
                (Service::Sqs, Some(most)) => format!("takes {most} bytes"),
                // SQS always says it, ElasticMQ never.
                (Service::Sqs, None) => "does not say how many bytes it takes".to_owned(),
            };
            self.findings.good(what.clone(), format!("{kind}, {size}, encryption: {}", attributes.encryption));
        }
        if attributes.needs_key {
            let remedy = "allow kms:GenerateDataKey and kms:Decrypt on it; without them the destination halts";
            let says = "permissions on its key cannot be tested without sending";
            self.findings.add(what.clone(), Verdict::Warning, says, remedy);
        }
        self.judge_size(&what, attributes.most_bytes, accepts);
        match attributes.subscriptions {
            Some(0) => {
                let remedy = "subscribe a queue to it (and confirm the subscription)";
                self.findings.add(what, Verdict::Warning, "has no subscription: SNS drops what it is sent", remedy);
            }
            Some(count) => self.findings.good(what, format!("{count} confirmed subscription(s)")),
            None => {}
        }
    }
}

impl Walk<'_> {
    /// Judges whether a queue takes less than others.
    fn judge_size(&mut self, what: &str, most_bytes: Option<usize>, accepts: &Accepts) {
        let Some(bytes) = most_bytes.filter(|most| *most < accepts.max_bytes()) else { return };
        let says = format!("takes no message above {bytes} bytes");
        let above = accepts.claim_check.as_ref().map(|claim_check| claim_check.above);
        match above {
            None => {
                let remedy =
                    "raise MaximumMessageSize to 1048576, or keep events small; larger ones become dead messages";
                self.findings.add(what.to_owned(), Verdict::Warning, says, remedy);
            }
            Some(above) if above > bytes => {
                let says =
                    format!("{says}, and larger ones go to the bucket only above {above}, or once it has refused them");
                let remedy = format!("add ;claim-check-above={bytes}, or raise MaximumMessageSize to 1048576");
                self.findings.add(what.to_owned(), Verdict::Bad, says, remedy);
            }
            Some(_) => {}
        }
    }
}

/// What helps against a fault of storing.
fn remedy_of_bucket(fault: &Fault) -> &'static str {
    match fault.code.rsplit('.').next().unwrap_or_default() {
        "NoSuchBucket" => "create the bucket, or correct its name behind claim-check= in OUTBOX_RELAY_DESTINATIONS",
        "AccessDenied" => "allow s3:PutObject to the relay's identity, and the use of the key if there is one",
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            "use a bucket in the region of the queue or topic"
        }
        _ => "docs/operations.md, \"A destination is halted\"",
    }
}

/// What helps if there is no such queue or topic.
fn missing(service: Service) -> &'static str {
    match service {
        Service::Sqs => "create the queue, or correct its URL in OUTBOX_RELAY_DESTINATIONS",
        Service::Sns => "create the topic, or correct its ARN in OUTBOX_RELAY_DESTINATIONS",
    }
}

/// What helps against a fault of sending.
fn remedy_of(fault: &Fault, service: Service) -> &'static str {
    match fault.code.rsplit(['.', '#']).next().unwrap_or_default() {
        "NonExistentQueue" | "QueueDoesNotExist" | "InvalidAddress" => missing(Service::Sqs),
        "NotFound" => missing(Service::Sns),
        "AuthorizationError" | "AccessDenied" | "AccessDeniedException" if service == Service::Sns => {
            "allow sns:Publish to the relay's identity (check --identity shows it), and in the topic's own policy"
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
