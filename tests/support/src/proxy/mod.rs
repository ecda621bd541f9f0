//! A fault proxy in front of the SQS emulator: it sees every request and injects the faults that a test asks for.
//!
//! Faults apply to SendMessageBatch, and to SNS's PublishBatch as if it were one, unless a rule names another action;
//! everything else passes. `faults.rs` has the
//! faults and the rules, `journal.rs` remembers the requests, `tail.rs` has the distribution of SQS's response times,
//! and `wire.rs` forwards the bytes.

mod faults;
mod journal;
mod sns;
mod tail;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use faults::{Choice, ErrorAnswer, Fault, Rule};
pub use journal::{Entry, Request};
pub use tail::lognormal;

use super::postgres::free_port;
use faults::{Asked, Plan};
use journal::Journal;
use wire::Upstream;

/// How long a wait for requests, for held requests or for the listener may take.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// A running proxy. It ends when this is dropped.
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

    /// From now on every SendMessageBatch gets this fault, and no other.
    pub fn set(&self, fault: Fault) {
        self.script([Rule::new(fault)]);
    }

    /// Replaces all rules. They apply in order, and used-up ones are removed. So a list of rules with `times(1)` is a
    /// script for the next requests.
    pub fn script(&self, rules: impl IntoIterator<Item = Rule>) {
        *self.shared.rules() = rules.into_iter().collect();
    }

    /// Adds a rule after the others.
    pub fn add(&self, rule: Rule) {
        self.shared.rules().push(rule);
    }

    /// Removes all rules. Requests that are held stay held until `release`.
    pub fn clear(&self) {
        self.shared.rules().clear();
    }

    /// Lets every held request go on, and removes the rules that hold requests.
    pub fn release(&self) {
        let mut rules = self.shared.rules();
        rules.retain(|rule| !rule.holds());
        // Under the lock of the rules, so that no request can take such a rule and miss the release.
        self.shared.releases.send_modify(|generation| *generation += 1);
    }

    /// Closes the listener and all connections, so that new ones are refused. Returns when that is done.
    pub async fn refuse_connections(&self) -> Result<()> {
        self.listen_if(false).await
    }

    /// Listens again on the same port. Returns when that is done.
    pub async fn accept_connections(&self) -> Result<()> {
        self.listen_if(true).await
    }

    async fn listen_if(&self, wanted: bool) -> Result<()> {
        self.wanted.send(wanted).context("the proxy's listener has ended")?;
        let mut listening = self.listening.clone();
        tokio::time::timeout(WAIT_TIMEOUT, listening.wait_for(|listening| *listening == wanted)).await??;
        Ok(())
    }

    /// Every SendMessageBatch request seen so far, in the order of arrival, with its result.
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

    /// Takes the oldest requests out of the journal, up to the first that is still in flight, so that a long run does
    /// not fill the memory.
    pub fn take_ended(&self) -> Vec<Request> {
        self.shared.journal().take_ended()
    }

    /// Forgets all requests, so that a test can count from now on.
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
        // The connections are tasks of the listener and end with it.
        self.listener.abort();
    }
}

/// What the proxy's owner and its connections share.
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

    /// The plan that the rules make for a request, and a receiver for the next release. A rule that applies counts the
    /// request.
    fn plan(&self, asked: Asked<'_>, entries: &[Entry]) -> (Plan, watch::Receiver<u64>) {
        let mut rules = self.rules();
        let plan = Plan::of(&mut rules, asked, entries);
        rules.retain(|rule| !rule.is_spent());
        (plan, self.releases.subscribe())
    }
}

/// Serves connections while `orders` wants it, and reports whether it does.
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
            // Another process has the port for the moment. The caller that waits for the listener has a timeout.
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
