//! Certificates as people make them: where psql connects, the relay connects, and the other way round. The exceptions are
//! named, with what the relay says.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, KeyIdMethod, KeyPair,
    RevocationReason, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tokio::process::Command;

use support::postgres::{Options, PASSWORD};

use crate::tls::{Ground, authority};

/// Runs openssl in a folder, as PostgreSQL's manual says (18.9.5 Creating Certificates).
async fn openssl(folder: &Path, arguments: &str) -> Result<String> {
    let output = Command::new("openssl").args(arguments.split_whitespace()).current_dir(folder).output().await?;
    ensure!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether psql connects, and what it says.
async fn psql(ground: &Ground, host: &str, options: &str) -> Result<(bool, String)> {
    let url = format!("postgres://postgres:{PASSWORD}@{host}:{}/postgres?{options}", ground.cluster.port());
    let output = Command::new("psql")
        .env_clear()
        .env("HOME", ground.folder.path())
        .args([&url, "-Atc", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"])
        .output()
        .await?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), said))
}

/// The same for the relay.
async fn relay(ground: &Ground, host: &str, options: &str) -> Result<(bool, String)> {
    let url = format!("postgres://postgres:{PASSWORD}@{host}:{}/postgres?{options}", ground.cluster.port());
    let output = Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
        .env_clear()
        .env("HOME", ground.folder.path())
        .env("DATABASE_URL", url)
        .arg("migrate")
        .output()
        .await?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Compares both for hosts and options; `true` means that both must connect.
async fn compare(ground: &Ground, what: &str, table: &[(&str, String, bool)]) -> Result<()> {
    for (host, options, connects) in table {
        let (psql, relay) = (psql(ground, host, options).await?, relay(ground, host, options).await?);
        ensure!(psql.0 == *connects, "{what}, {host}, {options}: psql says {}", psql.1);
        ensure!(relay.0 == *connects, "{what}, {host}, {options}: the relay says {}, psql {}", relay.1, psql.1);
        let line = relay.1.trim_end();
        ensure!(relay.0 || line.lines().count() == 1, "{what}, {host}, {options}: {line}");
    }
    Ok(())
}

#[tokio::test]
async fn certificates_of_postgresqls_manual_are_taken_as_psql_takes_them() -> Result<()> {
    let ground = Ground::start(Options::default()).await?;
    let folder = ground.folder.path();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).context(name.to_owned());
    // "To create a simple self-signed certificate for the server".
    let simple = "req -new -x509 -days 365 -nodes -text -out simple.crt -keyout simple.key -subj /CN=localhost";
    openssl(folder, simple).await?;
    ground.show(&read("simple.crt")?, &read("simple.key")?)?;
    let root = format!("sslrootcert={}", folder.join("simple.crt").display());
    let stranger = format!("sslrootcert={}", folder.join("stranger.pem").display());
    compare(
        &ground,
        "self-signed",
        &[
            ("localhost", "sslmode=prefer".to_owned(), true),
            ("localhost", format!("sslmode=require&{root}"), true),
            ("127.0.0.1", format!("sslmode=verify-ca&{root}"), true),
            ("localhost", format!("sslmode=verify-full&{root}"), true),
            ("127.0.0.1", format!("sslmode=verify-full&{root}"), false),
            ("localhost", format!("sslmode=verify-ca&{stranger}"), false),
        ],
    )
    .await?;
    // "To create a server certificate whose identity can be validated by clients": its certificate has version 1.
    openssl(folder, "req -new -nodes -text -out root.csr -keyout root.key -subj /CN=root.example").await?;
    let root = "x509 -req -in root.csr -text -days 3650 -extfile /etc/ssl/openssl.cnf -extensions v3_ca -signkey root.key -out root.crt";
    openssl(folder, root).await?;
    openssl(folder, "req -new -nodes -text -out server.csr -keyout server.key -subj /CN=localhost").await?;
    let server =
        "x509 -req -in server.csr -text -days 365 -CA root.crt -CAkey root.key -CAcreateserial -out server.crt";
    openssl(folder, server).await?;
    ensure!(read("server.crt")?.contains("Version: 1 (0x0)"), "this openssl makes other certificates");
    ground.show(&read("server.crt")?, &read("server.key")?)?;
    let root = format!("sslrootcert={}", folder.join("root.crt").display());
    compare(
        &ground,
        "version 1",
        &[
            ("localhost", "sslmode=prefer".to_owned(), true),
            ("localhost", "sslmode=require&channel_binding=require".to_owned(), true),
            ("localhost", "sslmode=require&ssl_max_protocol_version=TLSv1.2".to_owned(), true),
            ("127.0.0.1", format!("sslmode=verify-ca&{root}"), true),
            ("localhost", format!("sslmode=verify-full&{root}"), true),
            ("127.0.0.1", format!("sslmode=verify-full&{root}"), false),
            ("localhost", format!("sslmode=verify-full&{stranger}"), false),
        ],
    )
    .await
}

#[tokio::test]
async fn names_dates_and_signatures_count_as_for_psql() -> Result<()> {
    let ground = Ground::start(Options::default()).await?;
    let signer = authority("trusted too")?;
    let root = format!("sslrootcert={}", ground.file("root.pem", &signer.pem())?);
    let show = |params: CertificateParams| -> Result<()> {
        let key = KeyPair::generate()?;
        ground.show(&params.signed_by(&key, &signer)?.pem(), &key.serialize_pem())
    };
    let full = || format!("sslmode=verify-full&{root}");
    let named = |names: &[&str], common: &str| -> Result<CertificateParams> {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, common);
        Ok(params)
    };
    show(named(&[], "localhost")?)?;
    compare(&ground, "common name only", &[("localhost", full(), true), ("127.0.0.1", full(), false)]).await?;
    show(named(&["elsewhere.example"], "localhost")?)?;
    compare(&ground, "another alternative name", &[("localhost", full(), false)]).await?;
    show(named(&["127.0.0.1"], "anything")?)?;
    compare(&ground, "an address", &[("127.0.0.1", full(), true), ("localhost", full(), false)]).await?;
    let mut expired = named(&["localhost"], "localhost")?;
    expired.not_after = date_time_ymd(2020, 1, 1);
    show(expired)?;
    let options = [full(), format!("sslmode=verify-ca&{root}")].map(|options| ("localhost", options, false));
    compare(&ground, "expired", &options).await?;
    compare(&ground, "expired", &[("localhost", "sslmode=require".to_owned(), true)]).await
}

#[tokio::test]
async fn a_certificate_signed_with_rsa_pss_is_taken_and_a_key_that_rustls_does_not_know_is_named() -> Result<()> {
    let ground = Ground::start(Options::default()).await?;
    let folder = ground.folder.path();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).context(name.to_owned());
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost\n")?;
    openssl(folder, "req -new -x509 -days 365 -nodes -out root.crt -keyout root.key -subj /CN=root").await?;
    openssl(folder, "req -new -nodes -out server.csr -keyout server.key -subj /CN=localhost").await?;
    let sign = "x509 -req -in server.csr -days 365 -CA root.crt -CAkey root.key -CAcreateserial -extfile names -sha256 -out server.crt";
    openssl(folder, &format!("{sign} -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32")).await?;
    ground.show(&read("server.crt")?, &read("server.key")?)?;
    let root = format!("sslrootcert={}", folder.join("root.crt").display());
    compare(&ground, "signed with RSA-PSS", &[("localhost", format!("sslmode=verify-full&{root}"), true)]).await?;
    openssl(folder, "genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048 -out server.key").await?;
    openssl(folder, "req -new -key server.key -out server.csr -subj /CN=localhost").await?;
    openssl(folder, sign).await?;
    ground.show(&read("server.crt")?, &read("server.key")?)?;
    ensure!(psql(&ground, "localhost", "sslmode=require").await?.0);
    let (connects, said) = relay(&ground, "localhost", "sslmode=require").await?;
    ensure!(!connects && said.contains("RSA or ECDSA"), "{said}");
    // As psql does where TLS fails.
    compare(&ground, "an RSA-PSS key", &[("localhost", "sslmode=prefer".to_owned(), true)]).await
}

#[tokio::test]
async fn a_revoked_certificate_is_refused() -> Result<()> {
    let ground = Ground::start(Options::default()).await?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "revoking");
    let signer = rcgen::CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let root = ground.file("root.pem", &signer.pem())?;
    let mut server = CertificateParams::new(vec!["localhost".to_owned()])?;
    server.serial_number = Some(SerialNumber::from(4711_u64));
    let key = KeyPair::generate()?;
    ground.show(&server.signed_by(&key, &signer)?.pem(), &key.serialize_pem())?;
    let list = |serial: u64, year: i32| -> Result<String> {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(year, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&signer)?.pem()?)
    };
    let (other, this) = (ground.file("other.crl", &list(1, 2024)?)?, ground.file("this.crl", &list(4711, 2025)?)?);
    // The older list first: the newest counts.
    let both = ground.file("both.crl", &(list(1, 2024)? + &list(4711, 2025)?))?;
    std::fs::create_dir(ground.folder.path().join("empty"))?;
    let empty = ground.folder.path().join("empty").display().to_string();
    compare(
        &ground,
        "a list of revoked certificates",
        &[
            ("localhost", format!("sslmode=verify-full&sslrootcert={root}&sslcrl={other}"), true),
            ("localhost", format!("sslmode=verify-full&sslrootcert={root}&sslcrl={this}"), false),
            ("localhost", format!("sslmode=verify-full&sslrootcert={root}&sslcrl={both}"), false),
            ("localhost", format!("sslmode=verify-full&sslrootcert={root}&sslcrldir={empty}"), false),
        ],
    )
    .await
}

/// What OpenSSL refuses in an authority, the relay refuses as well.
#[tokio::test]
async fn an_authority_must_be_one_and_its_constraints_hold() -> Result<()> {
    let ground = Ground::start(Options::default()).await?;
    let full = |root: &str| vec![("localhost", format!("sslmode=verify-full&sslrootcert={root}"), false)];
    let leaf = |names: &[&str]| -> Result<CertificateParams> {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, "localhost");
        Ok(params)
    };
    let made = |params: CertificateParams| -> Result<_> {
        Ok(rcgen::CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
    };
    let show = |params: CertificateParams, signer: &rcgen::CertifiedIssuer<'static, KeyPair>| -> Result<()> {
        let key = KeyPair::generate()?;
        ground.show(&params.signed_by(&key, signer)?.pem(), &key.serialize_pem())
    };
    // An authority for another domain, and a certificate that has only a common name.
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "constrained");
    let permitted_subtrees = vec![rcgen::GeneralSubtree::DnsName("good.example".to_owned())];
    params.name_constraints = Some(rcgen::NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    let constrained = made(params)?;
    let root = ground.file("constrained.pem", &constrained.pem())?;
    let mut params = leaf(&[])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "db.bad.example");
    show(params, &constrained)?;
    let options = format!("hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={root}");
    compare(&ground, "name constraints and a common name", &[("db.bad.example", options, false)]).await?;
    // A certificate of a server that signs another.
    let mut params = CertificateParams::new(vec!["other.example".to_owned()])?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, "a server");
    let server = made(params)?;
    let root = ground.file("server.pem", &server.pem())?;
    show(leaf(&["localhost"])?, &server)?;
    compare(&ground, "a server that signs", &full(&root)).await?;
    // The same of version 1, which nobody made an authority.
    let folder = ground.folder.path();
    ground.file("signer.crt", &server.pem())?;
    ground.file("signer.key", &server.key().serialize_pem())?;
    openssl(folder, "req -new -nodes -out old.csr -keyout old.key -subj /CN=old").await?;
    openssl(folder, "x509 -req -in old.csr -days 365 -CA signer.crt -CAkey signer.key -CAcreateserial -out old.crt")
        .await?;
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost\n")?;
    openssl(folder, "req -new -nodes -out new.csr -keyout new.key -subj /CN=localhost").await?;
    let sign = "x509 -req -in new.csr -days 365 -CA old.crt -CAkey old.key -CAcreateserial -extfile names -out new.crt";
    openssl(folder, sign).await?;
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).context(name.to_owned());
    ground.show(&read("new.crt")?, &read("new.key")?)?;
    compare(&ground, "a server of version 1 that signs", &full(&folder.join("old.crt").display().to_string())).await?;
    // An authority of the past.
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "past");
    params.not_after = date_time_ymd(2021, 1, 1);
    let past = made(params)?;
    let root = ground.file("past.pem", &past.pem())?;
    show(leaf(&["localhost"])?, &past)?;
    compare(&ground, "an expired root", &full(&root)).await
}

/// In libpq a root certificate is used in every mode, and so are lists of revoked certificates.
#[tokio::test]
async fn prefer_and_allow_verify_with_a_root_certificate() -> Result<()> {
    let ground = Ground::start(Options::default()).await?;
    ground.cluster.authenticate("hostnossl all all 127.0.0.1/32 reject")?;
    let folder = ground.folder.path().display().to_string();
    let root = |mode: &str, name: &str| format!("sslmode={mode}&sslrootcert={folder}/{name}.pem");
    compare(
        &ground,
        "a root certificate in a weak mode",
        &[
            ("127.0.0.1", root("prefer", "trusted"), true),
            ("127.0.0.1", root("allow", "trusted"), true),
            ("127.0.0.1", root("prefer", "stranger"), false),
            ("127.0.0.1", root("allow", "stranger"), false),
            ("127.0.0.1", root("require", "stranger"), false),
            ("127.0.0.1", "sslmode=prefer".to_owned(), true),
            ("127.0.0.1", "sslmode=verify-ca".to_owned(), false),
        ],
    )
    .await
}

#[tokio::test]
async fn a_client_certificate_authenticates_and_a_wrong_one_is_explained() -> Result<()> {
    let ground = Ground::start(Options::default()).await?;
    let signer = authority("clients")?;
    ground.cluster.write("clients.crt", &signer.pem())?;
    let lines = "hostssl all postgres 127.0.0.1/32 cert";
    ground.cluster.write("postgresql.auto.conf", "ssl = on\nssl_ca_file = 'clients.crt'\n")?;
    ground.cluster.authenticate(lines)?;
    let made = |common: &str| -> Result<(String, KeyPair)> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &signer)?.pem(), key))
    };
    let (certificate, key) = made("postgres")?;
    let (cert, key) = (ground.file("client.crt", &certificate)?, ground.file("client.key", &key.serialize_pem())?);
    let (certificate, other_key) = made("somebody")?;
    let (wrong, wrong_key) =
        (ground.file("wrong.crt", &certificate)?, ground.file("wrong.key", &other_key.serialize_pem())?);
    compare(
        &ground,
        "a client certificate",
        &[
            ("127.0.0.1", format!("sslmode=require&sslcert={cert}&sslkey={key}"), true),
            ("127.0.0.1", "sslmode=require".to_owned(), false),
            ("127.0.0.1", format!("sslmode=require&sslcert={wrong}&sslkey={wrong_key}"), false),
            ("127.0.0.1", format!("sslmode=require&sslcert={cert}&sslkey={wrong_key}"), false),
        ],
    )
    .await?;
    // As the manual makes one: of version 1.
    ground.file("signer.crt", &signer.pem())?;
    ground.file("signer.key", &signer.key().serialize_pem())?;
    let folder = ground.folder.path();
    openssl(folder, "req -new -nodes -out old.csr -keyout old.key -subj /CN=postgres").await?;
    openssl(folder, "x509 -req -in old.csr -days 365 -CA signer.crt -CAkey signer.key -CAcreateserial -out old.crt")
        .await?;
    ensure!(openssl(folder, "x509 -in old.crt -noout -text").await?.contains("Version: 1 (0x0)"));
    let old = |key: &str| format!("sslmode=require&sslcert={0}/old.crt&sslkey={0}/{key}", folder.display());
    compare(
        &ground,
        "a client certificate of version 1",
        &[("127.0.0.1", old("old.key"), true), ("127.0.0.1", old("wrong.key"), false)],
    )
    .await?;
    openssl(ground.folder.path(), "pkey -in client.key -aes256 -passout pass:secret -out locked.key").await?;
    let locked = ground.folder.path().join("locked.key");
    let options = format!("sslmode=require&sslcert={cert}&sslkey={}", locked.display());
    let (connects, said) = relay(&ground, "127.0.0.1", &options).await?;
    ensure!(!connects && said.contains("is encrypted; decrypt it: openssl pkey"), "{said}");
    // libpq finds them in the home directory.
    let home = ground.folder.path().join(".postgresql");
    std::fs::create_dir(&home)?;
    std::fs::copy(&cert, home.join("postgresql.crt"))?;
    std::fs::copy(&key, home.join("postgresql.key"))?;
    compare(&ground, "a client certificate at home", &[("127.0.0.1", "sslmode=require".to_owned(), true)]).await
}
