//! Publishing: composing entries, packing requests, sending them to AWS, and reading the answers.
//!
//! It knows nothing about PostgreSQL and decides nothing about retries: [`publish`](Publisher::publish) returns a result
//! for each entry, and [`crate::retry`] says what that means. `docs/architecture.md` shows its place in the flow.

mod access;
mod answer;
mod attribute;
mod bucket;
mod certificate;
mod claim_check;
mod classify;
mod endpoint;
mod entry;
mod inspect;
mod metadata;
mod pack;
mod place;
mod provided;
mod publish;
mod role;
mod settings;
mod slow_bodies;
mod sns;
mod sqs;
mod way;
mod writing;

pub use answer::Accepted;
pub use entry::{Composed, Entry, compose};
pub use inspect::{Refused, TargetAttributes};
pub use pack::{Load, Size};
pub use provided::Unidentified;
pub use publish::Published;
pub use sqs::build_request;
pub use way::walk;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::aws::http;
use aws_config::SdkConfig;

use access::{Access, Client, Parts, Source, make_s3, maker};
use bucket::Bucket;
use endpoint::{Route, Settings};

use crate::config::{DestinationConfig, RoleConfig, Target};
use crate::message::{Accepts, Service};

/// The way to one queue or topic. Cheap to clone; clones share connections and credentials.
#[derive(Clone, Debug)]
pub struct Publisher {
    access: Arc<Access<Client>>,
    target: Target,
    accepts: Accepts,
    /// Where large bodies go.
    bucket: Option<Bucket>,
}

impl Publisher {
    /// What its queue or topic takes.
    pub fn accepts(&self) -> &Accepts {
        &self.accepts
    }

    /// The queue or topic.
    pub fn target(&self) -> &Target {
        &self.target
    }
}

/// What cannot work on the way to AWS: a sentence for each mistake, with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Misconfigured(Vec<String>);

/// Makes a publisher for each destination, in their order. It contacts nobody, so it works while AWS is down. There is none
/// for a destination whose region is neither in its target nor in the AWS configuration, or that a setting contradicts.
///
/// # Errors
///
/// When there can be none at all, because the certificates cannot be used.
pub async fn connect(
    destinations: &[DestinationConfig],
    ca_bundle: Option<&[u8]>,
    request_timeout: Duration,
) -> Result<Vec<Result<Publisher, Misconfigured>>, Misconfigured> {
    let http_client = http::client(ca_bundle).map_err(|problem| Misconfigured(vec![problem]))?;
    let named = destinations.iter().find_map(|destination| endpoint::region_of(&destination.target));
    let source = Source { http_client, region: named };
    let (shared, settings) = source.load().await;
    let mut publishers = Vec::with_capacity(destinations.len());
    let (targets, buckets, assumed) = Default::default();
    let name = format!("{:08x}", fastrand::u32(..));
    let mut ways = Ways { name, source, shared, request_timeout, targets, buckets, assumed };
    for destination in destinations {
        match ways.publisher(destination, &settings).await {
            Ok(publisher) => publishers.push(Ok(publisher)),
            Err(problem) => publishers.push(Err(Misconfigured(vec![problem]))),
        }
    }
    Ok(publishers)
}

/// All of these publishers.
///
/// # Errors
///
/// When there is none for some of the destinations: every mistake.
pub fn all(publishers: Vec<Result<Publisher, Misconfigured>>) -> Result<Vec<Publisher>, Misconfigured> {
    let (mut made, mut problems) = (Vec::with_capacity(publishers.len()), Vec::new());
    for publisher in publishers {
        match publisher {
            Ok(publisher) => made.push(publisher),
            Err(Misconfigured(sentences)) => problems.extend(sentences),
        }
    }
    if problems.is_empty() { Ok(made) } else { Err(Misconfigured(problems)) }
}

/// The ways to queues, topics and buckets. Those with the same way share a client, and all with the same role its
/// credentials.
struct Ways {
    /// What the objects of this process are called in buckets.
    name: String,
    source: Source,
    shared: SdkConfig,
    request_timeout: Duration,
    targets: HashMap<(Service, Way), Arc<Access<Client>>>,
    buckets: HashMap<Way, Arc<Access<aws_sdk_s3::Client>>>,
    /// The configuration with the credentials of each role, and the region in which STS gives them.
    assumed: HashMap<(RoleConfig, String), SdkConfig>,
}

/// Where it leads, and under which role.
type Way = (Route, Option<RoleConfig>);

impl Ways {
    async fn publisher(&mut self, destination: &DestinationConfig, settings: &Settings) -> Result<Publisher, String> {
        let target = destination.target.clone();
        let route = endpoint::route(&target, settings)?;
        let sts_region = settings.region.clone().unwrap_or_else(|| route.region.clone());
        let bucket = match &destination.claim_check {
            Some(config) => {
                let way = (endpoint::to_bucket(&config.bucket, &route, settings)?, destination.role.clone());
                Some(Bucket::new(self.bucket(way, &sts_region).await, config))
            }
            None => None,
        };
        let access = self.target(target.service(), (route, destination.role.clone()), &sts_region).await;
        Ok(Publisher { access, target, accepts: destination.accepts(&self.name), bucket })
    }

    async fn target(&mut self, service: Service, way: Way, sts_region: &str) -> Arc<Access<Client>> {
        if let Some(access) = self.targets.get(&(service, way.clone())) {
            return Arc::clone(access);
        }
        let (parts, shared) = self.parts(way.clone(), sts_region).await;
        let access = Arc::new(Access::new(parts, maker(service), shared));
        self.targets.insert((service, way), Arc::clone(&access));
        access
    }

    async fn bucket(&mut self, way: Way, sts_region: &str) -> Arc<Access<aws_sdk_s3::Client>> {
        if let Some(access) = self.buckets.get(&way) {
            return Arc::clone(access);
        }
        let (parts, shared) = self.parts(way.clone(), sts_region).await;
        let access = Arc::new(Access::new(parts, make_s3, shared));
        self.buckets.insert(way, Arc::clone(&access));
        access
    }

    async fn parts(&mut self, (route, role): Way, sts_region: &str) -> (Parts, SdkConfig) {
        let (source, request_timeout) = (self.source.clone(), self.request_timeout);
        let parts = Parts { source, route, role, sts_region: sts_region.to_owned(), request_timeout };
        let assumed = parts.role.clone().map(|role| (role, parts.sts_region.clone()));
        let known = assumed.as_ref().and_then(|key| self.assumed.get(key));
        let shared = match known {
            Some(shared) => shared.clone(),
            None => parts.with_role(self.shared.clone()).await,
        };
        self.assumed.extend(assumed.map(|key| (key, shared.clone())));
        (parts, shared)
    }
}
