//! Requests to end: Ctrl-C, SIGTERM, or a terminal that is gone.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signal listeners; with them, signals no longer end the process by themselves. There is one value for the whole
/// program: a listener created for each wait, like `tokio::signal::ctrl_c`, misses a signal that comes between two
/// waits.
#[derive(Debug)]
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Interrupts {
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Returns at the next signal, which may have come before.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
