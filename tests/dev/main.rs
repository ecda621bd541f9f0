//! `outbox-relay dev` as its users run it: `cargo test --features dev --test dev`.

#![allow(unreachable_pub, reason = "a test crate has no outside")]

mod ground;
mod lifetime;
mod mistakes;
mod queues;
mod readme;
mod relay;
