//! Publishes what a PostgreSQL transaction committed to an outbox to Amazon SQS: nothing is lost, duplicates occur only
//! after crashes or lost answers, and messages stay in order within a group.
//!
//! # Layout, in the order to read it
//!
//! The modules are arranged in floors; a module uses only modules on floors below its own (`tests/it/architecture.rs`
//! checks this).
//!
//! | floor | modules | |
//! |---|---|---|
//! | 0 | [`clock`], [`causes`] | time; errors in one sentence |
//! | 1 | [`message`], [`schema`], [`way`] | the values that flow; the name of an outbox's schema; steps on the way to a server |
//! | 2 | [`reading`], [`config`] | questions to the outbox and their answers; the only reader of the environment |
//! | 3 | [`retry`], [`metrics`], [`health`], [`board`], [`settings`], [`shutdown`], [`logging`], [`aws`] | rules and records; the way to AWS |
//! | 4 | [`outbox`], [`publisher`] | the only PostgreSQL, the only AWS services that take messages; they never see each other |
//! | 4 | [`page`] | what the status page shows |
//! | 4 | [`traces`] | spans for an OpenTelemetry collector |
//! | 5 | [`relay`], [`janitor`], [`http`] | the heart, the periodic duties, the probes |
//! | 6 | [`daemon`] | assembly, supervision, drain |
//! | 6 | `dev` | everything for a first message on one machine; only with the feature `dev` |
//! | 7 | [`cli`] | commands and exit codes |
//!
//! The data goes one way: read → plan requests → publish → outcomes → settle → report. `docs/architecture.md` follows one
//! delivery, one failure and one crash through it.

pub mod causes;
pub mod clock;

pub mod message;

pub mod schema;

pub mod way;

pub mod reading;

pub mod config;

pub mod retry;

pub mod metrics;

pub mod health;

pub mod board;

pub mod settings;

pub mod files;

pub mod shutdown;

pub mod logging;

pub mod aws;

pub mod outbox;

pub mod publisher;

pub mod page;

pub mod traces;

pub mod relay;

pub mod janitor;

pub mod http;

pub mod daemon;

#[cfg(feature = "dev")]
pub mod dev;

pub mod cli;
