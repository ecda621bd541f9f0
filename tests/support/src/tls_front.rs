//! TLS before a plain server, with a certificate of an authority that is made for it.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// The front; it ends with the value.
#[derive(Debug)]
pub struct TlsFront {
    port: u16,
    authority: String,
    _task: AbortOnDropHandle<()>,
}

impl TlsFront {
    /// Serves TLS for these names and addresses before a plain server at this URL.
    pub async fn before(url: &str, names: &[&str]) -> Result<TlsFront> {
        TlsFront::until(url, names, 2100).await
    }

    /// The same, with a certificate that is valid until this year begins.
    pub async fn until(url: &str, names: &[&str], year: i32) -> Result<TlsFront> {
        let upstream = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let Identity { acceptor, authority } = Identity::until(names, year)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
                tokio::spawn(async move { serve(acceptor, client, &upstream).await.ok() });
            }
        });
        Ok(TlsFront { port, authority, _task: AbortOnDropHandle::new(task) })
    }

    /// The port of 127.0.0.1 where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority's certificate in PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

/// A certificate for some names, ready to be shown, and who signed it.
pub struct Identity {
    /// Shows it.
    pub acceptor: TlsAcceptor,
    /// The authority's certificate in PEM.
    pub authority: String,
}

impl Identity {
    /// Makes it, and the authority.
    pub fn of(names: &[&str]) -> Result<Identity> {
        Identity::until(names, 2100)
    }

    /// The same, valid until this year begins.
    fn until(names: &[&str], year: i32) -> Result<Identity> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "Authority of a test");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        // Python and Java want what RFC 5280 wants of a server's certificate.
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &authority)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        Ok(Identity { acceptor: TlsAcceptor::from(Arc::new(config)), authority: authority.pem() })
    }
}

async fn serve(acceptor: TlsAcceptor, client: TcpStream, upstream: &str) -> Result<()> {
    let mut client = acceptor.accept(client).await?;
    let mut server = TcpStream::connect(upstream).await.context("the plain server")?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
