//! The recipes of docs/one-table.md run word by word: each object mapper inserts into the view, reads back, deletes and rolls
//! back in its own way, and what it must have sent is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::process::Command;

use support::test_bed::TestBed;

/// The time limit of an installation, and of a program.
const PATIENCE: Duration = Duration::from_secs(900);

/// The block of code under this heading of the page.
fn recipe(heading: &str) -> Result<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/one-table.md"))?;
    let part = page.split(&format!("\n### {heading}")).nth(1).with_context(|| format!("no heading {heading}"))?;
    let block = part.split("```").nth(1).context("no block")?;
    Ok(block.split_once('\n').context("no language")?.1.to_owned())
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools")
}

/// Runs a command to its end, in bounded time; returns what it printed, and fails with its output if it did not succeed.
async fn finish(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = tokio::time::timeout(PATIENCE, command.output());
    let output = output.await.with_context(|| format!("{program} did not end within {PATIENCE:?}"))?;
    let output = output.with_context(|| format!("cannot start {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} ended with {}:\n{said}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Where the tools are, which are installed if they are not there.
async fn installed(what: &str) -> Result<PathBuf> {
    let place = finish(Command::new("sh").arg(tools().join("orm.sh")).arg(what)).await?;
    Ok(PathBuf::from(place.trim()))
}

/// A database with a route for orders, which the program uses; the ids it prints must be what is to be sent, in one group.
async fn ensure_sends(program: &mut Command, at_least: usize) -> Result<()> {
    let bed = TestBed::new().await?;
    bed.client.batch_execute("INSERT INTO outbox.routes VALUES ('Order', 'orders')").await?;
    let printed = finish(program.env("DATABASE_URL", bed.url())).await?;
    let printed: BTreeSet<&str> = printed.lines().collect();
    let query = "SELECT e.event_id::text FROM outbox.messages_pending AS m JOIN outbox.events AS e ON e.position = m.event_position
        WHERE m.destination = 'orders' AND m.group_id = '7' AND e.event_type = 'OrderCreated' AND e.payload ? 'id'";
    let written: Vec<String> = bed.client.query(query, &[]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(written.len() >= at_least && bed.pending().await? == written.len() as i64, "{written:?}");
    let written: BTreeSet<&str> = written.iter().map(String::as_str).collect();
    ensure!(printed == written, "it printed {printed:?}, and written were {written:?}");
    Ok(())
}

async fn ensure_sends_in_python(heading: &str, program: &str, at_least: usize) -> Result<()> {
    let python = installed("python").await?;
    let folder = TempDir::new()?;
    let file = folder.path().join("recipe.py");
    std::fs::write(&file, recipe(heading)?)?;
    ensure_sends(Command::new(python).arg(tools().join("orm").join(program)).arg(file), at_least).await
}

#[tokio::test]
async fn sqlalchemy_writes_through_the_view() -> Result<()> {
    ensure_sends_in_python("SQLAlchemy", "with_sqlalchemy.py", 23).await
}

#[tokio::test]
async fn django_writes_through_the_view() -> Result<()> {
    ensure_sends_in_python("Django", "with_django.py", 23).await
}

#[tokio::test]
async fn hibernate_writes_through_the_view() -> Result<()> {
    let jars = installed("hibernate").await?.join("*");
    let folder = TempDir::new()?;
    let entity = folder.path().join("OutboxEvent.java");
    std::fs::write(&entity, recipe("Hibernate, Spring Data JPA")?)?;
    let main = tools().join("orm/WithHibernate.java");
    let mut compile = Command::new("javac");
    compile.arg("-proc:none").arg("-cp").arg(&jars).arg("-d").arg(folder.path()).arg(&entity).arg(main);
    finish(&mut compile).await?;
    let path = format!("{}:{}", folder.path().display(), jars.display());
    ensure_sends(Command::new("java").arg("-cp").arg(path).arg("WithHibernate"), 27).await
}

#[tokio::test]
async fn drizzle_writes_through_the_view() -> Result<()> {
    let modules = installed("drizzle").await?.join("node_modules");
    let folder = TempDir::new()?;
    std::os::unix::fs::symlink(modules, folder.path().join("node_modules"))?;
    std::fs::write(folder.path().join("recipe.mjs"), recipe("Drizzle")?)?;
    let program = folder.path().join("program.mjs");
    std::fs::copy(tools().join("orm/with_drizzle.mjs"), &program)?;
    ensure_sends(Command::new("node").arg(program), 3).await
}
