//! The example application as a whole: tickets are sold, drawn, paid, audited and shown on its page, and its read
//! models are rebuilt.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::browser::{chromium, visit};
use support::eventually;
use support::relay::binary;

/// Setup, selling and auditing take seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The running example application.
struct Lottery {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: String,
    folder: PathBuf,
}

impl Lottery {
    /// Starts `lottery serve` on a free port.
    async fn start(name: &str, arguments: &[&str]) -> Result<Lottery> {
        // If Chromium has to be installed first, no tickets are sold meanwhile.
        chromium().await?;
        let test = std::env::current_exe()?;
        let example = test.parent().and_then(Path::parent).context("no target folder")?.join("examples/lottery");
        ensure!(example.is_file(), "{} is missing: cargo build --example lottery", example.display());
        let folder = std::env::temp_dir().join(format!("outbox-relay-lottery-{}-{name}", std::process::id()));
        let mut command = Command::new(example);
        command.env("LOTTERY_RELAY", binary()).env("LOTTERY_FOLDER", &folder);
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Lottery { child, lines, said: String::new(), folder })
    }

    /// Chromium's profile folder.
    fn profile(&self) -> PathBuf {
        self.folder.with_extension("chromium")
    }

    /// Returns when the output contains this word; without a word, when the output has ended.
    async fn until_it_says(&mut self, word: Option<&str>) -> Result<()> {
        let Lottery { lines, said, .. } = self;
        let waiting = async {
            while let Some(line) = lines.next_line().await? {
                said.push_str(&line);
                said.push('\n');
                if word.is_some_and(|word| line.contains(word)) {
                    return Ok(());
                }
            }
            ensure!(word.is_none(), "it ended");
            Ok(())
        };
        tokio::time::timeout(PATIENCE, waiting).await.context("it says no more").flatten().with_context(|| said.clone())
    }

    /// Opens the page, runs a script in it, and returns its result.
    async fn on_its_page(&self, script: &str) -> Result<Value> {
        let url = self.said.lines().find_map(|line| line.trim().strip_prefix("page ")).context("no page")?.trim();
        visit(&self.profile(), url, &[], script).await
    }

    /// Interrupts it; then everything must be right and cleaned up.
    async fn end_well(mut self) -> Result<()> {
        let pid = self.child.id().context("it has ended")?.to_string();
        ensure!(Command::new("kill").args(["-INT", &pid]).status().await?.success());
        self.until_it_says(None).await?;
        let is_well = self.child.wait().await?.success() && self.said.contains("PASSED: the money adds up");
        ensure!(is_well, "{}", self.said);
        eventually("its folder is gone", || async { Ok(!self.folder.exists()) }).await
    }
}

impl Drop for Lottery {
    fn drop(&mut self) {
        // What a failed test leaves behind; Chromium's last processes may still be writing.
        for folder in [&self.folder, &self.profile()] {
            std::fs::remove_dir_all(folder).ok();
        }
    }
}

fn text_of(page: &str, id: &str) -> Result<String> {
    let after = page.split_once(&format!("id=\"{id}\">")).with_context(|| format!("no {id} on the page"))?.1;
    Ok(after.split('<').next().unwrap_or_default().to_owned())
}

/// The complete state of the page, including the relay.
const WHOLE_PAGE: &str = "
    const lag = () => document.getElementById('lag').textContent;
    while (lag() === '–') await new Promise((done) => setTimeout(done, 50));
    return document.documentElement.outerHTML;";

/// Clicks the first draw's button while tickets are sold; returns what the page shows once more of them are sold.
const DRAW: &str = "
    const rows = () => [...document.querySelectorAll('#draws tr')], until = async (is) => {
        while (!is()) await new Promise((done) => setTimeout(done, 50));
    };
    const sold = (row) => Number(row.children[1].textContent.replace(',', ''));
    const all = () => rows().reduce((sum, row) => sum + sold(row), 0);
    await until(() => rows().length === 2 && rows().every((row) => row.querySelector('button') && sold(row) > 5));
    const before = all();
    rows()[0].querySelector('button').click();
    const refused = () => document.getElementById('problem').textContent.includes('drawn');
    await until(() => refused() || !rows()[0].querySelector('button'));
    const [draw, numbers] = [0, 6].map((column) => rows()[0].children[column].textContent);
    await until(() => all() > before + 20);
    return { draw, numbers, refused: refused(), isOtherOpen: Boolean(rows()[1].querySelector('button')) };";

#[tokio::test]
async fn the_lottery_sells_draws_pays_and_shows_it_and_every_read_model_matches_the_events() -> Result<()> {
    let mut lottery = Lottery::start("whole", &["--purchases", "300", "--draws", "3", "--stay"]).await?;
    lottery.until_it_says(Some("stays up")).await?;
    let page = lottery.on_its_page(WHOLE_PAGE).await?;
    let page = page.as_str().context("no page")?;
    let sold: i64 = text_of(page, "sold")?.replace(',', "").parse()?;
    ensure!(sold >= 300, "{sold} are shown");
    let said = &lottery.said;
    ensure!(said.contains(&format!("tickets sold         {sold}")), "the page says {sold}:\n{said}");
    for view in ["tickets", "sales", "payouts"] {
        ensure!(said.contains(&format!("{view}, rebuilt")), "{view} was not rebuilt:\n{said}");
    }
    ensure!(page.matches("<td>draw-0").count() == 3 && !page.contains(">draw</button>"), "not all draws are over");
    ensure!(text_of(page, "lag")?.ends_with('s'), "the relay's lag is not shown");
    let delivered = page.split_once("<td>sales</td><td>").context("the relay is not shown")?.1.split('<').next();
    let delivered: i64 = delivered.context("no number")?.replace(',', "").parse()?;
    ensure!(delivered >= sold, "{delivered} events reached the sales");
    lottery.end_well().await
}

#[tokio::test]
async fn numbers_are_drawn_from_the_page_while_tickets_are_sold() -> Result<()> {
    let slowly = ["--purchases", "0", "--draws", "2", "--buyers", "2", "--think", "50ms"];
    let mut lottery = Lottery::start("draw", &slowly).await?;
    lottery.until_it_says(Some("page ")).await?;
    let shown = lottery.on_its_page(DRAW).await?;
    ensure!(shown["draw"] == "draw-01" && shown["refused"] == false && shown["isOtherOpen"] == true, "{shown}");
    let numbers =
        shown["numbers"].as_str().context("no numbers")?.split(' ').map(str::parse).collect::<Result<Vec<u8>, _>>()?;
    ensure!(numbers.len() == 6 && numbers.iter().all(|number| (1..=49).contains(number)), "{shown}");
    // At the end the application draws what is left, pays, and finds no ticket that was sold after the draw.
    lottery.end_well().await
}
