//! The processor as its README starts it, with Axum left out. `best` as the argument: with the settings of that README
//! for many messages and for outages; otherwise with its defaults.

use std::error::Error;

use aws_config::BehaviorVersion;
use outbox_pattern_processor::aws::SqsClient;
use outbox_pattern_processor::outbox_processor::OutboxProcessor;
use outbox_pattern_processor::outbox_resources::OutboxProcessorResources;
use outbox_pattern_processor::shutdown::Shutdown;
use sqlx::PgPool;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).init();
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    let queues = SqsClient::new(&aws_config::load_defaults(BehaviorVersion::latest()).await).await;
    let mut resources = OutboxProcessorResources::new(pool, Some(queues), None);
    if std::env::args().nth(1).as_deref() == Some("best") {
        resources = resources
            .with_outbox_query_limit(1000)
            .with_outbox_execution_interval_in_seconds(1)
            .with_delete_after_process_successfully(true)
            .with_delay_for_failure_attempt_in_seconds(1)
            .with_outbox_failure_limit(1000);
    }
    let processor = OutboxProcessor::new(resources).with_graceful_shutdown(Shutdown::signal("the end"));
    processor.init_process().await.map_err(|error| format!("{error:?}").into())
}
