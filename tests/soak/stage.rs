//! What runs during a soak, from the first purchase until everything has arrived.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use fastrand::Rng;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::chronicle::Chronicle;
use crate::consumer::{self, Inbox};
use crate::crew::Place;
use crate::ledger::{Account, Receipt, Sale};
use crate::report::{Progress, Report};
use crate::sends::Sends;
use crate::support::bed::Bed;
use crate::support::postgres::{Cluster, Options};
use crate::support::proxy::Proxy;
use crate::support::{chosen_major, emulator};
use crate::writers::{self, DRAWS, Till};
use crate::{shop, storm};

/// Relays at work.
const RELAYS: usize = 2;

/// Between two looks at how far things are.
const PAUSE: Duration = Duration::from_millis(200);

/// Between two lines of progress.
const LINE: Duration = Duration::from_secs(5);

/// When nothing arrives for so long after the last fault, what is missing counts as lost.
const STALL: Duration = Duration::from_secs(30);

/// Everything that runs.
pub struct Stage {
    seed: u64,
    dice: Rng,
    cluster: Arc<Cluster>,
    bed: Bed,
    /// Of tickets, FIFO, and audit, standard.
    queue_urls: [String; 2],
    inboxes: [Arc<Inbox>; 2],
    chronicle: Arc<Chronicle>,
    till: Arc<Till>,
    sends: Sends,
    proxies: Vec<Arc<Proxy>>,
    places: Vec<JoinHandle<Result<Place>>>,
    /// Set when the faults are to end.
    calm: CancellationToken,
    /// Set when the relays are to end.
    end: CancellationToken,
}

impl Stage {
    /// Starts PostgreSQL and the emulator, and the relays each behind a proxy.
    pub async fn set(seed: u64) -> Result<Stage> {
        let options = Options { major: chosen_major(), ..Options::default() };
        let cluster = Arc::new(tokio::task::spawn_blocking(move || Cluster::start(&options)).await??);
        let bed = Bed::on(&cluster).await?;
        let queue_urls = [bed.fifo("tickets").await?, bed.standard("audit").await?];
        shop::open(bed.url(), DRAWS).await?;
        let chronicle = Arc::new(Chronicle::new(Instant::now()));
        let mut dice = Rng::with_seed(seed);
        let (calm, end) = (CancellationToken::new(), CancellationToken::new());
        let (mut proxies, mut places) = (Vec::new(), Vec::new());
        for number in 0..RELAYS {
            proxies.push(Arc::new(bed.proxy().await?));
            let command = bed
                .relay()
                .env("OUTBOX_RELAY_RETRY_INITIAL", "20ms")
                .env("OUTBOX_RELAY_RETRY_MAX", "1s")
                .env("OUTBOX_RELAY_REQUEST_TIMEOUT", "2s")
                // No message is ever to die here: each failure is the proxy's.
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
            cluster,
            bed,
            queue_urls,
            inboxes: [Arc::default(), Arc::default()],
            chronicle,
            till: Arc::default(),
            sends: Sends::default(),
            proxies,
            places,
            calm,
            end,
        })
    }

    /// Sells while everything breaks, lets everything arrive, and draws up the accounts.
    pub async fn play(mut self, time: Duration) -> Result<Report> {
        let (began_at, wall_clock) = (Instant::now(), SystemTime::now());
        let (stop_selling, stop_receiving) = (CancellationToken::new(), CancellationToken::new());
        let mut receivers = JoinSet::new();
        for (url, inbox) in self.queue_urls.iter().zip(&self.inboxes) {
            receivers.spawn(drain(consumer::receive(emulator()?.endpoint(), url, inbox, began_at, &stop_receiving)));
        }
        let mut writers = writers::sell(self.bed.url(), &mut self.dice, &self.till, &stop_selling);
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

    /// Starts what breaks queues and database.
    fn trouble(&mut self) -> JoinSet<Result<()>> {
        let queues = storm::Queues {
            proxies: self.proxies.clone(),
            urls: self.queue_urls.clone(),
            chronicle: Arc::clone(&self.chronicle),
            dice: self.dice.fork(),
        };
        let database = storm::Database {
            cluster: Arc::clone(&self.cluster),
            url: self.bed.url().to_owned(),
            chronicle: Arc::clone(&self.chronicle),
            dice: self.dice.fork(),
        };
        let mut troubles = JoinSet::new();
        troubles.spawn(queues.trouble(self.calm.clone()));
        troubles.spawn(database.trouble(self.calm.clone()));
        troubles
    }

    /// Lets a moment pass: fails if somebody failed, takes in what the proxies saw, and shows how far things are.
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
            self.sends.take(relay, &self.queue_urls[1], &proxy.take_ended())?;
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

    /// Waits until nothing is pending and the queues are empty, or nothing moves any more.
    async fn arrive(&mut self, receivers: &mut JoinSet<Result<()>>) -> Result<()> {
        let client = self.bed.connect().await?;
        let (mut seen, mut changed_at) = ((0, [0, 0]), Instant::now());
        loop {
            self.pass(&mut [receivers]).await?;
            let pending: i64 =
                client.query_one("SELECT count(*) FROM outbox.messages WHERE status = 'pending'", &[]).await?.get(0);
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
        let client = self.bed.connect().await?;
        let sales = sales(&client).await?;
        let recorded_at = recorded_at(&client, began_at, wall_clock).await?;
        let dead: i64 =
            client.query_one("SELECT count(*) FROM outbox.messages WHERE status = 'dead'", &[]).await?.get(0);
        let receipts: [Vec<Receipt>; 2] = [self.inboxes[0].receipts(), self.inboxes[1].receipts()];
        let mut arrivals: HashMap<u64, usize> = HashMap::new();
        for receipt in &receipts[1] {
            *arrivals.entry(receipt.ticket).or_default() += 1;
        }
        let excuses = self.sends.excuses(&recorded_at, &self.chronicle.disturbances());
        Ok(Report {
            seed: self.seed,
            heard: self.till.committed.load(Ordering::Relaxed),
            rolled_back: self.till.rolled_back.load(Ordering::Relaxed),
            unclear: self.till.unclear.load(Ordering::Relaxed),
            committed: sales.len(),
            arrived_at: receipts[0]
                .iter()
                .map(|receipt| ((receipt.draw.clone(), receipt.version), receipt.at))
                .collect(),
            accounts: receipts.map(|receipts| Account::of(&sales, &receipts)),
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

/// What was sold: the database's word.
async fn sales(client: &tokio_postgres::Client) -> Result<HashMap<u64, Sale>> {
    let rows = client.query("SELECT ticket, draw, number_in_draw FROM lottery.tickets", &[]).await?;
    let sale = |row: &tokio_postgres::Row| {
        let (draw, version) = (row.get(1), row.get::<_, i64>(2).cast_unsigned());
        (row.get::<_, i64>(0).cast_unsigned(), Sale { draw, version, committed_at: Duration::ZERO })
    };
    Ok(rows.iter().map(sale).collect())
}

/// When the outbox knew that a ticket's message to the standard queue was delivered, on this process's clock.
async fn recorded_at(
    client: &tokio_postgres::Client,
    began_at: Instant,
    wall_clock: SystemTime,
) -> Result<HashMap<u64, Instant>> {
    let query = "SELECT (e.payload ->> 'ticket')::bigint, extract(epoch FROM m.delivered_at)::float8
        FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
        WHERE m.status = 'delivered' AND m.destination = 'audit'";
    let start = wall_clock.duration_since(UNIX_EPOCH)?.as_secs_f64();
    let rows = client.query(query, &[]).await?;
    let recorded_at = |row: &tokio_postgres::Row| {
        let after = Duration::from_secs_f64((row.get::<_, f64>(1) - start).max(0.0));
        (row.get::<_, i64>(0).cast_unsigned(), began_at + after)
    };
    Ok(rows.iter().map(recorded_at).collect())
}
