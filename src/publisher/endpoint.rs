//! Where the requests of a queue or topic go, and for which region they are signed: from the queue's URL or the topic's ARN,
//! and the AWS settings.
//!
//! A topic's ARN names the region and no host; `AWS_ENDPOINT_URL_SNS` or `AWS_ENDPOINT_URL` may name one. A bucket is reached
//! at an endpoint of the same kind as its queue or topic (FIPS, dual-stack), unless `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`
//! names one, as it must for an emulator. The rest is about queues.
//!
//! The SDK sends to its region's endpoint, whatever the queue URL says. A URL of that endpoint leaves the choice to the SDK,
//! which `AWS_USE_FIPS_ENDPOINT` and `AWS_USE_DUALSTACK_ENDPOINT` change. A URL of AWS with a host of its own (FIPS, dual-stack,
//! a VPC endpoint) is taken at its word; a setting that says something else is a mistake in the configuration. Any other host
//! (an emulator) is the endpoint, unless `AWS_ENDPOINT_URL_SQS` or `AWS_ENDPOINT_URL` names one: emulators give URLs with hosts
//! that only they know. Pure.

use crate::config::{Target, region_of_topic};
use crate::way::Address;

/// The partitions of AWS, each with the suffix of its host names and the one of its dual-stack endpoints (botocore,
/// partitions.json).
const SUFFIXES: [(&str, &str); 7] = [
    ("amazonaws.com", "api.aws"),
    ("amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    ("amazonaws.eu", "api.amazonwebservices.eu"),
    ("c2s.ic.gov", "api.aws.ic.gov"),
    ("sc2s.sgov.gov", "api.aws.scloud"),
    ("cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    ("csp.hci.ic.gov", "api.aws.hci.ic.gov"),
];

/// What the AWS settings say, from the environment and the profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    /// `AWS_REGION` or the profile's region.
    pub(super) region: Option<String>,
    /// `AWS_ENDPOINT_URL_SQS`, `AWS_ENDPOINT_URL`, or the profile's.
    pub(super) sqs_endpoint: Option<String>,
    /// `AWS_ENDPOINT_URL_SNS`, `AWS_ENDPOINT_URL`, or the profile's.
    pub(super) sns_endpoint: Option<String>,
    /// `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, or the profile's.
    pub(super) s3_endpoint: Option<String>,
    /// `AWS_USE_FIPS_ENDPOINT` or the profile's use_fips_endpoint.
    pub(super) uses_fips: bool,
    /// `AWS_USE_DUALSTACK_ENDPOINT` or the profile's use_dualstack_endpoint.
    pub(super) uses_dual_stack: bool,
}

/// The way to a queue or topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Route {
    /// The region for which requests are signed.
    pub(super) region: String,
    /// Where they go; `None` is the region's endpoint, which the SDK knows.
    pub(super) endpoint: Option<String>,
    /// Whether that of the region has to be a FIPS endpoint, whatever the settings say.
    pub(super) is_fips: bool,
    /// The same for dual-stack.
    pub(super) is_dual_stack: bool,
}

impl Route {
    /// A way on which only the settings choose among the endpoints of the region.
    pub(super) fn new(region: String, endpoint: Option<String>) -> Self {
        Self { region, endpoint, is_fips: false, is_dual_stack: false }
    }
}

/// What a host name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The endpoint of a region, or the old name of it, which SDKs no longer use.
    Regional,
    /// A special endpoint of AWS.
    Special { is_fips: bool, is_dual_stack: bool },
    /// No host of AWS: an emulator, or a name of one's own for a VPC endpoint.
    Foreign,
}

impl Kind {
    /// Whether it is FIPS, and whether it is dual-stack.
    fn special(self) -> (bool, bool) {
        match self {
            Self::Special { is_fips, is_dual_stack } => (is_fips, is_dual_stack),
            Self::Regional | Self::Foreign => (false, false),
        }
    }
}

/// The way to a queue or topic.
///
/// # Errors
///
/// When the region is not known, or when a setting contradicts the URL or the ARN: a sentence with both and the remedy.
pub(super) fn route(target: &Target, settings: &Settings) -> Result<Route, String> {
    match target {
        Target::Queue { url } => to_queue(url, settings),
        Target::Topic { arn } => to_topic(arn, settings),
    }
}

/// The way to a bucket of a queue or topic to which this way leads. It is in the same region, and its endpoint of the same kind.
///
/// # Errors
///
/// When nothing says where S3 is, or when a setting contradicts another: a sentence with the remedy.
pub(super) fn to_bucket(bucket: &str, route: &Route, settings: &Settings) -> Result<Route, String> {
    let region = route.region.clone();
    let target = route.endpoint.as_deref().map(parts);
    let kind = target.as_ref().map_or(Kind::Regional, |target| classify(&target.host, target.authority).0);
    let Some(endpoint) = &settings.s3_endpoint else {
        let (is_fips, is_dual_stack) = kind.special();
        return match target {
            Some(target) if kind == Kind::Foreign => Err(format!(
                "messages for bucket {bucket} go to {}, which is not AWS, and nothing says where S3 is; set \
                 AWS_ENDPOINT_URL_S3, such as to the same, or AWS_ENDPOINT_URL",
                target.host
            )),
            _ => Ok(Route { region, endpoint: None, is_fips, is_dual_stack }),
        };
    };
    let host = parts(endpoint).host;
    if let (_, Some(other)) = classify(&host, &host)
        && other != region
    {
        return Err(format!(
            "bucket {bucket} has to be in {region}, but AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the profile names an \
             endpoint in {other}; unset it, or use that of {region}"
        ));
    }
    refuse_flags(&format!("bucket {bucket}"), settings, &host, true)?;
    Ok(Route::new(region, Some(endpoint.clone())))
}

fn to_topic(arn: &str, settings: &Settings) -> Result<Route, String> {
    let region = region_of_topic(arn).to_owned();
    let endpoint = settings.sns_endpoint.clone();
    let host = endpoint.as_deref().map(|endpoint| parts(endpoint).host).unwrap_or_default();
    if let (_, Some(other)) = classify(&host, &host)
        && other != region
    {
        return Err(format!(
            "{arn} is in {region}, but AWS_ENDPOINT_URL_SNS, AWS_ENDPOINT_URL or the profile names an endpoint in {other}; \
             unset it, or use that of the topic"
        ));
    }
    refuse_flags(arn, settings, &host, endpoint.is_some())?;
    Ok(Route::new(region, endpoint))
}

fn to_queue(queue_url: &str, settings: &Settings) -> Result<Route, String> {
    let Parts { scheme, authority, host, .. } = parts(queue_url);
    let (kind, named) = classify(&host, authority);
    let region = region_in_url(queue_url).or_else(|| settings.region.clone()).ok_or_else(|| {
        format!("the region of {queue_url} is not known; set AWS_REGION, or use a queue URL with the region in it")
    })?;
    let endpoint = match (kind, &settings.sqs_endpoint) {
        (Kind::Regional, None) => None,
        (Kind::Regional | Kind::Foreign, Some(endpoint)) => Some(endpoint.clone()),
        (Kind::Special { .. }, Some(endpoint)) if parts(endpoint).host != host => {
            return Err(format!(
                "{queue_url} names the endpoint {host}, but AWS_ENDPOINT_URL_SQS, AWS_ENDPOINT_URL or the profile names \
                 {}; unset one of them",
                without_secret(endpoint)
            ));
        }
        (Kind::Special { .. } | Kind::Foreign, _) => Some(format!("{scheme}://{authority}")),
    };
    let target = endpoint.as_deref().map(|endpoint| parts(endpoint).host).unwrap_or(host);
    if let (Some(named), (_, Some(other))) = (named, classify(&target, &target))
        && named != other
    {
        return Err(format!(
            "{queue_url} is in {named}, but AWS_ENDPOINT_URL_SQS, AWS_ENDPOINT_URL or the profile names an endpoint in \
             {other}; unset it, or use that of the queue"
        ));
    }
    refuse_flags(queue_url, settings, &target, endpoint.is_some())?;
    Ok(Route::new(region, endpoint))
}

/// A custom endpoint is taken as it is; the SDK would change only its own.
fn refuse_flags(target: &str, settings: &Settings, host: &str, is_custom: bool) -> Result<(), String> {
    let (is_fips, is_dual_stack) = classify(host, host).0.special();
    for (is_wanted, is_so, setting, what) in [
        (settings.uses_fips, is_fips, "AWS_USE_FIPS_ENDPOINT", "FIPS"),
        (settings.uses_dual_stack, is_dual_stack, "AWS_USE_DUALSTACK_ENDPOINT", "dual-stack"),
    ] {
        if is_custom && is_wanted && !is_so {
            return Err(format!(
                "{setting} (or the profile) wants a {what} endpoint, but requests for {target} go to {host}; unset it, \
                 or use the URL of a {what} endpoint"
            ));
        }
    }
    Ok(())
}

/// The region that a queue's URL or a topic's ARN names.
pub(super) fn region_of(target: &Target) -> Option<String> {
    match target {
        Target::Queue { url } => region_in_url(url),
        Target::Topic { arn } => Some(region_of_topic(arn).to_owned()),
    }
}

fn region_in_url(queue_url: &str) -> Option<String> {
    let Parts { authority, host, path, .. } = parts(queue_url);
    classify(&host, authority).1.or_else(|| region_in_path(path).map(str::to_owned))
}

/// What a URL consists of; the host is in lower case and has neither a port nor a dot at its end.
struct Parts<'a> {
    scheme: &'a str,
    authority: &'a str,
    host: String,
    path: &'a str,
}

fn parts(url: &str) -> Parts<'_> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host_of(authority.rsplit('@').next().unwrap_or(authority));
    Parts { scheme, authority, host: host.trim_end_matches('.').to_lowercase(), path }
}

/// Where the connection for a URL goes.
pub(super) fn address_of(url: &str) -> Address {
    let Parts { scheme, authority, host, .. } = parts(url);
    let after_host = authority.rsplit(']').next().unwrap_or(authority);
    let port = after_host.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    Address { host, port: port.unwrap_or(if scheme == "http" { 80 } else { 443 }) }
}

/// An endpoint may hold user and password.
fn without_secret(endpoint: &str) -> &str {
    if endpoint.contains('@') { "another (not shown)" } else { endpoint }
}

/// A host without its port.
fn host_of(authority: &str) -> &str {
    match authority.split_once(']') {
        Some((address, _)) => address.trim_start_matches('['),
        None => authority.split(':').next().unwrap_or(authority),
    }
}

/// What a host name says, and the region that it names. The authority tells of a port that no endpoint of AWS has.
fn classify(host: &str, authority: &str) -> (Kind, Option<String>) {
    let has_port =
        authority.rsplit_once(':').is_some_and(|(before, port)| !before.is_empty() && port != "443" && port != "80");
    for (suffix, dual_stack) in SUFFIXES {
        if let Some(labels) = labels_before(host, dual_stack) {
            return special(&labels, true);
        }
        if let Some(labels) = labels_before(host, suffix) {
            return match labels[..] {
                _ if has_port => special(&labels, false),
                ["sqs" | "sns", region] | [region, "queue"] => (Kind::Regional, Some(region.to_owned())),
                // The oldest name of all, of the first region of its partition.
                ["queue"] => {
                    let region = if suffix.ends_with("cn") { "cn-north-1" } else { "us-east-1" };
                    (Kind::Regional, Some(region.to_owned()))
                }
                _ => special(&labels, false),
            };
        }
    }
    let labels: Vec<&str> = host.split('.').collect();
    let region = region_after_service(&labels).or_else(|| region_before_queue(&labels));
    (Kind::Foreign, region.map(str::to_owned))
}

fn special(labels: &[&str], is_dual_stack: bool) -> (Kind, Option<String>) {
    let is_fips = labels.iter().any(|label| matches!(*label, "sqs-fips" | "sns-fips" | "s3-fips"));
    // S3 says it before the region: s3.dualstack.REGION.amazonaws.com.
    let is_dual_stack = is_dual_stack || labels.contains(&"dualstack");
    (Kind::Special { is_fips, is_dual_stack }, region_after_service(labels).map(str::to_owned))
}

fn labels_before<'a>(host: &'a str, suffix: &str) -> Option<Vec<&'a str>> {
    Some(host.strip_suffix(suffix)?.strip_suffix('.')?.split('.').collect())
}

/// `sqs.REGION`, `sqs-fips.REGION`, `vpce-….sqs.REGION.vpce`, the same of SNS and S3, and the host names of LocalStack.
fn region_after_service<'a>(labels: &[&'a str]) -> Option<&'a str> {
    let services = ["sqs", "sqs-fips", "sns", "sns-fips", "s3", "s3-fips"];
    let at = labels.iter().position(|label| services.contains(label))?;
    labels.iter().skip(at + 1).find(|label| **label != "dualstack").copied().filter(|label| is_region(label))
}

/// `REGION.queue`, as LocalStack has it too.
fn region_before_queue<'a>(labels: &[&'a str]) -> Option<&'a str> {
    let at = labels.iter().position(|label| *label == "queue")?;
    labels.get(at.checked_sub(1)?).copied().filter(|label| is_region(label))
}

/// LocalStack's third way: `/queue/REGION/ACCOUNT/NAME`.
fn region_in_path(path: &str) -> Option<&str> {
    path.strip_prefix("queue/")?.split('/').next().filter(|part| is_region(part))
}

/// us-east-1, us-gov-west-1, us-isob-east-1, eusc-de-east-1.
fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let is_word = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
    match parts.split_last() {
        Some((number, words)) => {
            words.len() >= 2
                && words.iter().all(is_word)
                && number.bytes().all(|byte| byte.is_ascii_digit())
                && !number.is_empty()
        }
        None => false,
    }
}

#[cfg(test)]
mod tests;
