//! Requests in the AWS query protocol: a form, answered with XML. SQS still takes them; the SDKs sent them until 2023.
//! Only SendMessage, which is what Debezium Server sends.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use md5::{Digest as _, Md5};
use percent_encoding::percent_decode_str;

use super::ledger::Ledger;
use super::{Hex, micros_since_1970, number_in, reply, wait_as_sqs};

pub(super) async fn answer(body: &[u8], ledger: &RefCell<Ledger>) -> Response<Full<Bytes>> {
    let Some(form) = std::str::from_utf8(body).ok().and_then(fields) else {
        return refuse(400, "MalformedInput");
    };
    let field = |name: &str| form.get(name).map(AsRef::as_ref);
    let (Some("SendMessage"), Some(queue_url), Some(body)) = (field("Action"), field("QueueUrl"), field("MessageBody"))
    else {
        return refuse(400, "UnsupportedOperation");
    };
    if !wait_as_sqs(ledger).await {
        return refuse(503, "ServiceUnavailable");
    }
    let now = micros_since_1970();
    let fifo = queue_url.ends_with(".fifo").then(|| field("MessageDeduplicationId").unwrap_or(body));
    let mut ledger = ledger.borrow_mut();
    ledger.note_entry(number_in(body), field("MessageGroupId"), fifo, now);
    ledger.note_request();
    let digest = Hex(Md5::digest(body.as_bytes()).into());
    let id = fastrand::u128(..);
    let answer = format!(
        "<SendMessageResponse><SendMessageResult><MD5OfMessageBody>{digest}</MD5OfMessageBody>\
         <MessageId>{id:032x}</MessageId></SendMessageResult>\
         <ResponseMetadata><RequestId>{id:032x}</RequestId></ResponseMetadata></SendMessageResponse>"
    );
    reply(200, "text/xml", answer.into())
}

fn refuse(status: u16, code: &str) -> Response<Full<Bytes>> {
    let answer = format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>the stand-in</Message></Error>\
         <RequestId>0</RequestId></ErrorResponse>"
    );
    reply(status, "text/xml", answer.into())
}

fn fields(form: &str) -> Option<HashMap<&str, Cow<'_, str>>> {
    form.split('&').map(|pair| pair.split_once('=').and_then(|(name, value)| Some((name, decoded(value)?)))).collect()
}

fn decoded(value: &str) -> Option<Cow<'_, str>> {
    if value.contains('+') {
        let spaced = value.replace('+', " ");
        return Some(Cow::Owned(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned()));
    }
    percent_decode_str(value).decode_utf8().ok()
}
