//! Properties of the core against a simulated PostgreSQL and a simulated SQS: the code that ships, run through thousands of
//! bad days.
//!
//! [`scenario`] makes the days, [`world`] runs one, [`database`] and [`queue`] are what the relay works against, [`process`] is
//! the relay, [`actions`] what happens to it, and [`checks`] what must hold: a message is sent only when all of its group with
//! lower ids that were committed before it are done, what is recorded was accepted, nothing is lost, and everything is
//! delivered soon after the misfortune is over. `PROPTEST_CASES=40000 PROPTEST_RNG_SEED=7 cargo test --release properties` runs
//! more and other days.

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

/// How long a relay may take to find out that nothing is to be done, how long is looked whether it keeps quiet then, and how
/// many works it may begin meanwhile.
const CALM: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_secs(10);
const QUIET_WORKS: u64 = 400;

fn run(scenario: Scenario) -> Result<(), (String, String)> {
    let total: u64 = scenario.actions.iter().map(|(wait, _)| u64::from(*wait)).sum();
    let soon = scenario.deadline();
    let mut world = World::new(scenario);
    let begin = world.now;
    world.run_until(begin + Duration::from_millis(total), |_| false);
    // A misfortune that began last may last longer than that.
    let end = world.now + Duration::from_secs(15);
    world.run_until(end, |_| false);
    world.calm();
    let deadline = world.now + soon;
    world.run_until(deadline, |world| world.overdue().next().is_none());
    if world.problem.is_none() {
        world.check_end();
    }
    if world.scenario.long_writers.take().is_some() {
        let end = world.now + soon;
        world.run_until(end, |_| false);
    }
    let end = world.now + CALM;
    world.run_until(end, |_| false);
    if world.problem.is_none() {
        let works = |world: &World| world.processes.iter().map(|process| process.begun).sum::<u64>();
        let before = works(&world);
        let end = world.now + QUIET;
        world.run_until(end, |_| false);
        let begun = works(&world) - before;
        // With tiny batches it takes many reads to see that a lane has nothing.
        let most = if world.scenario.batch_size < 16 { 3 * QUIET_WORKS } else { QUIET_WORKS };
        if begun > most * world.processes.len() as u64 {
            world.fail(format!("{begun} works in {QUIET:?} although nothing is to be done"));
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

/// Runs a quarter as many days of this kind as `PROPTEST_CASES` says, always the same ones unless `PROPTEST_RNG_SEED` says
/// otherwise, and the shortest bad one once more, with all that happened in it.
#[allow(clippy::panic, reason = "a test fails by it")]
fn check(days: impl Strategy<Value = Scenario>) {
    let config = Config::default();
    let rng_seed = match config.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        given => given,
    };
    let config =
        Config { cases: config.cases / 4, rng_seed, failure_persistence: None, max_shrink_iters: 5000, ..config };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&days, |scenario| run(scenario).map_err(|(problem, _)| TestCaseError::fail(problem)));
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
fn on_ordinary_days_every_message_arrives_once_and_in_order() {
    check(scenario::ordinary_days());
}

#[test]
fn in_hot_groups_nothing_is_overtaken() {
    check(scenario::hot_days());
}

#[test]
fn while_messages_and_queues_fail_nothing_is_lost_and_nothing_is_overtaken() {
    check(scenario::queues_at_fault());
}

#[test]
fn while_databases_and_processes_fail_nothing_is_lost_and_nothing_is_overtaken() {
    check(scenario::databases_at_fault());
}

#[test]
fn on_the_worst_days_nothing_is_lost_and_nothing_is_overtaken() {
    check(scenario::bad_days());
}
