//! Each connection is made anew from what is true now: names, passwords, servers. A relay needs no restart.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::net::TcpListener;

use support::postgres::{Cluster, Options, PASSWORD, StopMode};
use support::relay::{Command, Relay};
use support::roles::Roles;
use support::test_bed::{TestBed, enqueue_range, ensure_each_once, numbers};
use support::{chosen_major, eventually};

const SESSIONS: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'outbox-relay%'";

const BEGUN: &str = "(1000000 * extract(epoch FROM backend_start))::bigint";

/// When the relay's newest session began, in microseconds. Process ids do not tell which is older: they start over.
async fn newest_session(bed: &TestBed) -> Result<i64> {
    bed.count(&format!("SELECT max({BEGUN}) {SESSIONS}")).await
}

/// Whether the relay has sessions, and all began after this time.
async fn are_replaced(bed: &TestBed, first: i64) -> Result<bool> {
    bed.count(&format!("SELECT coalesce(min({BEGUN}), 0) {SESSIONS}")).await.map(|oldest| oldest > first)
}

/// Waits until nothing is pending, through another session than the bed's, which did not survive.
async fn until_delivered(client: &tokio_postgres::Client) -> Result<()> {
    eventually("the rest is delivered", || async {
        let row = client.query_one("SELECT count(*) FROM outbox.messages_pending", &[]).await?;
        Ok(row.get::<_, i64>(0) == 0)
    })
    .await
}

/// Gives the relay's role another password and ends its sessions, tells the relay of it a while later, and sees it go on.
async fn rotate(bed: &TestBed, relay: Relay, role: &str, tell: impl FnOnce() -> Result<()>) -> Result<()> {
    bed.enqueue_many("audit", 20, 0).await?;
    bed.until_nothing_is_pending().await?;
    let change = format!(
        "ALTER ROLE {role} PASSWORD 'another-secret';
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
    );
    bed.client.batch_execute(&change).await?;
    relay.wait_for_log("password authentication failed").await?;
    tell()?;
    enqueue_range(&bed.client, "audit", 21..=40, 0).await?;
    bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    ensure!(!log.contains("another-secret") && !log.contains(PASSWORD), "a secret is shown:\n{log}");
    Ok(())
}

/// A relay as `outbox_relay`, whose URL has no password.
pub async fn without_password(bed: &TestBed) -> Result<(Command, String)> {
    let roles = Roles::create(bed).await?;
    let url = roles.relay_url.replace(&format!(":{PASSWORD}@"), "@");
    Ok((bed.relay().env("DATABASE_URL", url), roles.relay))
}

#[tokio::test]
async fn a_new_password_in_a_password_file_is_picked_up() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let (command, role) = without_password(&bed).await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("passwords");
    std::fs::write(&path, format!("*:*:*:{role}:{PASSWORD}\n"))?;
    let relay = command.env("PGPASSFILE", path.to_string_lossy()).start().await?;
    let tell = || Ok(std::fs::write(&path, format!("*:*:*:{role}:another-secret\n"))?);
    rotate(&bed, relay, &role, tell).await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 40)
}

#[tokio::test]
async fn a_command_is_asked_for_the_password_of_each_connection() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let (command, role) = without_password(&bed).await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("password");
    std::fs::write(&path, PASSWORD)?;
    let words = format!("cat '{}'", path.display());
    let relay = command.env("OUTBOX_RELAY_DATABASE_PASSWORD_COMMAND", words).start().await?;
    rotate(&bed, relay, &role, || Ok(std::fs::write(&path, "another-secret\n")?)).await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 40)
}

#[tokio::test]
async fn a_password_command_that_fails_is_named_and_asked_again() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let (command, _) = without_password(&bed).await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("password");
    let words = format!("cat '{}'", path.display());
    let relay = command.env("OUTBOX_RELAY_DATABASE_PASSWORD_COMMAND", words).start().await?;
    relay.wait_for_log("ended with exit status").await?;
    bed.enqueue_many("audit", 5, 0).await?;
    std::fs::write(&path, PASSWORD)?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn connections_are_replaced_when_they_reach_their_age() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let relay = bed.relay().env("OUTBOX_RELAY_DATABASE_CONNECTION_MAX_AGE", "1s").start().await?;
    bed.enqueue_many("audit", 10, 0).await?;
    bed.until_nothing_is_pending().await?;
    let first = newest_session(&bed).await?;
    // Work goes on meanwhile: a connection in use is replaced when it comes back.
    let work = bed.trickle("audit").await?;
    eventually("its first sessions are gone", || are_replaced(&bed, first)).await?;
    drop(work);
    bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    ensure!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    let written = bed.count("SELECT count(*) FROM outbox.messages_delivered").await?;
    let arrived = bed.queues.contents(&queue).await?.len();
    ensure!(i64::try_from(arrived)? == written, "{arrived} arrived of {written}");
    Ok(())
}

/// A role may have as many sessions as the relay has, so a new one has room only when the old one is gone.
#[tokio::test]
async fn connections_are_replaced_within_the_limit_of_their_role() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let roles = Roles::create(&bed).await?;
    let relay = bed.relay().env("DATABASE_URL", &roles.relay_url);
    let relay = relay.env("OUTBOX_RELAY_DATABASE_CONNECTION_MAX_AGE", "2s").start().await?;
    let work = bed.trickle("audit").await?;
    let role = &roles.relay;
    // As many as a relay with one destination opens.
    bed.client.batch_execute(&format!("ALTER ROLE {role} CONNECTION LIMIT 3")).await?;
    eventually("it has sessions", || async { Ok(bed.count(&format!("SELECT count(*) {SESSIONS}")).await? > 1) })
        .await?;
    let first = newest_session(&bed).await?;
    eventually("its first sessions are gone", || are_replaced(&bed, first)).await?;
    drop(work);
    bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    ensure!(!log.contains("cannot be replaced"), "{log}");
    Ok(())
}

/// The password changes while sessions are in use, and the relay is told later than its connections reach their age.
#[tokio::test]
async fn a_connection_is_given_up_only_for_one_that_works() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let (command, role) = without_password(&bed).await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("passwords");
    std::fs::write(&path, format!("*:*:*:{role}:{PASSWORD}\n"))?;
    let command = command.env("PGPASSFILE", path.to_string_lossy());
    let relay = command.env("OUTBOX_RELAY_DATABASE_CONNECTION_MAX_AGE", "1s").start().await?;
    let work = bed.trickle("audit").await?;
    eventually("it has all the sessions that it needs", || async { Ok(bed.delivered().await? >= 100) }).await?;
    bed.client.batch_execute(&format!("ALTER ROLE {role} PASSWORD 'another-secret'")).await?;
    relay.wait_for_log("it stays in use").await?;
    let before = bed.delivered().await?;
    eventually("messages are delivered all the same", || async { Ok(bed.delivered().await? > before + 50) }).await?;
    std::fs::write(&path, format!("*:*:*:{role}:another-secret\n"))?;
    drop(work);
    bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    ensure!(log.contains("password authentication failed"), "{log}");
    let arrived = bed.queues.contents(&queue).await?.len();
    ensure!(i64::try_from(arrived)? == bed.delivered().await?, "{arrived} arrived");
    Ok(())
}

#[tokio::test]
async fn a_first_server_that_never_answers_does_not_keep_the_relay_from_the_second() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    // It accepts connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let silent = silent.local_addr()?;
    let url = bed.url().replacen("@127.0.0.1:", &format!("@{silent},127.0.0.1:"), 1);
    let relay = bed.relay().env("DATABASE_URL", format!("{url}?connect_timeout=1"));
    let relay = relay.env("OUTBOX_RELAY_DATABASE_CONNECTION_MAX_AGE", "1s").start().await?;
    bed.enqueue_many("audit", 10, 0).await?;
    bed.until_nothing_is_pending().await?;
    // Later connections go to the second one at once.
    let first = newest_session(&bed).await?;
    let work = bed.trickle("audit").await?;
    eventually("the connections are replaced", || are_replaced(&bed, first)).await?;
    drop(work);
    bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    ensure!(log.contains("connected to PostgreSQL server=127.0.0.1:"), "{log}");
    ensure!(!log.contains("cannot be replaced") && !log.contains("cannot be used"), "{log}");
    let arrived = bed.queues.contents(&queue).await?.len();
    ensure!(i64::try_from(arrived)? == bed.delivered().await?, "{arrived} arrived");
    Ok(())
}

/// Has the relay read another file of names, in a mount namespace of its own.
fn with_names(command: Command, names: &Path) -> Command {
    command.after(&format!(
        r#"exec unshare -rm sh -ec 'mount --bind {} /etc/hosts; exec "$0" "$@"' "$0" "$@""#,
        names.display()
    ))
}

#[tokio::test]
async fn a_name_that_moves_to_another_address_is_looked_up_again() -> Result<()> {
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let bed = TestBed::on(&cluster).await?;
    let queue = bed.standard("audit").await?;
    let folder = tempfile::tempdir()?;
    let names = folder.path().join("hosts");
    std::fs::write(&names, "127.0.0.1 localhost database.example\n")?;
    let url = bed.url().replace("@127.0.0.1:", "@database.example:");
    let relay = with_names(bed.relay().env("DATABASE_URL", url), &names).start().await?;
    bed.enqueue_many("audit", 10, 0).await?;
    bed.until_nothing_is_pending().await?;
    // The server moves. Its old address refuses.
    bed.client.batch_execute("ALTER SYSTEM SET listen_addresses = '127.0.0.2'").await?;
    cluster.authenticate("host all all 127.0.0.2/32 scram-sha-256")?;
    relay.wait_for_log("onnection refused").await?;
    std::fs::write(&names, "127.0.0.2 database.example\n")?;
    let moved = bed.url().replace("@127.0.0.1:", "@127.0.0.2:");
    let client = support::test_bed::connect(&moved).await.context("the server has not moved")?;
    enqueue_range(&client, "audit", 11..=20, 0).await?;
    until_delivered(&client).await?;
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20)
}

#[tokio::test]
async fn a_pooler_that_remembers_a_failed_login_is_waited_for() -> Result<()> {
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let bed = TestBed::on(&cluster).await?;
    let queue = bed.standard("audit").await?;
    let pooler = support::pgbouncer::PgBouncer::start(&cluster)?;
    let relay = bed.relay().env("DATABASE_URL", pooler.url(bed.url())).start().await?;
    bed.enqueue_many("audit", 10, 0).await?;
    bed.until_nothing_is_pending().await?;
    cluster.stop(StopMode::Immediate)?;
    // PgBouncer repeats the last failure to all clients until server_login_retry has passed.
    relay.wait_for_log("server login has been failing").await?;
    cluster.start_again()?;
    let client = support::test_bed::connect(bed.url()).await?;
    enqueue_range(&client, "audit", 11..=20, 0).await?;
    until_delivered(&client).await?;
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20)
}

/// The server's log is where an operator sees it, and where accounts are locked.
#[tokio::test]
async fn a_refused_login_is_repeated_seldom() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.fifo("tickets").await?;
    let (command, _) = without_password(&bed).await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("password");
    std::fs::write(&path, "wrong")?;
    let counter = folder.path().join("asked");
    let words = format!("sh -c 'echo >>{}; cat {}'", counter.display(), path.display());
    let relay = command.env("OUTBOX_RELAY_DATABASE_PASSWORD_COMMAND", words).start().await?;
    relay.wait_for_log("password authentication failed for user").await?;
    // Time is the subject: how often a login is tried.
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    let asked = std::fs::read_to_string(&counter)?.lines().count();
    // All that wait for a connection ask at first, then one at a time; without delays it would be seventy.
    ensure!((2..=12).contains(&asked), "asked {asked} times in 12 s");
    std::fs::write(&path, PASSWORD)?;
    bed.enqueue_many("audit", 5, 0).await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    Ok(())
}

/// Kubernetes would kill the pod.
#[tokio::test]
async fn servers_that_say_nothing_do_not_make_the_relay_look_hung() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let silent = silent.local_addr()?;
    let url = bed.url().replacen("@127.0.0.1:", &format!("@{silent},{silent},{silent},127.0.0.1:"), 1);
    let relay = bed.relay().env("DATABASE_URL", format!("{url}?connect_timeout=50")).start().await?;
    bed.enqueue_many("audit", 10, 0).await?;
    // Each server has its share of 40 s.
    support::eventually_within_minutes("the fourth server is reached", || async { Ok(bed.pending().await? == 0) })
        .await?;
    ensure!(relay.get("/livez").await?.0 == 200);
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 10)
}
