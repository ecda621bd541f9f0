//! What runs during a soak, from the first purchase until everything has arrived.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use fastrand::Rng;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::audit::{self, Forgotten};
use crate::by_hand::{ODD, Operator};
use crate::chronicle::Chronicle;
use crate::crew::Place;
use crate::database::Database;
use crate::report::{Progress, Report};
use crate::sends::Sends;
use crate::servers::Servers;
use crate::storm;
use crate::writers::{self, DRAWS, Till};
use support::emulator;
use support::lottery::consumer::{self, Inbox};
use support::lottery::ledger::{Account, Receipt};
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
    /// Of tickets (FIFO) and of audit (standard).
    queue_urls: [String; 2],
    inboxes: [Arc<Inbox>; 2],
    chronicle: Arc<Chronicle>,
    till: Arc<Till>,
    /// To tickets and to audit.
    sends: [Sends; 2],
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
        let queue_urls = [bed.fifo("tickets").await?, bed.standard("audit").await?];
        bed.fifo(ODD).await?;
        shop::open(&url, DRAWS).await?;
        let chronicle = Arc::new(Chronicle::new(Instant::now()));
        let mut dice = Rng::with_seed(seed);
        let (calm, end) = (CancellationToken::new(), CancellationToken::new());
        let (mut proxies, mut places) = (Vec::new(), Vec::new());
        for (number, wire) in servers.wires.iter().enumerate() {
            proxies.push(Arc::new(bed.proxy().await?));
            let command = bed
                .relay()
                .env("DATABASE_URL", wire.url(bed.url()))
                .env("OUTBOX_RELAY_RETRY_INITIAL", "20ms")
                .env("OUTBOX_RELAY_RETRY_MAX", "1s")
                .env("OUTBOX_RELAY_REQUEST_TIMEOUT", "2s")
                // No message should ever die here: each failure is the proxy's.
                .env("OUTBOX_RELAY_MAX_ATTEMPTS", "1000");
            let place = Place {
                number,
                command,
                chronicle: Arc::clone(&chronicle),
                dice: dice.fork(),
                log: String::new(),
                possible_duplicates: 0.0,
                counted_before: 0.0,
            };
            places.push(tokio::spawn(place.keep(calm.clone(), end.clone())));
        }
        Ok(Stage {
            seed,
            dice,
            servers,
            url,
            bed,
            queue_urls,
            inboxes: [Arc::default(), Arc::default()],
            chronicle,
            till: Arc::default(),
            sends: [Sends::default(), Sends::default()],
            proxies,
            places,
            calm,
            end,
        })
    }

    /// Sells while everything breaks, lets everything arrive, and computes the accounts.
    pub async fn play(mut self, time: Duration) -> Result<Report> {
        let (began_at, wall_clock) = (Instant::now(), SystemTime::now());
        let (stop_selling, stop_receiving) = (CancellationToken::new(), CancellationToken::new());
        let mut receivers = JoinSet::new();
        for (url, inbox) in self.queue_urls.iter().zip(&self.inboxes) {
            receivers.spawn(drain(consumer::receive(emulator()?.endpoint(), url, inbox, began_at, &stop_receiving)));
        }
        let mut writers = writers::sell(&self.url, &mut self.dice, &self.till, &stop_selling);
        let mut troubles = self.trouble();
        while began_at.elapsed() < time {
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
        self.close(began_at, wall_clock).await
    }

    /// Starts the faults of queues and database, and the changes by hand.
    fn trouble(&mut self) -> JoinSet<Result<()>> {
        let queues = storm::Queues {
            proxies: self.proxies.clone(),
            urls: self.queue_urls.clone(),
            chronicle: Arc::clone(&self.chronicle),
            dice: self.dice.fork(),
        };
        let database = Database {
            servers: Arc::clone(&self.servers),
            url: self.url.clone(),
            chronicle: Arc::clone(&self.chronicle),
            dice: self.dice.fork(),
        };
        let operator =
            Operator { url: self.url.clone(), chronicle: Arc::clone(&self.chronicle), dice: self.dice.fork() };
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
            for (sends, queue_url) in self.sends.iter_mut().zip(&self.queue_urls) {
                sends.take(relay, queue_url, &ended)?;
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
            arrived: [self.inboxes[0].tickets(), self.inboxes[1].tickets()],
            faults: self.chronicle.faults(),
        }
    }

    /// Waits until nothing is pending and the queues are empty, or until nothing changes any more.
    async fn arrive(&mut self, receivers: &mut JoinSet<Result<()>>) -> Result<()> {
        let client = shop::connect(&self.url).await?;
        let (mut seen, mut changed_at) = ((0, [0, 0]), Instant::now());
        loop {
            self.pass(&mut [receivers]).await?;
            let pending = audit::pending(&client).await?;
            let state = (pending, self.progress().arrived);
            if state != seen {
                (seen, changed_at) = (state, Instant::now());
            }
            let mut waiting = 0;
            for url in &self.queue_urls {
                let depth = self.bed.queues.depth(url).await?;
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

    async fn close(mut self, began_at: Instant, wall_clock: SystemTime) -> Result<Report> {
        self.end.cancel();
        let (mut logs, mut possible_duplicates) = (Vec::new(), 0.0);
        for place in std::mem::take(&mut self.places) {
            let place = place.await??;
            possible_duplicates += place.possible_duplicates;
            logs.push(place.log);
        }
        self.pass(&mut []).await?;
        let client = shop::connect(&self.url).await?;
        let sales = audit::sales(&client).await?;
        let mut recorded_at = Vec::new();
        for destination in ["tickets", "audit"] {
            recorded_at.push(audit::recorded_at(&client, destination, began_at, wall_clock).await?);
        }
        let [dead, in_quarantine] = audit::stopped(&client).await?;
        let forgotten = Forgotten::of(&self.till.attempts(), &sales, &self.chronicle);
        let received: [Vec<Receipt>; 2] = [self.inboxes[0].receipts(), self.inboxes[1].receipts()];
        let never_sent = [0, 1].map(|queue| audit::never_sent(&recorded_at[queue], &received[queue]));
        let receipts = received.map(|receipts| forgotten.without(&receipts));
        let mut arrivals: HashMap<u64, usize> = HashMap::new();
        for receipt in &receipts[1] {
            *arrivals.entry(receipt.ticket).or_default() += 1;
        }
        let redriven = self.chronicle.tickets_redriven();
        let excuses = self.sends[1].excuses(&recorded_at[1], &self.chronicle.disturbances(), &redriven);
        let accounts = receipts.each_ref().map(|receipts| Account::of(&sales, receipts));
        let mut order_breaks = Vec::new();
        for order_break in accounts[0].order_breaks.iter().take(crate::report::BREACHES_SHOWN) {
            let sends = |ticket| self.sends[0].told(ticket, began_at);
            order_breaks.push(audit::told(&client, order_break, wall_clock, sends).await?);
        }
        Ok(Report {
            seed: self.seed,
            order_breaks,
            left_by_hand: audit::pending(&client).await?,
            forgotten,
            never_sent,
            in_quarantine,
            rolled_back: self.till.rolled_back.load(Ordering::Relaxed),
            unclear: self.till.unclear.load(Ordering::Relaxed),
            committed: sales.len(),
            accounts,
            dead,
            unexcused: excuses.unexcused(&arrivals),
            excuses,
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
