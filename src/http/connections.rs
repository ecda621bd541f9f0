//! Serves connections within limits: a slow, silent or hostile client costs a bounded number of files and bytes, and cannot
//! keep others from being answered.
//!
//! There may be [`MOST`] connections. One more ends the oldest, but not before that has had [`SPARED`]: an honest answer
//! takes milliseconds, so a probe is answered even while somebody opens connections and says nothing. Somebody who opens
//! them faster than they may be ended makes others wait in the kernel's queue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// The most connections at a time.
const MOST: usize = 32;

/// How long a connection is never ended for another one.
const SPARED: Duration = Duration::from_millis(100);

/// How long a client may take for the head of a request, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection may last; clients such as Prometheus open another one.
const LONGEST: Duration = Duration::from_secs(300);

/// The most bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;

/// The pause after the listener failed: for example, no file may be opened now.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Serves until told to stop; then the requests that are being answered are finished.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let (mut tasks, mut open) = (JoinSet::new(), VecDeque::<(Instant, AbortHandle)>::new());
    loop {
        open.retain(|(_, connection)| !connection.is_finished());
        let oldest = if open.len() >= MOST { open.front() } else { None };
        let spared = oldest.map_or(Duration::ZERO, |(accepted, _)| SPARED.saturating_sub(accepted.elapsed()));
        tokio::select! {
            () = tokio::time::sleep(spared), if !spared.is_zero() => {}
            accepted = listener.accept(), if spared.is_zero() => match accepted {
                Ok((stream, _)) => {
                    if open.len() >= MOST && let Some((_, oldest)) = open.pop_front() {
                        oldest.abort();
                    }
                    let handle = tasks.spawn(connection(stream, router.clone(), stop.clone()));
                    open.push_back((Instant::now(), handle));
                    // The connections that are open get their turn before the next one.
                    tokio::task::yield_now().await;
                }
                Err(_) => tokio::time::sleep(AFTER_FAILURE).await,
            },
            Some(_) = tasks.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES);
    let service = TowerToHyperService::new(router);
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut is_told = false;
    let whole = async {
        loop {
            tokio::select! {
                // A client that breaks off is no failure of the relay.
                _ = served.as_mut() => return,
                () = stop.cancelled(), if !is_told => {
                    is_told = true;
                    served.as_mut().graceful_shutdown();
                }
            }
        }
    };
    // An error means that the time is over.
    tokio::time::timeout(LONGEST, whole).await.ok();
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpStream as Blocking;

    use axum::routing::get;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_although_many_connections_came_right_behind_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut honest = Blocking::connect(address).unwrap();
        honest.write_all(b"GET / HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n").unwrap();
        let silent: Vec<Blocking> = (0..2 * MOST).map(|_| Blocking::connect(address).unwrap()).collect();
        // All of them wait to be accepted before the first one can be.
        let router = Router::new().route("/", get(async || "well"));
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, router, stop.clone()));
        honest.set_nonblocking(true).unwrap();
        let (mut honest, mut answer) = (TcpStream::from_std(honest).unwrap(), String::new());
        let read = tokio::time::timeout(Duration::from_secs(30), honest.read_to_string(&mut answer)).await;
        assert!(read.is_ok_and(|read| read.is_ok()) && answer.ends_with("well"), "{answer:?}");
        drop(silent);
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(30), serving).await.unwrap().unwrap();
    }
}
