//! Prints in a thread of its own: a terminal that stands still (Ctrl-S, `| less`) must hold up neither the queues nor the
//! relay.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Prints a text as it is.
pub type Say = fn(&str);

/// How many texts may wait to be printed.
const TEXTS: usize = 16;

/// How long to wait for a terminal that stands still, before a text is left out.
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes texts to print; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Voice(mpsc::Sender<String>);

/// What prints them.
#[derive(Debug)]
pub(super) struct Speaker(JoinHandle<()>);

/// Starts the thread.
pub(super) fn start(say: Say) -> (Voice, Speaker) {
    let (texts, mut waiting) = mpsc::channel::<String>(TEXTS);
    let speaker = tokio::task::spawn_blocking(move || {
        while let Some(text) = waiting.blocking_recv() {
            say(&text);
        }
    });
    (Voice(texts), Speaker(speaker))
}

impl Voice {
    /// Prints a text, unless the terminal stands still.
    pub(super) async fn say(&self, text: String) {
        self.0.send_timeout(text, PATIENCE).await.ok();
    }

    /// Waits until a text can be printed; `None` if nothing is printed any more. Losing the wait loses nothing.
    pub(super) async fn reserve(&self) -> Option<mpsc::Permit<'_, String>> {
        self.0.reserve().await.ok()
    }
}

impl Speaker {
    /// Waits until everything is printed, but not for a terminal that stands still. All voices must be gone.
    pub(super) async fn end(self) {
        timeout(PATIENCE, self.0).await.ok();
    }
}
