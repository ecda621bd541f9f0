//! The output: a moving line on a terminal, a line per second elsewhere, and the table at the end.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use support::lottery::ledger::{Account, OrderBreak};

/// How often the moving line moves.
const TERMINAL_PAUSE: Duration = Duration::from_millis(100);

/// How often a line is printed if lines cannot move.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// How many tickets in the wrong place are shown.
const BREAKS_SHOWN: usize = 10;

/// The progress.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    pub committed: u64,
    pub rolled_back: u64,
    pub tickets: usize,
    pub audit: usize,
    /// According to the relay's metrics: pending messages, and the age of the oldest. `None` while there is no relay.
    pub backlog: Option<(f64, f64)>,
}

/// Shows progress in columns.
#[derive(Debug)]
pub struct Screen {
    moving: bool,
    opened: Instant,
    next: Instant,
    shown: State,
}

impl Screen {
    /// Prints the head of the columns.
    pub fn open(clock: Instant) -> Screen {
        println!();
        println!("Every purchase is a message to tickets and one to audit. Backlog and lag are the relay's");
        println!("own metrics, which it measures every few seconds.");
        println!();
        println!("   time     bought  rolled back  at tickets    at audit    backlog      lag");
        Screen { moving: std::io::stdout().is_terminal(), opened: clock, next: clock, shown: State::default() }
    }

    /// Shows the state if it is time to do so.
    pub fn show(&mut self, state: &State) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.shown = state.clone();
        let (backlog, lag) = match state.backlog {
            Some((backlog, lag)) => (format!("{backlog:.0}"), format!("{lag:.1} s")),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let line = format!(
            "{:>5.0} s {:>10} {:>12} {:>11} {:>11} {backlog:>10} {lag:>8}",
            self.opened.elapsed().as_secs_f64(),
            grouped(state.committed),
            grouped(state.rolled_back),
            grouped(state.tickets as u64),
            grouped(state.audit as u64),
        );
        if self.moving {
            // Without wrapping, so that a narrow window cannot break the line that is overwritten.
            print!("\r\x1b[2K\x1b[?7l{line}\x1b[?7h");
            std::io::stdout().flush().ok();
            self.next = now + TERMINAL_PAUSE;
        } else {
            println!("{line}");
            self.next = now + LOG_PAUSE;
        }
    }

    /// Prints a line that stays.
    pub fn say(&self, text: &str) {
        let start = if self.moving { "\r\x1b[2K" } else { "" };
        println!("{start}{:>5.0} s  {text}", self.opened.elapsed().as_secs_f64());
    }

    /// Shows the last state permanently.
    pub fn close(&mut self, state: &State) {
        if self.shown != *state {
            self.next = Instant::now();
            self.show(state);
        }
        if self.moving {
            println!();
        }
    }
}

/// The data of the table.
#[derive(Debug)]
pub struct Report {
    pub committed: usize,
    pub rolled_back: u64,
    pub tickets: Account,
    pub audit: Account,
    pub draws: u64,
    /// From the first purchase to the last.
    pub selling: Duration,
    pub outage: Outage,
    /// The highest of all relay processes.
    pub peak_memory: Option<u64>,
}

/// The effect of the kill.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outage {
    /// When the relay was killed, on the demo's clock.
    pub killed_at: Duration,
    /// Until the next one was started.
    pub lasted: Duration,
    /// Messages that a queue had accepted and the outbox had not yet recorded: tickets, audit.
    pub in_flight: [usize; 2],
    /// Entries whose acceptance the relay could not know for other reasons, according to its own count: audit.
    pub unclear: usize,
}

impl Report {
    /// Every broken promise, as text.
    pub fn broken_promises(&self) -> Vec<String> {
        let allowed = self.outage.in_flight[1] + self.outage.unclear;
        let promises = [
            (self.tickets.lost, "messages never reached the queue tickets"),
            (self.audit.lost, "messages never reached the queue audit"),
            (self.tickets.phantom, "messages at tickets were never committed like this"),
            (self.audit.phantom, "messages at audit were never committed like this"),
            (self.tickets.duplicates, "duplicates at the FIFO queue"),
            (self.audit.duplicates.saturating_sub(allowed), "duplicates at audit beyond what was in flight"),
            (self.tickets.order_breaks.len(), "messages came behind a later one of their draw"),
        ];
        let mut broken: Vec<String> = promises
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{} {what}", grouped(*count as u64)))
            .collect();
        for order_break in self.tickets.order_breaks.iter().take(BREAKS_SHOWN) {
            let OrderBreak { draw, version, behind } = order_break;
            broken.push(format!("  {draw}: number {version} came behind number {behind}"));
        }
        broken
    }

    /// Prints the table.
    pub fn print(&self) {
        let rate = self.committed as f64 / self.selling.as_secs_f64();
        let [tickets, audit] = [&self.tickets, &self.audit];
        let count = |number: usize| grouped(number as u64);
        let row = |name: &str, tickets: String, audit: String, note: &str| {
            println!("{}", format!("  {name:<15} {tickets:>16} {audit:>16}   {note}").trim_end());
        };
        println!();
        row("", "tickets (FIFO)".to_owned(), "audit (standard)".to_owned(), "");
        let committed = count(self.committed);
        row("committed", committed.clone(), committed, &format!("{rate:.0} purchases a second, two messages each"));
        let rolled_back = grouped(self.rolled_back);
        row("rolled back", rolled_back.clone(), rolled_back, "on purpose, after all was written");
        row("delivered", count(tickets.delivered), count(audit.delivered), "");
        row("lost", count(tickets.lost), count(audit.lost), "committed, but not delivered");
        row("phantom", count(tickets.phantom), count(audit.phantom), "rolled back, but delivered");
        row("duplicates", count(tickets.duplicates), count(audit.duplicates), &self.duplicates_note());
        row("order breaks", count(tickets.order_breaks.len()), "-".to_owned(), &format!("in {} draws", self.draws));
        let latency = |percent, before| {
            let of = |account: &Account| account.latency(percent, before).map_or("-".to_owned(), spoken);
            (of(tickets), of(audit))
        };
        // Up to a second before the kill everything was delivered by an undisturbed relay.
        let undisturbed = self.outage.killed_at.saturating_sub(Duration::from_secs(1));
        let (of_tickets, of_audit) = latency(50, Duration::MAX);
        row("latency p50", of_tickets, of_audit, "from commit to receipt");
        let (of_tickets, of_audit) = latency(99, undisturbed);
        row("latency p99", of_tickets, of_audit, "before the kill");
        let (of_tickets, of_audit) = latency(99, Duration::MAX);
        let note = format!("in all, with {} without a relay", spoken(self.outage.lasted));
        row("latency p99", of_tickets, of_audit, &note);
        if let Some(bytes) = self.peak_memory {
            let memory = format!("{:.1} MB", bytes as f64 / 1e6);
            row("relay memory", memory, String::new(), "at its peak");
        }
        println!();
    }

    fn duplicates_note(&self) -> String {
        let Outage { in_flight: [tickets, audit], unclear, .. } = self.outage;
        let unclear = if unclear > 0 { format!(", {unclear} unclear") } else { String::new() };
        format!("of {tickets} and {audit} in flight at the kill{unclear}")
    }
}

/// 12345 as 12,345.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in a suitable unit.
pub fn spoken(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.01 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else {
        format!("{seconds:.1} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_grouped() {
        let texts = [0, 999, 1000, 20_000, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "20,000", "1,234,567"]);
    }

    #[test]
    fn durations_choose_their_unit() {
        let texts = [400, 14_000, 1_250_000].map(|micros| spoken(Duration::from_micros(micros)));
        assert_eq!(texts, ["0.4 ms", "14 ms", "1.2 s"]);
    }
}
