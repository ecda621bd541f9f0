//! Sessions of tests whose SQL is rewritten on the way to the server, for a schema of another name ([`super::schema`]).
//!
//! Statements pass here as messages of PostgreSQL's protocol (PostgreSQL documentation, "Message Formats"). So tests use the
//! driver as always, and no statement of theirs is left out. Parameters and answers stay as they are.

use std::io::{Error, ErrorKind, Result as IoResult};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter, DuplexStream};
use tokio::net::TcpStream;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, NoTls};

use super::schema::Schema;

/// Bytes under way in each direction.
const UNDER_WAY: usize = 64 * 1024;

/// The longest message; longer ones are a fault of this file.
const LONGEST: u32 = 1 << 30;

/// Opens a session at a port of one host. The test's runtime drives it.
pub(super) async fn connect(url: &str, schema: &'static Schema) -> Result<Client> {
    let config: Config = url.parse()?;
    let ([Host::Tcp(host)], [port]) = (config.get_hosts(), config.get_ports()) else {
        bail!("not one host and its port: {:?}", config.get_hosts())
    };
    let server = TcpStream::connect((host.as_str(), *port)).await.with_context(|| format!("{host}:{port}"))?;
    server.set_nodelay(true)?;
    let (near, far) = tokio::io::duplex(UNDER_WAY);
    // It ends with the session, from either side.
    tokio::spawn(carry(far, server, schema));
    let (client, connection) = config.connect_raw(near, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn carry(client: DuplexStream, server: TcpStream, schema: &Schema) {
    let (from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, to_server) = server.into_split();
    let (mut from_client, mut to_server) = (BufReader::new(from_client), BufWriter::new(to_server));
    // Either side may end the session.
    tokio::select! {
        _ = rewrite(&mut from_client, &mut to_server, schema) => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
    // The last words of the client.
    to_server.flush().await.ok();
}

/// Carries messages until the client ends.
async fn rewrite<T: AsyncRead + Unpin>(
    from: &mut BufReader<T>,
    to: &mut (impl AsyncWrite + Unpin),
    schema: &Schema,
) -> IoResult<()> {
    // The first message has no kind.
    let startup = body(from).await?;
    write(to, None, &startup).await?;
    loop {
        // What belongs together goes together.
        if from.buffer().is_empty() {
            to.flush().await?;
        }
        let kind = from.read_u8().await?;
        let body = rewritten(kind, body(from).await?, schema)?;
        write(to, Some(kind), &body).await?;
    }
}

/// A length, which counts itself, and as many bytes.
async fn body(from: &mut (impl AsyncRead + Unpin)) -> IoResult<Vec<u8>> {
    let length = from.read_u32().await?;
    let length = length.checked_sub(4).filter(|length| *length < LONGEST).ok_or(ErrorKind::InvalidData)?;
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body).await?;
    Ok(body)
}

async fn write(to: &mut (impl AsyncWrite + Unpin), kind: Option<u8>, body: &[u8]) -> IoResult<()> {
    if let Some(kind) = kind {
        to.write_u8(kind).await?;
    }
    to.write_u32(u32::try_from(body.len() + 4).map_err(Error::other)?).await?;
    to.write_all(body).await
}

/// Query has a text, Parse a name, a text and types; each text ends with a zero.
fn rewritten(kind: u8, body: Vec<u8>, schema: &Schema) -> IoResult<Vec<u8>> {
    let zero = |from: usize| body.iter().skip(from).position(|byte| *byte == 0).map(|at| from + at);
    let begins = match kind {
        b'Q' => Some(0),
        b'P' => zero(0).map(|end| end + 1),
        _ => return Ok(body),
    };
    let (begins, ends) = begins.zip(begins.and_then(zero)).ok_or(ErrorKind::InvalidData)?;
    let text = std::str::from_utf8(&body[begins..ends]).map_err(Error::other)?;
    Ok([&body[..begins], schema.sql(text).as_bytes(), &body[ends..]].concat())
}
