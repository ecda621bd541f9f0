//! The only I/O of a relay: it runs each piece of work of the core as a future of its own and returns the result.
//!
//! It holds the claim while there is one. It decides nothing; [`crate::outbox`] and [`crate::publisher`] know the statements
//! and the requests.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};

use super::core::Core;
use super::core::work::{Answer, Baseline, Completion, Work};
use super::{Destination, spans};
use crate::clock::Time;
use crate::message::Settlement;
use crate::outbox::{Claim, Outbox, OutboxError, Pending};
use crate::reading::{ClaimProof, Order};

/// The result of a task.
pub(super) struct Done {
    completion: Completion,
    /// The claim, if the task took one.
    claim: Option<Claim>,
}

impl From<Completion> for Done {
    fn from(completion: Completion) -> Self {
        Self { completion, claim: None }
    }
}

type Task = Pin<Box<dyn Future<Output = Done> + Send>>;

/// Builds a task directly on the heap. `Box::pin` would build the future, which the SDK makes large, on the stack and
/// copy it, because the allocation in between may fail.
fn in_place<F: Future<Output = Done> + Send + 'static>(task: impl FnOnce() -> F) -> Task {
    let place = Box::<F>::new_uninit();
    let task: Box<F> = Box::write(place, task());
    Box::into_pin(task)
}

/// The tasks that are running, and the claim they run under.
pub(super) struct Executor {
    destination: Arc<Destination>,
    claim: Option<(Claim, ClaimProof)>,
    tasks: FuturesUnordered<Task>,
}

impl Executor {
    /// A executor with no tasks.
    pub(super) fn new(destination: Arc<Destination>) -> Self {
        Self { destination, claim: None, tasks: FuturesUnordered::new() }
    }

    /// Whether the connection that held the claim is gone; returns true once.
    pub(super) fn take_lost_claim(&mut self) -> bool {
        self.claim.take_if(|(claim, _)| claim.is_lost()).is_some()
    }

    /// Drops the claim when nothing needs it any more. If it was not released, closing its connection ends it.
    pub(super) fn drop_claim(&mut self) {
        self.claim = None;
    }

    /// The next task that finishes; never returns while none is running.
    pub(super) async fn next(&mut self) -> Done {
        match self.tasks.next().await {
            Some(done) => done,
            None => std::future::pending().await,
        }
    }

    /// Another task that has finished already.
    pub(super) fn ready(&mut self) -> Option<Done> {
        self.tasks.next().now_or_never().flatten()
    }

    /// Passes a result to the core, and starts the work that the core returns at once.
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
            for bytes in items.iter().filter_map(|item| item.entry.offloaded_bytes()) {
                metrics.claim_checks.inc();
                metrics.claim_check_bytes.inc_by(bytes as u64);
            }
            if let Some(fault) = &published.request_fault {
                metrics.request_failures(fault.kind).inc();
            }
        }
        let next = core.apply(completion, Time::now());
        next.into_iter().for_each(|work| self.begin(work));
    }

    /// Starts a piece of work.
    pub(super) fn begin(&mut self, work: Work) {
        let destination = Arc::clone(&self.destination);
        let task: Task = match work {
            Work::Claim { lanes, max_lanes, idle_timeout } => Box::pin(async move {
                match destination.outbox.claim(&destination.name, &lanes, max_lanes, idle_timeout).await {
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
            // A separate arm, because it is a thousand times as frequent as the others, and one future for all kinds of
            // work is large.
            Work::Publish { items, until, memory } => in_place(move || async move {
                let entries: Vec<_> = items.iter().map(|item| &item.entry).collect();
                let published = destination.publisher.publish(&entries, until).await;
                spans::record(&destination.tracer, &entries, &published);
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

/// Work on the claim's own connection.
async fn of_claim(work: Work, claim: Option<Claim>) -> Completion {
    match work {
        Work::Extend { use_for, idle_timeout, asked_at } => {
            let answer = match claim {
                Some(claim) => claim.extend(idle_timeout).await,
                None => Err(OutboxError::ClaimLost),
            };
            Completion::Extended { use_for, idle_timeout, asked_at, answer }
        }
        Work::Widen { lanes, max_lanes } => Completion::Widened(match claim {
            Some(claim) => claim.widen(&lanes, max_lanes).await,
            None => Err(OutboxError::ClaimLost),
        }),
        _ => Completion::Released(match claim {
            Some(claim) => claim.release().await,
            None => Err(OutboxError::ClaimLost),
        }),
    }
}

impl Destination {
    /// Does a piece of work that does not use the claim's connection.
    async fn perform(&self, work: Work, proof: Option<ClaimProof>) -> Completion {
        let Self { name, outbox, metrics, .. } = self;
        match work {
            Work::Prepare => Completion::Prepared(self.prepare().await),
            Work::ReadBaseline => Completion::BaselineRead(self.read_baseline().await),
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
            Work::CheckPending { order } => Completion::PendingChecked(pending(outbox, name, order).await),
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
                let lookup = request.lookup;
                let answer = match &proof {
                    Some(proof) => outbox.read_due(name, &request, proof).await,
                    None => Err(OutboxError::ClaimLost),
                };
                Completion::DueRead { statement, memory, lookup, answer }
            }
            Work::Settle { settlements, proof } => self.settle(settlements, proof).await,
            Work::Quarantine { messages } => {
                let answer = outbox.quarantine(name, &messages).await;
                Completion::Quarantined { messages, answer }
            }
            // These are done elsewhere.
            Work::Claim { .. } | Work::Extend { .. } | Work::Widen { .. } | Work::Release | Work::Publish { .. } => {
                of_claim(Work::Release, None).await
            }
        }
    }

    /// The schema and the destination's lanes must exist.
    async fn prepare(&self) -> Answer<()> {
        self.outbox.check_schema().await?;
        self.outbox.create_lanes(&self.name).await
    }

    /// The order matters: every transaction that took an id up to the last one has then ended or is among the writers.
    async fn read_baseline(&self) -> Answer<Baseline> {
        let incarnations = self.outbox.incarnations(&self.name).await?;
        let last_id = self.outbox.watch(&[]).await?.0.last_id;
        let writers = self.outbox.writers().await?;
        Ok(Baseline { incarnations, last_id, writers })
    }

    async fn settle(&self, settlements: Vec<Settlement>, proof: Option<ClaimProof>) -> Completion {
        let started = Instant::now();
        let answer = self.outbox.settle(&self.name, self.keep, &settlements, proof.as_ref()).await;
        let took = started.elapsed();
        self.metrics.settle_duration.observe(took.as_secs_f64());
        if answer.as_ref().is_err_and(|error| !error.is_about_a_row()) {
            // A failure on one connection may affect every connection that is open now.
            self.outbox.forget_connections();
        }
        Completion::Settled { settlements, took, answer }
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("claim", &self.claim).field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

/// Whether anything is left. The timer may not have come to what is due; what PostgreSQL refuses to make pending is held up.
async fn pending(outbox: &Outbox, name: &str, order: Order) -> Result<Pending, OutboxError> {
    let due = match outbox.enqueue_all_due(name).await {
        // Waiting does not help, and the timer says why.
        Err(error) if error.is_denied() => {
            if outbox.is_due(name, &[]).await? {
                Pending::OnlyHeld
            } else {
                Pending::Nothing
            }
        }
        Ok((_, true)) => Pending::Some,
        Ok((refused, false)) if !refused.is_empty() => Pending::OnlyHeld,
        Ok(_) => Pending::Nothing,
        Err(error) => return Err(error),
    };
    Ok(outbox.pending(name, order).await?.or(due))
}
