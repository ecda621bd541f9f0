//! Publishing: composing entries, packing requests, sending them to AWS, and reading the answers.
//!
//! It knows nothing about PostgreSQL and decides nothing about retries: [`publish`](Publisher::publish) returns a result
//! for each entry, and [`crate::retry`] says what that means. `docs/architecture.md` shows its place in the flow.

mod access;
mod certificate;
mod classify;
mod endpoint;
mod entry;
mod inspect;
mod pack;
mod provided;
mod publish;
mod role;
mod settings;
mod way;
mod writing;

pub use entry::{Composed, Entry, compose};
pub use inspect::{QueueAttributes, Refused};
pub use pack::{Load, MAX_BYTES};
pub use provided::Unidentified;
pub use publish::{Accepted, Published, build_request};
pub use way::walk;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::aws::http;
use aws_config::SdkConfig;

use access::{Access, Parts, Source};
use endpoint::Route;

use crate::config::{DestinationConfig, RoleConfig};
use crate::message::DestinationKind;

/// One SQS queue. Cheap to clone; clones share connections and credentials.
#[derive(Clone, Debug)]
pub struct Publisher {
    access: Arc<Access>,
    url: String,
    kind: DestinationKind,
}

impl Publisher {
    /// Standard or FIFO.
    pub fn kind(&self) -> DestinationKind {
        self.kind
    }
}

/// What cannot work on the way to SQS: a sentence for each mistake, with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Misconfigured(Vec<String>);

/// Makes a queue for each destination. It contacts no queue, so it works while SQS is down.
///
/// # Errors
///
/// When a queue's region is neither in its URL nor in the AWS configuration, or when a setting contradicts a queue's URL.
pub async fn connect(
    destinations: &[DestinationConfig],
    ca_bundle: Option<&[u8]>,
    request_timeout: Duration,
) -> Result<Vec<Publisher>, Misconfigured> {
    let http_client = http::client(ca_bundle).map_err(|problem| Misconfigured(vec![problem]))?;
    let named = destinations.iter().find_map(|destination| endpoint::region_of(&destination.queue_url));
    let source = Source { http_client, region: named };
    let (shared, settings) = source.load().await;
    let (mut queues, mut problems) = (Vec::with_capacity(destinations.len()), Vec::new());
    let mut ways = Ways { source, shared, request_timeout, accesses: HashMap::new(), assumed: HashMap::new() };
    for destination in destinations {
        let url = &destination.queue_url;
        match endpoint::route(url, &settings) {
            Ok(route) => {
                let sts_region = settings.region.clone().unwrap_or_else(|| route.region.clone());
                let access = ways.access(route, destination.role.clone(), sts_region).await;
                queues.push(Publisher { access, url: url.clone(), kind: destination.kind });
            }
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(queues) } else { Err(Misconfigured(problems)) }
}

/// The ways to the queues. Queues with the same way and role share a client, and all with the same role its credentials.
struct Ways {
    source: Source,
    shared: SdkConfig,
    request_timeout: Duration,
    accesses: HashMap<(Route, Option<RoleConfig>), Arc<Access>>,
    /// The configuration with the credentials of each role, and the region in which STS gives them.
    assumed: HashMap<(RoleConfig, String), SdkConfig>,
}

impl Ways {
    async fn access(&mut self, route: Route, role: Option<RoleConfig>, sts_region: String) -> Arc<Access> {
        let key = (route.clone(), role.clone());
        if let Some(access) = self.accesses.get(&key) {
            return Arc::clone(access);
        }
        let request_timeout = self.request_timeout;
        let parts = Parts { source: self.source.clone(), route, role, sts_region, request_timeout };
        let assumed = parts.role.clone().map(|role| (role, parts.sts_region.clone()));
        let known = assumed.as_ref().and_then(|key| self.assumed.get(key));
        let shared = match known {
            Some(shared) => shared.clone(),
            None => parts.with_role(self.shared.clone()).await,
        };
        self.assumed.extend(assumed.map(|key| (key, shared.clone())));
        let access = Arc::new(Access::new(parts, shared));
        self.accesses.insert(key, Arc::clone(&access));
        access
    }
}
