//! The spans that wait to be exported: at most so many, and so many bytes. One that finds no place is dropped and counted.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus::IntCounter;
use tokio::sync::Notify;

use crate::config::Batching;

/// Spans between the relays and the exporter.
#[derive(Debug)]
pub(super) struct Queue {
    limits: Batching,
    waiting: Mutex<Waiting>,
    /// Tells the exporter that the first span waits, or a full batch.
    changed: Notify,
    dropped: IntCounter,
}

#[derive(Debug, Default)]
struct Waiting {
    /// When it was put here, and its bytes.
    spans: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// Those that were taken and are not yet done with.
    taken: usize,
}

impl Waiting {
    /// Whether there is enough for a request.
    fn fills(&self, limits: Batching) -> bool {
        self.spans.len() >= limits.max_batch || self.bytes >= limits.batch_bytes()
    }
}

impl Queue {
    pub(super) fn new(limits: Batching, dropped: IntCounter) -> Self {
        Self { limits, waiting: Mutex::default(), changed: Notify::new(), dropped }
    }

    /// Adds a span, unless the queue is full.
    pub(super) fn push(&self, span: Vec<u8>, now: Instant) {
        let mut waiting = self.lock();
        let has_room = waiting.spans.len() < self.limits.max_queue
            && waiting.bytes.saturating_add(span.len()) <= self.limits.queue_bytes();
        if !has_room {
            drop(waiting);
            return self.dropped.inc();
        }
        let was_full = waiting.fills(self.limits);
        waiting.bytes += span.len();
        waiting.spans.push_back((now, span));
        let is_news = waiting.spans.len() == 1 || (waiting.fills(self.limits) && !was_full);
        drop(waiting);
        if is_news {
            self.changed.notify_one();
        }
    }

    /// Completes after the next change that matters, or at once if there was one since the last time.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// When the oldest span was put here; `None` if there is none.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.lock().spans.front().map(|(at, _)| *at)
    }

    /// Whether so many wait that no more fit into one request.
    pub(super) fn has_batch(&self) -> bool {
        self.lock().fills(self.limits)
    }

    /// Takes the oldest spans, as many as fit into one request. Call [`Queue::done`] with their number.
    pub(super) fn take(&self) -> Vec<Vec<u8>> {
        let mut waiting = self.lock();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some((_, span)) = waiting.spans.front() {
            let is_full = batch.len() >= self.limits.max_batch || bytes + span.len() > self.limits.batch_bytes();
            if is_full && !batch.is_empty() {
                break;
            }
            bytes += span.len();
            batch.extend(waiting.spans.pop_front().map(|(_, span)| span));
        }
        waiting.bytes -= bytes;
        waiting.taken += batch.len();
        batch
    }

    /// These spans were exported, or dropped.
    pub(super) fn done(&self, spans: usize) {
        let mut waiting = self.lock();
        waiting.taken = waiting.taken.saturating_sub(spans);
    }

    /// Drops everything that was not exported; returns how much that is.
    pub(super) fn give_up(&self) -> usize {
        let waiting = std::mem::take(&mut *self.lock());
        waiting.spans.len() + waiting.taken
    }

    /// How many were dropped because the queue was full.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Every change leaves the value whole, even if a thread panics.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn queue(max_queue: usize, max_batch: usize) -> Queue {
        let delay = Duration::from_secs(5);
        let limits = Batching { delay, export_timeout: delay, max_queue, max_batch };
        Queue::new(limits, IntCounter::new("dropped", "dropped").unwrap())
    }

    #[test]
    fn a_full_queue_keeps_the_oldest_and_counts_what_it_drops() {
        let (queue, now) = (queue(3, 2), Instant::now());
        for number in 0..5 {
            queue.push(vec![number], now);
        }
        assert_eq!((queue.dropped(), queue.has_batch(), queue.oldest()), (2, true, Some(now)));
        assert_eq!((queue.take(), queue.take(), queue.take()), (vec![vec![0], vec![1]], vec![vec![2]], vec![]));
        assert_eq!((queue.oldest(), queue.has_batch()), (None, false));
        queue.push(vec![5], now);
        queue.done(2);
        assert_eq!((queue.give_up(), queue.give_up()), (2, 0), "one waits, and one was taken and is not done with");
    }

    #[test]
    fn bytes_are_bounded_as_well_and_a_large_span_goes_alone() {
        let (queue, now) = (queue(4, 4), Instant::now());
        let limit = queue.limits.queue_bytes();
        queue.push(vec![0; limit + 1], now);
        assert_eq!((queue.dropped(), queue.oldest()), (1, None));
        queue.push(vec![1; limit - 1], now);
        queue.push(vec![2; 1], now);
        queue.push(vec![3; 1], now);
        assert_eq!(queue.dropped(), 2);
        assert_eq!(queue.take().len(), 2);
        queue.push(vec![4; limit], now);
        assert!(queue.has_batch());
        assert_eq!(queue.take().len(), 1);
    }

    #[tokio::test]
    async fn a_batch_that_is_full_by_its_bytes_is_told_as_well() {
        let (queue, now) = (queue(4, 4), Instant::now());
        queue.push(vec![0; 1], now);
        queue.changed().await;
        queue.push(vec![0; queue.limits.batch_bytes() - 1], now);
        tokio::time::timeout(Duration::ZERO, queue.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn the_exporter_is_told_of_the_first_span_and_of_a_full_batch() {
        let (queue, now) = (queue(10, 3), Instant::now());
        let is_told = async || tokio::time::timeout(Duration::ZERO, queue.changed()).await.is_ok();
        assert!(!is_told().await);
        queue.push(vec![0], now);
        assert!(is_told().await, "the first");
        queue.push(vec![0], now);
        assert!(!is_told().await, "the second");
        queue.push(vec![0], now);
        assert!(is_told().await, "a full batch");
    }
}
