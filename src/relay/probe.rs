//! The probe: how a halted destination is tried again.
//!
//! While a destination is halted, one request goes out at a time, with growing pauses. The first accepted entry ends that.
//! One log line says that it halted, one that it is back.

use std::sync::Arc;
use std::time::Duration;

use super::Destination;
use crate::health::Dependency;
use crate::message::Fault;
use crate::retry::Delays;

/// Whether a destination is halted, and when to try it again.
#[derive(Debug)]
pub struct Probe {
    is_on: bool,
    delays: Delays,
    queue: Arc<Dependency>,
}

impl Probe {
    /// A destination that is taken to work until it fails.
    pub fn new(queue: Arc<Dependency>, delays: Delays) -> Self {
        Self { is_on: false, delays, queue }
    }

    /// Whether only one request may be under way.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// The destination failed; returns how long to leave it alone.
    pub(super) fn failed(&mut self, destination: &Destination, fault: &Fault) -> Duration {
        let pause = self.delays.next_delay();
        let is_new = !self.is_on;
        self.is_on = true;
        destination.metrics.up.set(0);
        // The same fault is told once, however often the probe meets it.
        let is_news = self.queue.report_down(&fault.code);
        if is_new || is_news {
            tracing::warn!(destination = %destination.name, code = %fault.code, reason = %fault.detail, "destination halted; its messages wait, no attempt is charged");
        }
        pause
    }

    /// SQS accepted something.
    pub(super) fn passed(&mut self, destination: &Destination) {
        if self.is_on {
            self.is_on = false;
            self.delays.reset();
            destination.metrics.up.set(1);
            self.queue.report_up();
            tracing::info!(destination = %destination.name, "destination is back");
        }
    }
}
