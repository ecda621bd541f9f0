//! What RDS puts before PostgreSQL: TLS, and a token of IAM as the password. It checks the token as AWS documents it, and
//! hands the session to a real server, which trusts it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::postgres::Cluster;
use super::tls_front::Identity;

/// PostgreSQL's message to ask for TLS.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// PostgreSQL's message to ask for a password in clear text.
const ASK_FOR_PASSWORD: [u8; 9] = [b'R', 0, 0, 0, 8, 0, 0, 0, 3];

/// What it saw of each login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The role.
    pub user: String,
    /// The token, or another password.
    pub token: String,
    /// Why it was refused, if it was.
    pub refused: Option<String>,
}

/// The front; it ends with the value.
#[derive(Debug)]
pub struct RdsFront {
    port: u16,
    authority: String,
    logins: Arc<Mutex<Vec<Login>>>,
    _task: AbortOnDropHandle<()>,
}

/// What a token must be made with.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The host in the token.
    pub host: String,
    /// The region in the token.
    pub region: String,
    /// The keys that may sign.
    pub keys: Vec<(String, String)>,
}

impl RdsFront {
    /// Listens on 127.0.0.1 as the expected host.
    pub async fn before(cluster: &Cluster, expected: Expected) -> Result<RdsFront> {
        let identity = Identity::of(&[&expected.host])?;
        let socket = cluster.socket_folder().join(format!(".s.PGSQL.{}", cluster.port()));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let logins = Arc::new(Mutex::new(Vec::new()));
        let front = Front { expected, port, socket, logins: Arc::clone(&logins), acceptor: identity.acceptor };
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let front = front.clone();
                tokio::spawn(async move { front.serve(client).await.ok() });
            }
        });
        Ok(RdsFront { port, authority: identity.authority, logins, _task: AbortOnDropHandle::new(task) })
    }

    /// The port of 127.0.0.1 where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority's certificate in PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// All logins so far.
    pub fn logins(&self) -> Vec<Login> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Clone)]
struct Front {
    expected: Expected,
    port: u16,
    socket: PathBuf,
    logins: Arc<Mutex<Vec<Login>>>,
    acceptor: TlsAcceptor,
}

impl Front {
    async fn serve(&self, mut client: TcpStream) -> Result<()> {
        let mut request = [0; 8];
        client.read_exact(&mut request).await?;
        ensure!(request == TLS_REQUEST, "a session without TLS");
        client.write_all(b"S").await?;
        let mut client = self.acceptor.accept(client).await?;
        let startup = message(&mut client).await?;
        let user = parameter(&startup, "user").context("no user")?;
        client.write_all(&ASK_FOR_PASSWORD).await?;
        ensure!(client.read_u8().await? == b'p', "no password");
        let password = message(&mut client).await?;
        let token = String::from_utf8(password[4..].to_vec())?.trim_end_matches('\0').to_owned();
        let refused = self.check(&token, &user).err().map(|error| format!("{error:#}"));
        let login = Login { user: user.clone(), token, refused: refused.clone() };
        self.logins.lock().unwrap_or_else(PoisonError::into_inner).push(login);
        if refused.is_some() {
            let text = format!("SFATAL\0VFATAL\0C28000\0MPAM authentication failed for user \"{user}\"\0\0");
            let length = u32::try_from(text.len() + 4)?.to_be_bytes();
            client.write_all(&[b"E", length.as_slice(), text.as_bytes()].concat()).await?;
            client.shutdown().await?;
            return Ok(());
        }
        let mut server = UnixStream::connect(&self.socket).await?;
        server.write_all(&startup).await?;
        tokio::io::copy_bidirectional(&mut client, &mut server).await?;
        Ok(())
    }

    /// A token is valid for 15 minutes, for one host, port and role.
    fn check(&self, token: &str, user: &str) -> Result<()> {
        let Expected { host, region, keys } = &self.expected;
        let (place, query) = token.split_once("/?").context("no query")?;
        ensure!(place == format!("{host}:{}", self.port), "made for {place}");
        let value = |name: &str| query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
        let value = |name: &str| value(name).map(|(_, value)| value.replace("%2F", "/")).context(name.to_owned());
        ensure!(value("Action")? == "connect" && value("DBUser")? == user && value("X-Amz-Expires")? == "900");
        let date = value("X-Amz-Date")?;
        let made = humantime::parse_rfc3339(&format!(
            "{}-{}-{}T{}:{}:{}Z",
            &date[..4],
            &date[4..6],
            &date[6..8],
            &date[9..11],
            &date[11..13],
            &date[13..15]
        ))?;
        ensure!(made.elapsed().unwrap_or_default() < Duration::from_secs(900), "expired");
        let credential = value("X-Amz-Credential")?;
        let (key, scope) = credential.split_once('/').context("no scope")?;
        ensure!(scope == format!("{}/{region}/rds-db/aws4_request", &date[..8]), "signed for {scope}");
        let secret = keys.iter().find(|(known, _)| known == key).map(|(_, secret)| secret);
        let session = value("X-Amz-Security-Token").ok();
        let again = signature(place, user, region, (key, secret.context("an unknown key")?, session), made)?;
        if value("X-Amz-Signature")? != again {
            bail!("the signature is wrong");
        }
        Ok(())
    }
}

/// The signature that AWS would compute.
fn signature(
    place: &str,
    user: &str,
    region: &str,
    (key, secret, session): (&str, &str, Option<String>),
    made: SystemTime,
) -> Result<String> {
    let identity = Credentials::new(key, secret, session, None, "test").into();
    let mut settings = SigningSettings::default();
    settings.expires_in = Some(Duration::from_secs(900));
    settings.signature_location = SignatureLocation::QueryParams;
    let parameters = v4::SigningParams::builder().identity(&identity).region(region).name("rds-db").time(made);
    let url = format!("https://{place}/?Action=connect&DBUser={user}");
    let request = SignableRequest::new("GET", url, std::iter::empty(), SignableBody::Bytes(&[]))?;
    let (_, signature) = sign(request, &parameters.settings(settings).build()?.into())?.into_parts();
    Ok(signature)
}

/// A message with its length, which counts itself.
async fn message(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    ensure!((4..10_000).contains(&length), "a message of {length} bytes");
    let mut message = vec![0; usize::try_from(length)?];
    message[..4].copy_from_slice(&length.to_be_bytes());
    stream.read_exact(&mut message[4..]).await?;
    Ok(message)
}

/// A parameter of the startup message: behind length and version, names and values end with zeros.
fn parameter(startup: &[u8], name: &str) -> Option<String> {
    let words: Vec<&str> = std::str::from_utf8(startup.get(8..)?).ok()?.split('\0').collect();
    words.chunks(2).find(|pair| pair[0] == name).and_then(|pair| pair.get(1)).map(|value| (*value).to_owned())
}
