//! An HTTP proxy, as companies have it: CONNECT for https, absolute URLs for http, a user and a password if wanted.
//!
//! Whatever host it is asked for, it connects to 127.0.0.1 at that port. So names work that only the proxy can resolve.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::test_bed::locked;

/// The longest head of a request.
const MAX_HEAD: usize = 16 * 1024;

/// A proxy; it ends with the value.
#[derive(Debug)]
pub struct HttpProxy {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl HttpProxy {
    /// Starts one that wants this value of the header Proxy-Authorization, if any.
    pub async fn start(authorization: Option<&str>) -> Result<HttpProxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (notes, wanted) = (Arc::clone(&asked), authorization.map(str::to_owned));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (notes, wanted) = (Arc::clone(&notes), wanted.clone());
                tokio::spawn(async move { serve(client, &notes, wanted.as_deref()).await.ok() });
            }
        });
        Ok(HttpProxy { port, asked, _task: AbortOnDropHandle::new(task) })
    }

    /// The port of 127.0.0.1 where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The first line of each connection's first request that it accepted.
    pub fn asked(&self) -> Vec<String> {
        locked(&self.asked).clone()
    }
}

async fn serve(mut client: TcpStream, notes: &Mutex<Vec<String>>, wanted: Option<&str>) -> Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MAX_HEAD {
        if client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let given = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("proxy-authorization").then(|| value.trim().to_owned())
    });
    if wanted.is_some_and(|wanted| given.as_deref() != Some(wanted)) {
        client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await?;
        return Ok(());
    }
    let line = text.lines().next().context("an empty request")?.to_owned();
    let target = line.split(' ').nth(1).context("no target")?;
    let is_connect = line.starts_with("CONNECT ");
    let authority = target.split("://").last().unwrap_or(target).split('/').next().unwrap_or(target);
    let port = authority.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).context("no port")?;
    locked(notes).push(line.clone());
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    if is_connect {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        server.write_all(&head).await?;
    }
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
