//! The output: a line once in a while, and the table at the end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::accounts::Column;
use crate::audit::Forgotten;
use crate::chronicle::Chronicle;
use crate::destinations::Kind;

/// How many breaches of each kind are shown.
pub const BREACHES_SHOWN: usize = 10;

/// The progress.
#[derive(Debug)]
pub struct Progress {
    pub committed: u64,
    pub rolled_back: u64,
    /// Different tickets that have arrived, for each destination.
    pub arrived: Vec<(&'static str, usize)>,
    pub faults: u32,
}

impl Progress {
    pub fn print(&self, time: Duration) {
        let Progress { committed, rolled_back, arrived, faults } = self;
        let arrived: Vec<String> = arrived.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!(
            "{:>5} s  {committed:>7} sold {rolled_back:>6} rolled back {faults:>5} faults  at {}",
            time.as_secs(),
            arrived.join(", ")
        );
    }
}

/// The data of the table.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub forgotten: Forgotten,
    /// Messages that are neither delivered, nor dead, nor set aside, those written by hand included.
    pub left_by_hand: i64,
    pub rolled_back: u64,
    /// Purchases whose connection broke.
    pub unclear: u64,
    /// Purchases that the database contains.
    pub committed: usize,
    pub columns: Vec<Column>,
    /// Without those written by hand.
    pub dead: i64,
    /// Without those written by hand.
    pub in_quarantine: i64,
    /// At standard queues, as the relays counted them.
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
        let count = |rows: i64| usize::try_from(rows).unwrap_or_default();
        let unused = self.columns.iter().filter(|column| column.account.delivered == 0).count();
        let promises = [
            (usize::from(self.committed == 0), "shop that sold nothing"),
            (unused, "destinations got nothing"),
            (self.forgotten.unexcused, "purchases that PostgreSQL confirmed and forgot"),
            (count(self.dead), "messages died"),
            (count(self.in_quarantine), "messages were set aside"),
            (count(self.left_by_hand), "messages are neither delivered, nor dead, nor set aside"),
        ];
        let broken = promises.iter().filter(|(count, _)| *count > 0);
        let broken = broken.map(|(count, what)| format!("{count} {what}"));
        broken.chain(self.columns.iter().flat_map(Column::breaches)).collect()
    }

    /// Prints the table, and after a breach everything that helps to find its cause.
    pub fn print(&self) {
        self.print_table();
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
        for column in &self.columns {
            column.order_breaks.iter().for_each(|order_break| println!("  {order_break}"));
            column.suspects().iter().for_each(|suspect| println!("  {suspect}"));
        }
        match self.keep() {
            Ok(folder) => println!("  What was done when, and what the relays logged, is in {folder}"),
            Err(error) => println!("  The logs cannot be kept: {error}"),
        }
    }

    /// A column for each destination. What a destination does not promise has no number.
    fn print_table(&self) {
        let row = |name: &str, cell: &dyn Fn(&Column) -> Option<usize>, note: &str| {
            let cell = |column| cell(column).map_or("-".to_owned(), |count| count.to_string());
            let cells: String = self.columns.iter().map(|column| format!("{:>10}", cell(column))).collect();
            println!("{}", format!("  {name:<22}{cells}   {note}").trim_end());
        };
        let names: String = self.columns.iter().map(|column| format!("{:>10}", column.kind.name())).collect();
        println!("\n  {:<22}{names}", "");
        let forgotten = self.forgotten.heard();
        let note =
            format!("{} rolled back, {} broken off, {forgotten} lost with a server", self.rolled_back, self.unclear);
        row("committed", &|column| Some(column.committed), &note);
        row("delivered", &|column| Some(column.account.delivered), "");
        row("never sent", &|column| Some(column.never_sent), "of those recorded as delivered");
        row("lost", &|column| Some(column.account.lost), "");
        row("phantom", &|column| Some(column.account.phantom), "or altered");
        let note = format!("relays counted {} at standard queues", self.possible_duplicates);
        row("duplicates", &|column| Some(column.account.duplicates), &note);
        let standard = |column: &Column, count: usize| (!column.kind.is_fifo()).then_some(count);
        row("  excused: unanswered", &|column| standard(column, column.excuses.unanswered), "");
        row("  excused: unrecorded", &|column| standard(column, column.excuses.unrecorded), "");
        row("  without excuse", &|column| standard(column, column.unexcused.len()), "");
        let of_fifo = |column: &Column| column.kind.is_fifo().then_some(column.account.order_breaks.len());
        row("order breaks", &of_fifo, "");
        let scheduled = |column: &Column, count: usize| (column.kind == Kind::Reminders).then_some(count);
        row("cancelled", &|column| scheduled(column, column.cancelled), "");
        row("  sent nevertheless", &|column| scheduled(column, column.sent_though_cancelled.len()), "");
        row("early", &|column| scheduled(column, column.early.len()), "");
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
