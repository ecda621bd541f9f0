//! The outcome of a run: messages compared with events, and answers with commands.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde::Serialize;
use tokio_postgres::Client;

use super::statistics::percentile;
use crate::app::buyers::{Outcome as Answer, Sample};

/// A fault and its time.
#[derive(Debug, Clone, Serialize)]
pub struct Trouble {
    pub what: &'static str,
    /// Since the beginning.
    pub began: Duration,
    pub ended: Duration,
    #[serde(skip)]
    pub began_at: SystemTime,
    #[serde(skip)]
    pub ended_at: SystemTime,
}

/// One second of the run.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Second {
    pub granted: u64,
    pub failed: u64,
    /// The milliseconds that 95 % of the answers did not exceed; `None` without answers.
    pub p95: Option<f64>,
}

/// The events that were recorded during a fault.
#[derive(Debug, Clone, Serialize)]
pub struct CatchUp {
    pub what: &'static str,
    /// From its end until the last event that arrived.
    pub seconds: f64,
    /// From its end until the relay had recorded that the last event is in its queue; `None` without an outbox.
    pub published_seconds: Option<f64>,
    /// Messages that never arrived.
    pub lost: i64,
}

/// The outcome of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Messages that committed events should have become.
    pub messages: i64,
    /// Messages of committed events that never arrived.
    pub lost: i64,
    /// Messages that arrived without a committed event.
    pub phantom: i64,
    /// Arrivals beyond the first.
    pub duplicates: i64,
    /// Effects beyond the first.
    pub effects_twice: i64,
    pub granted_per_second: f64,
    /// How long the buyers bought.
    pub time: Duration,
    /// Share of answers that were errors.
    pub errors: f64,
    /// The same without the commands that were under way during the database's restart.
    pub errors_outside_restart: f64,
    /// Milliseconds: mean, p50, p95, p99.
    pub response: [f64; 4],
    /// Milliseconds from commit to arrival: p50, p99.
    pub arrival: [f64; 2],
    /// For each fault, the events that were recorded during it.
    pub catch_up: Vec<CatchUp>,
    pub troubles: Vec<Trouble>,
    pub seconds: Vec<Second>,
}

impl Outcome {
    /// A line for the time when the experiment runs.
    pub fn line(&self) -> String {
        format!(
            "{:.0}/s, p95 {:.0} ms, errors {:.2} %, lost {}, phantom {}, duplicates {}, applied twice {}",
            self.granted_per_second,
            self.response[2],
            self.errors * 100.0,
            self.lost,
            self.phantom,
            self.duplicates,
            self.effects_twice
        )
    }
}

/// Every expected message, according to the events.
const EXPECTED: &str = "SELECT e.event_id, e.recorded_at, v.view FROM outbox.events AS e
    CROSS JOIN (VALUES ('tickets'), ('sales')) AS v (view) WHERE v.view = 'sales' OR e.event_type <> 'DrawOpened'";

/// Computes the outcome.
pub async fn of(database: &Client, samples: &[Sample], time: Duration, troubles: Vec<Trouble>) -> Result<Outcome> {
    let counts = format!(
        "WITH expected AS ({EXPECTED}) SELECT
            (SELECT count(*) FROM expected),
            (SELECT count(*) FROM expected AS x
                WHERE NOT EXISTS (SELECT FROM views.accounts AS a WHERE a.view = x.view AND a.event_id = x.event_id)),
            (SELECT count(*) FROM views.accounts AS a
                WHERE NOT EXISTS (SELECT FROM expected AS x WHERE a.view = x.view AND a.event_id = x.event_id)),
            (SELECT coalesce(sum(arrivals - 1), 0)::bigint FROM views.accounts),
            (SELECT coalesce(sum(greatest(effects - 1, 0)), 0)::bigint FROM views.accounts)"
    );
    let counts = database.query_one(&counts, &[]).await?;
    let arrival = format!(
        "WITH expected AS ({EXPECTED}) SELECT coalesce(percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (
            ORDER BY extract(epoch FROM a.first_at - x.recorded_at)::float8 * 1000), '{{0,0}}')
         FROM expected AS x JOIN views.accounts AS a USING (view, event_id)"
    );
    let arrival: Vec<f64> = database.query_one(&arrival, &[]).await?.get(0);
    let mut catch_up = Vec::new();
    for trouble in &troubles {
        let last = format!(
            "WITH expected AS ({EXPECTED}) SELECT
                greatest(coalesce(extract(epoch FROM max(a.first_at) - $2), 0), 0)::float8, count(*) - count(a.event_id)
             FROM expected AS x LEFT JOIN views.accounts AS a USING (view, event_id) WHERE x.recorded_at BETWEEN $1 AND $2"
        );
        let published = "SELECT greatest(extract(epoch FROM max(m.delivered_at) - $2), 0)::float8
             FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
             WHERE e.recorded_at BETWEEN $1 AND $2
             HAVING count(*) > 0";
        let row = database.query_one(&last, &[&trouble.began_at, &trouble.ended_at]).await?;
        let by_relay = database.query_opt(published, &[&trouble.began_at, &trouble.ended_at]).await?;
        catch_up.push(CatchUp {
            what: trouble.what,
            seconds: row.get(0),
            published_seconds: by_relay.map(|row| row.get(0)),
            lost: row.get(1),
        });
    }
    let restart = troubles.iter().find(|trouble| trouble.what.starts_with("PostgreSQL"));
    let outside = |sample: &&Sample| {
        // Connections that it cut are noticed a moment later.
        let is_within = |trouble: &Trouble| {
            sample.at + sample.took >= trouble.began && sample.at <= trouble.ended + Duration::from_secs(2)
        };
        !restart.is_some_and(is_within)
    };
    let granted = samples.iter().filter(|sample| sample.outcome == Answer::Granted).count();
    Ok(Outcome {
        messages: counts.get(0),
        lost: counts.get(1),
        phantom: counts.get(2),
        duplicates: counts.get(3),
        effects_twice: counts.get(4),
        granted_per_second: granted as f64 / time.as_secs_f64(),
        time,
        errors: errors(samples.iter()),
        errors_outside_restart: errors(samples.iter().filter(outside)),
        response: response(samples),
        arrival: [arrival[0], arrival[1]],
        catch_up,
        troubles,
        seconds: seconds(samples, time),
    })
}

fn errors<'a>(samples: impl Iterator<Item = &'a Sample>) -> f64 {
    let (mut all, mut failed) = (0_u32, 0_u32);
    for sample in samples {
        all += 1;
        failed += u32::from(sample.outcome == Answer::Failed);
    }
    f64::from(failed) / f64::from(all.max(1))
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

fn response(samples: &[Sample]) -> [f64; 4] {
    let mut all: Vec<f64> = samples.iter().map(|sample| milliseconds(sample.took)).collect();
    all.sort_by(f64::total_cmp);
    let mean = all.iter().sum::<f64>() / all.len().max(1) as f64;
    [mean, percentile(&all, 0.5), percentile(&all, 0.95), percentile(&all, 0.99)]
}

/// By the second in which the answer came.
fn seconds(samples: &[Sample], time: Duration) -> Vec<Second> {
    let count = usize::try_from(time.as_secs()).unwrap_or(0);
    let mut seconds = vec![Second::default(); count];
    let mut took = vec![Vec::new(); count];
    for sample in samples {
        let at = usize::try_from((sample.at + sample.took).as_secs()).unwrap_or(usize::MAX);
        let Some(second) = seconds.get_mut(at) else { continue };
        match sample.outcome {
            Answer::Granted => second.granted += 1,
            Answer::Failed => second.failed += 1,
            Answer::Refused => {}
        }
        took[at].push(milliseconds(sample.took));
    }
    for (second, mut took) in seconds.iter_mut().zip(took) {
        took.sort_by(f64::total_cmp);
        second.p95 = (!took.is_empty()).then(|| percentile(&took, 0.95));
    }
    seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u64, took: u64, outcome: Answer) -> Sample {
        Sample { at: Duration::from_millis(at), took: Duration::from_millis(took), outcome }
    }

    #[test]
    fn refused_commands_are_answers_and_not_errors() {
        let samples = [sample(0, 1, Answer::Granted), sample(0, 1, Answer::Refused), sample(0, 1, Answer::Failed)];
        assert_eq!(errors(samples.iter()), 1.0 / 3.0);
    }

    #[test]
    fn answers_count_in_the_second_in_which_they_came() {
        let samples =
            [sample(100, 10, Answer::Granted), sample(900, 200, Answer::Granted), sample(1500, 20, Answer::Failed)];
        let seconds = seconds(&samples, Duration::from_secs(3));
        assert_eq!((seconds[0].granted, seconds[1].granted, seconds[1].failed), (1, 1, 1));
        assert_eq!((seconds[1].p95, seconds[2].p95), (Some(200.0), None));
    }
}
