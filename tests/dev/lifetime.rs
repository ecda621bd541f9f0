//! Whatever ends the command, its children end with it, and a temporary cluster goes.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};
use support::eventually;
use support::test_bed::{enqueue_range, ensure_each_once, numbers};
use tempfile::TempDir;
use tokio::time::timeout;

use super::ground::{Dev, PATIENCE, command, is_running, kill, postgres};

#[tokio::test]
async fn a_signal_ends_the_relay_the_server_and_the_folder() -> Result<()> {
    for signal in ["TERM", "INT", "HUP"] {
        let dev = Dev::start(&[]).await?;
        let (relay, server, folder) = (dev.relay(0).await?, dev.postgres()?, dev.folder()?);
        dev.line("outbox-relay starts").await?;
        ensure!(is_running(relay) && is_running(server) && folder.is_dir(), "{relay} {server} {}", folder.display());
        let said = dev.end(signal).await?;
        ensure!(!is_running(relay) && !is_running(server) && !folder.exists(), "SIG{signal} left something:\n{said}");
        let said = said.split("the relay runs").nth(1).unwrap_or_default();
        ensure!(said.contains("draining") && said.contains("outbox-relay ends"), "the relay did not drain:\n{said}");
    }
    Ok(())
}

#[tokio::test]
async fn children_end_even_if_the_command_is_killed() -> Result<()> {
    let dev = Dev::start(&[]).await?;
    let (relay, server, folder) = (dev.relay(0).await?, dev.postgres()?, dev.folder()?);
    kill("KILL", dev.id()?).await?;
    eventually("relay, server and folder are gone", || async {
        Ok(!is_running(relay) && !is_running(server) && !folder.exists())
    })
    .await
}

#[tokio::test]
async fn a_server_that_ends_by_itself_ends_the_command_with_its_log() -> Result<()> {
    let dev = Dev::start(&[]).await?;
    let (relay, folder) = (dev.relay(0).await?, dev.folder()?);
    kill("INT", dev.postgres()?).await?;
    let (status, said) = dev.wait().await?;
    ensure!(status.code() == Some(1), "{status}\n{said}");
    ensure!(said.contains("outbox-relay: PostgreSQL ended") && said.contains("database system is shut down"), "{said}");
    ensure!(!is_running(relay) && !folder.exists());
    Ok(())
}

#[tokio::test]
async fn root_runs_postgresql_as_somebody_else_and_nobody_can_read_the_folder() -> Result<()> {
    let dev = Dev::start(&[]).await?;
    let us = std::fs::metadata(format!("/proc/{}", dev.id()?))?.uid();
    let server = std::fs::metadata(format!("/proc/{}", dev.postgres()?))?.uid();
    ensure!(server != 0 && (us == 0 || us == server), "we are {us}, PostgreSQL is {server}");
    let folder = std::fs::metadata(dev.folder()?)?;
    ensure!(folder.mode() & 0o777 == 0o700 && folder.uid() == server, "{folder:?}");
    dev.end("TERM").await?;
    Ok(())
}

#[tokio::test]
async fn a_terminal_that_stands_still_holds_up_neither_the_queues_nor_the_end() -> Result<()> {
    const COUNT: i64 = 2000;
    let dev = Dev::start(&[]).await?;
    dev.stop_reading();
    enqueue_range(&dev.database().await?, "audit", 1..=COUNT, 0).await?;
    let (queue, queues) = (dev.queue("audit")?, dev.queues()?);
    let received = Mutex::new(Vec::new());
    eventually("every message was received", || async {
        // If the command hung, its queues would never answer.
        let more = timeout(PATIENCE, queues.drain(&queue)).await??;
        let mut received = received.lock().unwrap();
        received.extend(more);
        Ok(received.len() as i64 >= COUNT)
    })
    .await?;
    ensure_each_once(numbers(&received.into_inner().unwrap())?, COUNT)?;
    dev.end("TERM").await?;
    Ok(())
}

/// An `initdb` that is never done, with a child that goes on writing when it is gone.
const ENDLESS: &str = r#"#!/bin/sh
mkdir -p "$2" && echo 15 >"$2/PG_VERSION"
(while :; do mkdir -p "$2/base" && echo x >"$2/base/1"; done) &
echo $! >"$2/child.new" && mv "$2/child.new" "$2/child"
wait
"#;

/// Programs of PostgreSQL with that `initdb`, and a place for temporary folders, which every account can use.
fn endless() -> Result<TempDir> {
    let place = tempfile::Builder::new().prefix("outbox-relay-dev-test").tempdir_in("/tmp")?;
    let initdb = place.path().join("bin/initdb");
    for folder in ["bin", "tmp"] {
        std::fs::create_dir(place.path().join(folder))?;
    }
    std::os::unix::fs::symlink(postgres()?.join("postgres"), place.path().join("bin/postgres"))?;
    std::fs::write(&initdb, ENDLESS)?;
    for (path, mode) in [(place.path(), 0o755), (&initdb, 0o755), (&place.path().join("tmp"), 0o1777)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(place)
}

/// The child of the `initdb` that works somewhere in this folder.
fn child_of_initdb(folder: &Path) -> Option<u32> {
    let mut inside = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    inside.find_map(|path| {
        let id = std::fs::read_to_string(path.join("child")).ok().and_then(|id| id.trim().parse().ok());
        id.or_else(|| child_of_initdb(&path))
    })
}

/// Starts the command with these arguments, sends the signal while `initdb` runs, and waits until both have ended.
async fn interrupt(place: &Path, signal: &str, arguments: &[&str]) -> Result<()> {
    let programs = place.join("bin");
    let mut dev = command(&["--sqs-listen", "127.0.0.1:0"]);
    dev.arg("--postgres").arg(programs).args(arguments).env("TMPDIR", place.join("tmp"));
    let mut dev = dev.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    eventually("initdb runs", || async { Ok(child_of_initdb(place).is_some()) }).await?;
    let child = child_of_initdb(place).context("initdb has ended")?;
    kill(signal, dev.id().context("it has ended")?).await?;
    let status = timeout(PATIENCE, dev.wait()).await??;
    ensure!(status.code() == Some(0).filter(|_| signal != "KILL"), "SIG{signal}: {status}");
    if signal != "KILL" {
        ensure!(!is_running(child), "SIG{signal} left the child of initdb");
    }
    eventually("the child of initdb is gone", || async { Ok(!is_running(child)) }).await
}

#[tokio::test]
async fn whatever_interrupts_initdb_ends_its_children_and_removes_the_folder() -> Result<()> {
    let place = endless()?;
    for signal in ["TERM", "HUP", "KILL"] {
        interrupt(place.path(), signal, &[]).await?;
        let left = || std::fs::read_dir(place.path().join("tmp")).map(Iterator::count);
        ensure!(signal == "KILL" || left()? == 0, "SIG{signal} left a folder");
        eventually("the folder is gone", || async { Ok(left()? == 0) }).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_kept_folder_in_which_initdb_was_interrupted_can_be_used() -> Result<()> {
    let place = endless()?;
    let data = place.path().join("kept");
    let data = data.to_str().context("a folder that is not text")?;
    for signal in ["TERM", "KILL"] {
        interrupt(place.path(), signal, &["--data", data]).await?;
    }
    let dev = Dev::start(&["--data", data]).await?;
    dev.database().await?;
    dev.end("TERM").await?;
    let mut left: Vec<_> = std::fs::read_dir(data)?.map(|one| Ok(one?.file_name())).collect::<Result<_>>()?;
    left.sort();
    ensure!(left == ["data", "log", "password"], "{left:?}");
    Ok(())
}
