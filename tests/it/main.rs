//! Integration tests, one crate: each name is a sentence about behaviour.

#![allow(dead_code, unreachable_pub, reason = "a test crate has no outside; some of the ground waits for its tests")]

mod architecture;
mod bodies;
mod delivery;
mod failures;
mod ground;
mod order;
mod outages;
mod plans;
mod reading;
mod requests;
mod restarts;
mod retention;
mod sharing;
mod signals;
mod support;
mod tls;
