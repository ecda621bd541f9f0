//! Buyers: each buys the next ticket after the answer to the last one, and changes its mind once in a while.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use fastrand::Rng;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::draw::{CHOSEN, HIGHEST};
use support::lottery::shop::draw_name;

/// The longest that a buyer waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// One ticket in this many is returned.
const CANCELLED_ONE_IN: u64 = 20;

/// The number of players.
const PLAYERS: u64 = 500;

/// The answer to a buyer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Granted,
    Refused,
    Failed,
}

/// One request and its answer.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When it was sent, since the beginning.
    pub at: Duration,
    pub took: Duration,
    pub outcome: Outcome,
}

/// All requests and answers.
#[derive(Debug, Default)]
pub struct Tally {
    samples: Mutex<Vec<Sample>>,
    bought: AtomicU64,
}

impl Tally {
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The tickets sold, as far as the buyers know.
    pub fn bought(&self) -> u64 {
        self.bought.load(Ordering::Relaxed)
    }
}

/// Sends to the instances in turn, as a load balancer does: an instance that does not listen is skipped.
#[derive(Debug, Clone)]
pub struct Balancer {
    client: Client<HttpConnector, Full<Bytes>>,
    addresses: Arc<Mutex<Vec<String>>>,
    next: Arc<AtomicUsize>,
}

impl Balancer {
    pub fn new(addresses: Vec<String>) -> Balancer {
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Balancer { client, addresses: Arc::new(Mutex::new(addresses)), next: Arc::default() }
    }

    /// Another instance has replaced this one.
    pub fn replace(&self, at: usize, address: &str) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = addresses.get_mut(at) {
            address.clone_into(old);
        }
    }

    /// Posts a command; returns the status and the text.
    pub async fn post(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let body = Bytes::from(body.to_string());
        for at in 0..addresses.len() {
            let address = &addresses[(first + at) % addresses.len()];
            let request = Request::post(format!("http://{address}{path}")).body(Full::new(body.clone()))?;
            let exchange = async {
                let response = match self.client.request(request).await {
                    Err(error) if error.is_connect() => return Ok(None),
                    response => response?,
                };
                let status = response.status().as_u16();
                let said = response.into_body().collect().await?.to_bytes();
                anyhow::Ok(Some((status, serde_json::from_slice(&said).unwrap_or_default())))
            };
            if let Some(answer) =
                tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.context("no answer in time")??
            {
                return Ok(answer);
            }
        }
        anyhow::bail!("no instance listens")
    }
}

/// The load: the seed decides who buys what.
#[derive(Debug, Clone)]
pub struct Crowd {
    pub buyers: u64,
    pub draws: u64,
    pub seed: u64,
    /// The time between an answer and the next command.
    pub think: Duration,
}

impl Crowd {
    /// Starts the buyers; they continue until told to stop.
    pub fn buy(
        &self,
        balancer: &Balancer,
        tally: &Arc<Tally>,
        clock: Instant,
        stop: &CancellationToken,
    ) -> JoinSet<()> {
        let mut buyers = JoinSet::new();
        for buyer in 0..self.buyers {
            let dice = Rng::with_seed(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ buyer);
            let (crowd, balancer, tally, stop) = (self.clone(), balancer.clone(), Arc::clone(tally), stop.clone());
            buyers.spawn(async move { crowd.one(dice, &balancer, &tally, clock, &stop).await });
        }
        buyers
    }

    async fn one(&self, mut dice: Rng, balancer: &Balancer, tally: &Tally, clock: Instant, stop: &CancellationToken) {
        let mut last: Option<(String, String)> = None;
        while !stop.is_cancelled() {
            // Drawn whatever the last answer was, so that one answer does not change all later commands.
            let changes_mind = dice.u64(..CANCELLED_ONE_IN) == 0;
            let (path, body) = match last.take().filter(|_| changes_mind) {
                Some((draw, ticket)) => (format!("/draws/{draw}/tickets/{ticket}/cancel"), json!({})),
                None => {
                    let (draw, ticket) = (draw_name(dice.u64(..self.draws)), uuid(&mut dice));
                    let numbers = dice.choose_multiple(1..=HIGHEST, CHOSEN);
                    let player = format!("p-{}", dice.u64(..PLAYERS));
                    last = Some((draw.clone(), ticket.clone()));
                    let body = json!({"ticket": ticket, "player": player, "numbers": numbers});
                    (format!("/draws/{draw}/tickets"), body)
                }
            };
            let at = clock.elapsed();
            let outcome = match balancer.post(&path, &body).await {
                Ok((200, _)) => Outcome::Granted,
                Ok((409, _)) => Outcome::Refused,
                Ok(_) | Err(_) => Outcome::Failed,
            };
            let sample = Sample { at, took: clock.elapsed() - at, outcome };
            tally.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
            if outcome == Outcome::Granted && path.ends_with("/tickets") {
                tally.bought.fetch_add(1, Ordering::Relaxed);
            } else {
                last = None;
            }
            if !self.think.is_zero() {
                tokio::time::sleep(self.think.mul_f64(0.5 + dice.f64())).await;
            }
        }
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid(dice: &mut Rng) -> String {
    let bits = (dice.u128(..) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
