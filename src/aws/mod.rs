//! What the way to AWS needs, whatever is at its end: an HTTP client that obeys proxies and certificates, and tokens for
//! databases. Credentials come from the SDK. Queues are in [`crate::publisher`]. The same client reaches a collector of spans.

pub mod http;
pub mod missing;
pub mod post;
pub mod rds;
