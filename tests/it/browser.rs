//! A headless Chromium in which tests open pages as visitors do.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// How long a visit may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools").join(name)
}

/// The path of Chromium; the first test that needs it looks for it, and installs it if allowed.
pub async fn chromium() -> Result<&'static str> {
    static CHROMIUM: OnceCell<String> = OnceCell::const_new();
    let look = async || {
        let found = Command::new("/bin/sh").arg(tool("chromium.sh")).stderr(Stdio::inherit()).output().await?;
        ensure!(found.status.success(), "no Chromium; the script says why above");
        let said = String::from_utf8(found.stdout)?;
        Ok(said.lines().last().context("the script said nothing")?.to_owned())
    };
    Ok(CHROMIUM.get_or_try_init(look).await?.as_str())
}

/// Opens a page with options of `page.mjs`, runs a script in it, and returns what is printed. The folder of the
/// browser's profile stays.
pub async fn visit(profile: &Path, url: &str, options: &[&str], script: &str) -> Result<Value> {
    let mut command = Command::new("node");
    command.arg(tool("page.mjs")).arg(chromium().await?).arg(profile).arg(url).args(options);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    let mut child = command.spawn().context("node is missing; install Node.js >= 20")?;
    child.stdin.take().context("no input")?.write_all(script.as_bytes()).await?;
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await??;
    ensure!(output.status.success(), "the page did not do what it was to; see above");
    Ok(serde_json::from_slice(&output.stdout)?)
}
