//! The command side over HTTP: commands come in, and events are stored. It is a separate process, of which several run.
//!
//! The variants differ in how the events reach the queues: through the outbox, or, as in systems without one, sent by
//! this process after or before the commit. `make experiment` compares them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::error::DisplayErrorContext;
use aws_sdk_sqs::types::MessageAttributeValue;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use clap::{Args, ValueEnum};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;

use super::draw::{CHOSEN, HIGHEST, Wish};
use super::store::{Granted, Store, Stored, destinations};
use super::until_the_parent_ends;

/// How often, and after which pauses, systems without an outbox retry a message that could not be sent.
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long such a system waits for an answer of SQS.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// How events reach the queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Publishing {
    /// With the events, in the same transaction; outbox-relay does the rest
    Outbox,
    /// By this process, when the transaction is committed
    AfterCommit,
    /// By this process, before the transaction is committed
    BeforeCommit,
}

/// An instance of the command side
#[derive(Debug, Clone, Args)]
pub struct Commands {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// The database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: String,
    /// How events reach the queues
    #[arg(long, value_enum, default_value = "outbox")]
    pub publish: Publishing,
    /// NAME=URL of each queue, for --publish other than outbox
    #[arg(long, value_delimiter = ',')]
    pub queues: Vec<String>,
    /// Connections to the database
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
}

#[derive(Debug, Clone)]
struct Counter {
    store: Store,
    publishing: Publishing,
    sender: Sender,
}

/// Runs an instance until its parent ends.
pub async fn run(commands: Commands) -> Result<()> {
    let queue = |pair: &String| {
        let (name, url) = pair.split_once('=').with_context(|| format!("{pair} is no NAME=URL"))?;
        anyhow::Ok((name.to_owned(), url.to_owned()))
    };
    let counter = Counter {
        store: Store::open(&commands.database_url, commands.connections)?,
        publishing: commands.publish,
        sender: Sender::new(commands.queues.iter().map(queue).collect::<Result<_>>()?).await,
    };
    let routes = Router::new()
        .route("/draws/{draw}", post(open))
        .route("/draws/{draw}/tickets", post(buy))
        .route("/draws/{draw}/tickets/{ticket}/cancel", post(cancel))
        .route("/draws/{draw}/draw", post(draw))
        .route("/draws/{draw}/payout", post(pay_out))
        .with_state(counter);
    let listener = tokio::net::TcpListener::bind(commands.listen).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, routes).with_graceful_shutdown(until_the_parent_ends()).await?;
    Ok(())
}

type Answer = (StatusCode, String);

fn answer(status: StatusCode, body: &Value) -> Answer {
    (status, body.to_string())
}

fn unclear(what: &'static str) -> Answer {
    answer(StatusCode::BAD_REQUEST, &json!({"error": what}))
}

async fn open(State(counter): State<Counter>, Path(name): Path<String>, body: Bytes) -> Answer {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Some(price) = body["price"].as_i64() else { return unclear("price is missing") };
    counter.grant(&name, Wish::Open { price }).await
}

async fn buy(State(counter): State<Counter>, Path(name): Path<String>, body: Bytes) -> Answer {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |name: &str| body[name].as_str().map(str::to_owned);
    let Some((ticket, player)) = text("ticket").zip(text("player")) else {
        return unclear("ticket (a UUID) or player is missing");
    };
    let numbers = body["numbers"].as_array().and_then(|all| all.iter().map(Value::as_u64).collect());
    let Some(numbers) = numbers else { return unclear("numbers are missing, or are no numbers") };
    counter.grant(&name, Wish::Buy { ticket, player, numbers }).await
}

async fn cancel(State(counter): State<Counter>, Path((name, ticket)): Path<(String, String)>) -> Answer {
    counter.grant(&name, Wish::Cancel { ticket }).await
}

async fn draw(State(counter): State<Counter>, Path(name): Path<String>) -> Answer {
    let mut numbers = fastrand::choose_multiple(1..=HIGHEST, CHOSEN);
    numbers.sort_unstable();
    counter.grant(&name, Wish::Draw { numbers }).await
}

async fn pay_out(State(counter): State<Counter>, Path(name): Path<String>) -> Answer {
    counter.grant(&name, Wish::PayOut).await
}

impl Counter {
    async fn grant(&self, name: &str, wish: Wish) -> Answer {
        // Work that has begun must not stop half-way when a client disconnects.
        let (counter, name) = (self.clone(), name.to_owned());
        let granted = tokio::spawn(async move { counter.grant_and_publish(&name, &wish).await }).await;
        match granted.map_err(anyhow::Error::from).and_then(|granted| granted) {
            Ok(Granted::Stored(events)) => answer(StatusCode::OK, &json!({"events": events.len()})),
            Ok(Granted::Refused(refusal)) => answer(StatusCode::CONFLICT, &json!({"refused": refusal.0})),
            Err(error) => answer(status_of(&error), &json!({"error": format!("{error:#}")})),
        }
    }

    async fn grant_and_publish(&self, name: &str, wish: &Wish) -> Result<Granted> {
        let through_outbox = self.publishing == Publishing::Outbox;
        let before = |stored: Vec<Stored>| -> BoxFuture<'static, Result<()>> {
            let (counter, name) = (self.clone(), name.to_owned());
            Box::pin(async move {
                match counter.publishing {
                    Publishing::BeforeCommit => counter.sender.send_all(&name, &stored).await,
                    Publishing::Outbox | Publishing::AfterCommit => Ok(()),
                }
            })
        };
        let granted = self.store.grant(name, wish, through_outbox, before).await?;
        if let (Granted::Stored(stored), Publishing::AfterCommit) = (&granted, self.publishing) {
            self.sender.send_all(name, stored).await?;
        }
        Ok(granted)
    }
}

/// A command that PostgreSQL can never accept is the client's mistake; after any other error the client may retry.
fn status_of(error: &anyhow::Error) -> StatusCode {
    let database = error.chain().find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    match database.and_then(|error| error.code()) {
        Some(&SqlState::INVALID_PARAMETER_VALUE | &SqlState::INVALID_TEXT_REPRESENTATION) => StatusCode::BAD_REQUEST,
        Some(&SqlState::UNIQUE_VIOLATION) => StatusCode::CONFLICT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Sends messages itself, as systems without an outbox do.
#[derive(Debug, Clone)]
struct Sender {
    client: aws_sdk_sqs::Client,
    queues: HashMap<String, String>,
}

impl Sender {
    async fn new(queues: HashMap<String, String>) -> Sender {
        let timeouts = TimeoutConfig::builder().operation_timeout(SEND_TIMEOUT).build();
        let configuration = aws_config::defaults(aws_config::BehaviorVersion::latest());
        // The retries are ours, so that they can be counted.
        let configuration = configuration.retry_config(RetryConfig::disabled()).timeout_config(timeouts).load().await;
        Sender { client: aws_sdk_sqs::Client::new(&configuration), queues }
    }

    async fn send_all(&self, draw: &str, stored: &[Stored]) -> Result<()> {
        for event in stored {
            let wanted = destinations(&event.fact).iter().filter_map(|name| self.queues.get(*name));
            // To all of them, even if one fails.
            let sent = futures_util::future::join_all(wanted.map(|url| self.send(url, draw, event))).await;
            sent.into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    async fn send(&self, url: &str, draw: &str, event: &Stored) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let mut request = self.client.send_message().queue_url(url).message_body(&event.payload);
            for (name, kind, value) in [
                ("event_id", "String", event.event_id.clone()),
                ("event_type", "String", event.fact.event_type().to_owned()),
                ("stream_id", "String", draw.to_owned()),
                ("stream_version", "Number", event.version.to_string()),
            ] {
                let value = MessageAttributeValue::builder().data_type(kind).string_value(value).build()?;
                request = request.message_attributes(name, value);
            }
            match request.send().await {
                Ok(_) => return Ok(()),
                Err(error) if attempt == TRIES => {
                    anyhow::bail!("the message cannot be sent: {}", DisplayErrorContext(&error))
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause *= 2;
        }
        Ok(())
    }
}
