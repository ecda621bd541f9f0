//! A snapshot of PostgreSQL's transactions, as `pg_current_snapshot()` prints it: `xmin:xmax:running,running,…`.
//!
//! Pure. See PostgreSQL's documentation, 9.27 "Transaction ID and Snapshot Information Functions".

/// Which transactions had ended when a statement began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// All transactions below this one had ended.
    pub xmin: i64,
    /// None from this one on had ended. Some may have begun: this follows the latest that has ended, not the latest begun.
    pub xmax: i64,
    running: Vec<i64>,
}

impl Snapshot {
    /// Reads what PostgreSQL prints; `None` if it is not that.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let xmin = parts.next()?.parse().ok()?;
        let xmax = parts.next()?.parse().ok()?;
        let mut running: Vec<i64> = match parts.next()? {
            "" => Vec::new(),
            list => list.split(',').map(|xid| xid.parse().ok()).collect::<Option<_>>()?,
        };
        running.sort_unstable();
        Some(Self { xmin, xmax, running })
    }

    /// Whether a transaction had not ended, or not even begun.
    pub fn is_running(&self, xid: i64) -> bool {
        xid >= self.xmax || self.running.binary_search(&xid).is_ok()
    }

    /// The transactions of a range that were running, as far as they are below [`Snapshot::xmax`].
    pub fn running_in(&self, range: std::ops::Range<i64>) -> impl Iterator<Item = i64> {
        self.running.iter().copied().filter(move |xid| range.contains(xid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_tells_what_ran() {
        let snapshot = Snapshot::parse("10:20:10,14,15").unwrap();
        assert_eq!((snapshot.xmin, snapshot.xmax), (10, 20));
        let running: Vec<i64> = (8..22).filter(|xid| snapshot.is_running(*xid)).collect();
        assert_eq!(running, [10, 14, 15, 20, 21]);
        assert_eq!(snapshot.running_in(11..15).collect::<Vec<_>>(), [14]);
    }

    #[test]
    fn a_quiet_server_runs_nothing() {
        let snapshot = Snapshot::parse("20:20:").unwrap();
        assert!(!snapshot.is_running(19) && snapshot.is_running(20));
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        for text in ["", "1", "1:2", "a:2:", "1:2:x"] {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }
}
