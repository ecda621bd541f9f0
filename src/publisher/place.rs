//! Where the SDK's own endpoint of a service is, for those who ask where requests go.

use aws_config::SdkConfig;

use super::endpoint::Route;
use crate::causes::sentence;
use crate::way::Trouble;

/// Where the SDK's own endpoint is.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) region: &'a str,
    pub(super) uses_fips: bool,
    pub(super) uses_dual_stack: bool,
}

impl<'a> Place<'a> {
    pub(super) fn of(route: &'a Route, shared: &SdkConfig) -> Self {
        Self {
            region: &route.region,
            uses_fips: route.is_fips || shared.use_fips().unwrap_or(false),
            uses_dual_stack: route.is_dual_stack || shared.use_dual_stack().unwrap_or(false),
        }
    }

    pub(super) fn unknown(self, error: &(dyn std::error::Error + 'static)) -> Trouble {
        let remedy = "check the region, AWS_USE_FIPS_ENDPOINT and AWS_USE_DUALSTACK_ENDPOINT";
        Trouble::new(format!("the region {} has no such endpoint: {}", self.region, sentence(error)), remedy)
    }
}
