//! From signal to exit: the first SIGTERM or SIGINT drains, the second aborts.
//!
//! [`watch`] turns signals into two tokens. Code that drains waits for the first token, code that must stop at once for
//! the second.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two steps of stopping.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Stop taking messages, finish the requests in flight, record the outcomes, exit.
    pub drain: CancellationToken,
    /// Exit now.
    pub abort: CancellationToken,
}

/// The signal handlers; with them, signals no longer end the process by themselves.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers; from now on signals wait for [`watch`].
    ///
    /// # Errors
    ///
    /// When the operating system refuses to install a signal handler.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }
}

/// Handles signals without end: the first one drains, each further one aborts.
pub async fn watch(signals: Signals, shutdown: Shutdown) {
    let Signals { mut terminate, mut interrupt } = signals;
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
