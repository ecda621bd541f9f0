//! The status page when operators have decided something extreme, and when a program says more than everybody may read.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::reconnecting::without_password;
use super::status_page::{status, wait_for};
use support::test_bed::TestBed;

#[tokio::test]
async fn a_pause_far_beyond_the_year_9999_is_shown_as_one_until_resumed() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let relay = bed.relay().start().await?;
    bed.client.batch_execute("SELECT outbox.pause('audit', interval '9000 years', '', 'ada')").await?;
    wait_for(&relay, "audit", "state", "paused").await?;
    wait_for(&relay, "audit", "detail", "by ada, until resumed").await?;
    let (code, text) = relay.get("/").await?;
    ensure!(code == 200 && text.contains("by ada, until it is resumed."), "{code}: {text}");
    Ok(())
}

#[tokio::test]
async fn thousands_of_settings_that_no_relay_knows_are_cut_and_keep_nobody_waiting() -> Result<()> {
    const ROWS: usize = 3000;
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let sql =
        format!("SELECT count(outbox.set_setting('unknown-' || n, 'x', '*', 'ada')) FROM generate_series(1, {ROWS}) n");
    bed.client.batch_execute(&sql).await?;
    let relay = bed.relay().start().await?;
    wait_for(&relay, "tickets", "state", "idle").await?;
    // The page that is made next knows the settings; judging each by all of them took half a minute.
    let (start, (code, text)) = (Instant::now(), relay.get("/").await?);
    ensure!(start.elapsed() < Duration::from_secs(10), "a view took {:?}", start.elapsed());
    ensure!(code == 200 && text.contains("unknown-1") && text.contains("(not followed)"), "{text}");
    let shown = text.matches("database, set by ada").count();
    ensure!(shown > 200 && shown <= 300, "{shown} of {ROWS} settings are shown");
    ensure!(status(&relay).await?["problems"].as_array().is_some_and(|problems| problems.len() <= 60));
    Ok(())
}

#[tokio::test]
async fn what_a_password_command_says_is_in_the_log_and_not_served() -> Result<()> {
    const SAID: &str = "the-key-that-the-command-said";
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let (command, _) = without_password(&bed).await?;
    let words = format!("sh -c 'echo {SAID} >&2; exit 7'");
    let relay = command.env("OUTBOX_RELAY_DATABASE_PASSWORD_COMMAND", words).start().await?;
    relay.wait_for_log(&format!("ended with exit status: 7: {SAID}")).await?;
    for path in ["/", "/status.json", "/readyz", "/livez", "/metrics"] {
        let (_, text) = relay.get(path).await?;
        ensure!(!text.contains(SAID), "{path} shows what the command said: {text}");
        let is_told = text.contains("ended with exit status: 7; see the log");
        ensure!(is_told || ["/livez", "/metrics"].contains(&path), "{path} does not say what happened: {text}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_program_for_credentials_says_is_in_the_log_and_not_served() -> Result<()> {
    const SAID: &str = "the-key-that-the-program-said";
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let home = tempfile::tempdir()?;
    let config = home.path().join("config");
    std::fs::write(&config, format!("[default]\ncredential_process = echo {SAID} >&2; exit 7\n"))?;
    let relay = bed.relay().without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
    let relay = relay.env("AWS_CONFIG_FILE", config.to_string_lossy()).start().await?;
    bed.enqueue("audit", "{\"n\": 1}", None).await?;
    wait_for(&relay, "audit", "state", "halted").await?;
    relay.wait_for_log(SAID).await?;
    for path in ["/", "/status.json", "/readyz", "/livez", "/metrics"] {
        let (_, text) = relay.get(path).await?;
        ensure!(!text.contains(SAID), "{path} shows what the program said: {text}");
    }
    ensure!(status(&relay).await?.to_string().contains("exit status: 7; see the log"), "{}", status(&relay).await?);
    Ok(())
}
