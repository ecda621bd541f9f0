//! The lottery that the example and the soak share: the shop that sells tickets, the consumers, and the ledger that
//! compares sales with arrivals.

pub mod consumer;
pub mod ledger;
pub mod shop;
