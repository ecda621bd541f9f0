//! `sslmode` has the same meaning as in libpq, tested on a real PostgreSQL with certificates made for the test.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::process::Command;

use support::chosen_major;
use support::postgres::{Cluster, Options, StopMode};

/// A cluster that offers TLS, and a folder for certificates.
pub(crate) struct Ground {
    pub(crate) cluster: Cluster,
    pub(crate) folder: TempDir,
    trusted: PathBuf,
    stranger: PathBuf,
}

pub(crate) fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

async fn client(cluster: &Cluster) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(&cluster.url("postgres"), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

impl Ground {
    /// A server with TLS as `localhost`.
    pub(crate) async fn start(options: Options) -> Result<Ground> {
        let cluster = Cluster::start(&Options { major: chosen_major(), ..options })?;
        let folder = tempfile::tempdir()?;
        let (trusted, stranger) = (folder.path().join("trusted.pem"), folder.path().join("stranger.pem"));
        let authority_of_server = authority("trusted")?;
        std::fs::write(&trusted, authority_of_server.pem())?;
        std::fs::write(&stranger, authority("stranger")?.pem())?;
        let key = KeyPair::generate()?;
        let certificate =
            CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &authority_of_server)?;
        let admin = client(&cluster).await?;
        cluster.write("server.crt", &certificate.pem())?;
        cluster.write("server.key", &key.serialize_pem())?;
        admin.batch_execute("ALTER SYSTEM SET ssl = on").await?;
        // A restart, not a reload: only connections that begin some time after a reload see it.
        drop(admin);
        cluster.restart(StopMode::Fast)?;
        Ok(Ground { cluster, folder, trusted, stranger })
    }

    /// The path of a file with this text.
    pub(crate) fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(path.display().to_string())
    }

    /// The server shows another certificate from now on.
    pub(crate) fn show(&self, certificate: &str, key: &str) -> Result<()> {
        self.cluster.write("server.crt", certificate)?;
        self.cluster.write("server.key", key)?;
        self.cluster.restart(StopMode::Fast)
    }
}

async fn ground() -> Result<Ground> {
    Ground::start(Options::default()).await
}

/// The result of `outbox-relay migrate` on a connection: whether it succeeded, and its output.
async fn migrate(cluster: &Cluster, host: &str, options: &str) -> Result<(bool, String)> {
    let url = cluster.url("postgres").replace("127.0.0.1", host).replace("localhost", host);
    let output = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
        .env_clear()
        .env("DATABASE_URL", format!("{url}?{options}&application_name=tls-test"))
        .arg("migrate")
        .output()
        .await
        .context("outbox-relay cannot be started")?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[tokio::test]
async fn a_verified_connection_needs_the_right_authority_and_the_right_name() -> Result<()> {
    let ground = ground().await?;
    let (trusted, stranger) = (ground.trusted.display(), ground.stranger.display());
    let accepted = [
        ("localhost", format!("sslmode=verify-full&sslrootcert={trusted}")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={trusted}")),
        // With a root certificate, require means verify-ca, as in libpq.
        ("127.0.0.1", format!("sslmode=require&sslrootcert={trusted}")),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
        ("127.0.0.1", "sslmode=disable".to_owned()),
    ];
    for (host, options) in accepted {
        let (is_fine, said) = migrate(&ground.cluster, host, &options).await?;
        assert!(is_fine, "{host} {options}: {said}");
    }
    let refused = [
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={trusted}"), "not valid for"),
        ("localhost", format!("sslmode=verify-full&sslrootcert={stranger}"), "invalid peer certificate"),
        ("localhost", format!("sslmode=verify-ca&sslrootcert={stranger}"), "invalid peer certificate"),
        ("localhost", format!("sslmode=require&sslrootcert={stranger}"), "invalid peer certificate"),
        // Without a given certificate, the system's authorities decide, and none of them signed this server's.
        ("localhost", "sslmode=verify-full".to_owned(), ""),
        ("localhost", "sslmode=verify-full&sslrootcert=/does/not/exist.pem".to_owned(), "/does/not/exist.pem"),
    ];
    for (host, options, reason) in refused {
        let (is_fine, said) = migrate(&ground.cluster, host, &options).await?;
        assert!(!is_fine, "{host} {options} must be refused");
        assert!(said.contains(reason), "{host} {options}: {said}");
        assert_eq!(said.lines().count(), 1, "{host} {options}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn require_and_prefer_encrypt_and_disable_does_not() -> Result<()> {
    let ground = ground().await?;
    let admin = client(&ground.cluster).await?;
    admin.batch_execute("ALTER SYSTEM SET log_connections = on").await?;
    drop(admin);
    ground.cluster.restart(StopMode::Fast)?;
    for (options, is_encrypted) in [("sslmode=require", true), ("sslmode=prefer", true), ("sslmode=disable", false)] {
        let before = std::fs::read_to_string(ground.cluster.log_path())?.len();
        assert!(migrate(&ground.cluster, "127.0.0.1", options).await?.0, "{options}");
        let log = std::fs::read_to_string(ground.cluster.log_path())?;
        let line = log[before..].lines().find(|line| line.contains("connection authorized"));
        let line = line.with_context(|| format!("{options}: the server logged no connection"))?;
        assert_eq!(line.contains("SSL enabled"), is_encrypted, "{options}: {line}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_without_tls_is_refused_by_require_and_accepted_by_prefer() -> Result<()> {
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let (is_fine, said) = migrate(&cluster, "127.0.0.1", "sslmode=require").await?;
    assert!(!is_fine && said.contains("TLS"), "{said}");
    let (is_fine, said) = migrate(&cluster, "127.0.0.1", "sslmode=prefer").await?;
    assert!(is_fine, "{said}");
    Ok(())
}
