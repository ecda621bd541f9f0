//! Publishing: one request, SendMessageBatch to a queue or PublishBatch to a topic, and the result of each of its entries.

use std::fmt::Display;
use std::time::{Duration, Instant};

use aws_types::request_id::RequestId;

use super::access::{Client, Current};
use super::answer::{Accepted, reconcile};
use super::writing::{Writing, watched};
use super::{Entry, Publisher, classify, sns, sqs};
use crate::clock::Time;
use crate::message::{Fault, FaultKind};

/// The result of a request.
#[derive(Debug)]
pub struct Published {
    /// For each entry, in order, what SQS says of it, or why it was not accepted.
    pub results: Vec<Result<Accepted, Fault>>,
    /// Why the request failed as a whole, if it did; then each result holds this fault, except that of an entry for
    /// which the others were not sent.
    pub request_fault: Option<Fault>,
    /// The time from sending to the answer.
    pub duration: Duration,
    /// AWS's id of the request, if there was an answer with one.
    pub request_id: Option<String>,
}

impl Published {
    fn failed(entries: usize, fault: Fault, duration: Duration) -> Self {
        Self { results: vec![Err(fault.clone()); entries], request_fault: Some(fault), duration, request_id: None }
    }
}

impl Publisher {
    /// Sends entries in one request. It never fails itself: every entry gets a result, and an entry that no answer
    /// confirms never counts as accepted. Nothing is written after `until`, and the request ends a request timeout
    /// after that. A request that SQS refused for its credentials is sent once more with new ones, if there are any by
    /// then.
    pub async fn publish(&self, entries: &[&Entry], until: Time) -> Published {
        let current = self.access.current();
        let published = self.publish_with(&current, entries, until).await;
        if published.request_fault.as_ref().is_none_or(|fault| !classify::is_about_credentials(fault)) {
            return published;
        }
        // Boxed: the future that asks all providers is large, and otherwise every request would reserve space for it.
        Box::pin(self.publish_anew(&current, published, entries, until)).await
    }

    /// Sends a request once more that was refused for its credentials, if there are new ones in time.
    async fn publish_anew(
        &self,
        refused: &Current<Client>,
        published: Published,
        entries: &[&Entry],
        until: Time,
    ) -> Published {
        let code = published.request_fault.as_ref().map_or("", |fault| &fault.code);
        let renewal = self.access.renew(refused, code);
        match tokio::time::timeout(until.since(Time::now()), renewal).await {
            // Later it could not be written, and waiting for credentials once more would outlast the claim.
            Ok(true) if Time::now() < until => self.publish_with(&self.access.current(), entries, until).await,
            Ok(_) | Err(_) => published,
        }
    }

    async fn publish_with(&self, current: &Current<Client>, entries: &[&Entry], until: Time) -> Published {
        let started = Instant::now();
        if let Some(bucket) = &self.bucket
            && entries.iter().any(|entry| entry.offloaded().is_some())
            // Boxed, as above.
            && let Err(not_stored) = Box::pin(bucket.store(entries, until)).await
        {
            let request_fault = Some(not_stored.of_request());
            let (results, duration) = (not_stored.results(entries), started.elapsed());
            return Published { results, request_fault, duration, request_id: None };
        }
        let writing = Writing::new(until);
        let Answer { results, request_id } = self.send(&current.client, entries, &writing).await;
        if let Some(bucket) = self.bucket.as_ref().filter(|_| writing.has_begun()) {
            bucket.written(entries);
        }
        let duration = started.elapsed();
        match results {
            Ok(results) => {
                current.worked();
                Published { results, request_fault: None, duration, request_id }
            }
            Err(fault) => Published { request_id, ..Published::failed(entries.len(), fault, duration) },
        }
    }

    async fn send(&self, client: &Client, entries: &[&Entry], writing: &Writing) -> Answer {
        match client {
            Client::Sqs(client) => match sqs::build_request(entries) {
                Ok(items) => {
                    let request = client.send_message_batch().queue_url(self.target.as_str()).set_entries(Some(items));
                    match watched(writing.clone(), request.send()).await {
                        Ok(output) => Answer::of(&output, reconcile(entries.len(), sqs::said(&output))),
                        Err(error) => Answer::failed(&error, classify::request(&error, writing.has_begun())),
                    }
                }
                Err(error) => Answer::not_built(error),
            },
            Client::Sns(client) => match sns::build_request(entries) {
                Ok(items) => {
                    let request = client.publish_batch().topic_arn(self.target.as_str());
                    let request = request.set_publish_batch_request_entries(Some(items));
                    match watched(writing.clone(), request.send()).await {
                        Ok(output) => Answer::of(&output, reconcile(entries.len(), sns::said(&output))),
                        Err(error) => Answer::failed(&error, classify::request_to_topic(&error, writing.has_begun())),
                    }
                }
                Err(error) => Answer::not_built(error),
            },
        }
    }
}

/// What came of a request, and its id, if AWS gave it one.
struct Answer {
    results: Result<Vec<Result<Accepted, Fault>>, Fault>,
    request_id: Option<String>,
}

impl Answer {
    fn of(output: &impl RequestId, results: Vec<Result<Accepted, Fault>>) -> Self {
        Self { results: Ok(results), request_id: output.request_id().map(str::to_owned) }
    }

    fn failed(error: &impl RequestId, fault: Fault) -> Self {
        Self { results: Err(fault), request_id: error.request_id().map(str::to_owned) }
    }

    fn not_built(error: impl Display) -> Self {
        let fault = Fault::new(FaultKind::Internal, "RequestNotBuilt", error.to_string());
        Self { results: Err(fault), request_id: None }
    }
}

#[cfg(test)]
mod answers;
#[cfg(test)]
mod answers_of_sns;
