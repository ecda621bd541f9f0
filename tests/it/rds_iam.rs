//! Tokens of IAM for RDS and Aurora, checked by a front that asks for them as RDS does, before a real PostgreSQL.

use anyhow::{Result, ensure};

use support::postgres::{Cluster, Options};
use support::rds::{Expected, RdsFront};
use support::relay::Command;
use support::test_bed::{TestBed, enqueue_range, ensure_each_once, numbers};
use support::{chosen_major, eventually};

const HOST: &str = "shop.c1a2b3.eu-west-1.rds.amazonaws.com";

/// A database behind the front, and a relay that knows the front as an RDS instance.
struct Ground {
    bed: TestBed,
    front: RdsFront,
    folder: tempfile::TempDir,
    _cluster: Cluster,
}

async fn ground() -> Result<Ground> {
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let bed = TestBed::on(&cluster).await?;
    let keys = ["test", "AKIANEW"].map(|key| (key.to_owned(), "the-secret-of-aws".to_owned())).to_vec();
    let expected = Expected { host: HOST.to_owned(), region: "eu-west-1".to_owned(), keys };
    let front = RdsFront::before(&cluster, expected).await?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("hosts"), format!("127.0.0.1 localhost {HOST}\n"))?;
    std::fs::write(folder.path().join("roots.pem"), front.authority())?;
    Ok(Ground { bed, front, folder, _cluster: cluster })
}

impl Ground {
    fn url(&self, options: &str) -> String {
        let roots = self.folder.path().join("roots.pem");
        format!("postgres://postgres@{HOST}:{}/postgres?sslrootcert={}{options}", self.front.port(), roots.display())
    }

    /// The relay has a mount namespace of its own, in which the name of the instance leads to the front.
    fn relay(&self) -> Command {
        let names = self.folder.path().join("hosts");
        self.bed
            .relay()
            .env("DATABASE_URL", self.url("&sslmode=verify-full"))
            .env("OUTBOX_RELAY_DATABASE_AUTH", "rds-iam")
            .after(&format!(
                r#"exec unshare -rm sh -ec 'mount --bind {} /etc/hosts; exec "$0" "$@"' "$0" "$@""#,
                names.display()
            ))
    }
}

#[tokio::test]
async fn each_connection_has_a_token_of_its_own_and_the_region_is_that_of_the_instance() -> Result<()> {
    let ground = ground().await?;
    let queue = ground.bed.standard("audit").await?;
    let relay = ground.relay().env("OUTBOX_RELAY_DATABASE_CONNECTION_MAX_AGE", "1s").start().await?;
    ground.bed.enqueue_many("audit", 20, 0).await?;
    ground.bed.until_nothing_is_pending().await?;
    let work = ground.bed.trickle("audit").await?;
    eventually("connections are made anew", || async { Ok(ground.front.logins().len() >= 4) }).await?;
    drop(work);
    ground.bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    let logins = ground.front.logins();
    ensure!(logins.iter().all(|login| login.refused.is_none() && login.user == "postgres"), "{logins:?}");
    ensure!(!log.contains("X-Amz-Signature") && !log.contains("the-secret"), "a secret is shown:\n{log}");
    ensure!(!ground.bed.queues.contents(&queue).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn new_keys_make_new_tokens_without_a_restart() -> Result<()> {
    let ground = ground().await?;
    let queue = ground.bed.standard("audit").await?;
    let path = ground.folder.path().join("credentials");
    let write = |key: &str| {
        std::fs::write(
            &path,
            format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = the-secret-of-aws\n"),
        )
    };
    write("AKIAGONE")?;
    let relay = ground.relay().without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
    let relay = relay.env("AWS_SHARED_CREDENTIALS_FILE", path.to_string_lossy()).start().await?;
    relay.wait_for_log("PAM authentication failed").await?;
    write("AKIANEW")?;
    enqueue_range(&ground.bed.client, "audit", 1..=20, 0).await?;
    ground.bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure_each_once(numbers(&ground.bed.queues.contents(&queue).await?)?, 20)
}

#[tokio::test]
async fn check_says_what_a_refused_token_lacks() -> Result<()> {
    let ground = ground().await?;
    ground.bed.standard("audit").await?;
    let granted = ground.relay().output(&["check"]).await?;
    ensure!(
        granted.stdout.contains("asks postgres for a password in clear text; it is from IAM"),
        "{}",
        granted.stdout
    );
    let stranger = ground.relay().env("AWS_ACCESS_KEY_ID", "AKIASTRANGER").output(&["check"]).await?;
    ensure!(stranger.stdout.contains("allow rds-db:connect, GRANT rds_iam TO postgres"), "{}", stranger.stdout);
    Ok(())
}

#[tokio::test]
async fn a_token_is_sent_to_a_verified_server_only() -> Result<()> {
    let ground = ground().await?;
    ground.bed.standard("audit").await?;
    for options in ["", "&sslmode=prefer", "&sslmode=require", "&sslmode=verify-ca"] {
        let relay = ground.relay().env("DATABASE_URL", ground.url(options));
        let ended = relay.output(&["status"]).await?;
        ensure!(ended.stderr.contains("add sslmode=verify-full"), "{options}: {}", ended.stderr);
    }
    let without =
        ground.relay().without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY").output(&["status"]).await?;
    ensure!(without.stderr.contains("no credentials for a token of IAM"), "{}", without.stderr);
    ensure!(without.stderr.trim_end().lines().count() == 1, "{}", without.stderr);
    ensure!(ground.front.logins().is_empty(), "{:?}", ground.front.logins());
    Ok(())
}
