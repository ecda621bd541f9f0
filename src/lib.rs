//! Publishes what a PostgreSQL transaction committed to an outbox to Amazon SQS: nothing lost, duplicates only where a
//! crash makes them unavoidable, in order within a group.
//!
//! # Layout, in the order to read it
//!
//! The modules stand on floors; a module uses those below it and none on its own floor or above
//! (`tests/it/architecture.rs` keeps it so).
//!
//! | floor | modules | |
//! |---|---|---|
//! | 0 | [`clock`] | time |
//! | 1 | [`message`] | the values that flow |
//! | 2 | [`reading`], [`config`] | questions to the outbox and their answers; the only reader of the environment |
//! | 3 | [`retry`], [`metrics`], [`health`], [`shutdown`], [`logging`] | rules and records |
//! | 4 | [`outbox`], [`sqs`] | the only PostgreSQL, the only SQS; they never see each other |
//! | 5 | [`relay`], [`janitor`], [`http`] | the heart, the periodic duties, the probes |
//! | 6 | [`daemon`] | assembly, supervision, drain |
//! | 7 | [`cli`] | commands and exit codes |
//!
//! The data goes one way: read → plan requests → publish → outcomes → settle → report. `docs/architecture.md` follows one
//! delivery, one failure and one crash through it.

pub mod clock;

pub mod message;

pub mod reading;

pub mod config;

pub mod retry;

pub mod metrics;

pub mod health;

pub mod files;

pub mod shutdown;

pub mod logging;

pub mod outbox;

pub mod sqs;

pub mod relay;

pub mod janitor;

pub mod http;

pub mod daemon;

pub mod cli;
