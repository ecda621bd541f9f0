//! Property tests of the core against a simulated PostgreSQL and a simulated SQS. They run the code that ships through
//! thousands of generated scenarios.
//!
//! [`scenario`] generates the scenarios, and [`world`] runs one of them. [`database`] and [`queue`] simulate what the
//! relay works against, [`process`] is the relay, and [`actions`] applies the actions of a scenario. [`checks`] says
//! what must hold: a message is sent only when every message of its group that has a lower id and was committed before
//! it is done; if an entry of a request fails, the last copies in the queue are in order all the same; only accepted
//! messages are recorded as delivered; nothing is lost; and everything is delivered soon after the last fault.
//! `PROPTEST_CASES=40000 PROPTEST_RNG_SEED=7 cargo test --release properties` runs more and different scenarios.

mod actions;
mod checks;
mod database;
mod process;
mod queue;
mod scenario;
mod trace;
mod world;

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use scenario::Scenario;
use world::World;

/// How long a relay may take to become idle once nothing is left to do.
const BECOMES_IDLE: Duration = Duration::from_secs(30);

/// How long a relay is then watched, and how many pieces of work it may begin in that time.
const IDLE: Duration = Duration::from_secs(10);
const MAX_IDLE_WORK: u64 = 400;

fn run(scenario: Scenario) -> Result<(), (String, String)> {
    let total: u64 = scenario.actions.iter().map(|(wait, _)| u64::from(*wait)).sum();
    let soon = scenario.deadline();
    let mut world = World::new(scenario);
    let begin = world.now;
    world.run_until(begin + Duration::from_millis(total), |_| false);
    // The last fault may last longer than that.
    let end = world.now + Duration::from_secs(15);
    world.run_until(end, |_| false);
    world.end_faults();
    let deadline = world.now + soon;
    world.run_until(deadline, |world| world.overdue().next().is_none());
    if world.problem.is_none() {
        world.check_end();
    }
    if world.scenario.long_writers.take().is_some() {
        let end = world.now + soon;
        world.run_until(end, |_| false);
    }
    let end = world.now + BECOMES_IDLE;
    world.run_until(end, |_| false);
    if world.problem.is_none() {
        let work_begun = |world: &World| world.processes.iter().map(|process| process.begun).sum::<u64>();
        let before = work_begun(&world);
        let end = world.now + IDLE;
        world.run_until(end, |_| false);
        let begun = work_begun(&world) - before;
        // With tiny batches it takes many reads to see that a lane is empty.
        let limit = if world.scenario.batch_size < 16 { 3 * MAX_IDLE_WORK } else { MAX_IDLE_WORK };
        if begun > limit * world.processes.len() as u64 {
            world.fail(format!("{begun} pieces of work began in {IDLE:?} although there is nothing to do"));
        }
        if world.problem.is_none() {
            world.check_end();
        }
    }
    match world.problem.clone() {
        None => Ok(()),
        Some(problem) => Err((problem, world.trace())),
    }
}

/// Runs a quarter of `PROPTEST_CASES` scenarios of this kind. They are the same in every run unless `PROPTEST_RNG_SEED`
/// is set. If one fails, it is shrunk and run once more, and the test fails with its trace.
#[allow(clippy::panic, reason = "this is how the test fails")]
fn check(scenarios: impl Strategy<Value = Scenario>) {
    let config = Config::default();
    let rng_seed = match config.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        given => given,
    };
    let max_shrink_iters = config.max_shrink_iters.min(5000);
    let config = Config { cases: config.cases / 4, rng_seed, failure_persistence: None, max_shrink_iters, ..config };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&scenarios, |scenario| run(scenario).map_err(|(problem, _)| TestCaseError::fail(problem)));
    match result {
        Ok(()) => {}
        Err(TestError::Fail(problem, scenario)) => {
            let trace = run(scenario.clone()).err().map(|(_, trace)| trace).unwrap_or_default();
            panic!("{problem}\n{scenario:#?}\n{trace}");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn in_ordinary_scenarios_every_message_arrives_once_and_in_order() {
    check(scenario::ordinary_scenarios());
}

#[test]
fn nothing_is_overtaken_in_hot_groups() {
    check(scenario::hot_groups());
}

#[test]
fn nothing_is_overtaken_in_groups_that_are_held_back() {
    check(scenario::groups_held_back());
}

#[test]
fn nothing_is_lost_or_overtaken_while_messages_die_and_are_redriven() {
    check(scenario::dead_letters());
}

#[test]
fn nothing_is_lost_or_overtaken_while_messages_and_queues_fail() {
    check(scenario::failing_messages_and_queues());
}

#[test]
fn the_last_copies_are_in_order_whichever_entries_of_a_request_fail() {
    check(scenario::failing_entries());
}

#[test]
fn nothing_is_lost_or_overtaken_while_databases_and_processes_fail() {
    check(scenario::failing_databases_and_processes());
}

#[test]
fn nothing_is_lost_or_overtaken_while_everything_fails() {
    check(scenario::everything_at_once());
}
