//! What the bytes of an answer mean for the entries of a request, through the real SDK.
//!
//! A listener on this machine reads the request and returns the answer of each case; the emulators cannot produce such
//! faults.

use std::sync::Arc;
use std::time::SystemTime;

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future};
use aws_sdk_sqs::config::{IdentityCache, SharedIdentityCache};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::*;
use crate::config::Target;
use crate::message::{
    Accepts, BodyForm, Content, DestinationKind, Event, EventPosition, Lane, Message, MessageId, MessageKey, Origin,
    Service,
};
use crate::publisher::access::{Access, Parts, Source, maker};
use crate::publisher::endpoint::Route;
use crate::publisher::{Composed, compose};

const TIMEOUT: Duration = Duration::from_secs(10);

fn entry(id: i64) -> Entry {
    compose(message(id, "{}", "{}"), &Accepts::queue(DestinationKind::Fifo)).unwrap().entry
}

/// A message with this body and metadata, composed for a FIFO queue or topic.
pub(super) fn entry_for(service: Service, payload: &str, metadata: &str) -> Result<Composed, Fault> {
    compose(message(1, payload, metadata), &Accepts { service, kind: DestinationKind::Fifo, claim_check: None })
}

fn message(id: i64, payload: &str, metadata: &str) -> Message {
    let event = Event {
        event_id: format!("e{id}"),
        event_type: "T".to_owned(),
        stream: None,
        body: payload.to_owned(),
        form: BodyForm::Json,
        metadata: metadata.to_owned(),
    };
    Message {
        key: MessageKey { lane: Lane::new(0).unwrap(), id: MessageId(id) },
        origin: Origin { event_position: EventPosition(id), enqueued_at: SystemTime::UNIX_EPOCH },
        group: None,
        attempts: 0,
        superseded: None,
        age_when_read: Duration::ZERO,
        read_at: Time::now(),
        wait: None,
        hold: None,
        content: Content::Event(event),
    }
}

fn account() -> SdkConfig {
    let credentials = SharedCredentialsProvider::new(Credentials::new("id", "secret", None, None, "test"));
    with_credentials(credentials, IdentityCache::no_cache())
}

fn with_credentials(credentials: SharedCredentialsProvider, cache: SharedIdentityCache) -> SdkConfig {
    let builder = SdkConfig::builder().behavior_version(aws_config::BehaviorVersion::v2026_01_12());
    builder.credentials_provider(credentials).identity_cache(cache).build()
}

fn queue(account: &SdkConfig, endpoint: &str, timeout: Duration) -> Publisher {
    publisher(Service::Sqs, account, endpoint, timeout)
}

fn publisher(service: Service, account: &SdkConfig, endpoint: &str, timeout: Duration) -> Publisher {
    let http_client = aws_smithy_http_client::Builder::new().build_http();
    let route = Route::new("eu-west-1".to_owned(), Some(endpoint.to_owned()));
    let sts_region = route.region.clone();
    let source = Source { http_client, region: None };
    let parts = Parts { source, route, role: None, sts_region, request_timeout: timeout };
    let access = std::sync::Arc::new(Access::new(parts, maker(service), account.clone()));
    let target = match service {
        Service::Sqs => Target::Queue { url: format!("{endpoint}/1/q.fifo") },
        Service::Sns => Target::Topic { arn: "arn:aws:sns:eu-west-1:123456789012:q.fifo".to_owned() },
    };
    Publisher {
        access,
        target,
        accepts: Accepts { service, kind: DestinationKind::Fifo, claim_check: None },
        bucket: None,
    }
}

async fn publish(queue: &Publisher, entries: i64) -> Published {
    let entries: Vec<Entry> = (0..entries).map(entry).collect();
    // tests/it/credentials.rs shows what other credentials do.
    queue
        .publish_with(
            &queue.access.current(),
            &entries.iter().collect::<Vec<_>>(),
            Time::now() + Duration::from_secs(60),
        )
        .await
}

/// Reads one request to its end.
async fn take_request(stream: &mut TcpStream) {
    let mut request = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.unwrap();
        assert!(read > 0, "the request ended early");
        request.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        if body.len() >= length.unwrap().parse().unwrap() {
            return;
        }
    }
}

/// Sends two entries to a listener that answers with these bytes and closes the connection.
async fn after(answer: impl Into<Vec<u8>>) -> Published {
    after_from(Service::Sqs, answer).await
}

/// The same for a service.
pub(super) async fn after_from(service: Service, answer: impl Into<Vec<u8>>) -> Published {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let answer = answer.into();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        take_request(&mut stream).await;
        stream.write_all(&answer).await.unwrap();
    });
    let published = publish(&publisher(service, &account(), &endpoint, TIMEOUT), 2).await;
    server.await.unwrap();
    assert_eq!(published.results.len(), 2);
    published
}

fn answer(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} Status\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

/// The fault of the whole request, which each entry shares.
fn fault(published: &Published) -> &Fault {
    let fault = published.request_fault.as_ref().expect("the request failed");
    assert!(published.results.iter().all(|result| result.as_ref() == Err(fault)), "{published:?}");
    fault
}

/// Codes of a whole request in the query protocol and in the JSON protocol, with their HTTP status and their kind of
/// fault.
const CODES: [(&str, &str, u16, FaultKind); 38] = [
    ("RequestThrottled", "RequestThrottled", 403, FaultKind::Throttle),
    ("Throttling", "Throttling", 400, FaultKind::Throttle),
    ("ThrottlingException", "ThrottlingException", 400, FaultKind::Throttle),
    ("TooManyRequestsException", "TooManyRequestsException", 400, FaultKind::Throttle),
    ("KMS.ThrottlingException", "KmsThrottled", 400, FaultKind::Throttle),
    ("OverLimit", "OverLimit", 403, FaultKind::Throttle),
    ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", 400, FaultKind::Destination),
    ("AWS.SimpleQueueService.QueueDeletedRecently", "QueueDeletedRecently", 400, FaultKind::Destination),
    ("InvalidAddress", "InvalidAddress", 404, FaultKind::Destination),
    ("AWS.SimpleQueueService.UnsupportedOperation", "UnsupportedOperation", 400, FaultKind::Destination),
    ("InvalidSecurity", "InvalidSecurity", 403, FaultKind::Destination),
    ("KMS.AccessDeniedException", "KmsAccessDenied", 400, FaultKind::Destination),
    ("KMS.DisabledException", "KmsDisabled", 400, FaultKind::Destination),
    ("KMS.InvalidStateException", "KmsInvalidState", 400, FaultKind::Destination),
    ("KMS.NotFoundException", "KmsNotFound", 400, FaultKind::Destination),
    ("KMS.InvalidKeyUsageException", "KmsInvalidKeyUsage", 400, FaultKind::Destination),
    ("KMS.OptInRequired", "KmsOptInRequired", 403, FaultKind::Destination),
    ("AccessDenied", "AccessDenied", 403, FaultKind::Destination),
    ("AccessDeniedException", "AccessDeniedException", 400, FaultKind::Destination),
    ("InvalidClientTokenId", "InvalidClientTokenId", 403, FaultKind::Destination),
    ("UnrecognizedClientException", "UnrecognizedClientException", 400, FaultKind::Destination),
    ("SignatureDoesNotMatch", "SignatureDoesNotMatch", 403, FaultKind::Destination),
    ("InvalidSignatureException", "InvalidSignatureException", 400, FaultKind::Destination),
    ("ExpiredToken", "ExpiredTokenException", 403, FaultKind::Destination),
    ("RequestTimeTooSkewed", "RequestTimeTooSkewed", 403, FaultKind::Destination),
    ("AWS.SimpleQueueService.TooManyEntriesInBatchRequest", "TooManyEntriesInBatchRequest", 400, FaultKind::Internal),
    ("AWS.SimpleQueueService.EmptyBatchRequest", "EmptyBatchRequest", 400, FaultKind::Internal),
    ("AWS.SimpleQueueService.BatchEntryIdsNotDistinct", "BatchEntryIdsNotDistinct", 400, FaultKind::Internal),
    ("AWS.SimpleQueueService.InvalidBatchEntryId", "InvalidBatchEntryId", 400, FaultKind::Internal),
    ("AWS.SimpleQueueService.BatchRequestTooLong", "BatchRequestTooLong", 400, FaultKind::MessagePermanent),
    ("InvalidMessageContents", "InvalidMessageContents", 400, FaultKind::MessagePermanent),
    ("InvalidParameterValue", "InvalidParameterValue", 400, FaultKind::Destination),
    ("MissingParameter", "MissingParameter", 400, FaultKind::Destination),
    ("InternalError", "InternalError", 500, FaultKind::ServerError),
    ("InternalFailure", "InternalFailure", 500, FaultKind::ServerError),
    ("ServiceUnavailable", "ServiceUnavailable", 503, FaultKind::ServerError),
    ("SomethingNew", "SomethingNew", 500, FaultKind::ServerError),
    ("SomethingNew", "SomethingNew", 400, FaultKind::Destination),
];

#[tokio::test]
async fn a_code_means_the_same_in_the_header_and_in_the_body() {
    for (header, kind, status, expected) in CODES {
        let body = format!(r#"{{"__type":"com.amazonaws.sqs#{kind}","message":"Because."}}"#);
        let who = if status < 500 { "Sender" } else { "Receiver" };
        let with_header = after(answer(status, &format!("x-amzn-query-error: {header};{who}\r\n"), &body)).await;
        let by_body = after(answer(status, "", &body)).await;
        for (published, code) in [(with_header, header), (by_body, kind)] {
            let fault = fault(&published);
            assert_eq!((fault.kind, fault.code.as_str()), (expected, code), "{fault}");
            assert_eq!(fault.detail, format!("Because. (HTTP {status})"));
        }
    }
}

#[tokio::test]
async fn a_refusal_without_a_readable_code_is_judged_by_its_status() {
    for body in ["", "<html>Bad Gateway</html>", "null", "{\"__type\":"] {
        for (status, expected) in [
            (400, FaultKind::Destination),
            (403, FaultKind::Destination),
            (413, FaultKind::Destination),
            (500, FaultKind::ServerError),
            (502, FaultKind::ServerError),
            (503, FaultKind::ServerError),
        ] {
            let published = after(answer(status, "content-type: text/html\r\n", body)).await;
            assert_eq!(fault(&published).kind, expected, "HTTP {status} with {body:?}: {published:?}");
        }
    }
}

#[tokio::test]
async fn only_entries_named_in_a_successful_answer_count_as_accepted() {
    let accepted = |id: &str| format!(r#"{{"Id":"{id}","MessageId":"m{id}","MD5OfMessageBody":"x"}}"#);
    let list = |ids: &[&str]| ids.iter().map(|id| accepted(id)).collect::<Vec<_>>().join(",");
    let naming = |ids: &[&str]| format!(r#"{{"Successful":[{}],"Failed":[]}}"#, list(ids));
    for (body, accepted) in [
        ("{}".to_owned(), [false, false]),
        (String::new(), [false, false]),
        (r#"{"Successful":null,"Failed":null}"#.to_owned(), [false, false]),
        (r#"{"Successful":[{}],"Failed":[{}]}"#.to_owned(), [false, false]),
        (naming(&["0"]), [true, false]),
        (naming(&["1", "0"]), [true, true]),
        (naming(&["1", "1", "1"]), [false, true]),
        (naming(&["2", "-1", "+1", "x", "", " 0", "00000000000000000000000"]), [false, false]),
        (r#"{"Successful":[{"MessageId":"m"}]}"#.to_owned(), [false, false]),
    ] {
        let published = after(answer(200, "", &body)).await;
        assert_eq!(published.request_fault, None, "{body}");
        for (result, is_accepted) in published.results.iter().zip(accepted) {
            match result {
                Ok(_) => assert!(is_accepted, "{body}: {result:?}"),
                Err(fault) => {
                    assert!(!is_accepted, "{body}: {result:?}");
                    assert_eq!((fault.kind, fault.code.as_str()), (FaultKind::Ambiguous, "Unconfirmed"), "{body}");
                }
            }
        }
    }
}

#[tokio::test]
async fn an_entry_listed_as_failed_twice_fails_once_and_its_neighbour_is_unaffected() {
    let failed = r#"{"Id":"0","Code":"InternalError","SenderFault":false}"#;
    let accepted = r#"{"Id":"1","MessageId":"m1","MD5OfMessageBody":"x"}"#;
    let body = format!(r#"{{"Failed":[{failed},{failed}],"Successful":[{accepted}]}}"#);
    let published = after(answer(200, "", &body)).await;
    assert_eq!(published.results[0].as_ref().unwrap_err().kind, FaultKind::MessageTransient);
    assert_eq!(published.results[1].as_ref().unwrap().sqs_message_id, "m1");
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_leaves_open_what_was_accepted() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"Successful\":[".to_owned();
    let endless = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n{".to_owned();
    let unfinished = answer(200, "", "{\"Successful\":[{\"Id\":\"0\"");
    let not_json = answer(200, "", "<html>Welcome to this hotel</html>");
    let no_http = "220 mail ready\r\n".to_owned();
    for text in [String::new(), "HTTP/1.1 200".to_owned(), no_http, cut, endless, unfinished, not_json] {
        let published = after(text.clone()).await;
        assert_eq!(fault(&published).kind, FaultKind::Ambiguous, "{text:?}: {published:?}");
    }
}

#[tokio::test]
async fn a_request_without_an_answer_may_have_been_accepted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        take_request(&mut stream).await;
        stream
    });
    let published = publish(&queue(&account(), &endpoint, Duration::from_millis(300)), 2).await;
    assert_eq!(fault(&published).kind, FaultKind::Ambiguous, "{published:?}");
    drop(server.await.unwrap());
}

#[tokio::test]
async fn a_connection_that_is_refused_or_never_made_has_sent_nothing() {
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let published = publish(&queue(&account(), &format!("http://{refusing}"), TIMEOUT), 2).await;
    assert_eq!((fault(&published).kind, fault(&published).code.as_str()), (FaultKind::Outage, "NotConnected"));

    // The socket's accept queue is full and nothing accepts, so the system ignores further connections.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(0).unwrap();
    let address = full.local_addr().unwrap();
    let waiting = TcpStream::connect(address).await.unwrap();
    let published = publish(&queue(&account(), &format!("http://{address}"), TIMEOUT), 2).await;
    assert_eq!((fault(&published).kind, fault(&published).code.as_str()), (FaultKind::Outage, "NotConnected"));
    drop((waiting, full));
}

/// A provider that fails.
#[derive(Debug)]
struct Missing(fn() -> CredentialsError);

impl ProvideCredentials for Missing {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err(self.0()))
    }
}

/// A provider that never answers.
#[derive(Debug)]
struct Silent;

impl ProvideCredentials for Silent {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(std::future::pending())
    }
}

#[tokio::test]
async fn without_credentials_nothing_is_sent_and_the_destination_is_at_fault() {
    let causes: [fn() -> CredentialsError; 5] = [
        || CredentialsError::not_loaded("none configured"),
        || CredentialsError::provider_timed_out(Duration::from_secs(1)),
        || CredentialsError::invalid_configuration("no such profile"),
        || CredentialsError::provider_error("the metadata service answered 500"),
        || CredentialsError::unhandled("something else"),
    ];
    let mut providers: Vec<SharedCredentialsProvider> =
        causes.map(|cause| SharedCredentialsProvider::new(Missing(cause))).into();
    providers.push(SharedCredentialsProvider::new(Silent));
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    for provider in providers {
        let cache = IdentityCache::lazy().load_timeout(Duration::from_millis(200)).build();
        let described = format!("{provider:?}");
        let published = publish(&queue(&with_credentials(provider, cache), &endpoint, TIMEOUT), 2).await;
        let fault = fault(&published);
        let found = (fault.kind, fault.code.as_str());
        assert_eq!(found, (FaultKind::Destination, "CredentialsNotAvailable"), "{described}: {fault}");
    }
}
