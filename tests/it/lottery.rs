//! The example application as a whole: sold, drawn, paid, audited, shown on its page, and a read model built anew.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::eventually;
use crate::support::relay::binary;

/// Setting up, selling and auditing take seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the page is when its script has looked once.
async fn shown(url: &str, profile: &Path) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/chromium.sh");
    let found = Command::new("/bin/sh").arg(script).stderr(Stdio::inherit()).output().await?;
    ensure!(found.status.success(), "no Chromium; the script says why above");
    let chromium = String::from_utf8(found.stdout)?;
    let chromium = chromium.lines().last().context("the script said nothing")?;
    let mut command = Command::new(chromium);
    // Root has no sandbox, and what is opened is our own page. The rest keeps Chromium from looking for the internet.
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]);
    command.args(["--disable-component-update", "--disable-sync", "--virtual-time-budget=4000", "--dump-dom", url]);
    command.arg(format!("--user-data-dir={}", profile.display())).stderr(Stdio::null()).kill_on_drop(true);
    let page =
        tokio::time::timeout(Duration::from_secs(60), command.output()).await.context("Chromium does not end")??;
    Ok(String::from_utf8(page.stdout)?)
}

fn text_of(page: &str, id: &str) -> Result<String> {
    let after = page.split_once(&format!("id=\"{id}\">")).with_context(|| format!("no {id} on the page"))?.1;
    Ok(after.split('<').next().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn the_lottery_sells_draws_pays_and_shows_it_and_every_read_model_is_what_the_events_say() -> Result<()> {
    let example = std::env::current_exe()?;
    let example = example.parent().and_then(Path::parent).context("no target folder")?.join("examples/lottery");
    ensure!(example.is_file(), "{} is missing: cargo build --example lottery", example.display());
    let folder = std::env::temp_dir().join(format!("outbox-relay-lottery-{}", std::process::id()));
    let mut command = Command::new(example);
    command.env("LOTTERY_RELAY", binary()).env("LOTTERY_FOLDER", &folder);
    command.args(["serve", "--purchases", "300", "--draws", "3", "--listen", "127.0.0.1:0", "--stay"]);
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut said = String::new();
    let waiting = async {
        while let Some(line) = lines.next_line().await? {
            said.push_str(&line);
            said.push('\n');
            if line.contains("stays up") {
                break;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, waiting).await.with_context(|| said.clone())??;
    let url = said.lines().find_map(|line| line.trim().strip_prefix("page ")).with_context(|| said.clone())?.trim();
    let profile = folder.with_extension("chromium");
    let page = shown(url, &profile).await?;
    std::fs::remove_dir_all(&profile)?;
    let sold: i64 = text_of(&page, "sold")?.replace(',', "").parse()?;
    ensure!(sold >= 300, "{sold} are shown");
    ensure!(said.contains(&format!("tickets sold         {sold}")), "the page says {sold}:\n{said}");
    ensure!(page.matches("<td>draw-0").count() == 3 && !page.contains(">draw</button>"), "not all draws are over");
    ensure!(text_of(&page, "lag")?.ends_with('s'), "the relay's lag is not shown");
    let delivered = page.split_once("<td>sales</td><td>").context("the relay is not shown")?.1.split('<').next();
    let delivered: i64 = delivered.context("no number")?.replace(',', "").parse()?;
    ensure!(delivered >= sold, "{delivered} events reached the sales");
    let pid = child.id().context("it has ended")?.to_string();
    ensure!(Command::new("kill").args(["-INT", &pid]).status().await?.success());
    while let Some(line) = tokio::time::timeout(PATIENCE, lines.next_line()).await?? {
        said.push_str(&line);
    }
    ensure!(child.wait().await?.success() && said.contains("PASSED: the money adds up"), "{said}");
    eventually("its folder is gone", || async { Ok(!folder.exists()) }).await
}
