//! How log lines look: text for people or JSON for machines, on standard error, levels by `RUST_LOG`.
//!
//! House rules: one line per change of state and per problem of a batch, never per message; a failure is logged once,
//! where it is handled; no payload and no secret; identifiers are fields.

use std::io::IsTerminal as _;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, registry};

use crate::config::LogFormat;

/// What is logged when `RUST_LOG` is not set. The SDK's and the pool's own lines repeat what the relay says of the same failure,
/// and notices of PostgreSQL are about objects that exist already.
pub const DEFAULT_FILTER: &str = "info,tokio_postgres=warn,deadpool_postgres=error,deadpool=error,aws_config=warn,aws_runtime=warn,aws_smithy_runtime=error";

/// Tells of each line that is logged.
struct Counting<F>(F);

impl<S: Subscriber, F: Fn(Level) + 'static> Layer<S> for Counting<F> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        (self.0)(*event.metadata().level());
    }
}

/// Installs the subscriber of the process; `on_line` hears the level of each line.
///
/// # Errors
///
/// When the filter cannot be parsed, or a subscriber is installed already.
pub fn install(
    format: LogFormat,
    filter: Option<&str>,
    on_line: impl Fn(Level) + Send + Sync + 'static,
) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter.unwrap_or(DEFAULT_FILTER))
        .map_err(|error| format!("RUST_LOG: {error}; use a level such as info, or target=level pairs"))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // A line that cannot be written would be complained about on the same broken pipe, which panics.
        .log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    registry().with(filter).with(Counting(on_line)).with(lines).try_init().map_err(|error| error.to_string())
}
