//! SQS behind a proxy and behind certificates of one's own, as in companies that inspect TLS.

use anyhow::{Context as _, Result, ensure};

use support::emulator;
use support::http_proxy::HttpProxy;
use support::relay::Command;
use support::test_bed::{TestBed, ensure_each_once, numbers};
use support::tls_front::TlsFront;

/// `user:p@ss w` in base64.
const BASIC: &str = "Basic dXNlcjpwQHNzIHc=";

/// SQS under a name that only the proxy resolves, and its authority in a file.
struct Inspected {
    front: TlsFront,
    folder: tempfile::TempDir,
}

impl Inspected {
    async fn start() -> Result<Inspected> {
        let names = ["sqs.internal.test", "10.1.2.3", "localhost", "127.0.0.1"];
        let front = TlsFront::before(emulator()?.endpoint(), &names).await?;
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("authority.pem"), front.authority())?;
        Ok(Inspected { front, folder })
    }

    /// A relay that reaches SQS under this name, and trusts the authority.
    fn relay(&self, bed: &TestBed, host: &str) -> Command {
        let bundle = self.folder.path().join("authority.pem");
        bed.relay()
            .env("AWS_ENDPOINT_URL_SQS", format!("https://{host}:{}", self.front.port()))
            .env("AWS_CA_BUNDLE", bundle.to_string_lossy())
    }
}

#[tokio::test]
async fn messages_go_through_a_proxy_that_wants_a_password_and_inspects_tls() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let inspected = Inspected::start().await?;
    let proxy = HttpProxy::start(Some(BASIC)).await?;
    let url = format!("http://user:p%40ss%20w@127.0.0.1:{}", proxy.port());
    let relay = inspected.relay(&bed, "sqs.internal.test").env("HTTPS_PROXY", &url).start().await?;
    bed.enqueue_many("tickets", 100, 5).await?;
    bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    let line = format!("CONNECT sqs.internal.test:{} HTTP/1.1", inspected.front.port());
    ensure!(proxy.asked().iter().all(|asked| *asked == line) && !proxy.asked().is_empty(), "{:?}", proxy.asked());
    ensure!(!log.contains("p%40ss") && !log.contains("p@ss"), "the password is shown:\n{log}");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 100)
}

#[tokio::test]
async fn plain_http_goes_through_the_proxy_for_http() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let port = emulator()?.endpoint().rsplit(':').next().context("no port")?;
    let relay = bed.relay().env("AWS_ENDPOINT_URL_SQS", format!("http://sqs.internal.test:{port}"));
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        let proxy = HttpProxy::start(None).await?;
        let relay = relay.clone().env(name, format!("http://127.0.0.1:{}", proxy.port()));
        relay.output(&["check"]).await?.ensure_success().context(name)?;
        let asked = proxy.asked();
        ensure!(asked.iter().any(|asked| asked.starts_with("POST http://sqs.internal.test:")), "{name}: {asked:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_cannot_be_used_is_a_mistake_in_the_configuration_and_is_not_shown() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    for (name, value) in
        [("HTTPS_PROXY", "http://user:hunter2#@proxy:3128"), ("ALL_PROXY", "socks5h://user:hunter2@proxy:1080")]
    {
        let ended = bed.relay().env(name, value).output(&["run"]).await?;
        ensure!(ended.code == Some(2) && ended.stderr.contains(name), "{ended:?}");
        ensure!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn a_variable_that_is_set_and_empty_counts_as_not_set() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    ensure!(queue.starts_with("http://127.0.0.1:"), "{queue}");
    let relay = bed.relay().env("AWS_ENDPOINT_URL_SQS", "").env("AWS_ENDPOINT_URL", "");
    let relay = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "AWS_CA_BUNDLE"]
        .iter()
        .fold(relay, |relay, name| relay.env(name, ""));
    relay.output(&["check"]).await?.ensure_success()?;
    let without_region = relay.env("AWS_REGION", "").output(&["check"]).await?;
    ensure!(without_region.stdout.contains("set AWS_REGION"), "{}", without_region.stdout);
    Ok(())
}

#[tokio::test]
async fn no_proxy_names_hosts_suffixes_and_networks_that_are_reached_directly() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let inspected = Inspected::start().await?;
    let table = [
        ("sqs.internal.test", "", true),
        ("sqs.internal.test", "sqs.internal.test", false),
        ("sqs.internal.test", "SQS.INTERNAL.TEST", false),
        ("sqs.internal.test", "example.com,sqs.internal.test", false),
        ("sqs.internal.test", "example.com, sqs.internal.test", false),
        ("sqs.internal.test", "*", false),
        ("sqs.internal.test", "internal.test", false),
        ("sqs.internal.test", ".internal.test", false),
        ("sqs.internal.test", "nal.test", true),
        ("sqs.internal.test", "internal.tes", true),
        ("10.1.2.3", "", true),
        ("10.1.2.3", "10.1.2.3", false),
        ("10.1.2.3", "10.0.0.0/8", false),
        ("10.1.2.3", "192.168.0.0/16,172.16.0.0/12", true),
        // What is near needs no rule.
        ("localhost", "", false),
        ("127.0.0.1", "", false),
    ];
    for (host, no_proxy, is_proxied) in table {
        let proxy = HttpProxy::start(None).await?;
        let url = format!("http://127.0.0.1:{}", proxy.port());
        let relay = inspected.relay(&bed, host).env("HTTPS_PROXY", &url).env("NO_PROXY", no_proxy);
        let checked = relay.output(&["check"]).await?;
        let was_asked = !proxy.asked().is_empty();
        let says = format!("queue of audit: goes through the proxy 127.0.0.1:{}", proxy.port());
        ensure!(checked.stdout.contains(&says) == is_proxied, "{host} with NO_PROXY={no_proxy}: {}", checked.stdout);
        ensure!(was_asked == is_proxied, "{host} with NO_PROXY={no_proxy}: {:?}\n{}", proxy.asked(), checked.stdout);
        // Only the proxy can reach the others.
        let is_reachable = is_proxied || host == "localhost" || host == "127.0.0.1";
        ensure!((checked.code == Some(0)) == is_reachable, "{host} with NO_PROXY={no_proxy}: {}", checked.stdout);
    }
    Ok(())
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_a_mistake_in_the_configuration() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("empty.pem"), "")?;
    std::fs::write(path("broken.pem"), "-----BEGIN CERTIFICATE-----\nnot base64\n-----END CERTIFICATE-----\n")?;
    let odd = "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
    std::fs::write(path("odd.pem"), odd)?;
    for name in ["missing.pem", "empty.pem", "broken.pem", "odd.pem"] {
        let ended = bed.relay().env("AWS_CA_BUNDLE", path(name)).output(&["run"]).await?;
        ensure!(ended.code == Some(2), "{name}: {ended:?}");
        ensure!(ended.stderr.contains("AWS_CA_BUNDLE") && ended.stderr.contains(name), "{}", ended.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn a_server_whose_certificate_nobody_vouches_for_is_not_trusted() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let inspected = Inspected::start().await?;
    let relay = inspected.relay(&bed, "localhost").without("AWS_CA_BUNDLE");
    let checked = relay.output(&["check"]).await?;
    ensure!(checked.code == Some(1) && checked.stdout.contains("UnknownIssuer"), "{}", checked.stdout);
    let bundle = inspected.folder.path().join("authority.pem");
    let trusted = relay.env("SSL_CERT_FILE", bundle.to_string_lossy()).output(&["check"]).await?;
    trusted.ensure_success().context("with SSL_CERT_FILE")
}
