//! The moment at which a request is written: not after the claim is over, and noted, so that what never left this host is not
//! taken for what SQS may have accepted.
//!
//! Between building a request and writing it lie credentials, signing, and sometimes a new connection, and a process may be
//! stopped in between (SIGSTOP, a suspended machine) and go on when another relay has its lanes. The SDK's interceptors run
//! before the connection is there; the HTTP client asks for the body when it is about to write it. So the body is what
//! looks at the clock. A request whose head was written without its body is none to SQS.

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

/// A request came too late to be written.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the claim was over before the request could be written")]
pub(super) struct TooLate;

/// Watches one request.
#[derive(Clone, Debug)]
pub(super) struct Writing {
    until: Time,
    has_begun: Arc<AtomicBool>,
}

impl Writing {
    /// A request that may be written until then.
    pub(super) fn new(until: Time) -> Self {
        Self { until, has_begun: Arc::default() }
    }

    /// Whether some of it was written, so that SQS may have it.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }
}

tokio::task_local! {
    /// The request that is made in this task: an interceptor of the client is given nothing of the caller's, and one made for
    /// each request costs the SDK as much as a message.
    static WRITING: Writing;
}

/// Makes a request that is watched.
pub(super) async fn watched<T>(writing: Writing, request: impl Future<Output = T>) -> T {
    WRITING.scope(writing, request).await
}

/// Has the client's requests watched.
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
        // Questions about a queue may be written whenever.
        if let Ok(writing) = WRITING.try_with(Writing::clone) {
            let body = context.request_mut().body_mut();
            let inner = std::mem::replace(body, SdkBody::taken());
            *body = SdkBody::from_body_1_x(Watched { inner, writing });
        }
        Ok(())
    }
}

/// A body that looks at the clock when it is asked for.
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
