//! The example consumers: an effect happens exactly once although messages come twice and two consumers run, and in
//! order although one message fails.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_sdk_sqs::types::MessageAttributeValue;
use tokio::process::Command;
use tokio::sync::OnceCell;

use support::group_batches::GroupBatches;
use support::proxy::{Choice, Fault, Rule};
use support::test_bed::TestBed;
use support::{emulator, eventually};

/// The time limit of a consumer, and of creating its environment.
const PATIENCE: Duration = Duration::from_secs(300);

const TICKETS: i64 = 200;

/// The folder of cargo's build results; the test is in its `deps`.
fn built() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    Ok(test.parent().and_then(Path::parent).context("a test lies in a folder of a folder")?.to_owned())
}

/// Runs a command to its end, in bounded time, and returns what it printed; fails with its complaints if it did not succeed.
pub(crate) async fn finish(mut command: Command) -> Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = tokio::time::timeout(PATIENCE, command.output());
    let output = output.await.with_context(|| format!("{program} did not end within {PATIENCE:?}"))?;
    let output = output.with_context(|| format!("cannot start {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} ended with {}:\n{said}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Tickets that a relay has delivered to a standard queue, and every tenth of them twice, as SQS may do.
async fn deliver(bed: &TestBed) -> Result<String> {
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

/// The same to a FIFO queue in batched mode, while SQS refuses single entries: what it accepted behind them is there
/// twice, first too early and then in order.
async fn deliver_with_repairs(bed: &TestBed) -> Result<String> {
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("sales").await?;
    let enqueue = "SELECT outbox.enqueue('sales', 'TicketPurchased',
            jsonb_build_object('ticket', n, 'draw', 'draw-0' || n % 3, 'price', 5), 'draw-0' || n % 3)
        FROM generate_series(1, $1::bigint) AS n";
    bed.client.query(enqueue, &[&TICKETS]).await?;
    let fails = Fault::FailEntries { which: Choice::at([1]), code: "InternalError", sender_fault: false };
    proxy.add(Rule::new(fails).times(5));
    bed.relay().env("OUTBOX_RELAY_FIFO_MODE", "batched").deliver_all().await?;
    let arrived = bed.queues.contents(&queue).await?.len();
    ensure!(arrived > TICKETS as usize, "nothing came twice");
    Ok(queue)
}

/// One of the two consumers.
struct Program {
    binary: PathBuf,
    script: Option<PathBuf>,
}

impl Program {
    fn in_rust() -> Result<Program> {
        let binary = built()?.join("examples/consumer");
        ensure!(binary.exists(), "{} is missing: cargo build --example consumer", binary.display());
        Ok(Program { binary, script: None })
    }

    async fn in_python() -> Result<Program> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/consumers");
        Ok(Program { binary: python(&folder).await?.clone(), script: Some(folder.join("consumer.py")) })
    }

    /// It is given only this test's database and queue.
    fn command(&self, bed: &TestBed, endpoint: &str, queue: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(&self.script).arg("--init").env_clear();
        command.env("DATABASE_URL", bed.url()).env("QUEUE_URL", queue);
        command.env("AWS_ENDPOINT_URL_SQS", endpoint);
        // boto3 reads the region from the second variable.
        command.env("AWS_REGION", "us-east-1").env("AWS_DEFAULT_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "the-secret-of-aws");
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command
    }
}

/// Runs a consumer twice at the same time.
async fn consume(bed: &TestBed, queue: &str, program: &Program) -> Result<()> {
    let consumer = async || {
        let mut command = program.command(bed, emulator()?.endpoint(), queue);
        command.arg("--until-empty");
        finish(command).await
    };
    tokio::try_join!(consumer(), consumer())?;
    Ok(())
}

/// The effect of the third ticket of the first draw fails while that ticket is listed in `failing`. A ticket's price is
/// its number, so `history` shows in which order tickets took effect.
const FAILING: &str = "
    CREATE TABLE sales (draw text PRIMARY KEY, tickets bigint NOT NULL, revenue bigint NOT NULL);
    CREATE TABLE history (n bigint GENERATED ALWAYS AS IDENTITY, draw text NOT NULL, ticket bigint NOT NULL);
    CREATE TABLE failing AS SELECT 'draw-01'::text AS draw, 3::bigint AS ticket;
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        sold bigint := NEW.revenue - CASE TG_OP WHEN 'UPDATE' THEN OLD.revenue ELSE 0 END;
    BEGIN
        IF EXISTS (SELECT FROM failing AS f WHERE f.draw = NEW.draw AND f.ticket = sold) THEN
            RAISE 'not now';
        END IF;
        INSERT INTO history (draw, ticket) VALUES (NEW.draw, sold);
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON sales FOR EACH ROW EXECUTE FUNCTION note()";

/// How many tickets each of two draws sells there.
const OF_EACH_DRAW: i64 = 12;

/// Lets one message fail for a while: its group waits, in order, and the other group does not.
async fn fail_for_a_while(program: &Program) -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("sales").await?;
    bed.client.batch_execute(FAILING).await?;
    let enqueue = "SELECT outbox.enqueue('sales', 'TicketPurchased',
            jsonb_build_object('ticket', n, 'draw', d.draw, 'price', n), d.draw)
        FROM generate_series(1, $1::bigint) AS n, unnest('{draw-01,draw-02}'::text[]) AS d (draw) ORDER BY n, d.draw";
    bed.client.query(enqueue, &[&OF_EACH_DRAW]).await?;
    bed.relay().deliver_all().await?;
    let queue = GroupBatches::start(bed.queues.contents(&queue).await?).await?;
    let mut consumer = program.command(&bed, queue.endpoint(), &queue.queue_url());
    let consumer = consumer.stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let sold = async |draw: &str| {
        let rows = bed.client.query("SELECT ticket FROM history WHERE draw = $1 ORDER BY n", &[&draw]).await?;
        anyhow::Ok(rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>())
    };
    let all: Vec<i64> = (1..=OF_EACH_DRAW).collect();
    eventually("the other draw is sold", || async { Ok(sold("draw-02").await?.len() == all.len()) }).await?;
    eventually("the two before it are sold", || async { Ok(sold("draw-01").await?.len() == 2) }).await?;
    bed.client.batch_execute("DELETE FROM failing").await?;
    eventually("the rest is sold", || async { Ok(sold("draw-01").await?.len() == all.len()) }).await?;
    for draw in ["draw-01", "draw-02"] {
        let sold = sold(draw).await?;
        ensure!(sold == all, "{draw} was sold in the order {sold:?}");
    }
    eventually("the queue is empty", || async { Ok(queue.left() == 0) }).await?;
    let pid = consumer.id().context("it has ended")?.to_string();
    ensure!(Command::new("kill").arg(&pid).status().await?.success());
    let output = tokio::time::timeout(PATIENCE, consumer.wait_with_output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    // A failure is reported, and the report quotes nobody's ticket.
    ensure!(output.status.success() && said.contains(" failed: ") && !said.contains("draw-01"), "{said}");
    Ok(())
}

async fn ensure_each_ticket_counted_once(bed: &TestBed, queue: &str) -> Result<()> {
    let tickets = bed.count("SELECT sum(tickets)::bigint FROM sales").await?;
    let revenue = bed.count("SELECT sum(revenue)::bigint FROM sales").await?;
    ensure!(tickets == TICKETS && revenue == 5 * TICKETS, "{tickets} tickets for {revenue}");
    let accepted = bed.count("SELECT count(*) FROM outbox.inbox WHERE consumer = 'sales'").await?;
    ensure!(accepted == TICKETS, "{accepted} events were accepted");
    let depth = bed.queues.depth(queue).await?;
    ensure!(depth.visible + depth.in_flight == 0, "{depth:?} are left");
    Ok(())
}

/// Python with the consumers' requirements; the first test that needs it creates it.
pub(crate) async fn python(folder: &Path) -> Result<&'static PathBuf> {
    static PYTHON: OnceCell<PathBuf> = OnceCell::const_new();
    PYTHON.get_or_try_init(|| make_python(folder)).await
}

/// Creates it again when the requirements change.
async fn make_python(folder: &Path) -> Result<PathBuf> {
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
    // Written last, so that an interrupted environment is created again.
    std::fs::write(&stamp, wanted)?;
    Ok(python)
}

#[tokio::test]
async fn two_consumers_in_rust_count_each_ticket_once_although_some_come_twice() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = deliver(&bed).await?;
    consume(&bed, &queue, &Program::in_rust()?).await?;
    ensure_each_ticket_counted_once(&bed, &queue).await?;
    let bed = TestBed::new().await?;
    let queue = deliver_with_repairs(&bed).await?;
    consume(&bed, &queue, &Program::in_rust()?).await?;
    ensure_each_ticket_counted_once(&bed, &queue).await
}

#[tokio::test]
async fn two_consumers_in_python_count_each_ticket_once_although_some_come_twice() -> Result<()> {
    let program = Program::in_python().await?;
    let bed = TestBed::new().await?;
    let queue = deliver(&bed).await?;
    consume(&bed, &queue, &program).await?;
    ensure_each_ticket_counted_once(&bed, &queue).await?;
    let bed = TestBed::new().await?;
    let queue = deliver_with_repairs(&bed).await?;
    consume(&bed, &queue, &program).await?;
    ensure_each_ticket_counted_once(&bed, &queue).await
}

#[tokio::test]
async fn the_consumer_in_rust_keeps_the_order_of_a_group_whose_message_fails_and_goes_on_with_others() -> Result<()> {
    fail_for_a_while(&Program::in_rust()?).await
}

#[tokio::test]
async fn the_consumer_in_python_keeps_the_order_of_a_group_whose_message_fails_and_goes_on_with_others() -> Result<()> {
    fail_for_a_while(&Program::in_python().await?).await
}
