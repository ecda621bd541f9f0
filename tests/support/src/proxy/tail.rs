//! How long SQS takes: most answers come near the median, and one in a hundred takes eight times as long or longer.

use std::f64::consts::TAU;
use std::time::Duration;

/// The σ of the lognormal distribution. With it, the 99th percentile is eight times the median (ln 8 / 2.326).
const SIGMA: f64 = 0.894;

/// A lognormal time with this median. The Box-Muller transform gives the normal variable.
pub fn lognormal(median: Duration, dice: &mut fastrand::Rng) -> Duration {
    let (radius, angle) = (1.0 - dice.f64(), dice.f64() * TAU);
    median.mul_f64((SIGMA * (-2.0 * radius.ln()).sqrt() * angle.cos()).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_in_a_hundred_takes_eight_times_the_median() {
        let mut dice = fastrand::Rng::with_seed(1);
        let median = Duration::from_millis(10);
        let mut times: Vec<Duration> = (0..100_000).map(|_| lognormal(median, &mut dice)).collect();
        times.sort();
        let (p50, p99) = (times[50_000].as_secs_f64(), times[99_000].as_secs_f64());
        assert!((0.0098..0.0102).contains(&p50) && (0.076..0.084).contains(&p99), "p50 {p50}, p99 {p99}");
    }
}
