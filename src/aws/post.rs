//! A POST request to a server that is none of AWS's, by the same client as those to AWS: the same TLS, the same proxies.

use std::pin::Pin;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{HttpConnector as _, HttpConnectorSettings, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::Body as _;

use super::http::Ways;
use crate::causes::sentence;

/// Longest time to connect, including TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The most bytes of an answer that are read; the rest is passed over.
const MAX_ANSWER: usize = 64 * 1024;

/// Sends POST requests. Clones share connections.
#[derive(Clone, Debug)]
pub struct Poster(SharedHttpConnector);

/// What the server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status of HTTP.
    pub status: u16,
    /// How long the server wants to be left alone, if it says so in seconds.
    pub retry_after: Option<Duration>,
    /// The beginning of the body.
    pub body: Vec<u8>,
}

impl Poster {
    /// Trusts the certificates of this bundle, or the system's; waits so long for the head of an answer.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(ca_bundle: Option<&[u8]>, timeout: Duration) -> Result<Self, String> {
        let settings = HttpConnectorSettings::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            .read_timeout(timeout)
            .build();
        Ok(Self(Ways::new(ca_bundle)?.connector(&settings)))
    }

    /// Sends a request. The caller bounds the time.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub async fn post(
        &self,
        url: &str,
        headers: impl Iterator<Item = (&str, &str)>,
        body: Bytes,
    ) -> Result<Answer, String> {
        let mut request = HttpRequest::new(SdkBody::from(body));
        request.set_method("POST").map_err(|error| error.to_string())?;
        request.set_uri(url).map_err(|error| error.to_string())?;
        for (name, value) in headers {
            // The values are no part of the error.
            let added = request.headers_mut().try_append(name.to_owned(), value.to_owned());
            added.map_err(|_| format!("the header {name} cannot be sent"))?;
        }
        let response = self.0.call(request).await.map_err(|error| sentence(&error))?;
        let retry_after = response.headers().get("retry-after").and_then(|text| text.trim().parse().ok());
        let status = response.status().as_u16();
        let body = beginning(response.into_body()).await?;
        Ok(Answer { status, retry_after: retry_after.map(Duration::from_secs), body })
    }
}

async fn beginning(mut body: SdkBody) -> Result<Vec<u8>, String> {
    let mut read = Vec::new();
    while read.len() < MAX_ANSWER {
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| sentence(&*error))?;
        read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
    }
    read.truncate(MAX_ANSWER);
    Ok(read)
}
