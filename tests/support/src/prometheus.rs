//! A Prometheus for one test: started with alerting rules, queried through its HTTP API, ended with this process.

use std::fmt::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::postgres::free_port;

/// How long to wait for Prometheus, or for a first sample.
const PATIENCE: Duration = Duration::from_secs(60);

/// The state of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its condition holds, but not long enough yet.
    Pending,
    /// A notification would be sent.
    Firing,
}

/// An alert that is not inactive.
#[derive(Clone, Debug)]
pub struct Alert {
    /// Its name.
    pub name: String,
    /// The scrape job that it concerns.
    pub job: String,
    /// Pending or firing.
    pub state: State,
}

/// The server.
pub struct Prometheus {
    address: String,
    folder: std::path::PathBuf,
    _child: Child,
}

impl Prometheus {
    /// Starts it with these rules, scraping each job's targets every second.
    pub async fn start(rules: &str, jobs: &[(&str, Vec<&str>)]) -> Result<Prometheus> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let folder =
            std::env::temp_dir().join(format!("prometheus-of-{}-{}", std::process::id(), address.replace(':', "-")));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("rules.yml"), rules)?;
        let mut config =
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files: [rules.yml]\nscrape_configs:\n"
                .to_owned();
        for (job, targets) in jobs {
            writeln!(config, "  - job_name: {job}\n    static_configs:\n      - targets: {targets:?}")?;
        }
        std::fs::write(folder.join("prometheus.yml"), config)?;
        let log = std::fs::File::create(folder.join("log"))?;
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let child = command.spawn().context(
            "prometheus is not installed; it is in the Debian package prometheus: apt-get install prometheus",
        )?;
        let prometheus = Prometheus { address, folder, _child: child };
        let started = Instant::now();
        while prometheus.get("/-/ready").await.is_err() {
            if started.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(prometheus.folder.join("log")).unwrap_or_default();
                bail!("Prometheus is not ready: {log}");
            }
            // It gives no other sign that it is ready.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(prometheus)
    }

    /// The address that it listens on.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Alerts that are pending or firing.
    pub async fn alerts(&self) -> Result<Vec<Alert>> {
        let answer: Value = serde_json::from_str(&self.get("/api/v1/alerts").await?)?;
        let alerts = answer["data"]["alerts"].as_array().context("no alerts in the answer")?;
        let alert = |alert: &Value| {
            let label = |name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
            let state = match alert["state"].as_str() {
                Some("firing") => State::Firing,
                _ => State::Pending,
            };
            Alert { name: label("alertname"), job: label("job"), state }
        };
        Ok(alerts.iter().map(alert).collect())
    }

    /// Waits until the counters of a job have been scraped, so that later changes count as increases.
    pub async fn wait_for_sample(&self, job: &str) -> Result<()> {
        let path = format!("/api/v1/query?query=outbox_relay_requests_total%7Bjob%3D%22{job}%22%7D");
        let started = Instant::now();
        loop {
            let answer: Value = serde_json::from_str(&self.get(&path).await?)?;
            if answer["data"]["result"].as_array().is_some_and(|result| !result.is_empty()) {
                return Ok(());
            }
            ensure!(started.elapsed() < PATIENCE, "the job {job} has no samples");
            // It scrapes once a second, and gives no sign of it.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address).await?;
        // HTTP/1.0, so that the answer is not chunked.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head in the answer")?;
        ensure!(head.contains(" 200 "), "{path}: {head}");
        Ok(body.to_owned())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // If this fails, a small folder is left among the temporary files.
        std::fs::remove_dir_all(&self.folder).ok();
    }
}
