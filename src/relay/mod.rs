//! x
mod group;
mod schedule;
