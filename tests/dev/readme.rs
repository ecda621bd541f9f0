//! The quick start of the README, as it is typed: only the ports are others, so that it can run beside other tests.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;
use tokio::time::timeout;

use super::ground::{Dev, PATIENCE};

#[tokio::test]
async fn the_quick_start_of_the_readme_shows_a_message() -> Result<()> {
    let readme = std::fs::read_to_string(support::repository().join("README.md"))?;
    let start = readme.split("## Quick start").nth(1).and_then(|text| text.split("\n## ").next());
    let start = start.context("no quick start")?;
    let typed = start.split("```sh\n").nth(1).and_then(|text| text.split("```").next()).context("no commands")?;
    let typed: Vec<&str> = typed.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).collect();
    // `make package-check` installs by cargo.
    let [install, run] = typed[..] else { anyhow::bail!("not two commands: {typed:?}") };
    ensure!(install.starts_with("cargo install ") && install.contains("--features dev"), "{install}");
    ensure!(run == "outbox-relay dev", "{run}");
    let dev = Dev::start(&[]).await?;
    // The line that it prints, pasted into another terminal.
    let line = dev.line("outbox.enqueue('tickets', 'TicketPurchased', '{").await?;
    let pasted = Command::new("/bin/sh").args(["-c", line.trim()]).stdin(Stdio::null()).kill_on_drop(true).output();
    let pasted = timeout(PATIENCE, pasted).await??;
    ensure!(pasted.status.success(), "{line}: {}", String::from_utf8_lossy(&pasted.stderr));
    let shown = start.split("```text\n").nth(1).and_then(|text| text.lines().next()).context("no message is shown")?;
    let arrived = dev.line("tickets.fifo  group=draw-7").await?;
    // The time and the id differ.
    let shape = |line: &str| -> Vec<String> {
        let parts = line.split("  ").filter(|part| !part.contains("after its commit"));
        parts.map(|part| if part.starts_with("event_id=") { "event_id=" } else { part }.to_owned()).collect()
    };
    ensure!(shape(&arrived) == shape(shown), "{arrived} is not like {shown}");
    dev.end("INT").await?;
    Ok(())
}
