//! The output: a line once in a while, and the table at the end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::Forgotten;
use crate::chronicle::Chronicle;
use crate::sends::Excuses;
use support::lottery::ledger::Account;

/// How many breaches of each kind are shown.
pub const BREACHES_SHOWN: usize = 10;

/// The progress.
#[derive(Debug)]
pub struct Progress {
    pub committed: u64,
    pub rolled_back: u64,
    /// Tickets at the FIFO queue and at the standard queue.
    pub arrived: [usize; 2],
    pub faults: u32,
}

impl Progress {
    pub fn print(&self, time: Duration) {
        let Progress { committed, rolled_back, arrived: [tickets, audit], faults } = self;
        println!(
            "{:>5} s  {committed:>8} sold {rolled_back:>7} rolled back {tickets:>8} at tickets {audit:>8} at audit {faults:>5} faults",
            time.as_secs()
        );
    }
}

/// The data of the table.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub forgotten: Forgotten,
    /// For tickets and audit: recorded as delivered, but never arrived.
    pub never_sent: [usize; 2],
    /// Messages that are neither delivered, nor dead, nor set aside, those written by hand included.
    pub left_by_hand: i64,
    pub rolled_back: u64,
    /// Purchases whose connection broke.
    pub unclear: u64,
    /// Purchases that the database contains.
    pub committed: usize,
    /// Of tickets (FIFO) and of audit (standard).
    pub accounts: [Account; 2],
    /// What is known about the first messages that came after a later one of their draw.
    pub order_breaks: Vec<String>,
    /// Without those written by hand.
    pub dead: i64,
    /// Without those written by hand.
    pub in_quarantine: i64,
    pub excuses: Excuses,
    /// Tickets that came to the standard queue more often than anything excuses.
    pub unexcused: Vec<u64>,
    /// At the standard queue, as the relays counted them.
    pub possible_duplicates: f64,
    pub chronicle: Arc<Chronicle>,
    pub logs: Vec<String>,
}

impl Report {
    /// Whether all promises were kept.
    pub fn is_clean(&self) -> bool {
        self.breaches().is_empty()
    }

    /// Every broken promise, as text.
    fn breaches(&self) -> Vec<String> {
        let [tickets, audit] = &self.accounts;
        let count = |rows: i64| usize::try_from(rows).unwrap_or_default();
        let promises = [
            (usize::from(self.committed == 0), "shop that sold nothing"),
            (self.forgotten.unexcused, "purchases that PostgreSQL confirmed and forgot"),
            (tickets.lost, "messages never reached tickets"),
            (audit.lost, "messages never reached audit"),
            (self.never_sent.iter().sum(), "messages are recorded as delivered and never arrived"),
            (tickets.phantom, "messages at tickets were never committed like this"),
            (audit.phantom, "messages at audit were never committed like this"),
            (tickets.duplicates, "duplicates at the FIFO queue"),
            (self.unexcused.len(), "tickets came to audit more often than anything excuses"),
            (tickets.order_breaks.len(), "messages came behind a later one of their draw"),
            (count(self.dead), "messages died"),
            (count(self.in_quarantine), "messages were set aside"),
            (count(self.left_by_hand), "messages are neither delivered, nor dead, nor set aside"),
        ];
        let broken = promises.iter().filter(|(count, _)| *count > 0);
        broken.map(|(count, what)| format!("{count} {what}")).collect()
    }

    /// Prints the table, and after a breach everything that helps to find its cause.
    pub fn print(&self) {
        let [tickets, audit] = &self.accounts;
        let row = |name: &str, of_tickets: usize, of_audit: String, note: &str| {
            println!("{}", format!("  {name:<14}{of_tickets:>10}{of_audit:>10}   {note}").trim_end());
        };
        println!("\n  {:<14}{:>10}{:>10}", "", "tickets", "audit");
        let forgotten = self.forgotten.heard();
        let note =
            format!("{} rolled back, {} broken off, {forgotten} lost with a server", self.rolled_back, self.unclear);
        row("committed", self.committed, self.committed.to_string(), &note);
        row("delivered", tickets.delivered, audit.delivered.to_string(), "");
        let [of_tickets, of_audit] = self.never_sent;
        row("never sent", of_tickets, of_audit.to_string(), "of those recorded as delivered");
        row("lost", tickets.lost, audit.lost.to_string(), "");
        row("phantom", tickets.phantom, audit.phantom.to_string(), "");
        row("duplicates", tickets.duplicates, audit.duplicates.to_string(), &self.duplicates_note());
        row("order breaks", tickets.order_breaks.len(), "-".to_owned(), "");
        println!();
        for (kind, count) in self.chronicle.counts() {
            println!("  {count:>4} x {kind}");
        }
        println!();
        let breaches = self.breaches();
        if breaches.is_empty() {
            println!("PASSED: SEED={}", self.seed);
            return;
        }
        println!("FAILED: SEED={}", self.seed);
        breaches.iter().for_each(|breach| println!("  {breach}"));
        self.order_breaks.iter().for_each(|order_break| println!("  {order_break}"));
        for ticket in self.unexcused.iter().take(BREACHES_SHOWN) {
            println!("  ticket {ticket} came to audit once too often");
        }
        match self.keep() {
            Ok(folder) => println!("  What was done when, and what the relays logged, is in {folder}"),
            Err(error) => println!("  The logs cannot be kept: {error}"),
        }
    }

    fn duplicates_note(&self) -> String {
        let Excuses { unanswered, unrecorded, .. } = &self.excuses;
        format!(
            "at audit of {} excused: {unanswered} unanswered, {unrecorded} unrecorded; relays counted {}",
            unanswered + unrecorded,
            self.possible_duplicates
        )
    }

    fn keep(&self) -> std::io::Result<String> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{}", self.seed));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("faults.log"), self.chronicle.text())?;
        for (number, log) in self.logs.iter().enumerate() {
            std::fs::write(folder.join(format!("relay-{number}.log")), log)?;
        }
        Ok(folder.display().to_string())
    }
}
