//! The way to PostgreSQL, step by step, as `outbox-relay check` takes it: name, connection, TLS, and how the server wants
//! the role to log in. A connection of the driver would say only how it ended.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{dial, password, tls};
use crate::causes;
use crate::config::{DatabaseConfig, Host, Negotiation, PasswordSource, Server, TlsMode};
use crate::way::{LIMIT, Noting, Step, Trouble, agreed};

/// A stream, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The steps to each server; if one fails, it is the last for its server.
pub async fn walk(config: &DatabaseConfig) -> Vec<Vec<Step>> {
    let mut all = Vec::new();
    for server in &config.servers {
        let mut walk = Walk { config, server, steps: Vec::new() };
        // The trouble is in the last step.
        walk.go().await.unwrap_or_default();
        all.push(walk.steps);
    }
    all
}

struct Walk<'a> {
    config: &'a DatabaseConfig,
    server: &'a Server,
    steps: Vec<Step>,
}

impl Walk<'_> {
    async fn go(&mut self) -> Option<()> {
        let server = self.server;
        let stream: Box<dyn Stream> = match &server.host {
            Host::Socket(folder) => {
                let path = folder.join(format!(".s.PGSQL.{}", server.port));
                Box::new(self.note(format!("socket {}", path.display()), open(&path).await)?)
            }
            Host::Name(name) => {
                let addresses = match (server.address, name.parse::<IpAddr>()) {
                    (Some(address), _) | (None, Ok(address)) => vec![address],
                    (None, Err(_)) => self.note(format!("name of {name}"), resolve(name).await)?,
                };
                let stream = self.note(format!("connection to {server}"), connect(&addresses, server.port).await)?;
                let encrypted = self.encrypt(stream, name).await;
                self.note_if_last(format!("TLS of {server}"), encrypted)?
            }
        };
        let asked = ask(stream, self.config, server).await;
        self.note_if_last(format!("login to {server}"), asked.map(|says| ((), says)))
    }

    /// Notes what a step says; returns what it found.
    fn note<T>(&mut self, what: String, found: Result<(T, String), Trouble>) -> Option<T> {
        let (value, result) = match found {
            Ok((value, says)) => (Some(value), Ok(says)),
            Err(trouble) => (None, Err(trouble)),
        };
        self.steps.push(Step { what, result });
        value
    }

    /// The same for a step after which `prefer` and `allow` try another protection. A trouble is none yet; whether the other
    /// one works is seen by connecting.
    fn note_if_last<T>(&mut self, what: String, found: Result<(T, String), Trouble>) -> Option<T> {
        let has_another = matches!(self.config.tls.mode, TlsMode::Allow | TlsMode::Prefer)
            && matches!(self.server.host, Host::Name(_));
        match found {
            Err(trouble) if has_another => {
                let says = format!("{}; sslmode tries another way", trouble.says);
                self.steps.push(Step { what, result: Ok(says) });
                None
            }
            found => self.note(what, found),
        }
    }

    async fn encrypt(&self, mut stream: TcpStream, name: &str) -> Result<(Box<dyn Stream>, String), Trouble> {
        let mode = self.config.tls.mode;
        if matches!(mode, TlsMode::Disable | TlsMode::Allow) {
            return Ok((Box::new(stream), "not asked for (sslmode)".to_owned()));
        }
        if self.config.tls.negotiation == Negotiation::Postgres && !offers_tls(&mut stream).await? {
            if mode == TlsMode::Prefer {
                return Ok((Box::new(stream), "not offered, and sslmode=prefer goes on without".to_owned()));
            }
            return Err(Trouble::new("the server offers none", "turn it on there (ssl = on), or use sslmode=prefer"));
        }
        let odd = |problem: String| Trouble::new(problem, "mend what it names in DATABASE_URL");
        let mut noting = None;
        let config = tls::client_config_with(&self.config.tls, |verifier| {
            let made = Arc::new(Noting::new(verifier));
            noting = Some(Arc::clone(&made));
            made
        });
        let config = config.map_err(odd)?;
        let host = ServerName::try_from(name.to_owned()).map_err(|error| odd(error.to_string()))?;
        let shaken = timeout(LIMIT, TlsConnector::from(Arc::new(config)).connect(host, stream)).await;
        let shown = noting.and_then(|noting| noting.shown()).map(|shown| shown.to_string()).unwrap_or_default();
        match shaken {
            Ok(Ok(stream)) => {
                let verified = match mode {
                    TlsMode::VerifyFull => "verified with its name",
                    TlsMode::VerifyCa => "verified without its name",
                    _ => "not verified (sslmode)",
                };
                let own =
                    tls::own_certificate(&self.config.tls).map(|own| format!("; ours: {own}")).unwrap_or_default();
                let says = format!("{}, {shown}, {verified}{own}", agreed(stream.get_ref().1));
                Ok((Box::new(stream), says))
            }
            Ok(Err(error)) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
                let remedy = inner.map_or("check that PostgreSQL listens there, and no firewall cuts it", tls::remedy);
                let problem = inner.map_or_else(|| error.to_string(), tls::problem);
                Err(Trouble::new(format!("{problem}: {shown}"), remedy))
            }
            Err(_) => Err(Trouble::new(format!("no answer within {LIMIT:?}"), "check that PostgreSQL listens there")),
        }
    }
}

async fn open(path: &Path) -> Result<(UnixStream, String), Trouble> {
    match timeout(LIMIT, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok((stream, "accepts a connection".to_owned())),
        Ok(Err(error)) => {
            Err(Trouble::new(format!("not possible: {error}"), "name a host in DATABASE_URL, or the socket's folder"))
        }
        Err(_) => Err(Trouble::new(format!("no answer within {LIMIT:?}"), "check that the server runs")),
    }
}

async fn resolve(name: &str) -> Result<(Vec<IpAddr>, String), Trouble> {
    let remedy = "check the host in DATABASE_URL, and the DNS of this host";
    let found = dial::resolve(name, LIMIT).await.map_err(|error| Trouble::new(error.problem, remedy))?;
    let shown: Vec<String> = found.iter().map(IpAddr::to_string).collect();
    Ok((found, format!("resolves to {}", shown.join(", "))))
}

/// The first address that accepts, in the order of the driver.
async fn connect(addresses: &[IpAddr], port: u16) -> Result<(TcpStream, String), Trouble> {
    let mut refused = Vec::new();
    for address in addresses {
        match timeout(LIMIT, TcpStream::connect(SocketAddr::new(*address, port))).await {
            Ok(Ok(stream)) => return Ok((stream, format!("{address} accepts it"))),
            Ok(Err(error)) => refused.push(format!("{address}: {error}")),
            Err(_) => refused.push(format!("{address}: no answer within {LIMIT:?}")),
        }
    }
    let remedy = "check host and port, that PostgreSQL listens there (listen_addresses), and the firewalls between";
    Err(Trouble::new(format!("not possible: {}", refused.join(", ")), remedy))
}

async fn offers_tls(stream: &mut TcpStream) -> Result<bool, Trouble> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    let exchanged = timeout(LIMIT, async {
        stream.write_all(&request).await?;
        stream.read_u8().await
    });
    let remedy = "check that PostgreSQL or a pooler listens there";
    match exchanged.await {
        Ok(Ok(answer)) => Ok(answer == b'S'),
        Ok(Err(error)) => Err(Trouble::new(format!("closed when asked for TLS: {error}"), remedy)),
        Err(_) => Err(Trouble::new(format!("no answer within {LIMIT:?} when asked for TLS"), remedy)),
    }
}

/// Begins a session, and sees how the server wants the role to authenticate. Nothing secret is sent.
async fn ask(mut stream: Box<dyn Stream>, config: &DatabaseConfig, server: &Server) -> Result<String, Trouble> {
    let mut request = BytesMut::new();
    let parameters = [("user", config.user.as_str()), ("database", config.database.as_str())];
    let remedy = "check that PostgreSQL or a pooler listens there";
    frontend::startup_message(parameters, &mut request).map_err(|error| Trouble::new(error.to_string(), remedy))?;
    let answered = timeout(LIMIT, async {
        stream.write_all(&request).await?;
        let mut answer = BytesMut::new();
        loop {
            if let Some(message) = Message::parse(&mut answer)? {
                return Ok::<_, std::io::Error>(message);
            }
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    });
    match answered.await {
        Ok(Ok(Message::ErrorResponse(body))) => {
            let said = body.fields().find(|field| Ok(field.type_() == b'M')).ok().flatten();
            let said =
                said.map(|field| causes::harmless(&String::from_utf8_lossy(field.value_bytes()))).unwrap_or_default();
            let remedy = match () {
                () if said.contains("certificate") => "set sslcert and sslkey for a certificate with CN = the user",
                () if said.contains("no encryption") => "add sslmode=require, or let the role in (pg_hba.conf)",
                () => "let the role in (pg_hba.conf, LOGIN)",
            };
            Err(Trouble::new(format!("refused: {said}"), remedy))
        }
        Ok(Ok(message)) => wanted(&message, config, server).await,
        Ok(Err(error)) => {
            // With TLS 1.3 a server refuses the client's certificate after the handshake.
            let remedy = error.get_ref().and_then(|inner| inner.downcast_ref()).map_or(remedy, tls::remedy);
            Err(Trouble::new(format!("closed: {error}"), remedy))
        }
        Err(_) => Err(Trouble::new(format!("no answer within {LIMIT:?}"), remedy)),
    }
}

/// How the server wants the role to authenticate, and where the password comes from.
async fn wanted(message: &Message, config: &DatabaseConfig, server: &Server) -> Result<String, Trouble> {
    let method = match message {
        Message::AuthenticationOk if config.tls.client.is_some() => {
            return Ok(format!("lets {} in with the certificate, or without", config.user));
        }
        Message::AuthenticationOk => return Ok(format!("lets {} in without a password", config.user)),
        Message::AuthenticationCleartextPassword => "a password in clear text".to_owned(),
        Message::AuthenticationMd5Password(_) => "a password by md5".to_owned(),
        Message::AuthenticationSasl(body) => {
            let mechanisms: Vec<String> =
                body.mechanisms().map(|name| Ok(name.to_owned())).collect().unwrap_or_default();
            format!("a password by {}", mechanisms.join(" or "))
        }
        _ => {
            let remedy = "have it ask for scram-sha-256 or cert in pg_hba.conf";
            return Err(Trouble::new("asks for a method that is not supported (Kerberos, GSSAPI or SSPI)", remedy));
        }
    };
    let says = format!("asks {} for {method}", config.user);
    let is_token = matches!(config.password, PasswordSource::RdsIam { .. });
    if is_token && !matches!(message, Message::AuthenticationCleartextPassword) {
        let remedy = format!("GRANT rds_iam TO {}, or leave OUTBOX_RELAY_DATABASE_AUTH out", config.user);
        return Err(Trouble::new(format!("{says}, not for a token of IAM"), remedy));
    }
    match password::password(config, server).await {
        Ok(Some(_)) => Ok(format!("{says}; it is from {}", config.password_origin())),
        Ok(None) => Err(Trouble::new(format!("{says}, and there is none"), password::missing(config, server))),
        Err(problem) => {
            let (says_why, remedy) = problem.problem.rsplit_once("; ").unwrap_or((&problem.problem, ""));
            Err(Trouble::new(says_why, remedy))
        }
    }
}
