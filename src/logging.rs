//! How log lines look: text for people or JSON for machines, on standard error, levels by `RUST_LOG`.
//!
//! House rules: one line per change of state and per problem of a batch, never per message; a failure is logged once,
//! where it is handled; no payload and no secret; identifiers are fields.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// What is logged when `RUST_LOG` is not set. The SDK's and the pool's own lines repeat what the relay says of the same failure,
/// and notices of PostgreSQL are about objects that exist already.
pub const DEFAULT_FILTER: &str = "info,tokio_postgres=warn,deadpool_postgres=error,deadpool=error,aws_config=warn,aws_runtime=warn,aws_smithy_runtime=error";

/// Installs the subscriber of the process.
///
/// # Errors
///
/// When the filter cannot be parsed, or a subscriber is installed already.
pub fn install(format: LogFormat, filter: Option<&str>) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter.unwrap_or(DEFAULT_FILTER))
        .map_err(|error| format!("RUST_LOG: {error}; use a level such as info, or target=level pairs"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that cannot be written would be complained about on the same broken pipe, which panics.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| error.to_string())
}
