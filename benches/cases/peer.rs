//! Other relays, with the same messages and the same stand-in. A folder of `benches/peers` is a peer: what pip has to
//! install (`requirements.txt`), and how its tables are created (`create.sh`), filled (`fill.sql`) and processed
//! (`run.sh`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{begin, scaled};
use crate::ground::{Backlog, Ground, How};
use crate::processes::Running;
use crate::report::{Aim, Outcome};
use crate::stand_in::Wire;

/// SQS's median time to answer.
const MEDIAN_MS: u64 = 10;

/// The time limit of a peer; what it did until then counts.
const PEER_FOR: Duration = Duration::from_secs(60);

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin("peer", "other relays and this one, default settings, SQS 10 ms");
    let backlog = Backlog { messages: scaled(400_000, scale), groups: 20_000 };
    let client = ground.filled("own", backlog).await?;
    let own = ground.drain("own", &client, backlog, &How::at(MEDIAN_MS)).await?.rate;
    outcome.add("outbox-relay", own, "messages/s");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
    let mut peers: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    peers.sort();
    for peer in peers {
        let name = peer.file_name().and_then(|name| name.to_str()).context("a folder without a name")?.to_owned();
        let rate = measure(ground, &peer, scaled(100_000, scale)).await.with_context(|| format!("peer {name}"))?;
        outcome.add(&name, rate, "messages/s");
        outcome.aim(format!("outbox-relay, times the rate of {name}"), own / rate, "", Aim::AtLeast(50.0));
    }
    Ok(outcome)
}

async fn measure(ground: &Ground, peer: &Path, messages: u64) -> Result<f64> {
    let programs = install(peer)?;
    ground.cluster.drop_database("peer").await?;
    ground.cluster.create_database("peer").await?;
    let command = |script: &str| {
        let relay = ground.command("peer", "tickets", Wire::Https);
        let mut command = Command::new("sh");
        command.arg(peer.join(script)).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.envs(relay.get_envs().filter_map(|(name, value)| Some((name, value?))));
        // boto3 reads the region from another variable.
        command.env("BIN", &programs).env("PATH", "/usr/bin:/bin").env("AWS_DEFAULT_REGION", "us-east-1");
        command
    };
    ensure!(command("create.sh").status()?.success(), "create.sh failed");
    let client = ground.connect("peer").await?;
    let queue = ground.stand_in.queue(Wire::Https, "tickets");
    let fill = std::fs::read_to_string(peer.join("fill.sql"))?;
    client.execute(&fill, &[&i32::try_from(messages)?, &queue]).await?;
    client.batch_execute("VACUUM ANALYZE").await?;
    ground.stand_in.reset(Duration::from_millis(MEDIAN_MS), messages).await?;
    let running = Running::start(&mut command("run.sh"))?;
    let started = Instant::now();
    let counts = loop {
        let counts = ground.stand_in.counts().await?;
        if counts.entries >= messages || started.elapsed() >= PEER_FOR {
            break counts;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    drop(running);
    ensure!(counts.entries > 0 && counts.illegal == 0, "it sent {counts:?}");
    Ok(counts.entries as f64 / ((counts.last_at - counts.first_at) as f64 / 1e6))
}

/// A virtual environment below target/, created once; returns the folder of its programs.
fn install(peer: &Path) -> Result<PathBuf> {
    let name = peer.file_name().context("a folder without a name")?;
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers").join(name);
    let programs = home.join("bin");
    let wanted = std::fs::read_to_string(peer.join("requirements.txt"))?;
    let installed = home.join("installed.txt");
    if std::fs::read_to_string(&installed).is_ok_and(|installed| installed == wanted) {
        return Ok(programs);
    }
    let venv = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home).status();
    ensure!(venv.context("python3 is missing")?.success(), "python3 cannot make a virtual environment (python3-venv)");
    let mut pip = Command::new(programs.join("pip"));
    pip.args(["install", "--quiet", "--requirement"]).arg(peer.join("requirements.txt"));
    ensure!(pip.status()?.success(), "pip cannot install {}", peer.join("requirements.txt").display());
    std::fs::write(installed, wanted)?;
    Ok(programs)
}
