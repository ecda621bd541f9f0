//! From signal to exit: the first SIGTERM or SIGINT drains, the second aborts.
//!
//! [`watch`] turns signals into two tokens. Who drains listens to the first, who must give up at once to the second.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two steps of stopping.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Stop taking work, finish what is in flight, record it, leave.
    pub drain: CancellationToken,
    /// Leave now.
    pub abort: CancellationToken,
}

/// Waits for signals for ever: the first one drains, each further one aborts.
///
/// # Errors
///
/// When the operating system refuses to install a signal handler.
pub async fn watch(shutdown: Shutdown) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        if shutdown.drain.is_cancelled() {
            tracing::warn!(signal = name, "second signal, leaving at once; what is in flight may be published again");
            shutdown.abort.cancel();
        } else {
            tracing::info!(
                signal = name,
                "draining: no new requests, waiting for those in flight; a second signal aborts"
            );
            shutdown.drain.cancel();
        }
    }
}
