//! A fault proxy before the SQS emulator: it sees every request and does to it what a test asks for.
//!
//! Faults concern SendMessageBatch unless a rule names another action; everything else passes. `faults.rs`
//! says what can happen to a request, `journal.rs` remembers what was seen, `tail.rs` says how long SQS takes, `wire.rs` moves
//! the bytes.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each of the crates that include this file uses a part of it"
)]

mod faults;
mod journal;
mod tail;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use faults::{Choice, Fault, Rule};
pub use journal::{Entry, Request};
pub use tail::lognormal;

use super::postgres::free_port;
use faults::{Asked, Plan};
use journal::Journal;
use wire::Upstream;

/// Waiting for requests, held ones and the listener ends here at the latest.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// A proxy that runs as long as the value lives.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    wanted: watch::Sender<bool>,
    listening: watch::Receiver<bool>,
    listener: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy on a free port of 127.0.0.1 that forwards to `upstream`, `http://HOST:PORT`.
    pub async fn start(upstream: &str) -> Result<Proxy> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let shared = Arc::new(Shared {
            upstream: Upstream::new(upstream)?,
            rules: Mutex::new(Vec::new()),
            journal: Mutex::new(Journal::default()),
            changed: watch::Sender::new(()),
            releases: watch::Sender::new(0),
        });
        let (wanted, orders) = watch::channel(true);
        let (report, mut listening) = watch::channel(false);
        let listener = tokio::spawn(listen(address, Arc::clone(&shared), orders, report));
        tokio::time::timeout(WAIT_TIMEOUT, listening.wait_for(|listening| *listening)).await??;
        Ok(Proxy { shared, address, wanted, listening, listener })
    }

    /// The address to give to the relay, `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on every SendMessageBatch meets this fault, and no other.
    pub fn set(&self, fault: Fault) {
        self.script([Rule::new(fault)]);
    }

    /// Replaces all rules. They are asked in order, and spent ones step aside, so a row of rules with
    /// `times(1)` is a script for the requests to come.
    pub fn script(&self, rules: impl IntoIterator<Item = Rule>) {
        *self.shared.rules() = rules.into_iter().collect();
    }

    /// Adds a rule behind the others.
    pub fn add(&self, rule: Rule) {
        self.shared.rules().push(rule);
    }

    /// Ends all faults; requests that are held stay held until `release`.
    pub fn clear(&self) {
        self.shared.rules().clear();
    }

    /// Lets every held request go on, and holds no more.
    pub fn release(&self) {
        let mut rules = self.shared.rules();
        rules.retain(|rule| !rule.holds());
        // Under the rules' lock, so that no request can read a rule and miss its end.
        self.shared.releases.send_modify(|generation| *generation += 1);
    }

    /// Closes the listener and all connections: new ones are refused. Returns when that is so.
    pub async fn refuse_connections(&self) -> Result<()> {
        self.listen_if(false).await
    }

    /// Listens again, on the same port. Returns when that is so.
    pub async fn accept_connections(&self) -> Result<()> {
        self.listen_if(true).await
    }

    async fn listen_if(&self, wanted: bool) -> Result<()> {
        self.wanted.send(wanted).context("the proxy's listener has ended")?;
        let mut listening = self.listening.clone();
        tokio::time::timeout(WAIT_TIMEOUT, listening.wait_for(|listening| *listening == wanted)).await??;
        Ok(())
    }

    /// Every SendMessageBatch request seen so far, in order of arrival, with what became of it.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.journal().requests.clone()
    }

    /// The number of SendMessageBatch requests seen.
    pub fn requests_seen(&self) -> usize {
        self.shared.journal().requests.len()
    }

    /// The number of entries in them.
    pub fn entries_seen(&self) -> usize {
        self.entries_per_request().iter().sum()
    }

    /// How many entries each request had.
    pub fn entries_per_request(&self) -> Vec<usize> {
        self.shared.journal().requests.iter().map(|request| request.entries.len()).collect()
    }

    /// The highest number of SendMessageBatch requests that were in the proxy at the same time.
    pub fn most_in_flight(&self) -> usize {
        self.shared.journal().most_in_flight
    }

    /// SendMessageBatch requests in the proxy now.
    pub fn in_flight(&self) -> usize {
        self.shared.journal().in_flight
    }

    /// Requests waiting for `release` now.
    pub fn held(&self) -> usize {
        self.shared.journal().held
    }

    /// Takes the oldest requests out of the journal, up to the first that is still in flight, so that a long run does not
    /// fill the memory.
    pub fn take_ended(&self) -> Vec<Request> {
        self.shared.journal().take_ended()
    }

    /// Forgets what was seen, so that a test can count from a moment on.
    pub fn forget(&self) {
        self.shared.journal().forget();
    }

    /// Waits until at least `count` requests are held.
    pub async fn wait_for_held(&self, count: usize) -> Result<()> {
        self.wait_for(&format!("{count} held requests"), |journal| journal.held >= count).await
    }

    /// Waits until at least `count` SendMessageBatch requests were seen.
    pub async fn wait_for_requests(&self, count: usize) -> Result<()> {
        self.wait_for(&format!("{count} requests"), |journal| journal.requests.len() >= count).await
    }

    /// Waits until no SendMessageBatch request is in the proxy.
    pub async fn wait_until_quiet(&self) -> Result<()> {
        self.wait_for("no request in flight", |journal| journal.in_flight == 0).await
    }

    async fn wait_for(&self, what: &str, reached: impl Fn(&Journal) -> bool) -> Result<()> {
        let mut changes = self.shared.changed.subscribe();
        let reached = changes.wait_for(|()| reached(&self.shared.journal()));
        match tokio::time::timeout(WAIT_TIMEOUT, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(closed)) => Err(closed.into()),
            Err(_) => {
                let Journal { requests, in_flight, held, .. } = &*self.shared.journal();
                bail!("waited for {what}; {} requests came, {in_flight} in flight, {held} held", requests.len())
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The listener's connections are its own tasks and end with it.
        self.listener.abort();
    }
}

/// What the proxy's owner and its connections both use.
#[derive(Debug)]
struct Shared {
    upstream: Upstream,
    rules: Mutex<Vec<Rule>>,
    journal: Mutex<Journal>,
    /// Woken at each change of the journal.
    changed: watch::Sender<()>,
    /// Counts the releases; a held request waits for the next one.
    releases: watch::Sender<u64>,
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<T>(&self, change: impl FnOnce(&mut Journal) -> T) -> T {
        let outcome = change(&mut self.journal());
        self.changed.send_replace(());
        outcome
    }

    /// What the rules say about a request, which counts against those that say something; and where the
    /// next release will be heard.
    fn plan(&self, asked: Asked<'_>, entries: &[Entry]) -> (Plan, watch::Receiver<u64>) {
        let mut rules = self.rules();
        let plan = Plan::of(&mut rules, asked, entries);
        rules.retain(|rule| !rule.is_spent());
        (plan, self.releases.subscribe())
    }
}

/// Serves connections while that is wanted, and says whether it does.
async fn listen(
    address: SocketAddr,
    shared: Arc<Shared>,
    mut orders: watch::Receiver<bool>,
    report: watch::Sender<bool>,
) {
    loop {
        if orders.wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        let Ok(listener) = TcpListener::bind(address).await else {
            // Somebody else has the port for the moment; whoever waits for the listener has a timeout.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        report.send_replace(true);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                order = orders.wait_for(|wanted| !*wanted) => match order {
                    Ok(_) => break,
                    Err(_) => return,
                },
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        connections.spawn(wire::serve(stream, Arc::clone(&shared)));
                    }
                }
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        connections.shutdown().await;
        report.send_replace(false);
    }
}
