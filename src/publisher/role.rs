//! The role of a destination: STS gives credentials for it (`sts:AssumeRole`) to the relay's own credentials, from
//! whichever provider these come. The SDK keeps them until shortly before they expire, as it does with all others.

use std::error::Error;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as Future;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_sqs::config::IdentityCache;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;

use super::settings;
use crate::aws::missing;
use crate::causes::{causes, sentence};
use crate::config::RoleConfig;

/// The longest name of a session (STS, AssumeRole, RoleSessionName).
const MAX_SESSION_NAME: usize = 64;

/// The configuration with the credentials of a role instead of the relay's own, which STS in this region is asked for. An
/// answer that takes longer than the limit is not waited for.
pub(super) async fn assume(shared: &SdkConfig, role: &RoleConfig, region: &str, limit: Duration) -> SdkConfig {
    let sts = settings::for_sts(shared, region);
    let timeouts = sts.timeout_config().cloned().unwrap_or_else(TimeoutConfig::disabled);
    let sts = sts.to_builder().timeout_config(timeouts.to_builder().operation_timeout(limit).build()).build();
    let mut provider = AssumeRoleProvider::builder(&role.arn)
        .session_name(session_name(&gethostname::gethostname().to_string_lossy()))
        .configure(&sts);
    if let Some(id) = &role.external_id {
        provider = provider.external_id(id);
    }
    let provider = Assumed { role: role.clone(), provider: provider.build().await };
    // A cache of its own, because the shared one has room for a limited number of providers.
    let with_role = shared.to_builder().credentials_provider(SharedCredentialsProvider::new(provider));
    with_role.identity_cache(IdentityCache::lazy().build()).build()
}

/// The name under which CloudTrail and the queue's owner see the relay.
fn session_name(host: &str) -> String {
    let is_allowed = |c: &char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(*c);
    let name = format!("outbox-relay-{host}");
    name.chars().map(|c| if is_allowed(&c) { c } else { '-' }).take(MAX_SESSION_NAME).collect()
}

/// The provider, which says in its errors which role it is about.
#[derive(Debug)]
struct Assumed {
    role: RoleConfig,
    provider: AssumeRoleProvider,
}

impl ProvideCredentials for Assumed {
    fn provide_credentials<'a>(&'a self) -> Future<'a>
    where
        Self: 'a,
    {
        Future::new(async {
            let given = self.provider.provide_credentials().await;
            given.map_err(|error| CredentialsError::provider_error(NotAssumed(why(&self.role, &error))))
        })
    }
}

/// A role cannot be assumed: a sentence with the role and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotAssumed(String);

impl NotAssumed {
    /// If that is the reason of an error.
    pub(super) fn among<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a NotAssumed> {
        causes(error).find_map(|cause| cause.downcast_ref())
    }
}

fn why(role: &RoleConfig, error: &(dyn Error + 'static)) -> String {
    let RoleConfig { arn, external_id } = role;
    // The outermost such error is the role's own.
    if let Some(own) = causes(error).skip(1).find(|cause| cause.is::<CredentialsError>()) {
        return match missing::names(own) {
            Some(missing) => format!("there are no credentials to assume {arn} with; {missing}"),
            None => {
                format!(
                    "the credentials to assume {arn} with cannot be had: {}; repair what gives them",
                    innermost(own)
                )
            }
        };
    }
    if let Some(refusal) = causes(error).find_map(|cause| cause.downcast_ref::<AssumeRoleError>()) {
        let Some(code) = refusal.code() else {
            let failed =
                causes(error).find_map(|cause| cause.downcast_ref::<SdkError<AssumeRoleError, HttpResponse>>());
            let status = failed.and_then(SdkError::raw_response).map_or(0, |answer| answer.status().as_u16());
            return format!("STS does not give the role {arn}: HTTP {status}; check AWS_ENDPOINT_URL_STS and proxies");
        };
        let said = refusal.message().unwrap_or_default();
        return match code {
            "AccessDenied" | "AccessDeniedException" => {
                // STS names the caller, whom the trust policy must name.
                let caller = said.split_once("User: ").and_then(|(_, rest)| rest.split_whitespace().next());
                let caller = caller.filter(|caller| caller.starts_with("arn:")).unwrap_or("this relay");
                let id = if external_id.is_some() { ", with this external id" } else { "" };
                format!(
                    "{caller} may not assume {arn} ({code}); allow it sts:AssumeRole, and trust it in the role's policy{id}"
                )
            }
            "RegionDisabledException" => {
                format!("STS is not active in this region for {arn} ({code}); activate it, or set another AWS_REGION")
            }
            "ExpiredToken" | "ExpiredTokenException" | "InvalidClientTokenId" | "SignatureDoesNotMatch" => {
                format!("STS does not accept the relay's own credentials for {arn} ({code}); give it new ones")
            }
            _ => {
                format!(
                    "STS does not give the role {arn}: {code}: {}; check the role and its trust policy",
                    brief(said)
                )
            }
        };
    }
    format!(
        "STS cannot be asked for the role {arn}: {}; check AWS_ENDPOINT_URL_STS, proxy and network",
        innermost(error)
    )
}

/// What the innermost errors say; the outer ones only say that there was one.
fn innermost(error: &(dyn Error + 'static)) -> String {
    if let Some(refusal) = causes(error).find_map(|cause| cause.downcast_ref::<AssumeRoleError>()) {
        return brief(&format!("{}: {}", refusal.code().unwrap_or("Unknown"), refusal.message().unwrap_or_default()));
    }
    // Of a connection the HTTP client's error says which step failed.
    let of_client = |cause: &&(dyn Error + 'static)| cause.is::<hyper_util::client::legacy::Error>();
    brief(&sentence(causes(error).find(of_client).or_else(|| causes(error).last()).unwrap_or(error)))
}

/// So much of a text that a remedy can follow it.
fn brief(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use aws_sdk_sqs::error::ErrorMetadata;

    use super::*;

    fn role(external_id: Option<&str>) -> RoleConfig {
        let arn = "arn:aws:iam::222222222222:role/publisher".to_owned();
        RoleConfig { arn, external_id: external_id.map(str::to_owned) }
    }

    fn refused(code: &str, message: &str) -> AssumeRoleError {
        AssumeRoleError::generic(ErrorMetadata::builder().code(code).message(message).build())
    }

    #[test]
    fn the_name_of_a_session_has_only_what_sts_allows() {
        assert_eq!(session_name("relay-0.example"), "outbox-relay-relay-0.example");
        assert_eq!(session_name("größe / :x"), "outbox-relay-gr--e----x");
        assert_eq!(session_name(&"h".repeat(100)).len(), 64);
    }

    #[test]
    fn credentials_that_are_missing_for_the_role_are_not_taken_for_a_refusal_of_it() {
        let own =
            CredentialsError::provider_error(refused("AccessDenied", "User: arn:aws:iam::1:user/a is not authorized"));
        let error = CredentialsError::provider_error(own);
        let sentence = why(&role(None), &error);
        let expected =
            "the credentials to assume arn:aws:iam::222222222222:role/publisher with cannot be had: AccessDenied: ";
        assert!(sentence.starts_with(expected) && sentence.ends_with("; repair what gives them"), "{sentence}");
        let error = CredentialsError::provider_error(CredentialsError::provider_error("the agent is gone"));
        assert!(why(&role(None), &error).contains("cannot be had: the agent is gone; "), "{error:?}");
    }

    #[test]
    fn a_refusal_names_the_role_the_caller_and_the_remedy_in_one_line() {
        let caller = "arn:aws:sts::111111111111:assumed-role/relay/i-1";
        let said =
            format!("User: {caller} is not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::2:role/p");
        let sentence = why(&role(Some("abc")), &refused("AccessDenied", &said));
        for part in [caller, "may not assume arn:aws:iam::222222222222:role/publisher", "trust it", "external id"] {
            assert!(sentence.contains(part), "{sentence}");
        }
        for (code, part) in [
            ("AccessDenied", "this relay may not assume"),
            ("InvalidClientTokenId", "give it new ones"),
            ("RegionDisabledException", "AWS_REGION"),
            ("ValidationError", "ValidationError: said"),
        ] {
            let sentence = why(&role(None), &refused(code, "said"));
            assert!(sentence.contains(part) && sentence.contains("role/publisher"), "{sentence}");
            assert!(sentence.contains("; ") && sentence.len() < 200, "{sentence}");
        }
    }
}
