//! The services that provide credentials, with the wire formats that AWS documents: STS, the portal of Identity Center,
//! the metadata services of EC2, ECS and EKS. All under one address, each credential valid for as long as is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::test_bed::locked;

/// The token of the metadata service of EC2.
const IMDS_TOKEN: &str = "the-token-of-imds";

/// Who asks STS, as STS says it.
pub const CALLER: &str = "arn:aws:sts::111111111111:assumed-role/relay/session";

/// What was asked, and how to answer.
#[derive(Debug)]
struct Shared {
    valid_for: Duration,
    is_down: AtomicBool,
    asked: AtomicUsize,
    /// The last request to each service: path, form, and the header that authorizes it.
    last: Mutex<BTreeMap<&'static str, String>>,
    /// What was given for roles.
    given: Mutex<Vec<Given>>,
    /// Roles and access keys that STS refuses.
    refused: Mutex<BTreeSet<String>>,
}

/// Credentials that STS gave for a role.
#[derive(Debug)]
struct Given {
    role: String,
    key: String,
    asked: String,
}

/// The services; they end with the value.
#[derive(Debug)]
pub struct CredentialServices {
    url: String,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl CredentialServices {
    /// Starts them; each credential is valid for so long.
    pub async fn start(valid_for: Duration) -> Result<CredentialServices> {
        let shared = Arc::new(Shared {
            valid_for,
            is_down: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            last: Mutex::default(),
            given: Mutex::default(),
            refused: Mutex::default(),
        });
        let routes = Router::new()
            .route("/", post(sts))
            .route("/federation/credentials", get(portal))
            .route("/latest/api/token", put(imds_token))
            .route("/latest/meta-data/iam/security-credentials/", get(imds_roles))
            .route("/latest/meta-data/iam/security-credentials/{role}", get(imds_credentials))
            .route("/container", get(container))
            .with_state(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap_or_default() });
        Ok(CredentialServices { url, shared, _task: AbortOnDropHandle::new(task) })
    }

    /// Their address, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on they answer 503, or work again.
    pub fn set_down(&self, is_down: bool) {
        self.shared.is_down.store(is_down, Ordering::SeqCst);
    }

    /// How many credentials were given.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// From now on nobody may assume this role, until [`CredentialServices::allow`].
    pub fn deny(&self, role: &str) {
        locked(&self.shared.refused).insert(role.to_owned());
    }

    /// The role may be assumed again.
    pub fn allow(&self, role: &str) {
        locked(&self.shared.refused).remove(role);
    }

    /// From now on STS does not know this access key.
    pub fn revoke(&self, key: &str) {
        locked(&self.shared.refused).insert(key.to_owned());
    }

    /// The access keys that were given for a role, in this order.
    pub fn keys_of(&self, role: &str) -> Vec<String> {
        let given = locked(&self.shared.given);
        given.iter().filter(|given| given.role == role).map(|given| given.key.clone()).collect()
    }

    /// The last request for a role that was not refused: form, and the header that authorizes it.
    pub fn last_of_role(&self, role: &str) -> String {
        let given = locked(&self.shared.given);
        given.iter().rfind(|given| given.role == role).map(|given| given.asked.clone()).unwrap_or_default()
    }

    /// What the last request to a service was: `sts`, `sso`, `imds` or `container`.
    pub fn last(&self, service: &str) -> String {
        locked(&self.shared.last).get(service).cloned().unwrap_or_default()
    }
}

impl Shared {
    /// Notes a request; `None` while the services are down.
    fn note(&self, service: &'static str, what: String) -> Option<(String, SystemTime)> {
        if self.is_down.load(Ordering::SeqCst) {
            return None;
        }
        locked(&self.last).insert(service, what);
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        Some((format!("ASIA{number:016}"), SystemTime::now() + self.valid_for))
    }
}

fn down() -> Response {
    StatusCode::SERVICE_UNAVAILABLE.into_response()
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// AssumeRole, AssumeRoleWithWebIdentity and GetCallerIdentity of STS, by the query protocol.
async fn sts(State(shared): State<Arc<Shared>>, headers: HeaderMap, form: String) -> Response {
    let authorization = header(&headers, "authorization");
    let field = |name: &str| {
        let value = form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
        value.replace("%3A", ":").replace("%2F", "/")
    };
    let (action, role) = (field("Action"), field("RoleArn"));
    let signer = authorization.split("Credential=").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let refused = locked(&shared.refused).clone();
    if refused.contains(signer) {
        return sts_error("InvalidClientTokenId", "The security token included in the request is invalid.");
    }
    if refused.contains(&role) {
        let message = format!("User: {CALLER} is not authorized to perform: sts:AssumeRole on resource: {role}");
        return sts_error("AccessDenied", &message);
    }
    let noted = format!("{form} {authorization}");
    if action == "GetCallerIdentity" {
        locked(&shared.last).insert("sts", noted);
        return sts_answer(&action, &format!("<Arn>{CALLER}</Arn><UserId>A:b</UserId><Account>111111111111</Account>"));
    }
    let Some((key, expires)) = shared.note("sts", noted.clone()) else { return down() };
    locked(&shared.given).push(Given { role, key: key.clone(), asked: noted });
    let expires = humantime::format_rfc3339_seconds(expires);
    let result = format!(
        "<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>the-secret-of-aws</SecretAccessKey>\
         <SessionToken>session</SessionToken><Expiration>{expires}</Expiration></Credentials>\
         <AssumedRoleUser><AssumedRoleId>A:b</AssumedRoleId><Arn>arn:aws:sts::1:assumed-role/r/b</Arn></AssumedRoleUser>"
    );
    sts_answer(&action, &result)
}

fn sts_answer(action: &str, result: &str) -> Response {
    let body = format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>{result}</{action}Result>\
         </{action}Response>"
    );
    ([("content-type", "text/xml")], body).into_response()
}

fn sts_error(code: &str, message: &str) -> Response {
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{code}</Code>\
         <Message>{message}</Message></Error><RequestId>r</RequestId></ErrorResponse>"
    );
    (StatusCode::FORBIDDEN, [("content-type", "text/xml")], body).into_response()
}

/// GetRoleCredentials of Identity Center.
async fn portal(State(shared): State<Arc<Shared>>, headers: HeaderMap, uri: Uri) -> Response {
    let token = header(&headers, "x-amz-sso_bearer_token");
    let Some((key, expires)) = shared.note("sso", format!("{uri} {token}")) else { return down() };
    let millis = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let millis = u64::try_from(millis).unwrap_or(u64::MAX);
    let credentials = json!({
        "accessKeyId": key, "secretAccessKey": "the-secret-of-aws", "sessionToken": "session", "expiration": millis
    });
    ([("content-type", "application/json")], json!({ "roleCredentials": credentials }).to_string()).into_response()
}

async fn imds_token(State(shared): State<Arc<Shared>>) -> Response {
    if shared.is_down.load(Ordering::SeqCst) {
        return down();
    }
    ([("x-aws-ec2-metadata-token-ttl-seconds", "21600")], IMDS_TOKEN).into_response()
}

async fn imds_roles(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if header(&headers, "x-aws-ec2-metadata-token") != IMDS_TOKEN {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if shared.is_down.load(Ordering::SeqCst) { down() } else { "the-role".into_response() }
}

async fn imds_credentials(
    State(shared): State<Arc<Shared>>,
    Path(role): Path<String>,
    headers: HeaderMap,
    _body: Bytes,
) -> Response {
    if header(&headers, "x-aws-ec2-metadata-token") != IMDS_TOKEN {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some((key, expires)) = shared.note("imds", role) else { return down() };
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let expires = humantime::format_rfc3339_seconds(expires).to_string();
    let credentials = json!({
        "Code": "Success", "LastUpdated": now, "Type": "AWS-HMAC", "AccessKeyId": key,
        "SecretAccessKey": "the-secret-of-aws", "Token": "session", "Expiration": expires
    });
    ([("content-type", "text/plain")], credentials.to_string()).into_response()
}

/// The agents of ECS and of EKS Pod Identity.
async fn container(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let token = header(&headers, "authorization");
    let Some((key, expires)) = shared.note("container", token) else { return down() };
    let expires = humantime::format_rfc3339_seconds(expires).to_string();
    let credentials = json!({
        "AccessKeyId": key, "SecretAccessKey": "the-secret-of-aws", "Token": "session", "Expiration": expires
    });
    ([("content-type", "application/json")], credentials.to_string()).into_response()
}
