//! Integration tests, one crate: each name is a sentence about behaviour.

#![allow(dead_code, unreachable_pub, reason = "a test crate has no outside; some of the ground waits for its tests")]

mod alerts;
mod architecture;
mod bodies;
mod check;
mod configuration;
mod consumers;
mod dashboard;
mod dead;
mod dead_groups;
mod delivery;
mod documents;
mod event_store;
mod example_consumers;
mod exhaustion;
mod failover;
mod failures;
mod fairness;
mod grants;
mod ground;
mod heavy;
mod locks;
mod lottery;
mod metrics;
mod metrics_page;
mod migrations;
mod order;
mod outages;
mod pgbouncer;
mod plans;
mod reading;
mod recoveries;
mod replay;
mod requests;
mod restarts;
mod retention;
mod retries;
mod scale;
mod sharing;
mod signals;
mod silence;
mod startup;
mod steering;
mod support;
mod tls;
