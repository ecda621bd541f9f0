//! A wire to PostgreSQL that adds latency, or goes silent: then nothing passes any more and nothing is closed, as when
//! a host or a network fails without closing connections.

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

use super::test_bed::locked;

/// A wire to the port of one server. All connections are closed when this is dropped.
#[derive(Debug)]
pub struct WireCut {
    /// The port of the first server, which is the one in URLs.
    first: u16,
    port: u16,
    wire: Arc<Wire>,
    listener: JoinHandle<()>,
}

/// What the owner and the connections share.
#[derive(Debug)]
struct Wire {
    /// Where new connections go.
    server: AtomicU16,
    silence: watch::Sender<Silence>,
    /// A text: the wire goes silent once a client has sent it.
    last_words: Mutex<Option<&'static str>>,
    /// How long each byte takes from client to server.
    delay: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct Silence {
    /// Whether new connections are silent from the start.
    is_on: bool,
    /// How often the wire has gone silent. Connections from before the last time stay silent for ever.
    count: u64,
    /// The `count` up to which silent connections are closed.
    closed: u64,
}

impl WireCut {
    /// A wire that forwards everything to a port of 127.0.0.1.
    pub async fn start(server: u16) -> Result<WireCut> {
        WireCut::with_delay(server, Duration::ZERO).await
    }

    /// The same, but each round trip takes longer by `delay`.
    pub async fn with_delay(server: u16, delay: Duration) -> Result<WireCut> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (silence, last_words) = (watch::Sender::default(), Mutex::default());
        let wire = Arc::new(Wire { server: AtomicU16::new(server), silence, last_words, delay });
        let listener = tokio::spawn(listen(listener, Arc::clone(&wire)));
        Ok(WireCut { first: server, port, wire, listener })
    }

    /// The same URL through this wire.
    pub fn url(&self, direct: &str) -> String {
        direct.replace(&format!(":{}/", self.first), &format!(":{}/", self.port))
    }

    /// New connections go to the port of another server, as when a host name moves to a promoted standby.
    pub fn lead_to(&self, server: u16) {
        self.wire.server.store(server, Ordering::Relaxed);
    }

    /// Goes silent now, for new connections as well.
    pub fn go_silent(&self) {
        self.wire.go_silent();
    }

    /// Goes silent as soon as a client has sent this text. The text itself still arrives.
    pub fn go_silent_after(&self, last_words: &'static str) {
        *locked(&self.wire.last_words) = Some(last_words);
    }

    /// Waits until the wire is silent.
    pub async fn wait_until_silent(&self) -> Result<()> {
        self.wire.silence.subscribe().wait_for(|silence| silence.is_on).await?;
        Ok(())
    }

    /// Closes the silent connections, as a server's keepalive does eventually.
    pub fn close_silent_connections(&self) {
        self.wire.silence.send_modify(|silence| silence.closed = silence.count);
    }

    /// New connections work again; the silent ones stay silent.
    pub fn serve_new_connections(&self) {
        self.wire.silence.send_modify(|silence| silence.is_on = false);
    }
}

impl Drop for WireCut {
    fn drop(&mut self) {
        // The connections are tasks of the listener and end with it.
        self.listener.abort();
    }
}

impl Wire {
    fn go_silent(&self) {
        self.silence.send_modify(|silence| *silence = Silence { is_on: true, count: silence.count + 1, ..*silence });
    }

    /// How many of these bytes still arrive, if they contain the last words; these count only once. A COMMIT after them
    /// does not arrive: its message is `Q`, four bytes of length, then the text.
    fn last_bytes(&self, sent: &[u8]) -> Option<usize> {
        let mut last_words = locked(&self.last_words);
        let find = |words: &[u8], from: usize| sent[from..].windows(words.len()).position(|part| part == words);
        let at = (*last_words).and_then(|last| find(last.as_bytes(), 0))?;
        *last_words = None;
        Some(find(b"COMMIT", at).map_or(sent.len(), |commit| at + commit - 5))
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
        // The socket stays open, and nothing reads from it.
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

/// Forwards bytes, each after `delay`, until one side closes.
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

/// Forwards bytes until one side closes, or until the client has sent its last words.
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
