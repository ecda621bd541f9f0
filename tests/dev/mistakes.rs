//! What cannot work is refused in one line, with the remedy and exit code 2.

use anyhow::{Context, Result, ensure};
use outbox_relay::config::Flags;
use outbox_relay::outbox::{MIGRATIONS, Migration, Outbox};
use support::test_bed::{connect, migrate};

use super::ground::{Dev, command, postgres, refused};

async fn ensure_refused(command: tokio::process::Command, parts: &[&str]) -> Result<()> {
    let (code, error) = refused(command).await?;
    ensure!(code == Some(2), "{code:?}\n{error}");
    ensure!(error.starts_with("outbox-relay: ") && error.lines().count() == 1, "{error}");
    for part in parts {
        ensure!(error.contains(part), "{part:?} is not in {error}");
    }
    Ok(())
}

#[tokio::test]
async fn an_address_that_other_machines_reach_is_refused() -> Result<()> {
    for address in ["0.0.0.0:0", "[::]:9324", "192.0.2.1:9324"] {
        ensure_refused(command(&["--sqs-listen", address]), &[address, "127.0.0.1:9324"]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_address_in_use_is_refused() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    ensure_refused(command(&["--sqs-listen", &address]), &[&address, "--sqs-listen 127.0.0.1:0"]).await
}

#[tokio::test]
async fn a_folder_without_postgresql_is_refused() -> Result<()> {
    let empty = tempfile::tempdir()?;
    let folder = empty.path().to_str().context("a folder that is not text")?;
    let command = command(&["--sqs-listen", "127.0.0.1:0", "--postgres", folder]);
    ensure_refused(command, &[folder, "initdb and postgres"]).await
}

#[tokio::test]
async fn names_that_sqs_does_not_take_and_two_queues_of_a_destination_are_refused() -> Result<()> {
    let folder = postgres()?.to_str().context("a folder that is not text")?;
    for (queues, part) in
        [(",", "names no queue"), ("a.b", "letters, digits"), ("a,a.fifo", "two queues for the destination \"a\"")]
    {
        let command = command(&["--sqs-listen", "127.0.0.1:0", "--postgres", folder, "--queues", queues]);
        ensure_refused(command, &["--queues", part]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_data_folder_with_something_else_in_it_is_refused_and_left_alone() -> Result<()> {
    let place = tempfile::tempdir()?;
    std::fs::write(place.path().join("thesis.txt"), "years of work")?;
    let folder = place.path().to_str().context("a folder that is not text")?;
    let postgres = postgres()?.to_str().context("a folder that is not text")?;
    let command = command(&["--sqs-listen", "127.0.0.1:0", "--postgres", postgres, "--data", folder]);
    ensure_refused(command, &[folder, "holds something else"]).await?;
    let left: Vec<_> = std::fs::read_dir(place.path())?.collect();
    ensure!(left.len() == 1, "{left:?}");
    Ok(())
}

#[tokio::test]
async fn the_database_of_other_relays_is_used_only_if_the_user_says_so() -> Result<()> {
    let cluster = support::cluster()?;
    cluster.create_database("of_others").await?;
    let url = cluster.url("of_others");
    migrate(&url).await?;
    let with_database = |arguments: &[&str]| {
        let mut command = command(&[&["--sqs-listen", "127.0.0.1:0"], arguments].concat());
        command.env("DATABASE_URL", &url);
        command
    };
    // Nobody has used it for these destinations.
    let dev = Dev::start_command(with_database(&[])).await?;
    ensure!(!dev.said().contains(support::postgres::PASSWORD), "a secret is shown:\n{}", dev.said());
    ensure!(dev.said().contains("psql \"$DATABASE_URL\" -c"), "{}", dev.said());
    dev.line("outbox-relay starts").await?;
    dev.end("TERM").await?;
    let database = support::test_bed::connect(&url).await?;
    support::test_bed::enqueue(&database, "audit", "{}", None).await?;
    ensure_refused(with_database(&[]), &["of_others", "\"audit\"", "--take-messages"]).await?;
    let dev = Dev::start_command(with_database(&["--take-messages"])).await?;
    let line = dev.line("audit  ").await?;
    // This server does not keep the time of commits.
    ensure!(line.contains("after its INSERT"), "{line}");
    dev.end("TERM").await?;
    Ok(())
}

#[tokio::test]
async fn an_outbox_of_another_release_is_neither_migrated_nor_used_unless_the_user_says_so() -> Result<()> {
    const NEXT: Migration =
        Migration { version: MIGRATIONS.len() as i32 + 1, name: "next", sql: "SELECT 1;", needs: 1 };
    let cluster = support::cluster()?;
    let next = [&MIGRATIONS[..], &[NEXT]].concat();
    let last = MIGRATIONS.len();
    for (name, migrations, takes_it) in [("of_before", &MIGRATIONS[..last - 1], last), ("of_after", &next, last + 1)] {
        cluster.create_database(name).await?;
        let url = cluster.url(name);
        let config = Flags::default().with("database-url", url.clone()).database()?;
        Outbox::new(&config, 1)?.migrate_to(migrations).await?;
        let database = connect(&url).await?;
        let with_database = |arguments: &[&str]| {
            let mut command = command(&[&["--sqs-listen", "127.0.0.1:0"], arguments].concat());
            command.env("DATABASE_URL", &url);
            command
        };
        let version = async || -> Result<usize> {
            let row = database.query_one("SELECT max(version) FROM outbox.migrations", &[]).await?;
            Ok(row.try_get::<_, i32>(0)?.try_into()?)
        };
        let found = migrations.len().to_string();
        ensure_refused(with_database(&[]), &[name, &found, &last.to_string(), "--take-messages"]).await?;
        ensure!(version().await? == migrations.len(), "{name} was changed");
        let dev = Dev::start_command(with_database(&["--take-messages"])).await?;
        dev.end("TERM").await?;
        ensure!(version().await? == takes_it, "{name} has another version");
    }
    Ok(())
}
