//! What runs during a soak, from the first purchase until everything has arrived.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::accounts::{Books, Column};
use crate::audit::{self, Clocks, Forgotten};
use crate::business;
use crate::by_hand::Operator;
use crate::chronicle::Chronicle;
use crate::consumers;
use crate::crew::{Counters, Place};
use crate::database::Database;
use crate::destinations::{ALL, Destination, Route, routes, set_missing};
use crate::report::{Progress, Report};
use crate::servers::Servers;
use crate::storm;
use crate::writers::{self, DRAWS, Till};
use support::lottery::shop;
use support::proxy::Proxy;
use support::test_bed::TestBed;

/// Relays at work.
const RELAYS: usize = 2;

/// The pause between two checks of the progress.
const PAUSE: Duration = Duration::from_millis(200);

/// The time between two lines of progress.
const LINE: Duration = Duration::from_secs(5);

/// When nothing arrives for this long after the last fault, missing messages count as lost.
const STALL: Duration = Duration::from_secs(30);

/// Everything that runs.
pub struct Stage {
    seed: u64,
    dice: Rng,
    servers: Arc<Servers>,
    /// The application's address of the database, whichever server is current.
    url: String,
    bed: TestBed,
    destinations: Vec<Destination>,
    routes: Vec<Route>,
    chronicle: Arc<Chronicle>,
    till: Arc<Till>,
    proxies: Vec<Arc<Proxy>>,
    places: Vec<JoinHandle<Result<Place>>>,
    /// Cancelled when the faults should end.
    calm: CancellationToken,
    /// Cancelled when the relays should end.
    end: CancellationToken,
}

impl Stage {
    /// Starts PostgreSQL and the emulator, and the relays each behind a proxy.
    pub async fn set(seed: u64) -> Result<Stage> {
        let servers = Arc::new(Servers::start(RELAYS).await?);
        let bed = TestBed::on(&servers.current()).await?;
        let url = servers.front.url(bed.url());
        let mut destinations = Vec::new();
        for kind in ALL {
            destinations.push(Destination::create(kind, &bed).await?);
        }
        let routes = routes(&destinations, &bed).await?;
        set_missing(&routes, &bed.client).await?;
        shop::open(&url, DRAWS).await?;
        business::open(&bed.client).await?;
        let mut stage = Stage {
            seed,
            dice: Rng::with_seed(seed),
            servers,
            url,
            bed,
            destinations,
            routes,
            chronicle: Arc::new(Chronicle::new(Instant::now())),
            till: Arc::default(),
            proxies: Vec::new(),
            places: Vec::new(),
            calm: CancellationToken::new(),
            end: CancellationToken::new(),
        };
        stage.start_relays().await?;
        Ok(stage)
    }

    async fn start_relays(&mut self) -> Result<()> {
        for (number, wire) in self.servers.wires.iter().enumerate() {
            self.proxies.push(Arc::new(self.bed.proxy().await?));
            let command = self
                .bed
                .relay()
                .without("OUTBOX_RELAY_DESTINATIONS")
                .env("DATABASE_URL", wire.url(self.bed.url()))
                .env("OUTBOX_RELAY_RETRY_INITIAL", "20ms")
                .env("OUTBOX_RELAY_RETRY_MAX", "1s")
                .env("OUTBOX_RELAY_REQUEST_TIMEOUT", "2s")
                // No message should ever die here: each failure is the proxy's.
                .env("OUTBOX_RELAY_MAX_ATTEMPTS", "1000");
            let place = Place {
                number,
                command,
                chronicle: Arc::clone(&self.chronicle),
                dice: self.dice.fork(),
                log: String::new(),
                possible_duplicates: Counters::default(),
            };
            self.places.push(tokio::spawn(place.keep(self.calm.clone(), self.end.clone())));
        }
        Ok(())
    }

    /// Sells while everything breaks, lets everything arrive, and computes the accounts.
    pub async fn play(mut self, time: Duration) -> Result<Report> {
        let clocks = Clocks::now();
        let (stop_selling, stop_receiving) = (CancellationToken::new(), CancellationToken::new());
        let mut receivers = JoinSet::new();
        for destination in &self.destinations {
            receivers.spawn(drain(consumers::receive(destination, clocks.began_at, &stop_receiving)?));
        }
        let mut writers = writers::sell(&self.url, &mut self.dice, &self.till, &stop_selling);
        let mut troubles = self.trouble();
        while clocks.began_at.elapsed() < time {
            self.pass(&mut [&mut writers, &mut troubles, &mut receivers]).await?;
        }
        self.calm.cancel();
        println!("No more faults; what was sold last is still on its way.");
        while !troubles.is_empty() {
            self.pass(&mut [&mut writers, &mut troubles, &mut receivers]).await?;
        }
        stop_selling.cancel();
        drain(writers).await?;
        self.arrive(&mut receivers).await?;
        stop_receiving.cancel();
        drain(receivers).await?;
        self.close(clocks).await
    }

    /// Starts the faults of queues and database, and the changes by hand.
    fn trouble(&mut self) -> JoinSet<Result<()>> {
        let queues = storm::Queues {
            proxies: self.proxies.clone(),
            targets: self.destinations.iter().map(|destination| destination.target.clone()).collect(),
            chronicle: Arc::clone(&self.chronicle),
            dice: self.dice.fork(),
        };
        let database = Database {
            servers: Arc::clone(&self.servers),
            url: self.url.clone(),
            chronicle: Arc::clone(&self.chronicle),
            dice: self.dice.fork(),
        };
        let operator = Operator {
            url: self.url.clone(),
            routes: self.routes.clone(),
            chronicle: Arc::clone(&self.chronicle),
            dice: self.dice.fork(),
        };
        let mut troubles = JoinSet::new();
        troubles.spawn(queues.trouble(self.calm.clone()));
        troubles.spawn(database.trouble(self.calm.clone()));
        troubles.spawn(operator.work(self.calm.clone()));
        troubles
    }

    /// Waits a moment: fails if a task failed, reads what the proxies saw, and shows the progress.
    async fn pass(&mut self, groups: &mut [&mut JoinSet<Result<()>>]) -> Result<()> {
        let before = self.chronicle.elapsed();
        tokio::time::sleep(PAUSE).await;
        for group in groups {
            while let Some(ended) = group.try_join_next() {
                ended??;
            }
        }
        for place in self.places.iter_mut().filter(|place| place.is_finished()) {
            place.await??;
        }
        for (relay, proxy) in self.proxies.iter().enumerate() {
            let ended = proxy.take_ended();
            for Destination { sends, target, .. } in &mut self.destinations {
                sends.take(relay, target, &ended)?;
            }
        }
        let now = self.chronicle.elapsed();
        if before.as_secs() / LINE.as_secs() != now.as_secs() / LINE.as_secs() {
            self.progress().print(now);
        }
        Ok(())
    }

    fn progress(&self) -> Progress {
        Progress {
            committed: self.till.committed.load(Ordering::Relaxed),
            rolled_back: self.till.rolled_back.load(Ordering::Relaxed),
            arrived: self.destinations.iter().map(|to| (to.kind.name(), to.inbox.tickets())).collect(),
            faults: self.chronicle.faults(),
        }
    }

    /// Waits until nothing is pending and the queues are empty, or until nothing changes any more.
    async fn arrive(&mut self, receivers: &mut JoinSet<Result<()>>) -> Result<()> {
        let client = shop::connect(&self.url).await?;
        let (mut seen, mut changed_at) = ((0, Vec::new()), Instant::now());
        loop {
            self.pass(&mut [receivers]).await?;
            let pending = audit::pending(&client).await?;
            let state = (pending, self.progress().arrived);
            if state != seen {
                (seen, changed_at) = (state, Instant::now());
            }
            let mut waiting = 0;
            for destination in &self.destinations {
                let depth = self.bed.queues.depth(&destination.queue_url).await?;
                waiting += depth.visible + depth.in_flight;
            }
            if pending == 0 && waiting == 0 {
                return Ok(());
            }
            if changed_at.elapsed() > STALL {
                println!("Nothing has arrived for {STALL:?}; what is missing counts as lost.");
                return Ok(());
            }
        }
    }

    async fn close(mut self, clocks: Clocks) -> Result<Report> {
        self.end.cancel();
        let (mut logs, mut possible_duplicates) = (Vec::new(), 0.0);
        for place in std::mem::take(&mut self.places) {
            let place = place.await??;
            possible_duplicates += place.possible_duplicates.sum();
            logs.push(place.log);
        }
        self.pass(&mut []).await?;
        let client = shop::connect(&self.url).await?;
        let sales = audit::sales(&client).await?;
        let [dead, in_quarantine] = audit::stopped(&client).await?;
        let forgotten = Forgotten::of(&self.till.attempts(), &sales, &self.chronicle);
        let books = Books {
            client: &client,
            clocks,
            sales: &sales,
            reminders: &audit::reminders(&client, clocks).await?,
            forgotten: &forgotten,
            chronicle: &self.chronicle,
        };
        let mut columns = Vec::new();
        for destination in &self.destinations {
            columns.push(Column::of(destination, &books).await?);
        }
        Ok(Report {
            seed: self.seed,
            left_by_hand: audit::pending(&client).await?,
            forgotten,
            columns,
            in_quarantine,
            rolled_back: self.till.rolled_back.load(Ordering::Relaxed),
            unclear: self.till.unclear.load(Ordering::Relaxed),
            committed: sales.len(),
            dead,
            possible_duplicates,
            chronicle: self.chronicle,
            logs,
        })
    }
}

async fn drain(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}
