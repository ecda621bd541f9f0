//! A wire to PostgreSQL that is long, or goes silent: nothing passes any more and nothing is closed, as when a host or a
//! network vanishes without a word.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::bed::locked;

/// The way to one server's port; dropping it closes all connections.
#[derive(Debug)]
pub struct WireCut {
    /// The port that it led to first, which addresses are known by.
    first: u16,
    port: u16,
    wire: Arc<Wire>,
    listener: JoinHandle<()>,
}

/// What the owner and the connections both use.
#[derive(Debug)]
struct Wire {
    /// Where new connections go.
    server: AtomicU16,
    silence: watch::Sender<Silence>,
    /// What a client sends last before the wire goes silent.
    last_words: Mutex<Option<&'static str>>,
    /// How long each byte takes from a client to the server.
    delay: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct Silence {
    /// Whether connections made now are silent from the start.
    is_on: bool,
    /// A connection is silent for ever once this has grown since it was made.
    count: u64,
    /// Silent connections that were made before are closed.
    closed: u64,
}

impl WireCut {
    /// A wire that passes everything on to a port of 127.0.0.1.
    pub async fn start(server: u16) -> Result<WireCut> {
        WireCut::with_delay(server, Duration::ZERO).await
    }

    /// The same, with a round trip that takes this much longer.
    pub async fn with_delay(server: u16, delay: Duration) -> Result<WireCut> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (silence, last_words) = (watch::Sender::default(), Mutex::default());
        let wire = Arc::new(Wire { server: AtomicU16::new(server), silence, last_words, delay });
        let listener = tokio::spawn(listen(listener, Arc::clone(&wire)));
        Ok(WireCut { first: server, port, wire, listener })
    }

    /// The same address through this wire.
    pub fn url(&self, direct: &str) -> String {
        direct.replace(&format!(":{}/", self.first), &format!(":{}/", self.port))
    }

    /// New connections go to another server's port, as when a name is given to the server that takes over.
    pub fn lead_to(&self, server: u16) {
        self.wire.server.store(server, Ordering::Relaxed);
    }

    /// From now on nobody hears anything, whoever connects included.
    pub fn go_silent(&self) {
        self.wire.go_silent();
    }

    /// Goes silent as soon as a client has said this, which still arrives.
    pub fn go_silent_after(&self, last_words: &'static str) {
        *locked(&self.wire.last_words) = Some(last_words);
    }

    /// Waits for that.
    pub async fn wait_until_silent(&self) -> Result<()> {
        self.wire.silence.subscribe().wait_for(|silence| silence.is_on).await?;
        Ok(())
    }

    /// Closes what is silent, as a server's keepalive does in the end.
    pub fn close_silent_connections(&self) {
        self.wire.silence.send_modify(|silence| silence.closed = silence.count);
    }

    /// New connections work again; the old ones never will.
    pub fn serve_new_connections(&self) {
        self.wire.silence.send_modify(|silence| silence.is_on = false);
    }
}

impl Drop for WireCut {
    fn drop(&mut self) {
        // The connections are the listener's tasks and end with it.
        self.listener.abort();
    }
}

impl Wire {
    fn go_silent(&self) {
        self.silence.send_modify(|silence| *silence = Silence { is_on: true, count: silence.count + 1, ..*silence });
    }

    /// How much of what was said still arrives, if the last words are in it, which are waited for only once. A COMMIT behind
    /// them does not: `Q`, four bytes of length, then its text.
    fn last_bytes(&self, said: &[u8]) -> Option<usize> {
        let mut last_words = locked(&self.last_words);
        let find = |words: &[u8], from: usize| said[from..].windows(words.len()).position(|part| part == words);
        let at = (*last_words).and_then(|last| find(last.as_bytes(), 0))?;
        *last_words = None;
        Some(find(b"COMMIT", at).map_or(said.len(), |commit| at + commit - 5))
    }
}

async fn listen(listener: TcpListener, wire: Arc<Wire>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(connect(client, Arc::clone(&wire)));
    }
}

async fn connect(client: TcpStream, wire: Arc<Wire>) {
    let mut silence = wire.silence.subscribe();
    let now = *silence.borrow();
    if now.is_on {
        // The socket stays open, and nobody reads from it.
        silence.wait_for(|silence| silence.closed >= now.count).await.ok();
        return;
    }
    let server = wire.server.load(Ordering::Relaxed);
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let mut closed = silence.clone();
    let silenced = async move {
        silence.wait_for(|silence| silence.count > now.count).await.ok();
    };
    tokio::select! {
        biased;
        () = silenced => {
            closed.wait_for(|silence| silence.closed > now.count).await.ok();
        }
        () = async {
            match wire.delay {
                Duration::ZERO => pass(&mut from_client, &mut to_server, Some(&wire)).await,
                delay => pass_later(&mut from_client, &mut to_server, delay).await,
            }
        } => {}
        () = pass(&mut from_server, &mut to_client, None) => {}
    }
}

/// Passes bytes on, each after some time, until one side closes.
async fn pass_later(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, delay: Duration) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            if sender.send((Instant::now() + delay, bytes[..count].to_vec())).is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((at, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

/// Passes bytes on until one side closes, or the sender has said its last words.
async fn pass(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, wire: Option<&Wire>) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let last = wire.and_then(|wire| wire.last_bytes(&bytes[..count]));
        if to.write_all(&bytes[..last.unwrap_or(count)]).await.is_err() {
            return;
        }
        if let Some(wire) = wire.filter(|_| last.is_some()) {
            wire.go_silent();
            std::future::pending::<()>().await;
        }
    }
}
