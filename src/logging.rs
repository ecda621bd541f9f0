//! The form of log lines: text for people or JSON for machines, on standard error, with levels by `RUST_LOG`.
//!
//! Rules: one line per change of state and per problem of a batch, never per message; a failure is logged once, where
//! it is handled; no payloads and no secrets; identifiers are fields.

use std::io::IsTerminal as _;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, registry};

use crate::config::LogFormat;

/// The filter when `RUST_LOG` is not set. The lines of the SDK and the pool repeat what the relay says of the same
/// failure, and PostgreSQL's notices are about objects that exist already.
pub const DEFAULT_FILTER: &str = "info,tokio_postgres=warn,deadpool_postgres=error,deadpool=error,aws_config=warn,aws_config::sts=error,aws_runtime=warn,aws_smithy_runtime=error";

/// Reports the level of each logged line.
struct Counting<F>(F);

impl<S: Subscriber, F: Fn(Level) + 'static> Layer<S> for Counting<F> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        (self.0)(*event.metadata().level());
    }
}

/// Installs the subscriber of the process; `on_line` is called with the level of each line.
///
/// # Errors
///
/// When the filter cannot be parsed, or a subscriber is installed already.
pub fn install(
    format: LogFormat,
    filter: Option<&str>,
    on_line: impl Fn(Level) + Send + Sync + 'static,
) -> Result<(), String> {
    if let Some(odd) = filter.and_then(odd_directive) {
        return Err(format!(
            "RUST_LOG={odd:?} would print nothing; use a level (error, warn, info, debug, trace) or outbox_relay=LEVEL"
        ));
    }
    let filter = EnvFilter::try_new(filter.unwrap_or(DEFAULT_FILTER))
        .map_err(|error| format!("RUST_LOG: {error}; use a level such as info, or target=level pairs"))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // If a line cannot be written, reporting that to the same broken pipe would panic.
        .log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    registry().with(filter).with(Counting(on_line)).with(lines).try_init().map_err(|error| error.to_string())
}

/// A directive that names neither a level nor a module: `warning`, or `outbox-relay=debug` with a hyphen.
fn odd_directive(filter: &str) -> Option<&str> {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    filter.split(',').map(str::trim).filter(|directive| !directive.is_empty()).find(|directive| {
        let target = directive.split(['=', '[']).next().unwrap_or_default();
        let is_bare = target.len() == directive.len();
        let is_level = levels.iter().any(|level| level.eq_ignore_ascii_case(target)) || target.parse::<u8>().is_ok();
        target.contains('-') || (is_bare && !is_level && !target.contains(['_', ':']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directive_that_would_silence_everything_is_odd() {
        for good in [
            "warn",
            "INFO",
            "off",
            "3",
            "outbox_relay=debug",
            "info,hyper=warn",
            "outbox_relay::relay",
            DEFAULT_FILTER,
            "[span]=info",
        ] {
            assert_eq!(odd_directive(good), None, "{good}");
        }
        for (bad, odd) in [("warning", "warning"), ("info,err", "err"), ("outbox-relay=debug", "outbox-relay=debug")] {
            assert_eq!(odd_directive(bad), Some(odd));
        }
    }
}
