//! A snapshot of PostgreSQL's transactions, as `pg_current_snapshot()` prints it: `xmin:xmax:running,running,...`.
//!
//! Pure. See PostgreSQL's documentation, 9.27 "Transaction ID and Snapshot Information Functions".

use std::collections::BTreeSet;

use crate::message::TransactionId;

/// Which transactions had ended when a statement began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// All transactions below this one had ended.
    pub xmin: TransactionId,
    /// No transaction from this one on had ended. Some may have begun: xmax follows the latest that ended, not the
    /// latest that began.
    pub xmax: TransactionId,
    running: Vec<TransactionId>,
}

impl Snapshot {
    /// A snapshot from its parts; `running` are those below `xmax` that had not ended.
    pub fn new(xmax: TransactionId, mut running: Vec<TransactionId>) -> Self {
        running.sort_unstable();
        Self { xmin: running.first().copied().unwrap_or(xmax), xmax, running }
    }

    /// Parses PostgreSQL's text form; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let transaction_id = |text: &str| text.parse().ok().map(TransactionId);
        let mut parts = text.split(':');
        let xmin = transaction_id(parts.next()?)?;
        let xmax = transaction_id(parts.next()?)?;
        let mut running: Vec<TransactionId> = match parts.next()? {
            "" => Vec::new(),
            list => list.split(',').map(transaction_id).collect::<Option<_>>()?,
        };
        running.sort_unstable();
        Some(Self { xmin, xmax, running })
    }

    /// The same snapshot, except that transactions known to write no messages count as ended.
    #[must_use]
    pub fn without(mut self, known: &BTreeSet<TransactionId>) -> Self {
        if !known.is_empty() {
            self.running.retain(|id| !known.contains(id));
            while known.contains(&self.xmax) {
                self.xmax = TransactionId(self.xmax.0 + 1);
            }
            self.xmin = self.running.first().copied().unwrap_or(self.xmax);
        }
        self
    }

    /// Whether a transaction had not ended, including one that had not begun.
    pub fn is_running(&self, transaction_id: TransactionId) -> bool {
        transaction_id >= self.xmax || self.running.binary_search(&transaction_id).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_which_transactions_ran() {
        let snapshot = Snapshot::parse("10:20:10,14,15").unwrap();
        assert_eq!((snapshot.xmin, snapshot.xmax), (TransactionId(10), TransactionId(20)));
        let running: Vec<i64> = (8..22).filter(|id| snapshot.is_running(TransactionId(*id))).collect();
        assert_eq!(running, [10, 14, 15, 20, 21]);
        assert_eq!(snapshot, Snapshot::new(TransactionId(20), [15, 10, 14].map(TransactionId).to_vec()));
    }

    #[test]
    fn a_quiet_server_runs_nothing() {
        let snapshot = Snapshot::parse("20:20:").unwrap();
        assert!(!snapshot.is_running(TransactionId(19)) && snapshot.is_running(TransactionId(20)));
        assert_eq!(snapshot, Snapshot::new(TransactionId(20), Vec::new()));
    }

    #[test]
    fn transactions_that_write_nothing_can_be_left_out() {
        let of = |text: &str, known: &[i64]| {
            Snapshot::parse(text).unwrap().without(&known.iter().copied().map(TransactionId).collect())
        };
        assert_eq!(of("10:20:10,14", &[10]), Snapshot::parse("14:20:14").unwrap());
        assert_eq!(of("10:20:10,14", &[10, 14]), Snapshot::parse("20:20:").unwrap());
        assert_eq!(of("10:10:", &[10, 11]), Snapshot::parse("12:12:").unwrap(), "they ran beyond what is listed");
        assert_eq!(of("9:20:9,14", &[10]), Snapshot::parse("9:20:9,14").unwrap());
    }

    #[test]
    fn text_that_is_no_snapshot_is_refused() {
        for text in ["", "1", "1:2", "a:2:", "1:2:x"] {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }
}
