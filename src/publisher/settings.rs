//! What the AWS configuration, loaded by the SDK from the environment and the profile, says about the ways to SQS, SNS, S3
//! and STS.
//! Empty counts as not set: the SDK would take a variable that is set and empty for an endpoint.

use aws_config::{Region, SdkConfig};
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

use super::endpoint::Settings;

/// What it says about the ways to SQS, SNS and S3.
pub(super) fn of(shared: &SdkConfig) -> Settings {
    Settings {
        region: given(shared.region().map(ToString::to_string)),
        sqs_endpoint: endpoint(shared, "SQS"),
        sns_endpoint: endpoint(shared, "SNS"),
        s3_endpoint: endpoint(shared, "S3"),
        uses_fips: shared.use_fips().unwrap_or(false),
        uses_dual_stack: shared.use_dual_stack().unwrap_or(false),
    }
}

/// The same configuration for clients of STS in this region.
pub(super) fn for_sts(shared: &SdkConfig, region: &str) -> SdkConfig {
    let mut builder = shared.to_builder().region(Region::new(region.to_owned()));
    builder.set_endpoint_url(None);
    builder.set_service_config(Some(Only(endpoint(shared, "STS"))));
    builder.build()
}

/// The endpoint of a service: its own, or the one of all services.
fn endpoint(shared: &SdkConfig, service: &str) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id(service).env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    let own = key.ok().and_then(|key| shared.service_config()?.load_config(key));
    given(own).or_else(|| given(shared.endpoint_url().map(str::to_owned)))
}

fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

/// The endpoint of a service, as its client asks for it.
#[derive(Debug)]
struct Only(Option<String>);

impl LoadServiceConfig for Only {
    fn load_config(&self, _: ServiceConfigKey<'_>) -> Option<String> {
        self.0.clone()
    }
}
