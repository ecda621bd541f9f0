//! What is asked of S3, and what becomes of its answers, through the real SDK.

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};

use super::super::access::{Parts, Source, make_s3};
use super::super::endpoint::Route;
use super::super::entry::compose;
use super::*;
use crate::message::{
    Accepts, BodyForm, ClaimCheck, Content, DestinationKind, Event, EventPosition, Lane, Message, MessageId,
    MessageKey, Origin,
};

const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/0a";

/// Notes the headers of each request, and answers them all in the same way.
#[derive(Clone, Debug)]
struct Server {
    status: u16,
    code: &'static str,
    asked: Arc<Mutex<Vec<HashMap<String, String>>>>,
}

impl Server {
    fn new(status: u16, code: &'static str) -> Self {
        Self { status, code, asked: Arc::default() }
    }

    fn bucket(&self, key: Option<&str>) -> Bucket {
        let connector = SharedHttpConnector::new(self.clone());
        let source = Source { http_client: http_client_fn(move |_, _| connector.clone()), region: None };
        let route = Route::new("eu-west-1".to_owned(), Some("http://s3.example".to_owned()));
        let parts = Parts {
            source,
            route,
            role: None,
            sts_region: "eu-west-1".to_owned(),
            request_timeout: Duration::from_secs(5),
        };
        let credentials = SharedCredentialsProvider::new(Credentials::new("key", "secret", None, None, "test"));
        let shared = SdkConfig::builder().behavior_version(BehaviorVersion::v2026_01_12());
        let shared = shared.credentials_provider(credentials).build();
        let config = ClaimCheckConfig {
            bucket: "bodies".to_owned(),
            prefix: "large/".to_owned(),
            above: None,
            key: key.map(str::to_owned),
            max_bytes: 1 << 24,
        };
        Bucket::new(Arc::new(Access::new(parts, make_s3, shared)), &config)
    }
}

impl HttpConnector for Server {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let headers = request.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        self.asked.lock().unwrap().push(headers);
        let body = match self.code {
            "" => String::new(),
            code => format!("<Error><Code>{code}</Code><Message>Because.</Message></Error>"),
        };
        HttpConnectorFuture::ready(Ok(HttpResponse::new(self.status.try_into().unwrap(), body.into())))
    }
}

/// An entry whose body goes to the bucket.
fn entry() -> Entry {
    let event = Event {
        event_id: "e".to_owned(),
        event_type: "T".to_owned(),
        stream: None,
        body: "x".repeat(2000),
        form: BodyForm::Json,
        metadata: "{}".to_owned(),
    };
    let message = Message {
        key: MessageKey { lane: Lane::new(0).unwrap(), id: MessageId(1) },
        origin: Origin { event_position: EventPosition(1), enqueued_at: std::time::SystemTime::UNIX_EPOCH },
        group: None,
        attempts: 0,
        superseded: None,
        age_when_read: Duration::ZERO,
        read_at: Time::now(),
        wait: None,
        hold: None,
        content: Content::Event(event),
    };
    let claim_check = ClaimCheck {
        bucket: "bodies".to_owned(),
        prefix: "large/".to_owned(),
        relay: "r1".to_owned(),
        above: 1024,
        max_bytes: 1 << 24,
    };
    let accepts = Accepts { claim_check: Some(Arc::new(claim_check)), ..Accepts::queue(DestinationKind::Standard) };
    compose(message, &accepts).unwrap().entry
}

fn soon() -> Time {
    Time::now() + Duration::from_secs(60)
}

#[tokio::test]
async fn check_asks_for_the_encryption_that_the_relay_asks_for() {
    for key in [None, Some(KEY)] {
        let server = Server::new(200, "");
        let bucket = server.bucket(key);
        bucket.store(&[&entry()], soon()).await.unwrap();
        bucket.may_store().await.unwrap();
        let asked = server.asked.lock().unwrap();
        let [stored, tried] = &asked[..] else { unreachable!("two requests: {asked:?}") };
        for name in ["x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id", "content-type"] {
            assert_eq!(tried.get(name), stored.get(name), "{name}");
        }
        let name = "x-amz-server-side-encryption-aws-kms-key-id";
        assert_eq!(stored.get(name).map(String::as_str), key);
    }
}

#[tokio::test]
async fn a_token_that_s3_refuses_has_all_providers_asked_again() {
    for code in ["ExpiredToken", "InvalidToken", "TokenRefreshRequired"] {
        let bucket = Server::new(400, code).bucket(None);
        let refused = bucket.access.current();
        let fault = bucket.store(&[&entry()], soon()).await.unwrap_err().fault;
        assert!(fault.kind == FaultKind::Destination && fault.code.starts_with("S3."), "{fault}");
        assert!(!bucket.access.current().is(&refused), "{code}: another client");
    }
}

#[tokio::test]
async fn a_body_is_not_stored_again_until_its_message_was_written() {
    let server = Server::new(200, "");
    let (bucket, entry) = (server.bucket(None), entry());
    for expected in [1, 1] {
        bucket.store(&[&entry], soon()).await.unwrap();
        assert_eq!(server.asked.lock().unwrap().len(), expected);
    }
    bucket.written(&[&entry]);
    bucket.store(&[&entry], soon()).await.unwrap();
    assert_eq!(server.asked.lock().unwrap().len(), 2);
}
