//! Each form of queue URL, sent by the SDK as the relay configures it: where the request goes and how it is signed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_sqs::config::{Credentials, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;

use super::super::access::{Client, Parts, Source, maker};
use super::*;
use crate::message::Service;

/// Notes where a request goes, and does not send it.
#[derive(Clone, Debug, Default)]
struct Noting(Arc<Mutex<Option<(String, String)>>>);

impl HttpConnector for Noting {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = parts(request.uri()).host;
        let authorization = request.headers().get("authorization").unwrap_or_default();
        let region = authorization.split('/').nth(2).unwrap_or_default().to_owned();
        *self.0.lock().unwrap() = Some((target, region));
        HttpConnectorFuture::ready(Err(ConnectorError::other("not sent".into(), None)))
    }
}

fn shared(settings: &Settings) -> SdkConfig {
    let credentials = Credentials::new("key", "secret", None, None, "test");
    let mut builder = SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .use_fips(settings.uses_fips)
        .use_dual_stack(settings.uses_dual_stack);
    builder.set_endpoint_url(settings.sqs_endpoint.clone());
    builder.build()
}

/// The host that a request to this queue is sent to, and the region in its signature.
async fn target(queue_url: &str, settings: &Settings) -> Result<(String, String), String> {
    let target = Target::Queue { url: queue_url.to_owned() };
    let route = route(&target, settings)?;
    let noting = Noting::default();
    let connector = SharedHttpConnector::new(noting.clone());
    let source = Source { http_client: http_client_fn(move |_, _| connector.clone()), region: None };
    let sts_region = route.region.clone();
    let parts = Parts { source, route, role: None, sts_region, request_timeout: Duration::from_secs(5) };
    let Client::Sqs(client) = parts.client(maker(Service::Sqs), &shared(settings)) else { unreachable!() };
    let answer = client.get_queue_attributes().queue_url(queue_url).send().await;
    let sent = noting.0.lock().unwrap().clone();
    sent.ok_or_else(|| format!("nothing was sent: {answer:?}"))
}

fn with(region: &str) -> Settings {
    Settings { region: Some(region.to_owned()), ..Settings::default() }
}

/// Queue URLs, each with the host that is asked and the region of the signature, if `AWS_REGION` is ap-south-1.
const QUEUES: &[(&str, &str, &str)] = &[
    // Ordinary endpoints, in every partition.
    ("https://sqs.eu-west-1.amazonaws.com/1/q", "sqs.eu-west-1.amazonaws.com", "eu-west-1"),
    ("https://sqs.eu-west-1.amazonaws.com/1/q.fifo", "sqs.eu-west-1.amazonaws.com", "eu-west-1"),
    ("https://sqs.us-east-1.amazonaws.com/1/q", "sqs.us-east-1.amazonaws.com", "us-east-1"),
    ("https://sqs.ap-southeast-5.amazonaws.com/1/q", "sqs.ap-southeast-5.amazonaws.com", "ap-southeast-5"),
    ("https://sqs.mx-central-1.amazonaws.com/1/q", "sqs.mx-central-1.amazonaws.com", "mx-central-1"),
    ("https://sqs.us-gov-west-1.amazonaws.com/1/q", "sqs.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
    ("https://sqs.us-gov-east-1.amazonaws.com/1/q", "sqs.us-gov-east-1.amazonaws.com", "us-gov-east-1"),
    ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "sqs.cn-north-1.amazonaws.com.cn", "cn-north-1"),
    ("https://sqs.cn-northwest-1.amazonaws.com.cn/1/q", "sqs.cn-northwest-1.amazonaws.com.cn", "cn-northwest-1"),
    ("https://sqs.us-iso-east-1.c2s.ic.gov/1/q", "sqs.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
    ("https://sqs.us-isob-east-1.sc2s.sgov.gov/1/q", "sqs.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1"),
    ("https://sqs.eu-isoe-west-1.cloud.adc-e.uk/1/q", "sqs.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1"),
    ("https://sqs.us-isof-south-1.csp.hci.ic.gov/1/q", "sqs.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1"),
    ("https://sqs.eusc-de-east-1.amazonaws.eu/1/q", "sqs.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
    // Old names: SDKs use the endpoint of the region.
    ("https://queue.amazonaws.com/1/q", "sqs.us-east-1.amazonaws.com", "us-east-1"),
    ("https://us-west-2.queue.amazonaws.com/1/q", "sqs.us-west-2.amazonaws.com", "us-west-2"),
    ("https://cn-north-1.queue.amazonaws.com.cn/1/q", "sqs.cn-north-1.amazonaws.com.cn", "cn-north-1"),
    ("http://eu-central-1.queue.amazonaws.com/1/q", "sqs.eu-central-1.amazonaws.com", "eu-central-1"),
    // FIPS.
    ("https://sqs-fips.us-east-1.amazonaws.com/1/q", "sqs-fips.us-east-1.amazonaws.com", "us-east-1"),
    ("https://sqs-fips.us-west-2.amazonaws.com/1/q.fifo", "sqs-fips.us-west-2.amazonaws.com", "us-west-2"),
    ("https://sqs-fips.ca-central-1.amazonaws.com/1/q", "sqs-fips.ca-central-1.amazonaws.com", "ca-central-1"),
    // Dual-stack, and both.
    ("https://sqs.eu-west-1.api.aws/1/q", "sqs.eu-west-1.api.aws", "eu-west-1"),
    ("https://sqs.us-gov-west-1.api.aws/1/q", "sqs.us-gov-west-1.api.aws", "us-gov-west-1"),
    (
        "https://sqs.cn-north-1.api.amazonwebservices.com.cn/1/q",
        "sqs.cn-north-1.api.amazonwebservices.com.cn",
        "cn-north-1",
    ),
    ("https://sqs-fips.us-east-1.api.aws/1/q", "sqs-fips.us-east-1.api.aws", "us-east-1"),
    // VPC endpoints, of all zones and of one.
    (
        "https://vpce-1a-2b.sqs.us-east-1.vpce.amazonaws.com/1/q",
        "vpce-1a-2b.sqs.us-east-1.vpce.amazonaws.com",
        "us-east-1",
    ),
    (
        "https://vpce-1a-2b-us-east-1a.sqs.us-east-1.vpce.amazonaws.com/1/q",
        "vpce-1a-2b-us-east-1a.sqs.us-east-1.vpce.amazonaws.com",
        "us-east-1",
    ),
    (
        "https://vpce-1a-2b.sqs-fips.us-east-1.vpce.amazonaws.com/1/q",
        "vpce-1a-2b.sqs-fips.us-east-1.vpce.amazonaws.com",
        "us-east-1",
    ),
    (
        "https://vpce-1a.sqs.cn-north-1.vpce.amazonaws.com.cn/1/q",
        "vpce-1a.sqs.cn-north-1.vpce.amazonaws.com.cn",
        "cn-north-1",
    ),
    // Emulators: ElasticMQ, moto, LocalStack in its three ways, and names of one's own.
    ("http://localhost:9324/000000000000/q", "localhost", "ap-south-1"),
    ("http://localhost:9324/queue/q", "localhost", "ap-south-1"),
    ("http://127.0.0.1:5000/123456789012/q.fifo", "127.0.0.1", "ap-south-1"),
    ("http://[::1]:4566/000000000000/q", "::1", "ap-south-1"),
    ("http://goaws:4100/queue/q", "goaws", "ap-south-1"),
    ("http://localhost:4566/queue/eu-west-3/000000000000/q", "localhost", "eu-west-3"),
    (
        "http://sqs.eu-west-3.localhost.localstack.cloud:4566/000000000000/q",
        "sqs.eu-west-3.localhost.localstack.cloud",
        "eu-west-3",
    ),
    (
        "http://eu-west-3.queue.localhost.localstack.cloud:4566/000000000000/q",
        "eu-west-3.queue.localhost.localstack.cloud",
        "eu-west-3",
    ),
    ("https://sqs.internal.example/1/q", "sqs.internal.example", "ap-south-1"),
    ("https://sqs.eu-west-1.internal.example/1/q", "sqs.eu-west-1.internal.example", "eu-west-1"),
    ("https://queue.example/1/q", "queue.example", "ap-south-1"),
    ("https://amazonaws.com.example/1/q", "amazonaws.com.example", "ap-south-1"),
];

#[tokio::test]
async fn requests_go_where_the_url_says_and_are_signed_for_its_region() {
    for (url, host, region) in QUEUES {
        let expected = ((*host).to_owned(), (*region).to_owned());
        assert_eq!(target(url, &with("ap-south-1")).await.as_ref(), Ok(&expected), "{url}");
    }
}

#[tokio::test]
async fn settings_choose_among_the_endpoints_of_a_region() {
    let ordinary = "https://sqs.us-east-1.amazonaws.com/1/q";
    let fips = Settings { uses_fips: true, ..with("us-east-1") };
    let dual_stack = Settings { uses_dual_stack: true, ..with("us-east-1") };
    let both = Settings { uses_fips: true, ..dual_stack.clone() };
    let table = [
        (ordinary, &fips, "sqs-fips.us-east-1.amazonaws.com"),
        (ordinary, &dual_stack, "sqs.us-east-1.api.aws"),
        (ordinary, &both, "sqs-fips.us-east-1.api.aws"),
        ("https://sqs-fips.us-east-1.amazonaws.com/1/q", &fips, "sqs-fips.us-east-1.amazonaws.com"),
        ("https://sqs.us-east-1.api.aws/1/q", &dual_stack, "sqs.us-east-1.api.aws"),
        ("https://sqs-fips.us-east-1.api.aws/1/q", &both, "sqs-fips.us-east-1.api.aws"),
    ];
    for (url, settings, host) in table {
        let expected = (host.to_owned(), "us-east-1".to_owned());
        assert_eq!(target(url, settings).await.as_ref(), Ok(&expected), "{url} with {settings:?}");
    }
    let custom = Settings { sqs_endpoint: Some("http://elasticmq:9324".to_owned()), ..with("us-east-1") };
    for url in [ordinary, "http://localhost:9324/1/q"] {
        let expected = ("elasticmq".to_owned(), "us-east-1".to_owned());
        assert_eq!(target(url, &custom).await.as_ref(), Ok(&expected), "{url}");
    }
}

#[test]
fn a_setting_that_contradicts_the_url_is_refused_with_both_and_the_remedy() {
    let region = with("us-east-1");
    let fips = Settings { uses_fips: true, ..region.clone() };
    let dual_stack = Settings { uses_dual_stack: true, ..region.clone() };
    let custom = Settings { sqs_endpoint: Some("http://elasticmq:9324".to_owned()), ..region };
    let vpc_elsewhere = "https://vpce-9.sqs.eu-west-1.vpce.amazonaws.com".to_owned();
    let elsewhere = Settings { sqs_endpoint: Some(vpc_elsewhere), ..custom.clone() };
    let custom_fips = Settings { uses_fips: true, ..custom.clone() };
    let vpc = "https://vpce-1a-2b.sqs.us-east-1.vpce.amazonaws.com/1/q";
    let table = [
        ("http://localhost:9324/1/q", &fips, "AWS_USE_FIPS_ENDPOINT"),
        ("http://localhost:9324/1/q", &dual_stack, "AWS_USE_DUALSTACK_ENDPOINT"),
        (vpc, &fips, "AWS_USE_FIPS_ENDPOINT"),
        (vpc, &dual_stack, "AWS_USE_DUALSTACK_ENDPOINT"),
        ("https://sqs.us-east-1.api.aws/1/q", &fips, "AWS_USE_FIPS_ENDPOINT"),
        ("https://sqs-fips.us-east-1.amazonaws.com/1/q", &dual_stack, "AWS_USE_DUALSTACK_ENDPOINT"),
        ("https://sqs-fips.us-east-1.amazonaws.com/1/q", &custom, "AWS_ENDPOINT_URL_SQS"),
        (vpc, &custom, "AWS_ENDPOINT_URL_SQS"),
        ("https://sqs.us-east-1.amazonaws.com/1/q", &custom_fips, "AWS_USE_FIPS_ENDPOINT"),
        ("https://sqs.us-east-1.amazonaws.com/1/q", &elsewhere, "AWS_ENDPOINT_URL_SQS"),
    ];
    for (url, settings, name) in table {
        let problem = to_queue(url, settings).expect_err(url);
        assert!(problem.contains(name) && problem.contains(url) && problem.contains("; "), "{problem}");
    }
}

#[test]
fn a_region_that_nothing_names_is_asked_for() {
    let problem = to_queue("http://localhost:9324/1/q", &Settings::default()).expect_err("no region");
    assert!(problem.contains("AWS_REGION"), "{problem}");
}

#[test]
fn a_topic_is_in_the_region_of_its_arn_and_at_the_endpoint_of_sns() {
    let arn = "arn:aws:sns:eu-west-1:123456789012:tickets.fifo";
    let at = |endpoint: Option<&str>| Settings { sns_endpoint: endpoint.map(str::to_owned), ..with("us-east-1") };
    let table = [
        (at(None), Ok(None)),
        (at(Some("http://localhost:9324")), Ok(Some("http://localhost:9324"))),
        (
            at(Some("https://vpce-1a-2b.sns.eu-west-1.vpce.amazonaws.com")),
            Ok(Some("https://vpce-1a-2b.sns.eu-west-1.vpce.amazonaws.com")),
        ),
        (at(Some("https://sns.us-east-1.amazonaws.com")), Err("names an endpoint in us-east-1")),
        (at(Some("https://vpce-1a-2b.sns.us-east-1.vpce.amazonaws.com")), Err("names an endpoint in us-east-1")),
        (Settings { uses_fips: true, ..at(Some("http://localhost:9324")) }, Err("AWS_USE_FIPS_ENDPOINT")),
        (Settings { uses_fips: true, ..at(None) }, Ok(None)),
        // That of SQS is none of its business.
        (Settings { sqs_endpoint: Some("http://elasticmq:9324".to_owned()), ..at(None) }, Ok(None)),
    ];
    for (settings, expected) in table {
        match (route(&Target::Topic { arn: arn.to_owned() }, &settings), expected) {
            (Ok(route), Ok(endpoint)) => {
                assert_eq!((route.region.as_str(), route.endpoint.as_deref()), ("eu-west-1", endpoint))
            }
            (Err(problem), Err(part)) => {
                assert!(problem.contains(part) && problem.contains(arn) && problem.contains("; "), "{problem}")
            }
            (found, expected) => unreachable!("{found:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn a_connection_goes_to_the_port_of_the_url_or_of_its_scheme() {
    let table = [
        ("https://sqs.eu-west-1.amazonaws.com", "sqs.eu-west-1.amazonaws.com:443"),
        ("https://sqs.eu-west-1.amazonaws.com/1/q", "sqs.eu-west-1.amazonaws.com:443"),
        ("http://localhost/", "localhost:80"),
        ("http://LOCALHOST:9324/1/q", "localhost:9324"),
        ("https://[::1]:4566/", "[::1]:4566"),
        ("https://[2001:db8::1]", "[2001:db8::1]:443"),
    ];
    for (url, expected) in table {
        assert_eq!(address_of(url).to_string(), expected, "{url}");
    }
}

/// The way to a bucket for a queue or topic.
fn way_to_bucket(target: &str, settings: &Settings) -> Result<Route, String> {
    let target = match target.starts_with("arn:") {
        true => Target::Topic { arn: target.to_owned() },
        false => Target::Queue { url: target.to_owned() },
    };
    to_bucket("bodies", &route(&target, settings)?, settings)
}

#[test]
fn a_bucket_is_reached_at_an_endpoint_of_the_same_kind_as_its_queue() {
    let topic = "arn:aws:sns:us-east-1:123456789012:t";
    let vpc_fips = "https://vpce-1a-2b.sqs-fips.us-east-1.vpce.amazonaws.com/1/q";
    for (target, is_fips, is_dual_stack) in [
        ("https://sqs.us-east-1.amazonaws.com/1/q", false, false),
        ("https://sqs-fips.us-east-1.amazonaws.com/1/q", true, false),
        ("https://sqs.us-east-1.api.aws/1/q", false, true),
        ("https://sqs-fips.us-east-1.api.aws/1/q", true, true),
        ("https://vpce-1a-2b.sqs.us-east-1.vpce.amazonaws.com/1/q", false, false),
        (vpc_fips, true, false),
        (topic, false, false),
    ] {
        let expected = Route { is_fips, is_dual_stack, ..Route::new("us-east-1".to_owned(), None) };
        assert_eq!(way_to_bucket(target, &with("us-east-1")), Ok(expected), "{target}");
    }
    let at = |endpoint: &str| Settings { s3_endpoint: Some(endpoint.to_owned()), ..with("us-east-1") };
    for endpoint in ["http://localhost:4566", "https://bucket.vpce-1a-2b.s3.us-east-1.vpce.amazonaws.com"] {
        let expected = Route::new("us-east-1".to_owned(), Some(endpoint.to_owned()));
        assert_eq!(way_to_bucket("http://localhost:4566/1/q", &at(endpoint)), Ok(expected));
    }
}

#[test]
fn a_way_to_a_bucket_that_nothing_names_or_that_contradicts_a_setting_is_refused_with_the_remedy() {
    let (queue, topic) = ("https://sqs.us-east-1.amazonaws.com/1/q", "arn:aws:sns:us-east-1:123456789012:t");
    let at = |endpoint: &str| Settings { s3_endpoint: Some(endpoint.to_owned()), ..with("us-east-1") };
    let emulated = Settings { sns_endpoint: Some("http://localhost:9324".to_owned()), ..with("us-east-1") };
    let fips = |endpoint| Settings { uses_fips: true, ..at(endpoint) };
    let dual_stack = |endpoint| Settings { uses_dual_stack: true, ..at(endpoint) };
    for (target, settings, expected) in [
        ("http://localhost:4566/000000000000/q", with("us-east-1"), "set AWS_ENDPOINT_URL_S3"),
        ("http://sqs.us-east-1.localhost.localstack.cloud:4566/1/q", with("us-east-1"), "set AWS_ENDPOINT_URL_S3"),
        (topic, emulated, "set AWS_ENDPOINT_URL_S3"),
        (queue, at("https://s3.eu-west-1.amazonaws.com"), "names an endpoint in eu-west-1"),
        (queue, at("https://s3.dualstack.eu-west-1.amazonaws.com"), "names an endpoint in eu-west-1"),
        (queue, at("https://bucket.vpce-1a.s3.eu-west-1.vpce.amazonaws.com"), "names an endpoint in eu-west-1"),
        (queue, fips("https://s3.us-east-1.amazonaws.com"), "AWS_USE_FIPS_ENDPOINT"),
        (queue, fips("http://localhost:4566"), "AWS_USE_FIPS_ENDPOINT"),
        (queue, dual_stack("https://s3.us-east-1.amazonaws.com"), "AWS_USE_DUALSTACK_ENDPOINT"),
    ] {
        let problem = way_to_bucket(target, &settings).expect_err(target);
        assert!(problem.contains(expected) && problem.contains("bodies") && problem.contains("; "), "{problem}");
    }
    assert!(way_to_bucket(queue, &fips("https://s3-fips.us-east-1.amazonaws.com")).is_ok());
    assert!(way_to_bucket(queue, &dual_stack("https://s3.dualstack.us-east-1.amazonaws.com")).is_ok());
}
