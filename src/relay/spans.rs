//! The span of a request: from its entries and their results to what [`crate::traces`] exports.

use std::time::SystemTime;

use crate::config::DestinationConfig;
use crate::message::{Fault, Service};
use crate::publisher::{Accepted, Entry, Published, Publisher};
use crate::traces::{Failure, Link, Request, Target, TraceContext, Tracer};

/// What all requests of a destination have in common.
pub async fn target(configured: &DestinationConfig, publisher: &Publisher) -> Target {
    let DestinationConfig { name, target, .. } = configured;
    let identity = target.as_str();
    let (system, attribute) = match target.service() {
        Service::Sqs => ("aws_sqs", "aws.sqs.queue.url"),
        Service::Sns => ("aws.sns", "aws.sns.topic.arn"),
    };
    Target {
        destination: name.clone(),
        system,
        name: identity.rsplit(['/', ':']).next().unwrap_or_default().to_owned(),
        identity: (attribute, identity.to_owned()),
        server: publisher.server().await,
    }
}

/// A request has just ended.
pub(super) fn record(tracer: &Tracer, entries: &[&Entry], published: &Published) {
    if !tracer.is_on() {
        return;
    }
    let Published { results, duration, request_id, .. } = published;
    tracer.record(&Request {
        entries: entries.len(),
        links: entries.iter().zip(results).filter_map(|(entry, result)| link(entry, result)).collect(),
        ended: SystemTime::now(),
        took: *duration,
        request_id: request_id.as_deref(),
        failure: failure(published),
    });
}

/// An entry without a valid trace context adds no link.
fn link<'a>(entry: &'a Entry, result: &'a Result<Accepted, Fault>) -> Option<Link<'a>> {
    let context = TraceContext::parse(entry.attribute("traceparent")?)?;
    let state = entry.attribute("tracestate").unwrap_or_default();
    let result = result.as_ref().map(|accepted| accepted.sqs_message_id.as_str());
    Some(Link { context, state, result: result.map_err(|fault| fault.code.as_str()) })
}

fn failure(published: &Published) -> Option<Failure<'_>> {
    if let Some(fault) = &published.request_fault {
        return Some(Failure { code: &fault.code, description: fault.shown() });
    }
    let mut failed = published.results.iter().filter_map(|result| result.as_ref().err());
    let first = failed.next()?;
    let (failed, all) = (1 + failed.count(), published.results.len());
    let description = format!("{failed} of {all} entries failed, the first with {}", first.shown());
    Some(Failure { code: &first.code, description })
}
