//! The status page as browsers show it: narrow and wide, light and dark, with scripts and without.
//!
//! `make status-page-preview` lets the same scene run for `STATUS_PAGE_MINUTES` and keeps the pictures in the folder
//! `STATUS_PAGE_PICTURES`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::browser::visit;
use crate::status_page::{missing_queue, status, wait_for};
use support::eventually;
use support::proxy::{Fault, Proxy};
use support::relay::Relay;
use support::test_bed::TestBed;

/// What a visitor can measure: whether something is wider than the window, the colours, and how far text can be told from
/// what is behind it (WCAG 2.2, 1.4.3: at least 4.5 to 1).
const MEASURE: &str = "
    for (const part of document.querySelectorAll('details')) part.open = OPEN;
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = ([red, green, blue]) => {
        const [r, g, b] = [red, green, blue].map((part) => part / 255).map((part) =>
            part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = numbers(getComputedStyle(at).backgroundColor);
            if (colour.length === 3 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    const faint = [];
    let texts = 0;
    for (const element of document.querySelectorAll('body *')) {
        const says = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join('').trim();
        if (!says || element.closest('svg') || !element.checkVisibility()) continue;
        texts += 1;
        const [one, other] = [light(numbers(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
        const contrast = (one + 0.05) / (other + 0.05);
        if (contrast < 4.5) faint.push(`${says.slice(0, 40)}: ${contrast.toFixed(2)}`);
    }
    const wide = [...document.querySelectorAll('body *')].filter((element) => !element.closest('thead')
        && element.getBoundingClientRect().right > WIDTH + 0.5).map((element) => element.tagName + '.' + element.className);
    return {
        width: document.scrollingElement.scrollWidth, wide, faint, texts,
        background: getComputedStyle(document.body).backgroundColor,
        text: document.body.innerText, height: document.scrollingElement.scrollHeight,
        tables: [...document.querySelectorAll('table')].map((table) => Boolean(table.caption)),
        pictures: [...document.querySelectorAll('svg')].map((svg) => svg.getAttribute('aria-label')),
        headings: [...document.querySelectorAll('h1, h2')].map((heading) => heading.innerText),
        language: document.documentElement.lang,
    };";

/// Waits until the page shows the pause by itself; its first heading must be the same element as before.
const WATCH: &str = "
    const heading = document.querySelector('h1');
    const shown = () => document.getElementById('destinations').innerText.includes('by ada');
    const summary = document.querySelector('summary');
    summary.focus();
    summary.click();
    while (!shown()) await new Promise((done) => setTimeout(done, 100));
    return { isSame: heading === document.querySelector('h1'), isOpen: summary.parentElement.open,
        isFocused: document.activeElement === summary, isStale: !document.getElementById('stale').hidden };";

/// Waits until the page says that the relay does not answer.
const UNTIL_STALE: &str = "
    while (document.getElementById('stale').hidden) await new Promise((done) => setTimeout(done, 100));
    return document.getElementById('stale').innerText;";

/// A relay with a halted, a paused, a busy and an idle destination, and some dead messages.
struct Scene {
    bed: TestBed,
    relay: Relay,
    /// Between the relay and SQS.
    _proxy: Proxy,
    profile: TempDir,
}

impl Scene {
    async fn new() -> Result<Scene> {
        let bed = TestBed::new().await?;
        let tickets = bed.fifo("tickets").await?;
        bed.standard("audit").await?;
        bed.add_destination("payouts", &missing_queue(&tickets));
        bed.fifo("mail").await?;
        bed.standard("archive").await?;
        let proxy = bed.proxy().await?;
        proxy.set(Fault::latency(Duration::from_millis(15), 7));
        let relay = bed.relay().start().await?;
        let pause = "SELECT outbox.pause('mail', interval '2 hours', 'the consumer is being migrated', 'ada')";
        bed.client.batch_execute(pause).await?;
        bed.enqueue_many("payouts", 12, 3).await?;
        bed.enqueue_many("mail", 140, 20).await?;
        for group in ["draw-7", "draw-9"] {
            bed.enqueue("tickets", &format!("{{\"n\": \"{}\"}}", "x".repeat(1_100_000)), Some(group)).await?;
        }
        bed.enqueue_many("tickets", 300, 40).await?;
        wait_for(&relay, "payouts", "state", "halted").await?;
        wait_for(&relay, "mail", "pending", 140).await?;
        wait_for(&relay, "tickets", "dead", 2).await?;
        Ok(Scene { bed, relay, _proxy: proxy, profile: tempfile::tempdir()? })
    }

    fn url(&self) -> String {
        format!("http://{}/", self.relay.address())
    }

    /// What a visitor measures. Nothing else than the relay may have been asked, and nothing may have failed.
    async fn visit(&self, width: u64, options: &[&str], are_parts_open: bool) -> Result<Value> {
        let wide = format!("--width={width}");
        let options = [&["--report", wide.as_str()], options].concat();
        // A telephone that finds something too wide makes everything smaller, and its window seems wider then.
        let script = MEASURE.replace("OPEN", &are_parts_open.to_string()).replace("WIDTH", &width.to_string());
        let seen = visit(self.profile.path(), &self.url(), &options, &script).await?;
        ensure!(seen["errors"] == Value::Array(vec![]), "{options:?}: {}", seen["errors"]);
        let requests = seen["requests"].as_array().context("no requests")?;
        let is_own = |request: &Value| request.as_str().is_some_and(|request| request.starts_with(&self.url()));
        ensure!(requests.len() >= 2 && requests.iter().all(is_own), "{options:?}: {requests:?}");
        Ok(seen["result"].clone())
    }
}

/// Nothing is wider than the window, every text can be read, and every table and picture has its name.
fn ensure_legible(seen: &Value, width: u64, what: &str) -> Result<()> {
    ensure!(seen["width"] == width && seen["wide"] == Value::Array(vec![]), "{what}: {seen:#}");
    ensure!(seen["faint"] == Value::Array(vec![]), "{what}: {:#}", seen["faint"]);
    ensure!(seen["texts"].as_u64() > Some(60), "{what}: only {} texts", seen["texts"]);
    let tables = seen["tables"].as_array().context("no tables")?;
    ensure!(!tables.is_empty() && tables.iter().all(|has_caption| has_caption == true), "{what}: {tables:?}");
    let pictures = seen["pictures"].as_array().context("no pictures")?;
    let is_named =
        |label: &Value| label.as_str().is_some_and(|label| label.contains("15 minutes") || label.contains("nothing"));
    ensure!(pictures.len() == 15 && pictures.iter().all(is_named), "{what}: {pictures:?}");
    ensure!(seen["language"] == "en" && seen["headings"][1] == "What is wrong now", "{what}: {}", seen["headings"]);
    Ok(())
}

#[tokio::test]
async fn the_page_is_legible_at_every_width_in_light_and_dark_and_without_scripts() -> Result<()> {
    let scene = Scene::new().await?;
    let (mut light, mut dark) = (Vec::new(), Vec::new());
    for width in [320, 375, 640, 960, 961, 1000, 1920] {
        for (backgrounds, preference) in [(&mut light, None), (&mut dark, Some("--dark"))] {
            let options: Vec<&str> = preference.into_iter().collect();
            let seen = scene.visit(width, &options, true).await?;
            ensure_legible(&seen, width, &format!("{width} {options:?}"))?;
            backgrounds.push(seen["background"].clone());
        }
    }
    ensure!(light.iter().all(|colour| !dark.contains(colour)), "{light:?} {dark:?}");
    let plain = scene.visit(320, &["--without-scripts"], false).await?;
    ensure_legible(&plain, 320, "without scripts")?;
    let text = plain["text"].as_str().unwrap_or_default();
    ensure!(text.contains("halted") && text.contains("by ada") && text.contains("2 dead messages"), "{text}");
    Ok(())
}

#[tokio::test]
async fn the_page_follows_by_itself_and_says_when_it_cannot() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    let profile = tempfile::tempdir()?;
    let url = format!("http://{}/", relay.address());
    let pause = async {
        // The first page must not show the pause already.
        tokio::time::sleep(Duration::from_secs(2)).await;
        bed.relay().output(&["pause", "tickets", "--actor", "ada"]).await?.ensure_success()
    };
    let (seen, paused) = tokio::join!(visit(profile.path(), &url, &[], WATCH), pause);
    paused?;
    let seen = seen?;
    let expected = serde_json::json!({"isSame": true, "isOpen": true, "isFocused": true, "isStale": false});
    ensure!(seen == expected, "{seen}");
    let stop = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        relay.kill().await
    };
    let (said, stopped) = tokio::join!(visit(profile.path(), &url, &[], UNTIL_STALE), stop);
    stopped?;
    let said = said?;
    ensure!(said.as_str().is_some_and(|said| said.contains("has not answered since")), "{said}");
    Ok(())
}

/// Delivers in waves for some minutes, so that the charts have something to show.
async fn live(scene: &Scene, minutes: u64) -> Result<()> {
    for second in 0..minutes * 60 {
        let wave = 60.0 + 45.0 * (second as f64 / 70.0).sin();
        scene.bed.enqueue_many("tickets", wave as i64, 30).await?;
        if second % 3 == 0 {
            scene.bed.enqueue_many("audit", 25 + (second as i64 * 7) % 60, 0).await?;
        }
        if second % 120 == 60 {
            scene.bed.enqueue_many("archive", 400, 0).await?;
        }
        if second % 20 == 0 {
            scene.bed.enqueue_many("mail", 2, 20).await?;
        }
        // Time is the subject: a chart needs it.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

#[tokio::test]
async fn the_page_can_be_photographed() -> Result<()> {
    let scene = Scene::new().await?;
    let own = tempfile::tempdir()?;
    let folder = std::env::var_os("STATUS_PAGE_PICTURES").map_or_else(|| own.path().to_owned(), PathBuf::from);
    let minutes = std::env::var("STATUS_PAGE_MINUTES").ok().map_or(Ok(0), |minutes| minutes.parse())?;
    live(&scene, minutes).await?;
    eventually("the page is measured", || async { Ok(status(&scene.relay).await?["is_measured"] == true) }).await?;
    for (name, width, options) in [("status-page.png", 1000, &[][..]), ("status-page-dark-320.png", 320, &["--dark"])] {
        let picture = format!("--picture={}", folder.join(name).display());
        let seen = scene.visit(width, &[options, &[picture.as_str()]].concat(), false).await?;
        let bytes = std::fs::read(folder.join(name))?;
        // The width and height of a PNG are at its beginning (RFC 2083, 4.1.1).
        let size = |at: usize| {
            bytes.get(at..at + 4).map(|number| number.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte)))
        };
        ensure!(bytes.starts_with(b"\x89PNG") && bytes.len() > 20_000, "{name} has {} bytes", bytes.len());
        ensure!(
            size(16).map(u64::from) == Some(width) && size(20).map(u64::from) == seen["height"].as_u64(),
            "{name}: {seen:#}"
        );
    }
    Ok(())
}
