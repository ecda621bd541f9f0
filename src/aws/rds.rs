//! Tokens of IAM for RDS and Aurora: a signed URL that the server takes as a password for 15 minutes (Amazon RDS User Guide,
//! "IAM database authentication"). A session lasts longer than the token that opened it.

use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{http, missing};
use crate::causes;

/// How long the server takes a token.
const VALID_FOR: Duration = Duration::from_secs(900);

/// How long to wait for credentials; some providers ask a service over the network.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);

/// What Signature Version 4 leaves as it is.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Makes tokens, with the credentials of the moment.
#[derive(Clone, Debug)]
pub struct Tokens {
    http_client: SharedHttpClient,
}

impl Tokens {
    /// Trusts the certificates of this bundle on the way to services that give credentials, or the system's.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(ca_bundle: Option<&[u8]>) -> Result<Self, String> {
        Ok(Self { http_client: http::client(ca_bundle)? })
    }

    /// A token for a role at an endpoint. The endpoint must be the instance's own name: the server refuses a token for an
    /// alias.
    ///
    /// # Errors
    ///
    /// One sentence: no credentials, or no region.
    pub async fn token(&self, host: &str, port: u16, user: &str) -> Result<String, String> {
        let loader = || aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(self.http_client.clone());
        let made = async {
            let config = match region_of(host) {
                Some(region) => loader().region(Region::new(region.to_owned())).load().await,
                None => loader().load().await,
            };
            let region = config.region().map(ToString::to_string).filter(|region| !region.trim().is_empty());
            let Some(region) = region else {
                return Err(format!("no region for a token of IAM: {host:?} names none; set AWS_REGION"));
            };
            let provider = config.credentials_provider().ok_or("no credentials for a token of IAM")?;
            let credentials = provider.provide_credentials().await.map_err(|error| {
                let why = missing::providers(&error).unwrap_or_else(|| causes::sentence(&error));
                format!("no credentials for a token of IAM: {why}")
            })?;
            signed(&credentials, &region, (host, port), user, SystemTime::now())
        };
        let in_time = tokio::time::timeout(CREDENTIALS_TIMEOUT, made).await;
        in_time.unwrap_or_else(|_| Err("the credentials for a token of IAM did not arrive in time".to_owned()))
    }
}

/// The region in a name such as `shop.c1a2b3.eu-west-1.rds.amazonaws.com`.
fn region_of(host: &str) -> Option<&str> {
    let name = host.strip_suffix(".cn").unwrap_or(host).strip_suffix(".amazonaws.com")?.strip_suffix(".rds")?;
    name.rsplit('.').next().filter(|region| region.contains('-'))
}

fn signed(
    credentials: &Credentials,
    region: &str,
    (host, port): (&str, u16),
    user: &str,
    now: SystemTime,
) -> Result<String, String> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        format!("a token of IAM cannot be made: {}", causes::sentence(error))
    };
    let mut settings = SigningSettings::default();
    settings.expires_in = Some(VALID_FOR);
    settings.signature_location = SignatureLocation::QueryParams;
    let identity = credentials.clone().into();
    let parameters =
        v4::SigningParams::builder().identity(&identity).region(region).name("rds-db").time(now).settings(settings);
    let parameters = parameters.build().map_err(|error| failed(&error))?;
    let encoded = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
    let mut url = format!("https://{host}:{port}/?Action=connect&DBUser={}", encoded(user));
    let request = SignableRequest::new("GET", url.clone(), std::iter::empty(), SignableBody::Bytes(&[]));
    let request = request.map_err(|error| failed(&error))?;
    let (instructions, _) = sign(request, &parameters.into()).map_err(|error| failed(&error))?.into_parts();
    for (name, value) in instructions.params() {
        url.push_str(&format!("&{name}={}", encoded(value)));
    }
    Ok(url.trim_start_matches("https://").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_part_of_the_endpoints_name() {
        let table = [
            ("shop.c1a2b3.eu-west-1.rds.amazonaws.com", Some("eu-west-1")),
            ("shop.cluster-ro-c1a2b3.us-gov-west-1.rds.amazonaws.com", Some("us-gov-west-1")),
            ("shop.proxy-c1a2b3.cn-north-1.rds.amazonaws.com.cn", Some("cn-north-1")),
            ("database.example", None),
            ("localhost", None),
            ("rds.amazonaws.com", None),
        ];
        for (host, region) in table {
            assert_eq!(region_of(host), region, "{host}");
        }
    }

    /// The parts are those of `aws rds generate-db-auth-token`; the signature is checked by a server in
    /// tests/it/rds_iam.rs.
    #[test]
    fn a_token_is_a_signed_url_without_its_scheme() {
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", Some("session/token".to_owned()), None, "test");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let place = ("shop.c1.eu-west-1.rds.amazonaws.com", 5432);
        let token = signed(&credentials, "eu-west-1", place, "a@b", now).unwrap();
        assert!(token.starts_with("shop.c1.eu-west-1.rds.amazonaws.com:5432/?Action=connect&DBUser=a%40b&"), "{token}");
        for part in [
            "&X-Amz-Algorithm=AWS4-HMAC-SHA256",
            "&X-Amz-Credential=AKIDEXAMPLE%2F20270115%2Feu-west-1%2Frds-db%2Faws4_request",
            "&X-Amz-Date=20270115T080000Z",
            "&X-Amz-Expires=900",
            "&X-Amz-SignedHeaders=host",
            "&X-Amz-Security-Token=session%2Ftoken",
            "&X-Amz-Signature=",
        ] {
            assert!(token.contains(part), "{part} is not in {token}");
        }
        assert!(!token.contains("secret"));
    }
}
