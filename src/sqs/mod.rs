//! SQS: composing entries, packing requests, publishing, and reading the answers. The only module that speaks to AWS.
//!
//! It knows nothing of PostgreSQL and decides nothing about retries: [`publish`](Queue::publish) says of each entry what
//! became of it, and [`crate::retry`] what that means. `docs/architecture.md` places it in the flow.

mod access;
mod classify;
mod entry;
mod inspect;
mod pack;
mod publish;
mod writing;

pub use entry::{Composed, Entry, compose};
pub use inspect::{QueueAttributes, Refused};
pub use pack::{Load, MAX_BYTES};
pub use publish::{Published, build_request};

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_http_client::tls;

use access::{Access, Parts};

use crate::config::{DestinationConfig, has_sqs_endpoint};
use crate::message::QueueKind;

/// SQS closes idle connections; a shorter time here keeps requests off connections that are about to be closed.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// One SQS queue. Cheap to clone; clones share connections and credentials.
#[derive(Clone, Debug)]
pub struct Queue {
    access: Arc<Access>,
    url: String,
    kind: QueueKind,
}

impl Queue {
    /// Standard or FIFO.
    pub fn kind(&self) -> QueueKind {
        self.kind
    }
}

/// A queue whose region nobody named.
#[derive(Debug, thiserror::Error)]
#[error("the region of {url} is not known; set AWS_REGION, or use a queue URL with the region in it")]
pub struct NoRegion {
    url: String,
}

/// Makes a queue for each destination. Asks no queue, so it works while SQS is down.
///
/// # Errors
///
/// When a queue's region is neither in its URL nor in the AWS configuration.
pub async fn connect(destinations: &[DestinationConfig], request_timeout: Duration) -> Result<Vec<Queue>, NoRegion> {
    let shared = access::configuration().await;
    let http_client = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .pool_idle_timeout(POOL_IDLE)
        .build_https();
    let mut ways: HashMap<(String, Option<String>), Arc<Access>> = HashMap::new();
    let mut queues = Vec::with_capacity(destinations.len());
    for destination in destinations {
        let url = &destination.queue_url;
        let region = region_of(url).map(str::to_owned).or_else(|| shared.region().map(|region| region.to_string()));
        let region = region.ok_or_else(|| NoRegion { url: url.clone() })?;
        let endpoint = if has_sqs_endpoint() || shared.endpoint_url().is_some() { None } else { endpoint_of(url) };
        let way = ways.entry((region.clone(), endpoint.clone())).or_insert_with(|| {
            let parts = Parts { http_client: http_client.clone(), region, endpoint, request_timeout };
            Arc::new(Access::new(parts, &shared))
        });
        queues.push(Queue { access: Arc::clone(way), url: url.clone(), kind: destination.kind });
    }
    Ok(queues)
}

fn host_of(queue_url: &str) -> &str {
    let rest = queue_url.split_once("://").map_or(queue_url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or("")
}

/// The region in an AWS host name: `sqs.REGION.amazonaws.com`, `REGION.queue.amazonaws.com`, `sqs.REGION.api.aws`, a VPC
/// endpoint's `vpce-….sqs.REGION.vpce.amazonaws.com`.
fn region_of(queue_url: &str) -> Option<&str> {
    let labels: Vec<&str> = host_of(queue_url).split('.').collect();
    let after_sqs = labels.iter().position(|label| *label == "sqs" || *label == "sqs-fips").map(|at| at + 1);
    let at = after_sqs.or_else(|| labels.iter().position(|label| *label == "queue")?.checked_sub(1))?;
    labels.get(at).copied().filter(|label| label.chars().any(|c| c.is_ascii_digit()) && label.contains('-'))
}

/// The SDK sends to the region's endpoint whatever the queue URL says. A URL that is not on that endpoint (an emulator, a
/// VPC endpoint) means its own host.
fn endpoint_of(queue_url: &str) -> Option<String> {
    let host = host_of(queue_url);
    let is_public =
        host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn") || host.ends_with(".api.aws");
    if is_public && !host.contains(".vpce.") {
        return None;
    }
    let (scheme, _) = queue_url.split_once("://")?;
    Some(format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_read_from_the_queue_url() {
        assert_eq!(region_of("https://sqs.eu-west-1.amazonaws.com/1/q"), Some("eu-west-1"));
        assert_eq!(region_of("https://sqs.cn-north-1.amazonaws.com.cn/1/q"), Some("cn-north-1"));
        assert_eq!(region_of("https://us-west-2.queue.amazonaws.com/1/q"), Some("us-west-2"));
        assert_eq!(region_of("https://vpce-1a-2b.sqs.us-east-1.vpce.amazonaws.com/1/q"), Some("us-east-1"));
        assert_eq!(region_of("http://127.0.0.1:4566/000000000000/q"), None);
        assert_eq!(region_of("https://queue.amazonaws.com/1/q"), None);
    }

    #[test]
    fn only_a_host_that_is_not_the_regions_own_becomes_the_endpoint() {
        assert_eq!(endpoint_of("https://sqs.eu-west-1.amazonaws.com/1/q"), None);
        assert_eq!(endpoint_of("http://127.0.0.1:4566/0/q").as_deref(), Some("http://127.0.0.1:4566"));
        let private = "https://vpce-1a-2b.sqs.us-east-1.vpce.amazonaws.com";
        assert_eq!(endpoint_of(&format!("{private}/1/q")).as_deref(), Some(private));
    }
}
