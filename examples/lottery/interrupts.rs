//! Being told to end: Ctrl-C, SIGTERM, or a terminal that is gone.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that do not end the process by themselves any more. One value for the whole program: a listener made anew
/// for each wait, as `tokio::signal::ctrl_c` is, hears nothing of a signal that came between two waits.
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
