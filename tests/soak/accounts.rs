//! The account of each destination: what it should have got, compared with what was sent to it and what arrived.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_postgres::Client;

use crate::audit::{self, Clocks, Forgotten, Reminder};
use crate::chronicle::Chronicle;
use crate::destinations::{Destination, Kind};
use crate::report::BREACHES_SHOWN;
use crate::sends::Excuses;
use support::lottery::ledger::{Account, Sale};

/// How exactly a time of PostgreSQL can be told on this process's clock.
const CLOCKS_AGREE: Duration = Duration::from_millis(2);

/// What the database contains at the end, and what was done to it.
#[derive(Debug)]
pub struct Books<'a> {
    pub client: &'a Client,
    pub clocks: Clocks,
    pub sales: &'a HashMap<u64, Sale>,
    pub reminders: &'a HashMap<u64, Reminder>,
    pub forgotten: &'a Forgotten,
    pub chronicle: &'a Chronicle,
}

/// The account of one destination.
#[derive(Debug)]
pub struct Column {
    pub kind: Kind,
    /// Messages that the database says are for it, cancelled ones left out.
    pub committed: usize,
    pub account: Account,
    /// Recorded as delivered, but never arrived.
    pub never_sent: usize,
    /// Duplicates that had a cause.
    pub excuses: Excuses,
    /// Tickets that came to a standard queue more often than anything excuses.
    pub unexcused: Vec<u64>,
    /// What is known about the first messages that came after a later one of their draw.
    pub order_breaks: Vec<String>,
    /// Tickets of which a fair queue was told another group.
    pub wrong_groups: Vec<u64>,
    /// Scheduled messages that were cancelled, and those of them that were sent nevertheless.
    pub cancelled: usize,
    pub sent_though_cancelled: Vec<u64>,
    /// Scheduled messages that were sent before their time.
    pub early: Vec<u64>,
}

impl Column {
    pub async fn of(destination: &Destination, books: &Books<'_>) -> Result<Column> {
        let kind = destination.kind;
        let is_cancelled = |ticket: &u64| {
            kind == Kind::Reminders && books.reminders.get(ticket).is_some_and(|reminder| reminder.is_cancelled)
        };
        let is_for = |ticket: &u64| kind.is_for(*ticket) && !is_cancelled(ticket);
        let sales: HashMap<u64, Sale> = books.sales.iter().filter(|(ticket, _)| is_for(ticket)).map(owned).collect();
        let recorded_at = audit::recorded_at(books.client, kind, books.clocks).await?;
        let received = destination.inbox.receipts();
        let mut receipts = books.forgotten.without(&received);
        // Those that were sent are found among what was sent, as only their sending has a time that says why.
        receipts.retain(|receipt| !is_cancelled(&receipt.ticket));
        let account = Account::of(&sales, &receipts);
        let mut arrivals: HashMap<u64, usize> = HashMap::new();
        for receipt in &receipts {
            *arrivals.entry(receipt.ticket).or_default() += 1;
        }
        let redriven = books.chronicle.tickets_redriven(kind);
        let excuses = destination.sends.excuses(&recorded_at, &books.chronicle.disturbances(), &redriven);
        let mut order_breaks = Vec::new();
        for order_break in account.order_breaks.iter().take(BREACHES_SHOWN) {
            order_breaks.push(audit::told(books.client, destination, order_break, books.clocks).await?);
        }
        Ok(Column {
            kind,
            committed: sales.len(),
            never_sent: audit::never_sent(&recorded_at, &received),
            unexcused: if kind.is_fifo() { Vec::new() } else { excuses.unexcused(&arrivals) },
            excuses,
            order_breaks,
            wrong_groups: wrong_groups(destination, books.sales),
            cancelled: books.sales.keys().filter(|ticket| is_cancelled(ticket)).count(),
            sent_though_cancelled: books.sent_wrongly(destination, |reminder, _| reminder.is_cancelled),
            early: books.sent_wrongly(destination, |reminder, at| at + CLOCKS_AGREE < reminder.deliver_at),
            account,
        })
    }

    /// Every broken promise, as text.
    pub fn breaches(&self) -> Vec<String> {
        let name = self.kind.name();
        let account = &self.account;
        let promises = [
            (account.lost, "messages never reached"),
            (self.never_sent, "messages are recorded as delivered and never arrived at"),
            (account.phantom, "messages were never committed like this at"),
            (if self.kind.is_fifo() { account.duplicates } else { 0 }, "duplicates at the FIFO queue of"),
            (self.unexcused.len(), "tickets came more often than anything excuses to"),
            (account.order_breaks.len(), "messages came behind a later one of their draw to"),
            (self.wrong_groups.len(), "messages were sent with another group to"),
            (self.sent_though_cancelled.len(), "messages were sent after they had been cancelled to"),
            (self.early.len(), "messages were sent before their time to"),
        ];
        let broken = promises.iter().filter(|(count, _)| *count > 0);
        broken.map(|(count, what)| format!("{count} {what} {name}")).collect()
    }

    /// The tickets to look at after a breach.
    pub fn suspects(&self) -> Vec<String> {
        let lists = [
            ("came once too often", &self.unexcused),
            ("was sent with another group", &self.wrong_groups),
            ("was sent though cancelled", &self.sent_though_cancelled),
            ("was sent too early", &self.early),
        ];
        let name = self.kind.name();
        let shown =
            lists.iter().flat_map(|(what, tickets)| tickets.iter().take(BREACHES_SHOWN).map(move |t| (what, t)));
        shown.map(|(what, ticket)| format!("{name}: ticket {ticket} {what}")).collect()
    }
}

impl Books<'_> {
    /// Tickets whose scheduled messages were sent as they should not have been at that time, unless the database has lost
    /// what had made them due.
    fn sent_wrongly(&self, destination: &Destination, is_wrong: impl Fn(&Reminder, Instant) -> bool) -> Vec<u64> {
        if destination.kind != Kind::Reminders {
            return Vec::new();
        }
        let sent = destination.sends.iter().filter(|sent| !self.chronicle.may_have_lost_its_cause(sent.arrived_at));
        let wrong = sent.filter(|sent| {
            self.reminders.get(&sent.ticket).is_some_and(|reminder| is_wrong(reminder, sent.arrived_at))
        });
        wrong.map(|sent| sent.ticket).collect()
    }
}

fn owned((ticket, sale): (&u64, &Sale)) -> (u64, Sale) {
    (*ticket, sale.clone())
}

/// The emulator keeps no groups of standard queues, so what counts is what it was told.
fn wrong_groups(destination: &Destination, sales: &HashMap<u64, Sale>) -> Vec<u64> {
    if destination.kind != Kind::Players {
        return Vec::new();
    }
    let is_wrong =
        |ticket: u64, group: Option<&str>| sales.get(&ticket).is_some_and(|sale| group != Some(sale.draw.as_str()));
    let wrong = destination.sends.iter().filter(|sent| is_wrong(sent.ticket, sent.group_id.as_deref()));
    wrong.map(|sent| sent.ticket).collect()
}
