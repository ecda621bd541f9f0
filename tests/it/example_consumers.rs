//! The consumers that applications are shown: an effect exactly once, although messages come twice and two of them run.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_sqs::types::MessageAttributeValue;
use tokio::process::Command;

use crate::support::bed::Bed;
use crate::support::emulator;

/// The longest that a consumer, or the making of its environment, may take.
const PATIENCE: Duration = Duration::from_secs(300);

const TICKETS: i64 = 200;

/// The folder that holds what cargo builds; the test lies in its `deps`.
fn built() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    Ok(test.parent().and_then(Path::parent).context("a test lies in a folder of a folder")?.to_owned())
}

/// Runs a command to its end, in bounded time; fails with what it said unless it went well.
async fn finish(mut command: Command) -> Result<()> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = tokio::time::timeout(PATIENCE, command.output());
    let output = output.await.with_context(|| format!("{program} did not end within {PATIENCE:?}"))?;
    let output = output.with_context(|| format!("cannot start {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} ended with {}:\n{said}", output.status);
    Ok(())
}

/// Tickets that a relay has delivered to a standard queue, and every tenth of them once more, as SQS may do it.
async fn deliver(bed: &Bed) -> Result<String> {
    let queue = bed.standard("sales").await?;
    let enqueue = "SELECT outbox.enqueue('sales', 'TicketPurchased',
            jsonb_build_object('ticket', n, 'draw', 'draw-0' || n % 3, 'price', 5))
        FROM generate_series(1, $1::bigint) AS n";
    bed.client.query(enqueue, &[&TICKETS]).await?;
    bed.relay().deliver_all().await?;
    for message in bed.queues.contents(&queue).await?.into_iter().step_by(10) {
        let mut again = bed.queues.client().send_message().queue_url(&queue).message_body(message.body);
        for (name, value) in message.attributes {
            let value = MessageAttributeValue::builder().data_type("String").string_value(value).build()?;
            again = again.message_attributes(name, value);
        }
        again.send().await?;
    }
    Ok(queue)
}

/// Runs a consumer twice at the same time, told where this test's database and queue are and nothing else.
async fn consume(bed: &Bed, queue: &str, program: &Path, script: Option<&Path>) -> Result<()> {
    let endpoint = emulator()?.endpoint();
    let consumer = || {
        let mut command = Command::new(program);
        command.args(script).args(["--init", "--until-empty"]).env_clear();
        command.env("DATABASE_URL", bed.url()).env("QUEUE_URL", queue).env("AWS_ENDPOINT_URL_SQS", endpoint);
        // boto3 reads the region from the second.
        command.env("AWS_REGION", "us-east-1").env("AWS_DEFAULT_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "the-secret-of-aws");
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        finish(command)
    };
    tokio::try_join!(consumer(), consumer())?;
    Ok(())
}

async fn ensure_each_ticket_counted_once(bed: &Bed, queue: &str) -> Result<()> {
    let tickets = bed.count("SELECT sum(tickets)::bigint FROM sales").await?;
    let revenue = bed.count("SELECT sum(revenue)::bigint FROM sales").await?;
    ensure!(tickets == TICKETS && revenue == 5 * TICKETS, "{tickets} tickets for {revenue}");
    let accepted = bed.count("SELECT count(*) FROM outbox.inbox WHERE consumer = 'sales'").await?;
    ensure!(accepted == TICKETS, "{accepted} events were accepted");
    let depth = bed.queues.depth(queue).await?;
    ensure!(depth.visible + depth.in_flight == 0, "{depth:?} are left");
    Ok(())
}

/// Python with what the consumer needs, made once and anew when the requirements change.
async fn python(folder: &Path) -> Result<PathBuf> {
    let requirements = folder.join("requirements.txt");
    let wanted = std::fs::read_to_string(&requirements)?;
    let environment = built()?.parent().context("the build has a folder")?.join("tools/python-consumers");
    let (python, stamp) = (environment.join("bin/python"), environment.join("requirements.installed"));
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(&environment);
    finish(make).await.context("no environment for Python: install python3 (3.11 or newer) and python3-venv")?;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--disable-pip-version-check", "-q", "-r"]).arg(&requirements);
    finish(install).await.context("pip could not install what the consumer needs; check that it reaches its index")?;
    // Last, so that an environment that was interrupted is made anew.
    std::fs::write(&stamp, wanted)?;
    Ok(python)
}

#[tokio::test]
async fn two_consumers_in_rust_count_each_ticket_once_although_some_come_twice() -> Result<()> {
    let program = built()?.join("examples/consumer");
    ensure!(program.exists(), "{} is missing: cargo build --example consumer", program.display());
    let bed = Bed::new().await?;
    let queue = deliver(&bed).await?;
    consume(&bed, &queue, &program, None).await?;
    ensure_each_ticket_counted_once(&bed, &queue).await
}

#[tokio::test]
async fn two_consumers_in_python_count_each_ticket_once_although_some_come_twice() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/consumers");
    let program = python(&folder).await?;
    let bed = Bed::new().await?;
    let queue = deliver(&bed).await?;
    consume(&bed, &queue, &program, Some(&folder.join("consumer.py"))).await?;
    ensure_each_ticket_counted_once(&bed, &queue).await
}
