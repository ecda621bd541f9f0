//! The ledger: compares what was sold with what arrived. It is pure and has its own tests, since it judges the relay.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// A committed purchase, according to the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sale {
    /// The draw that the ticket takes part in.
    pub draw: String,
    /// The event's version in the stream of its draw.
    pub version: u64,
    /// When the writer learned that its COMMIT succeeded; on the same clock as [`Receipt::at`].
    pub committed_at: Duration,
}

/// A message, as a consumer received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The ticket.
    pub ticket: u64,
    /// Its draw.
    pub draw: String,
    /// The event's version in the stream of the draw.
    pub version: u64,
    /// FIFO queues only: the sequence number that the queue assigned when it accepted the message.
    pub sequence: Option<u128>,
    /// When it arrived.
    pub at: Duration,
}

/// A ticket out of order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderBreak {
    /// The draw.
    pub draw: String,
    /// The version of the ticket that came late.
    pub version: u64,
    /// The highest version of the draw that came before it.
    pub behind: u64,
}

/// The account of one queue: its deliveries compared with the sales.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Different tickets that arrived and were sold.
    pub delivered: usize,
    /// Sold, but never arrived.
    pub lost: usize,
    /// Arrived, but not sold in this form: rolled back, or altered on the way.
    pub phantom: usize,
    /// Arrivals of a ticket beyond its first.
    pub duplicates: usize,
    /// Tickets that the queue accepted after a later one of their draw.
    pub order_breaks: Vec<OrderBreak>,
    /// The times from commit to first arrival, ascending, each with the time of the commit.
    latencies: Vec<(Duration, Duration)>,
}

impl Account {
    /// Computes the account of one queue.
    ///
    /// Order is judged by the sequence numbers of a FIFO queue, which give the order in which the queue hands out the
    /// messages of a group. The order in which several receivers record messages would prove nothing.
    pub fn of(sales: &HashMap<u64, Sale>, receipts: &[Receipt]) -> Account {
        let mut account = Account::default();
        let mut in_order: Vec<&Receipt> = receipts.iter().collect();
        in_order.sort_by_key(|receipt| (receipt.sequence, receipt.at));
        let mut arrived = HashSet::new();
        let mut highest: HashMap<&str, u64> = HashMap::new();
        for receipt in in_order {
            let sale = sales.get(&receipt.ticket);
            let Some(sale) = sale.filter(|sale| sale.draw == receipt.draw && sale.version == receipt.version) else {
                account.phantom += 1;
                continue;
            };
            if !arrived.insert(receipt.ticket) {
                account.duplicates += 1;
                continue;
            }
            account.latencies.push((receipt.at.saturating_sub(sale.committed_at), sale.committed_at));
            let highest = highest.entry(&receipt.draw).or_default();
            if receipt.sequence.is_some() && receipt.version < *highest {
                account.order_breaks.push(OrderBreak {
                    draw: receipt.draw.clone(),
                    version: receipt.version,
                    behind: *highest,
                });
            }
            *highest = receipt.version.max(*highest);
        }
        account.delivered = arrived.len();
        account.lost = sales.len() - arrived.len();
        account.latencies.sort();
        account
    }

    /// This percentile of the latency, over the purchases that were committed before this time.
    pub fn latency(&self, percent: usize, committed_before: Duration) -> Option<Duration> {
        let chosen = self.latencies.iter().filter(|(_, committed_at)| *committed_at < committed_before);
        let chosen: Vec<Duration> = chosen.map(|(latency, _)| *latency).collect();
        let index = (chosen.len() * percent).div_ceil(100).saturating_sub(1);
        chosen.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sales(tickets: std::ops::RangeInclusive<u64>) -> HashMap<u64, Sale> {
        tickets.map(|ticket| (ticket, sale(ticket))).collect()
    }

    fn sale(ticket: u64) -> Sale {
        Sale { draw: "monday".to_owned(), version: ticket, committed_at: Duration::from_millis(ticket) }
    }

    fn receipt(ticket: u64, sequence: u128) -> Receipt {
        Receipt {
            ticket,
            draw: "monday".to_owned(),
            version: ticket,
            sequence: Some(sequence),
            at: Duration::from_millis(ticket + 10),
        }
    }

    #[test]
    fn complete_and_ordered_arrivals_are_a_clean_account() {
        let account = Account::of(&sales(1..=3), &[receipt(1, 1), receipt(2, 2), receipt(3, 3)]);
        assert_eq!((account.delivered, account.lost, account.phantom, account.duplicates), (3, 0, 0, 0));
        assert_eq!(account.order_breaks, []);
        assert_eq!(account.latency(99, Duration::MAX), Some(Duration::from_millis(10)));
    }

    #[test]
    fn missing_tickets_are_lost() {
        assert_eq!(Account::of(&sales(1..=3), &[receipt(1, 1), receipt(3, 2)]).lost, 1);
    }

    #[test]
    fn unsold_or_altered_tickets_are_phantoms() {
        let altered = Receipt { version: 7, ..receipt(2, 2) };
        let account = Account::of(&sales(1..=2), &[receipt(1, 1), altered, receipt(9, 3)]);
        assert_eq!((account.delivered, account.lost, account.phantom), (1, 1, 2));
    }

    #[test]
    fn a_second_arrival_is_a_duplicate_and_no_order_break() {
        let account = Account::of(&sales(1..=2), &[receipt(1, 1), receipt(2, 2), receipt(1, 3)]);
        assert_eq!((account.delivered, account.duplicates, account.order_breaks.len()), (2, 1, 0));
    }

    #[test]
    fn order_is_that_of_the_queue_and_not_of_the_receivers() {
        let noted_late = [receipt(2, 2), receipt(3, 3), receipt(1, 1)];
        assert_eq!(Account::of(&sales(1..=3), &noted_late).order_breaks, []);
        let accepted_late = [receipt(1, 3), receipt(2, 1), receipt(3, 2)];
        let broken = OrderBreak { draw: "monday".to_owned(), version: 1, behind: 3 };
        assert_eq!(Account::of(&sales(1..=3), &accepted_late).order_breaks, [broken]);
    }

    #[test]
    fn a_standard_queue_promises_no_order() {
        let receipts = [receipt(2, 0), receipt(1, 0)].map(|receipt| Receipt { sequence: None, ..receipt });
        assert_eq!(Account::of(&sales(1..=2), &receipts).order_breaks, []);
    }

    #[test]
    fn latencies_can_be_limited_to_commits_before_a_time() {
        let late = Receipt { at: Duration::from_secs(5), ..receipt(3, 3) };
        let account = Account::of(&sales(1..=3), &[receipt(1, 1), receipt(2, 2), late]);
        assert_eq!(account.latency(99, Duration::from_millis(3)), Some(Duration::from_millis(10)));
        assert_eq!(account.latency(99, Duration::MAX), Some(Duration::from_millis(4997)));
        assert_eq!(account.latency(50, Duration::ZERO), None);
    }
}
