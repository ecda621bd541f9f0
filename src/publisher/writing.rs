//! The moment when a request is written. It must not be written after the claim has ended. The moment is noted, so that
//! a request which never left this host does not count as possibly accepted.
//!
//! Between building a request and writing it come credentials, signing, and sometimes a new connection. A process may
//! be stopped in between (SIGSTOP, a suspended machine) and resume when another relay has its lanes. The SDK's
//! interceptors run before the connection exists; the HTTP client asks for the body when it is about to write it. So
//! the body checks the clock. For SQS a request whose head was written without its body is no request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use aws_sdk_sqs::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_sqs::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sqs::error::BoxError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::clock::Time;

/// The request came too late to be written.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the claim had ended before the request could be written")]
pub(super) struct TooLate;

/// Watches the writing of one request.
#[derive(Clone, Debug)]
pub(super) struct Writing {
    until: Time,
    has_begun: Arc<AtomicBool>,
}

impl Writing {
    /// Allows a request to be written until then.
    pub(super) fn new(until: Time) -> Self {
        Self { until, has_begun: Arc::default() }
    }

    /// Whether any of it was written, so that SQS may have it.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }
}

tokio::task_local! {
    /// The request made in this task. A task-local, because an interceptor of the client gets nothing from the caller,
    /// and creating an interceptor for each request costs the SDK as much as a message.
    static WRITING: Writing;
}

/// Runs a request that is watched.
pub(super) async fn watched<T>(writing: Writing, request: impl Future<Output = T>) -> T {
    WRITING.scope(writing, request).await
}

/// The interceptor that watches the client's requests.
#[derive(Debug)]
pub(super) struct Watching;

impl Intercept for Watching {
    fn name(&self) -> &'static str {
        "Watching"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // Questions about a queue may be written at any time.
        if let Ok(writing) = WRITING.try_with(Writing::clone) {
            let body = context.request_mut().body_mut();
            let inner = std::mem::replace(body, SdkBody::taken());
            *body = SdkBody::from_body_1_x(Watched { inner, writing });
        }
        Ok(())
    }
}

/// A body that checks the clock when it is polled.
struct Watched {
    inner: SdkBody,
    writing: Writing,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.writing.has_begun() && Time::now() >= self.writing.until {
            return Poll::Ready(Some(Err(TooLate.into())));
        }
        self.writing.has_begun.store(true, Ordering::Release);
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn poll(writing: &Writing) -> Option<Result<Frame<Bytes>, BoxError>> {
        let mut body = Watched { inner: SdkBody::from("body"), writing: writing.clone() };
        assert_eq!(body.size_hint().exact(), Some(4));
        match Pin::new(&mut body).poll_frame(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(frame) => frame,
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_body_is_written_in_time_and_that_is_noted() {
        let writing = Writing::new(Time::now() + Duration::from_secs(60));
        assert!(!writing.has_begun());
        assert!(poll(&writing).unwrap().is_ok());
        assert!(writing.has_begun());
    }

    #[test]
    fn a_body_is_not_written_too_late() {
        let writing = Writing::new(Time::now());
        assert!(poll(&writing).unwrap().is_err());
        assert!(!writing.has_begun());
    }
}
