//! The test bed: for each test its own migrated database, its own queues, and relays that run as the real binary.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};
use tokio_util::task::AbortOnDropHandle;

use super::emulator::{Buckets, Product, Queues, Received, Topics};
use super::pgbouncer::PgBouncer;
use super::postgres::Cluster;
use super::proxy::Proxy;
use super::relay::{Command, binary};
use super::{chosen_schema, cluster, emulator, eventually, pgbouncer, rewriting};

/// Everything that one test works with.
#[derive(Debug)]
pub struct TestBed {
    /// A session in the test's database, as superuser.
    pub client: Client,
    /// The emulator's queues, without the proxy.
    pub queues: Queues,
    /// Its topics.
    pub topics: Topics,
    /// Its buckets.
    pub buckets: Buckets,
    url: String,
    relay_url: String,
    endpoint: Mutex<String>,
    destinations: Mutex<Vec<(String, String)>>,
}

/// A message as it is in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// pending, delivered or dead.
    pub status: String,
    /// Failed attempts.
    pub attempts: i16,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// The id that SQS gave it.
    pub sqs_message_id: Option<String>,
}

impl TestBed {
    /// A migrated database on the cluster that all tests share.
    pub async fn new() -> Result<TestBed> {
        let name = unique();
        let cluster = cluster()?;
        cluster.create_database_from_template(&name, template().await?).await?;
        TestBed::at(cluster.url(&name), pgbouncer()?).await
    }

    /// A database without a schema.
    pub async fn empty() -> Result<TestBed> {
        let name = unique();
        cluster()?.create_database(&name).await?;
        TestBed::at(cluster()?.url(&name), pgbouncer()?).await
    }

    /// A migrated database on a cluster that belongs to the test.
    pub async fn on(cluster: &Cluster) -> Result<TestBed> {
        let url = cluster.url("postgres");
        migrate(&url).await?;
        TestBed::at(url, None).await
    }

    /// The same, in a new database of that cluster.
    pub async fn beside(cluster: &Cluster) -> Result<TestBed> {
        let name = unique();
        cluster.create_database(&name).await?;
        let url = cluster.url(&name);
        migrate(&url).await?;
        TestBed::at(url, None).await
    }

    async fn at(url: String, pgbouncer: Option<&PgBouncer>) -> Result<TestBed> {
        let relay_url = pgbouncer.map_or_else(|| url.clone(), |pgbouncer| pgbouncer.url(&url));
        let endpoint = emulator()?.endpoint();
        Ok(TestBed {
            client: connect(&url).await?,
            queues: Queues::new(endpoint),
            topics: Topics::new(endpoint),
            buckets: Buckets::new(endpoint),
            url,
            relay_url,
            endpoint: Mutex::new(endpoint.to_owned()),
            destinations: Mutex::default(),
        })
    }

    /// Creates a FIFO queue and a destination of this name for it. Returns the queue's URL.
    pub async fn fifo(&self, destination: &str) -> Result<String> {
        let url = self.queues.create_fifo(destination).await?;
        self.add_destination(destination, &url);
        Ok(url)
    }

    /// Creates a standard queue and a destination of this name for it. Returns the queue's URL.
    pub async fn standard(&self, destination: &str) -> Result<String> {
        let url = self.queues.create_standard(destination).await?;
        self.add_destination(destination, &url);
        Ok(url)
    }

    /// Creates a standard topic and a destination of this name for it. Returns the topic's ARN.
    pub async fn topic(&self, destination: &str) -> Result<String> {
        let arn = self.topics.create(&Topics::name(destination, false)).await?;
        self.add_destination(destination, &arn);
        Ok(arn)
    }

    /// Creates a FIFO topic and a destination of this name for it. Returns the topic's ARN.
    pub async fn fifo_topic(&self, destination: &str) -> Result<String> {
        let arn = self.topics.create(&Topics::name(destination, true)).await?;
        self.add_destination(destination, &arn);
        Ok(arn)
    }

    /// Adds a destination with any queue URL or topic ARN.
    pub fn add_destination(&self, destination: &str, url: &str) {
        locked(&self.destinations).push((destination.to_owned(), url.to_owned()));
    }

    /// Starts a fault proxy. Relays that are started from now on send to SQS through it.
    pub async fn proxy(&self) -> Result<Proxy> {
        let proxy = Proxy::start(emulator()?.endpoint()).await?;
        *locked(&self.endpoint) = proxy.endpoint();
        Ok(proxy)
    }

    /// The relay's binary, with only the settings for this test's database and queues.
    pub fn relay(&self) -> Command {
        let endpoint = locked(&self.endpoint).clone();
        let pairs = locked(&self.destinations);
        let pairs: Vec<_> = pairs.iter().map(|(name, url)| format!("{name}={url}")).collect();
        // On a busy machine a request takes seconds, and one that is sent again may arrive twice in a standard queue.
        let slow = || Command::new().env("OUTBOX_RELAY_REQUEST_TIMEOUT", "30s");
        let command = match Product::chosen() {
            Ok(Product::ElasticMq) => slow(),
            // It takes a tenth of a second for each request, and does not work on two at the same time.
            Ok(Product::Moto) => slow().env("OUTBOX_RELAY_MAX_IN_FLIGHT", "2"),
            _ => Command::new(),
        };
        command
            .env("DATABASE_URL", &self.relay_url)
            .env("OUTBOX_RELAY_DESTINATIONS", pairs.join(","))
            .env("OUTBOX_RELAY_HTTP_LISTEN", "127.0.0.1:0")
            .env("AWS_ENDPOINT_URL_SQS", endpoint.as_str())
            .env("AWS_ENDPOINT_URL_SNS", endpoint.as_str())
            .env("AWS_ENDPOINT_URL_S3", endpoint)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "the-secret-of-aws")
            .env("AWS_EC2_METADATA_DISABLED", "true")
    }

    /// The schema of the outbox.
    pub fn schema(&self) -> Result<&'static str> {
        Ok(chosen_schema()?.name())
    }

    /// The URL of the database, password included; never through PgBouncer.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL that relays are given.
    pub fn relay_url(&self) -> &str {
        &self.relay_url
    }

    /// One more session in the test's database.
    pub async fn connect(&self) -> Result<Client> {
        connect(&self.url).await
    }

    /// Commits one message; returns its id.
    pub async fn enqueue(&self, destination: &str, payload: &str, group: Option<&str>) -> Result<i64> {
        enqueue(&self.client, destination, payload, group).await
    }

    /// Commits messages with the bodies `{"n": 1}` to `{"n": count}`. Number n belongs to the group `g(n mod groups)`;
    /// with 0 groups no message has one.
    pub async fn enqueue_many(&self, destination: &str, count: i64, groups: i64) -> Result<()> {
        enqueue_range(&self.client, destination, 1..=count, groups).await
    }

    /// Commits up to a hundred messages per second, without a group, until the handle is dropped. So others can get
    /// through while some fail.
    pub async fn trickle(&self, destination: &str) -> Result<AbortOnDropHandle<()>> {
        let (client, destination) = (self.connect().await?, destination.to_owned());
        Ok(AbortOnDropHandle::new(tokio::spawn(async move {
            while enqueue(&client, &destination, "{\"trickle\": true}", None).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })))
    }

    /// How many messages are pending.
    pub async fn pending(&self) -> Result<i64> {
        self.count("SELECT count(*) FROM outbox.messages_pending").await
    }

    /// How many delivered messages are kept.
    pub async fn delivered(&self) -> Result<i64> {
        self.count("SELECT count(*) FROM outbox.messages_delivered").await
    }

    /// The single number that a query returns.
    pub async fn count(&self, query: &str) -> Result<i64> {
        Ok(self.client.query_one(query, &[]).await?.try_get(0)?)
    }

    /// Waits until no message is pending.
    pub async fn until_nothing_is_pending(&self) -> Result<()> {
        eventually("nothing is pending", || async { Ok(self.pending().await? == 0) }).await
    }

    /// Waits until no message is pending. It waits for as long as their number keeps falling.
    pub async fn until_drained(&self) -> Result<()> {
        let mut pending = i64::MAX;
        while pending > 0 {
            let before = pending;
            eventually("fewer messages are pending", || async {
                // Counting many messages takes time on the server.
                tokio::time::sleep(Duration::from_millis(200)).await;
                Ok(self.pending().await? < before)
            })
            .await?;
            pending = self.pending().await?;
        }
        Ok(())
    }

    /// Checks that a FIFO queue has each of the numbers 1 to `count` once, and that each group is in order.
    pub async fn ensure_arrived_in_order(&self, queue_url: &str, count: i64) -> Result<()> {
        let messages = self.queues.contents(queue_url).await?;
        ensure_each_once(numbers(&messages)?, count)?;
        ensure_order_in_groups(&messages)
    }

    /// The row of a message.
    pub async fn row(&self, id: i64) -> Result<Row> {
        let query = "SELECT status, attempts, last_error, sqs_message_id FROM outbox.messages WHERE id = $1";
        let row = self.client.query_one(query, &[&id]).await?;
        Ok(Row { status: row.get(0), attempts: row.get(1), last_error: row.get(2), sqs_message_id: row.get(3) })
    }

    /// Inserts, updates and deletes so far in all tables of the schema, as PostgreSQL counted them.
    pub async fn writes(&self) -> Result<i64> {
        // A session may hold back its own statistics for up to a second; a new session has none.
        let query = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint
                     FROM pg_stat_user_tables WHERE schemaname = 'outbox'";
        Ok(self.connect().await?.query_one(query, &[]).await?.try_get(0)?)
    }
}

/// Writes one message, and commits it unless the session has an open transaction; returns its id.
pub async fn enqueue(client: &Client, destination: &str, payload: &str, group: Option<&str>) -> Result<i64> {
    let query = "SELECT outbox.enqueue($1, 'TicketPurchased', $2::text::jsonb, $3)";
    let row = client.query_one(query, &[&destination, &payload, &group]).await?;
    Ok(row.try_get(0)?)
}

/// Commits messages with these numbers, as [`TestBed::enqueue_many`] does, in any session.
pub async fn enqueue_range(
    client: &Client,
    destination: &str,
    numbers: RangeInclusive<i64>,
    groups: i64,
) -> Result<()> {
    let query = "WITH event AS (
            INSERT INTO outbox.events (event_type, payload)
            SELECT 'TicketPurchased', jsonb_build_object('n', n) FROM generate_series($2::bigint, $3::bigint) AS n
            RETURNING position, (payload ->> 'n')::bigint AS n
        )
        INSERT INTO outbox.messages (destination, event_position, group_id)
        SELECT $1, position, CASE WHEN $4::bigint > 0 THEN 'g' || n % $4 END FROM event ORDER BY n";
    client.execute(query, &[&destination, numbers.start(), numbers.end(), &groups]).await?;
    Ok(())
}

/// The numbers in the bodies that `enqueue_many` wrote, in the order of the queue.
pub fn numbers(received: &[Received]) -> Result<Vec<i64>> {
    let number = |message: &Received| {
        let body: serde_json::Value = serde_json::from_str(&message.body)?;
        body["n"].as_i64().with_context(|| format!("no number in {}", message.body))
    };
    received.iter().map(number).collect()
}

/// The last copy of each number, in the order of the queue.
pub fn last_copies(numbers: &[i64]) -> Vec<i64> {
    let is_last = |(index, number): &(usize, &i64)| !numbers.iter().skip(index + 1).any(|later| later == *number);
    numbers.iter().enumerate().filter(is_last).map(|(_, number)| *number).collect()
}

/// Checks that each of the numbers 1 to `count` is there exactly once.
pub fn ensure_each_once(mut numbers: Vec<i64>, count: i64) -> Result<()> {
    numbers.sort_unstable();
    let doubled: Vec<_> = numbers.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    ensure!(doubled.is_empty(), "{} are there twice, such as {}", doubled.len(), doubled[0]);
    ensure_each(numbers, count)
}

/// Checks that each of the numbers 1 to `count` is there at least once, and no other number.
pub fn ensure_each(mut numbers: Vec<i64>, count: i64) -> Result<()> {
    numbers.sort_unstable();
    numbers.dedup();
    let missing: Vec<_> = (1..=count).filter(|n| numbers.binary_search(n).is_err()).collect();
    ensure!(missing.is_empty(), "{} of {count} are missing, such as {}", missing.len(), missing[0]);
    ensure!(i64::try_from(numbers.len())? == count, "{} instead of {count}", numbers.len());
    Ok(())
}

/// Checks that the numbers of each group ascend.
pub fn ensure_order_in_groups(messages: &[Received]) -> Result<()> {
    let mut groups = HashMap::<_, Vec<_>>::new();
    for message in messages {
        groups.entry(message.group_id.clone()).or_default().push(message.clone());
    }
    for (group, messages) in groups {
        let numbers = numbers(&messages)?;
        ensure!(numbers.is_sorted(), "{group:?} arrived as {numbers:?}");
    }
    Ok(())
}

/// Opens a session. The test's runtime drives its connection.
pub async fn connect(url: &str) -> Result<Client> {
    let schema = chosen_schema()?;
    if schema.is_renamed() {
        return rewriting::connect(url, schema).await;
    }
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Runs `outbox-relay migrate`.
pub async fn migrate(url: &str) -> Result<()> {
    let migrated = Command::new().env("DATABASE_URL", url).output(&["migrate"]).await?;
    ensure!(migrated.code == Some(0), "{} migrate: {}", binary().display(), migrated.stderr);
    Ok(())
}

/// The migrated database that the others are copied from.
async fn template() -> Result<&'static str> {
    static TEMPLATE: OnceCell<Arc<str>> = OnceCell::const_new();
    let make = || async {
        let name = "template_of_the_tests";
        cluster()?.create_database(name).await?;
        migrate(&cluster()?.url(name)).await?;
        anyhow::Ok(Arc::from(name))
    };
    Ok(TEMPLATE.get_or_try_init(make).await?)
}

fn unique() -> String {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
    format!("test_{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
