//! Connection strings mean what they mean to the psql of this machine: for each, both connect or neither does, and the
//! server sees the same role, database, address, application and encryption. What differs by intention is a table too.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use support::postgres::{Options, PASSWORD};

use crate::tls::Ground;

/// A connection string, and libpq's variables. `PORT`, `SOCKET`, `PASSWORD`, `ROOT` and `HOME` stand for what they say.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)]);

/// What the server wrote about a session.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    from: String,
    authorized: String,
    is_encrypted: bool,
}

/// A server, and where things are.
struct World {
    ground: Ground,
}

impl World {
    async fn start() -> Result<World> {
        let settings = [("log_connections", "on"), ("listen_addresses", "127.0.0.1,::1")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let ground = Ground::start(Options { settings, ..Options::default() }).await?;
        ground.cluster.authenticate("host all all ::1/128 scram-sha-256")?;
        let (admin, connection) =
            tokio_postgres::connect(&ground.cluster.url("postgres"), tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        for statement in [
            "CREATE ROLE \"a@b/c\" LOGIN PASSWORD 'p@ss %''\\ word'".to_owned(),
            format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'"),
            "CREATE DATABASE app".to_owned(),
            "CREATE DATABASE \"a@b/c\"".to_owned(),
        ] {
            admin.batch_execute(&statement).await.context(statement)?;
        }
        let port = ground.cluster.port();
        ground.file(
            "passwords",
            &format!(
                "# ours\nelsewhere:*:*:*:wrong\n127.0.0.1:{port}:app:app:{PASSWORD}\nlocalhost:*:*:app:{PASSWORD}\n"
            ),
        )?;
        ground.file(
            "services",
            &format!("[lottery]\nhost=127.0.0.1\nport={port}\nuser=app\npassword={PASSWORD}\napplication_name=by-service\n[odd]\nfoo=bar\n"),
        )?;
        Ok(World { ground })
    }

    fn filled(&self, text: &str) -> String {
        let folder = self.ground.folder.path().display().to_string();
        text.replace("PORT", &self.ground.cluster.port().to_string())
            .replace("SOCKET", &self.ground.cluster.socket_folder().display().to_string().replace('/', "%2F"))
            .replace("FOLDER", &self.ground.cluster.socket_folder().display().to_string())
            .replace("PASSWORD", PASSWORD)
            .replace("ROOT", &format!("{folder}/trusted.pem"))
            .replace("HOME", &folder)
    }

    /// Runs a program with a connection string. Returns what it said, and the session that the server saw, if the program
    /// says this word, which it says in a session only.
    async fn run(
        &self,
        mut command: Command,
        variables: &[(&str, &str)],
        word: &str,
    ) -> Result<(String, Option<Session>)> {
        let log = self.ground.cluster.log_path();
        let before = std::fs::read_to_string(&log)?.len();
        command.env_clear().env("HOME", self.ground.folder.path()).env("PATH", "/usr/bin:/bin");
        for (name, value) in variables {
            command.env(name, self.filled(value));
        }
        let output = command.output().await?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let session = session(&std::fs::read_to_string(&log)?[before..]).filter(|_| said.contains(word));
        Ok((said, session))
    }

    async fn psql(&self, (string, variables): Case<'_>) -> Result<(String, Option<Session>)> {
        let mut command = Command::new("psql");
        command.arg("-wAtc").arg("SELECT 'connected'").arg("-d").arg(self.filled(string));
        self.run(command, variables, "connected\n").await
    }

    async fn relay(&self, (string, variables): Case<'_>) -> Result<(String, Option<Session>)> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
        command.arg("status");
        let string = self.filled(string);
        let variables: Vec<(&str, &str)> =
            variables.iter().copied().chain([("DATABASE_URL", string.as_str())]).collect();
        self.run(command, &variables, "is not migrated").await
    }
}

/// The first session that was let in and not ended at once, as the server's log tells it.
fn session(log: &str) -> Option<Session> {
    let mut from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut sessions: Vec<(&str, Session)> = Vec::new();
    for line in log.lines() {
        let Some(process) = line.split(['[', ']']).nth(1) else { continue };
        if let Some((_, peer)) = line.split_once("connection received: ") {
            from.insert(process, peer.split(' ').next().unwrap_or_default());
        } else if let Some((_, who)) = line.split_once("connection authorized: ") {
            let (who, tls) = who.split_once(" SSL enabled").map_or((who, None), |(who, tls)| (who, Some(tls)));
            let who = who.replace("application_name=psql", "").replace("application_name=outbox-relay", "");
            let (from, authorized) = (from.get(process).copied().unwrap_or_default().to_owned(), who.trim().to_owned());
            sessions.push((process, Session { from, authorized, is_encrypted: tls.is_some() }));
        } else if line.contains("FATAL: ") && !line.contains("connection to client lost") {
            // A missing database is noticed after the login.
            sessions.retain(|(ended, _)| *ended != process);
        }
    }
    sessions.into_iter().next().map(|(_, session)| session)
}

/// Both connect, and the server sees the same.
const CONNECTS: &[Case<'_>] = &[
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app", &[]),
    ("postgresql://app:PASSWORD@127.0.0.1:PORT", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/", &[]),
    ("postgres://app:PASSWORD@localhost:PORT/postgres", &[]),
    ("postgres://app:PASSWORD@[::1]:PORT/app", &[]),
    ("postgres://a%40b%2Fc:p%40ss%20%25%27%5C%20word@127.0.0.1:PORT", &[]),
    ("postgres://a%40b%2Fc@127.0.0.1:PORT?password=p%40ss%20%25%27%5C%20word", &[]),
    ("host=127.0.0.1 port=PORT user=app password=PASSWORD", &[]),
    ("  host = 127.0.0.1 port= PORT user ='app' password = 'PASSWORD'  dbname=postgres", &[]),
    (r"host=127.0.0.1 port=PORT user=a@b/c password='p@ss %\'\\ word'", &[]),
    (r"host=127.0.0.1 port=PORT user=a@b/c password=p@ss\ %\'\\\ word dbname=app", &[]),
    ("hostaddr=127.0.0.1 port=PORT user=app password=PASSWORD", &[]),
    ("host=whatever hostaddr=127.0.0.1 port=PORT user=app password=PASSWORD", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:1,127.0.0.1:PORT/app", &[]),
    ("postgres://app:PASSWORD@nowhere.invalid:PORT,127.0.0.1:PORT/app", &[]),
    ("host=127.0.0.1,127.0.0.1 port=1,PORT user=app password=PASSWORD", &[]),
    ("host=::1,127.0.0.1 port=PORT user=app password=PASSWORD", &[]),
    ("postgres://app@SOCKET:PORT/app", &[]),
    ("postgres://app@/app?host=FOLDER&port=PORT", &[]),
    ("postgres:///app?host=FOLDER&port=PORT&user=app", &[]),
    ("host=FOLDER port=PORT user=app", &[]),
    ("host=FOLDER port=PORT user=app sslmode=require", &[]),
    ("host=FOLDER,127.0.0.1 port=PORT user=app", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?application_name=a@b", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?application_name=a%20b&options=-c%20geqo%3Doff", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?fallback_application_name=other&application_name=mine", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?connect_timeout=3&tcp_user_timeout=9000", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?keepalives=0", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?keepalives_idle=9&keepalives_interval=2&keepalives_count=4", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?target_session_attrs=read-write", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?target_session_attrs=primary", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?target_session_attrs=any", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=disable", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=allow", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=prefer", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=require", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?ssl=true", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=verify-ca&sslrootcert=ROOT", &[]),
    ("postgres://app:PASSWORD@localhost:PORT/app?sslmode=verify-full&sslrootcert=ROOT", &[]),
    (
        "host=localhost hostaddr=127.0.0.1 port=PORT user=app password=PASSWORD sslmode=verify-full sslrootcert=ROOT",
        &[],
    ),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=require&ssl_min_protocol_version=TLSv1.3", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=require&ssl_max_protocol_version=TLSv1.2", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=require&sslsni=0", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?channel_binding=disable", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=require&channel_binding=require", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?gssencmode=disable&client_encoding=UTF8", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?replication=false&sslcompression=0", &[]),
    ("postgres://", &[("PGHOST", "127.0.0.1"), ("PGPORT", "PORT"), ("PGUSER", "app"), ("PGPASSWORD", "PASSWORD")]),
    ("postgres:///postgres", &[("PGHOST", "FOLDER"), ("PGPORT", "PORT"), ("PGUSER", "app"), ("PGDATABASE", "app")]),
    ("user=app password=PASSWORD", &[("PGHOST", "127.0.0.1,127.0.0.1"), ("PGPORT", "1,PORT")]),
    ("user=app password=PASSWORD", &[("PGHOSTADDR", "127.0.0.1"), ("PGPORT", "PORT"), ("PGAPPNAME", "by-variable")]),
    ("host=127.0.0.1 user=app password=PASSWORD", &[("PGHOST", "nowhere.invalid"), ("PGPORT", "PORT")]),
    ("host=127.0.0.1 port=PORT user=app", &[("PGPASSFILE", "HOME/passwords")]),
    ("host=127.0.0.1 port=PORT user=app passfile=HOME/passwords", &[]),
    ("host=localhost port=PORT user=app dbname=postgres passfile=HOME/passwords", &[]),
    ("service=lottery", &[("PGSERVICEFILE", "HOME/services")]),
    ("postgres:///app?service=lottery", &[("PGSERVICEFILE", "HOME/services")]),
    ("dbname=postgres", &[("PGSERVICE", "lottery"), ("PGSERVICEFILE", "HOME/services"), ("PGHOST", "nowhere.invalid")]),
    (
        "host=127.0.0.1 port=PORT user=app password=PASSWORD",
        &[("PGSSLMODE", "require"), ("PGCHANNELBINDING", "require")],
    ),
    ("host=localhost port=PORT user=app password=PASSWORD", &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", "ROOT")]),
    (
        "host=127.0.0.1 port=PORT user=app password=PASSWORD",
        &[("PGTARGETSESSIONATTRS", "primary"), ("PGCONNECT_TIMEOUT", "4")],
    ),
    ("host='' port=PORT user=app password=PASSWORD hostaddr=127.0.0.1", &[]),
    ("host=127.0.0.1 port=PORT user=app password=PASSWORD application_name=''", &[("PGAPPNAME", "by-variable")]),
];

/// Neither connects.
const REFUSED: &[Case<'_>] = &[
    ("postgres://app:wrong@127.0.0.1:PORT/app", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/missing", &[]),
    ("postgres://missing:PASSWORD@127.0.0.1:PORT/app", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:1/app", &[]),
    ("postgres://app:PASSWORD@nowhere.invalid:PORT/app", &[]),
    ("postgres://app@127.0.0.1:PORT/app", &[]),
    ("postgres://app:PASS%zzWORD@127.0.0.1:PORT/app", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app%00", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:port/app", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:0/app", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:65536/app", &[]),
    ("postgres://app:PASSWORD@[::1:PORT/app", &[]),
    ("postgres://app:PASSWORD@[::1]PORT/app", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=require=", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=sometimes", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?schema=public", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?SSLMODE=require", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?connect_timeout=soon", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?target_session_attrs=standby", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?target_session_attrs=read-only", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?target_session_attrs=master", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?channel_binding=always", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=disable&channel_binding=require", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?gssencmode=require", &[]),
    ("postgres://app:PASSWORD@localhost:PORT/app?sslmode=verify-full&sslrootcert=HOME/stranger.pem", &[]),
    ("postgres://app:PASSWORD@localhost:PORT/app?sslmode=verify-full&sslrootcert=HOME/missing.pem", &[]),
    ("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslmode=verify-full&sslrootcert=ROOT", &[]),
    ("hostaddr=127.0.0.1 port=PORT user=app password=PASSWORD sslmode=verify-full sslrootcert=ROOT", &[]),
    ("hostaddr=localhost port=PORT user=app password=PASSWORD", &[]),
    (
        "postgres://app:PASSWORD@127.0.0.1:PORT/app?ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2",
        &[],
    ),
    ("postgres://app:PASSWORD@127.0.0.1:1,127.0.0.1:1,127.0.0.1:1/app?port=PORT,PORT", &[]),
    ("host=127.0.0.1,127.0.0.1 port=1,2,3 user=app password=PASSWORD", &[]),
    ("host=127.0.0.1 hostaddr=127.0.0.1,127.0.0.1 port=PORT user=app password=PASSWORD", &[]),
    ("host=127.0.0.1 port=PORT user=app password='PASSWORD", &[]),
    ("host=127.0.0.1 port=PORT user=app password=PASSWORD nonsense", &[]),
    ("host=127.0.0.1 port=PORT user=app password=PASSWORD colour=red", &[]),
    ("host=127.0.0.1 port=PORT password=PASSWORD", &[]),
    ("host=/does/not/exist port=PORT user=app", &[]),
    ("host=127.0.0.1 port=PORT user=app", &[("PGPASSFILE", "HOME/missing")]),
    ("host=127.0.0.1 port=PORT user=app password=PASSWORD", &[("PGSSLMODE", "sometimes")]),
    ("service=missing", &[("PGSERVICEFILE", "HOME/services")]),
    ("service=odd", &[("PGSERVICEFILE", "HOME/services")]),
    ("dbname=app", &[("PGSERVICE", "lottery"), ("PGSERVICEFILE", "HOME/missing")]),
];

/// What differs: the string, whether the relay connects, and what it says if it does not.
const DIFFERS: &[(Case<'_>, &str)] = &[
    // A password with an @ or a / that is not encoded is a mistake that is worth naming.
    (("postgres://app:PASSWORD@127.0.0.1:PORT/a@b", &[]), "%40"),
    // A standby has no use here: libpq takes any server by default.
    (
        ("postgres://app:PASSWORD@127.0.0.1:PORT/app?target_session_attrs=prefer-standby", &[]),
        "a relay needs a primary",
    ),
    // No protection that was asked for is dropped without a word.
    (("postgres://app:PASSWORD@127.0.0.1:PORT/app?requirepeer=postgres", &[]), "requirepeer"),
    (("postgres://app:PASSWORD@127.0.0.1:PORT/app?client_encoding=LATIN1", &[]), "client_encoding"),
    (("postgres://app:PASSWORD@127.0.0.1:PORT/app?sslcert=HOME/missing&sslkey=HOME/missing", &[]), "sslcert="),
];

#[tokio::test]
async fn strings_that_connect_psql_connect_the_relay_to_the_same() -> Result<()> {
    let world = World::start().await?;
    for case in CONNECTS {
        let (psql, relay) = (world.psql(*case).await?, world.relay(*case).await?);
        ensure!(psql.1.is_some(), "{case:?}: psql says {}", psql.0);
        ensure!(relay.1 == psql.1, "{case:?}: the relay has {:?} and says {}, psql has {:?}", relay.1, relay.0, psql.1);
    }
    Ok(())
}

#[tokio::test]
async fn strings_that_psql_refuses_get_one_line_from_the_relay_and_no_password_is_shown() -> Result<()> {
    let world = World::start().await?;
    for case in REFUSED {
        let (psql, relay) = (world.psql(*case).await?, world.relay(*case).await?);
        ensure!(psql.1.is_none(), "{case:?}: psql connects");
        ensure!(relay.1.is_none(), "{case:?}: the relay connects as {:?}", relay.1);
        ensure!(relay.0.trim_end().lines().count() == 1, "{case:?}: {}", relay.0);
        ensure!(!relay.0.contains(PASSWORD), "{case:?}: {}", relay.0);
    }
    Ok(())
}

#[tokio::test]
async fn what_psql_takes_and_the_relay_does_not_is_refused_by_name() -> Result<()> {
    let world = World::start().await?;
    for (case, says) in DIFFERS {
        let relay = world.relay(*case).await?;
        ensure!(relay.1.is_none() && relay.0.contains(says), "{case:?}: {:?} {}", relay.1, relay.0);
        ensure!(!relay.0.contains(PASSWORD), "{case:?}: {}", relay.0);
    }
    Ok(())
}

/// SCRAM is what all other cases use.
#[tokio::test]
async fn md5_clear_text_and_peer_authenticate() -> Result<()> {
    let world = World::start().await?;
    let (admin, connection) =
        tokio_postgres::connect(&world.ground.cluster.url("postgres"), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let roles = format!(
        "SET password_encryption = 'md5';
        CREATE ROLE by_md5 LOGIN PASSWORD '{PASSWORD}';
        RESET password_encryption;
        CREATE ROLE by_text LOGIN PASSWORD '{PASSWORD}';
        CREATE ROLE by_peer LOGIN"
    );
    admin.batch_execute(&roles).await?;
    let me = Command::new("id").arg("-un").output().await?;
    let me = String::from_utf8_lossy(&me.stdout).trim().to_owned();
    world.ground.cluster.write("pg_ident.conf", &format!("ours {me} by_peer\n"))?;
    world.ground.cluster.authenticate(
        "host all by_md5 127.0.0.1/32 md5\nhost all by_text 127.0.0.1/32 password\nlocal all by_peer peer map=ours",
    )?;
    for string in [
        "postgres://by_md5:PASSWORD@127.0.0.1:PORT/app",
        "postgres://by_text:PASSWORD@127.0.0.1:PORT/app",
        "host=FOLDER port=PORT user=by_peer dbname=app",
    ] {
        let (psql, relay) = (world.psql((string, &[])).await?, world.relay((string, &[])).await?);
        ensure!(psql.1.is_some() && relay.1 == psql.1, "{string}: {} {}", relay.0, psql.0);
    }
    Ok(())
}

/// The user's home is where libpq looks for a password file and for services.
#[tokio::test]
async fn files_in_the_home_directory_are_found() -> Result<()> {
    let world = World::start().await?;
    let home = world.ground.folder.path();
    move_to(home, "passwords", ".pgpass")?;
    move_to(home, "services", ".pg_service.conf")?;
    for case in [("host=127.0.0.1 port=PORT user=app", &[] as &[_]), ("service=lottery", &[])] {
        let (psql, relay) = (world.psql(case).await?, world.relay(case).await?);
        ensure!(psql.1.is_some() && relay.1 == psql.1, "{case:?}: {} {}", relay.0, psql.0);
    }
    Ok(())
}

fn move_to(folder: &Path, from: &str, to: &str) -> Result<()> {
    Ok(std::fs::rename(folder.join(from), folder.join(to))?)
}
