//! The only I/O of a relay: does what the core wants done, each as a task of its own, and brings back what came of it.
//!
//! Holds the claim while there is one. Nothing is decided here; what a statement or a request is, [`crate::outbox`] and
//! [`crate::sqs`] know.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};

use super::Destination;
use super::core::Core;
use super::core::work::{Answer, Completion, FirstLook, Work};
use crate::clock::Time;
use crate::message::Settlement;
use crate::outbox::{Claim, OutboxError};
use crate::reading::ClaimProof;

/// What a task brings back.
pub(super) struct Done {
    completion: Completion,
    /// A claim that was taken.
    claim: Option<Claim>,
}

impl From<Completion> for Done {
    fn from(completion: Completion) -> Self {
        Self { completion, claim: None }
    }
}

type Task = Pin<Box<dyn Future<Output = Done> + Send>>;

/// Makes a task where it stays. `Box::pin` of a future that the SDK makes large would make it on the stack and copy all of
/// it, because the allocation that comes in between may fail.
fn in_place<F: Future<Output = Done> + Send + 'static>(task: impl FnOnce() -> F) -> Task {
    let place = Box::<F>::new_uninit();
    let task: Box<F> = Box::write(place, task());
    Box::into_pin(task)
}

/// The works under way, and the claim that they are done under.
pub(super) struct Worker {
    destination: Arc<Destination>,
    claim: Option<(Claim, ClaimProof)>,
    tasks: FuturesUnordered<Task>,
}

impl Worker {
    /// Nothing is under way.
    pub(super) fn new(destination: Arc<Destination>) -> Self {
        Self { destination, claim: None, tasks: FuturesUnordered::new() }
    }

    /// Whether the connection that held the claim is gone; true once.
    pub(super) fn has_lost_claim(&mut self) -> bool {
        self.claim.take_if(|(claim, _)| claim.is_lost()).is_some()
    }

    /// Nobody needs the claim any more; if it was not released, closing its connection ends it.
    pub(super) fn drop_claim(&mut self) {
        self.claim = None;
    }

    /// The next work that is done; waits for ever when none is under way.
    pub(super) async fn next(&mut self) -> Done {
        match self.tasks.next().await {
            Some(done) => done,
            None => std::future::pending().await,
        }
    }

    /// Another work that is done already.
    pub(super) fn ready(&mut self) -> Option<Done> {
        self.tasks.next().now_or_never().flatten()
    }

    /// Tells the core what came of a work, and begins what that asks for at once.
    pub(super) fn apply(&mut self, done: Done, core: &mut Core) {
        let Done { completion, claim } = done;
        if let (Some(claim), Completion::Claimed(Ok(Some(claimed)))) = (claim, &completion) {
            self.claim = Some((claim, claimed.proof.clone()));
        }
        if let Completion::Published { items, published } = &completion {
            let metrics = &self.destination.metrics;
            metrics.requests.inc();
            metrics.request_duration.observe(published.duration.as_secs_f64());
            metrics.request_entries.observe(items.len() as f64);
            if let Some(fault) = &published.request_fault {
                metrics.request_failures(fault.kind).inc();
            }
        }
        let next = core.apply(completion, Time::now());
        next.into_iter().for_each(|work| self.begin(work));
    }

    /// Begins a work.
    pub(super) fn begin(&mut self, work: Work) {
        let destination = Arc::clone(&self.destination);
        let task: Task = match work {
            Work::Claim { lanes, most, limit } => Box::pin(async move {
                match destination.outbox.claim(&destination.name, &lanes, most, limit).await {
                    Ok(Some((claim, claimed))) => {
                        Done { completion: Completion::Claimed(Ok(Some(claimed))), claim: Some(claim) }
                    }
                    Ok(None) => Completion::Claimed(Ok(None)).into(),
                    Err(error) => Completion::Claimed(Err(error)).into(),
                }
            }),
            Work::Extend { .. } | Work::Widen { .. } | Work::Release => {
                let claim = self.claim.as_ref().map(|(claim, _)| claim.clone());
                if matches!(work, Work::Release) {
                    self.claim = None;
                }
                Box::pin(async move { of_claim(work, claim).await.into() })
            }
            // By itself, because it comes a thousand times as often as others, and one future of all kinds of work is large.
            Work::Publish { items, until, memory } => in_place(move || async move {
                let entries: Vec<_> = items.iter().map(|item| &item.entry).collect();
                let published = destination.queue.publish(&entries, until).await;
                drop(memory);
                Completion::Published { items, published }.into()
            }),
            work => {
                let proof = self.claim.as_ref().map(|(_, proof)| proof.clone());
                in_place(move || async move { destination.perform(work, proof).await.into() })
            }
        };
        self.tasks.push(task);
    }
}

/// Works on the claim's own connection.
async fn of_claim(work: Work, claim: Option<Claim>) -> Completion {
    match work {
        Work::Extend { use_for, limit, asked_at } => {
            let answer = match claim {
                Some(claim) => claim.extend(limit).await,
                None => Err(OutboxError::ClaimLost),
            };
            Completion::Extended { use_for, limit, asked_at, answer }
        }
        Work::Widen { lanes, most } => Completion::Widened(match claim {
            Some(claim) => claim.widen(&lanes, most).await,
            None => Err(OutboxError::ClaimLost),
        }),
        _ => Completion::Released(match claim {
            Some(claim) => claim.release().await,
            None => Err(OutboxError::ClaimLost),
        }),
    }
}

impl Destination {
    /// Does a work that needs no connection of the claim's.
    async fn perform(&self, work: Work, proof: Option<ClaimProof>) -> Completion {
        let Self { name, outbox, metrics, .. } = self;
        match work {
            Work::Prepare => Completion::Prepared(self.prepare().await),
            Work::FirstLook => Completion::FirstLooked(self.first_look().await),
            Work::Rescan(work) => {
                let answer = outbox.rescan(name, &work.rescan, work.proof.as_ref()).await;
                Completion::Rescanned(work, answer)
            }
            Work::Look { lows, order, longest_delay } => {
                Completion::Looked(outbox.look(name, &lows, order, longest_delay).await)
            }
            Work::Writers { asked_at } => Completion::Writers { asked_at, answer: outbox.writers().await },
            Work::CheckHeld { groups, order, deaths } => {
                let answer = outbox.held_groups(name, &groups, order).await;
                Completion::HeldChecked { deaths, answer }
            }
            Work::CheckPending { order } => Completion::PendingChecked(outbox.pending(name, order).await),
            Work::Read(work) => {
                let timer = metrics.read_duration.start_timer();
                let answer = match &proof {
                    Some(proof) => outbox.read(name, &work.request, proof).await,
                    None => Err(OutboxError::ClaimLost),
                };
                timer.observe_duration();
                Completion::Read(work, answer)
            }
            Work::ReadDue { request, statement, memory } => {
                let answer = match &proof {
                    Some(proof) => outbox.read_due(name, &request, proof).await,
                    None => Err(OutboxError::ClaimLost),
                };
                Completion::DueRead { statement, memory, answer }
            }
            Work::Settle { settlements, proof } => self.settle(settlements, proof).await,
            Work::SetAside { messages } => {
                let answer = outbox.quarantine(name, &messages).await;
                Completion::SetAside { messages, answer }
            }
            // Done elsewhere.
            Work::Claim { .. } | Work::Extend { .. } | Work::Widen { .. } | Work::Release | Work::Publish { .. } => {
                of_claim(Work::Release, None).await
            }
        }
    }

    /// The schema must be there, and the destination's lanes.
    async fn prepare(&self) -> Answer<()> {
        self.outbox.check_schema().await?;
        self.outbox.create_lanes(&self.name).await
    }

    /// In this order: ids up to the last one were taken by transactions that have ended or are among the writers.
    async fn first_look(&self) -> Answer<FirstLook> {
        let incarnations = self.outbox.incarnations(&self.name).await?;
        let last_id = self.outbox.watch(&[]).await?.last_id;
        let writers = self.outbox.writers().await?;
        Ok(FirstLook { incarnations, last_id, writers })
    }

    async fn settle(&self, settlements: Vec<Settlement>, proof: Option<ClaimProof>) -> Completion {
        let started = Instant::now();
        let answer = self.outbox.settle(&self.name, self.keep, &settlements, proof.as_ref()).await;
        let took = started.elapsed();
        self.metrics.settle_duration.observe(took.as_secs_f64());
        if answer.as_ref().is_err_and(|error| !error.is_about_a_row()) {
            // What failed on one connection may fail on all that were made before.
            self.outbox.forget_connections();
        }
        Completion::Settled { settlements, took, answer }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("claim", &self.claim).field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}
