//! Who provides the credentials for a queue, until when, and whose they are.

use std::time::SystemTime;

use aws_credential_types::provider::ProvideCredentials as _;
use aws_sdk_sqs::config::Credentials;
use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::timeout::TimeoutConfig;
use aws_sdk_sts::error::SdkError;
use tokio::time::timeout;

use super::{Publisher, classify, settings};
use crate::aws::missing;
use crate::config::RoleConfig;
use crate::way::{LIMIT, Step, Trouble, moment};

/// What helps if nobody has credentials.
const GIVE: &str =
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give the task, pod or machine a role";

/// Why nobody can say whose credentials these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unidentified {
    /// STS does not accept the credentials, and neither will SQS.
    Refused(Trouble),
    /// STS did not answer. The relay itself does not need it for that.
    Unasked(Trouble),
}

impl Publisher {
    /// The role under which the queue is used, if it is not the relay's own.
    pub fn role(&self) -> Option<&RoleConfig> {
        self.access.role().0
    }

    /// Asks for credentials: who gave them and when they expire. If nobody provides any, a step for each provider that was asked
    /// follows, in their order. `profile` is the name of the profile in use.
    pub async fn credentials(&self, profile: &str) -> Vec<Step> {
        let of_role = self.role().map(|role| format!(" of the role {}", role.arn)).unwrap_or_default();
        let what = format!("credentials{of_role}");
        let (trouble, attempts) = match self.ask_for_credentials(profile).await {
            Ok(says) => return vec![Step { what, result: Ok(says) }],
            Err(failed) => failed,
        };
        let asked = attempts
            .into_iter()
            .map(|(name, why)| Step { what: format!("{what}, {name}"), result: Err(Trouble::new(why, "")) });
        let asked: Vec<Step> = asked.collect();
        let mut steps = vec![Step { what, result: Err(trouble) }];
        steps.extend(asked);
        steps
    }

    async fn ask_for_credentials(&self, profile: &str) -> Result<String, (Trouble, Vec<(String, String)>)> {
        let alone = |says: String, remedy: String| (Trouble::new(says, remedy), Vec::new());
        let current = self.access.current();
        let Some(provider) = current.shared().credentials_provider() else {
            return Err(alone("there is nobody to ask for them".to_owned(), "unset what turns signing off".to_owned()));
        };
        let credentials = match timeout(LIMIT, provider.provide_credentials()).await {
            Ok(Ok(credentials)) => credentials,
            Ok(Err(error)) => {
                let fault = classify::without_credentials(&error);
                return Err(match missing::attempts(&error).filter(|_| self.role().is_none()) {
                    Some(attempts) => (Trouble::new("no provider has any", GIVE), attempts),
                    None => (not_provided(fault), Vec::new()),
                });
            }
            Err(_) => {
                let remedy =
                    "check that STS, the metadata service (hop limit 2 in containers) or the process answers in time";
                return Err(alone(format!("nobody gave any within {LIMIT:?}"), remedy.to_owned()));
            }
        };
        let Source { name, renewal } = Source::of(&credentials, profile, self.role().is_some());
        match credentials.expiry() {
            Some(expiry) if expiry <= SystemTime::now() => {
                let says = format!("from {name}, but they expired at {}", moment(expiry));
                Err(alone(says, format!("{renewal}; is the clock of this host right?")))
            }
            Some(expiry) => Ok(format!("from {name}, they expire at {}", moment(expiry))),
            None => Ok(format!("from {name}, they do not expire")),
        }
    }

    /// Asks STS whose credentials these are (`sts:GetCallerIdentity`, which needs no permission): the account and the ARN.
    ///
    /// # Errors
    ///
    /// When STS refuses them, or cannot be asked.
    pub async fn identity(&self) -> Result<String, Unidentified> {
        let current = self.access.current();
        let timeouts = TimeoutConfig::builder().operation_timeout(LIMIT).build();
        let config = aws_sdk_sts::config::Builder::from(&settings::for_sts(current.shared(), self.access.role().1));
        let config = config.retry_config(RetryConfig::disabled()).timeout_config(timeouts).build();
        match aws_sdk_sts::Client::from_conf(config).get_caller_identity().send().await {
            Ok(identity) => {
                let account = identity.account().unwrap_or("unknown");
                Ok(format!("account {account}, {}", identity.arn().unwrap_or("unknown")))
            }
            Err(error @ SdkError::ServiceError(_)) => {
                let (code, said) = (error.code().unwrap_or("Unknown"), error.message().unwrap_or_default());
                let says = format!("STS does not accept the credentials: {code}: {said}");
                let remedy =
                    "renew or correct them; a session token belongs to its key, and a signature needs the right clock";
                Err(Unidentified::Refused(Trouble::new(classify::shorten(&says), remedy)))
            }
            Err(error) => {
                let says = format!("STS cannot be asked: {}", classify::causes_of(&error));
                let remedy =
                    "check AWS_ENDPOINT_URL_STS, HTTPS_PROXY and AWS_CA_BUNDLE; only roles and this question need STS";
                Err(Unidentified::Unasked(Trouble::new(says, remedy)))
            }
        }
    }
}

fn not_provided((code, detail): (&str, String)) -> Trouble {
    // Such a detail ends with its remedy.
    if let ("RoleNotAssumed", Some((says, remedy))) = (code, detail.split_once("; ")) {
        return Trouble::new(says, remedy);
    }
    let is_nowhere = detail.starts_with("give keys");
    let remedy = if is_nowhere {
        GIVE
    } else {
        "renew or repair them where they come from (aws sso login, aws login, the token file, the agent)"
    };
    Trouble::new(detail, remedy)
}

/// Where credentials come from, and how they are renewed.
struct Source {
    name: String,
    renewal: &'static str,
}

impl Source {
    fn of(credentials: &Credentials, profile: &str, has_role: bool) -> Self {
        let provider = provider_of(credentials);
        let other = "have them renewed where they come from";
        let (name, renewal) = match provider.as_str() {
            "EnvironmentVariable" => ("the environment (AWS_ACCESS_KEY_ID)".to_owned(), "set new ones"),
            "ProfileFile" => (format!("profile {profile}"), "write new ones into the profile"),
            "SSO" => (format!("Identity Center, profile {profile}"), "run aws sso login"),
            "Login" => (format!("aws login, profile {profile}"), "run aws login"),
            "CredentialProcess" => (format!("credential_process of profile {profile}"), "repair the process"),
            "WebIdentityToken" => ("STS for a web identity token".to_owned(), "have the token renewed"),
            "AssumeRoleProvider" if has_role => ("STS for this role".to_owned(), other),
            "AssumeRoleProvider" => (format!("STS for the role of profile {profile}"), other),
            "EcsContainer" => ("the agent of ECS or EKS Pod Identity".to_owned(), other),
            "IMDSv2" => ("the metadata service of EC2 (IMDSv2)".to_owned(), other),
            provider => (provider.to_owned(), other),
        };
        Self { name, renewal }
    }
}

/// The SDK shows the provider's name only in this text, which contains no secret.
fn provider_of(credentials: &Credentials) -> String {
    let text = format!("{credentials:?}");
    let name = text.split_once("provider_name: \"").and_then(|(_, rest)| rest.split('"').next());
    name.unwrap_or("an unknown provider").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_provider_is_named_as_people_know_it() {
        let named = |provider: &'static str, has_role| {
            Source::of(&Credentials::new("AKIA", "the-secret", None, None, provider), "relay", has_role).name
        };
        assert_eq!(named("EnvironmentVariable", false), "the environment (AWS_ACCESS_KEY_ID)");
        assert_eq!(named("ProfileFile", false), "profile relay");
        assert_eq!(named("AssumeRoleProvider", false), "STS for the role of profile relay");
        assert_eq!(named("AssumeRoleProvider", true), "STS for this role");
        assert_eq!(named("Something", false), "Something");
    }
}
