//! The aggregate: one draw, its tickets and its money. Pure: past events make the state, and the state decides what
//! happens next. Nothing here knows about databases or queues.

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// How many numbers a ticket has, and out of how many.
pub const CHOSEN: usize = 6;
pub const HIGHEST: u64 = 49;

/// Prize in units of money for this many right numbers.
const PRIZES: [i64; CHOSEN + 1] = [0, 0, 0, 10, 100, 1_000, 100_000];

/// An event in the stream of a draw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    Opened { price: i64 },
    Purchased { ticket: String, player: String, numbers: Vec<u64>, price: i64 },
    Cancelled { ticket: String, player: String, price: i64 },
    Drawn { numbers: Vec<u64> },
    Paid { ticket: String, player: String, amount: i64 },
}

impl Fact {
    /// The event type that consumers use.
    pub fn event_type(&self) -> &'static str {
        match self {
            Fact::Opened { .. } => "DrawOpened",
            Fact::Purchased { .. } => "TicketPurchased",
            Fact::Cancelled { .. } => "TicketCancelled",
            Fact::Drawn { .. } => "NumbersDrawn",
            Fact::Paid { .. } => "PrizePaid",
        }
    }

    /// The payload that is stored and sent; it names the draw, so that a message is complete by itself.
    pub fn payload(&self, draw: &str) -> Value {
        match self {
            Fact::Opened { price } => json!({"draw": draw, "price": price}),
            Fact::Purchased { ticket, player, numbers, price } => {
                json!({"draw": draw, "ticket": ticket, "player": player, "numbers": numbers, "price": price})
            }
            Fact::Cancelled { ticket, player, price } => {
                json!({"draw": draw, "ticket": ticket, "player": player, "price": price})
            }
            Fact::Drawn { numbers } => json!({"draw": draw, "numbers": numbers}),
            Fact::Paid { ticket, player, amount } => {
                json!({"draw": draw, "ticket": ticket, "player": player, "amount": amount})
            }
        }
    }

    /// The event that was stored.
    pub fn read(event_type: &str, payload: &Value) -> Result<Fact> {
        let text = |name: &str| payload[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
        let number = |name: &str| payload[name].as_i64().with_context(|| format!("no {name}"));
        let numbers = || {
            let all = payload["numbers"].as_array().context("no numbers")?;
            all.iter().map(|number| number.as_u64().context("no number")).collect::<Result<Vec<u64>>>()
        };
        Ok(match event_type {
            "DrawOpened" => Fact::Opened { price: number("price")? },
            "TicketPurchased" => Fact::Purchased {
                ticket: text("ticket")?,
                player: text("player")?,
                numbers: numbers()?,
                price: number("price")?,
            },
            "TicketCancelled" => {
                Fact::Cancelled { ticket: text("ticket")?, player: text("player")?, price: number("price")? }
            }
            "NumbersDrawn" => Fact::Drawn { numbers: numbers()? },
            "PrizePaid" => Fact::Paid { ticket: text("ticket")?, player: text("player")?, amount: number("amount")? },
            other => anyhow::bail!("{other} is no event of a draw"),
        })
    }
}

/// A command: what a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    Open { price: i64 },
    Buy { ticket: String, player: String, numbers: Vec<u64> },
    Cancel { ticket: String },
    Draw { numbers: Vec<u64> },
    PayOut,
}

/// Why a command is refused; a sentence for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub &'static str);

#[derive(Debug, Clone)]
struct Ticket {
    player: String,
    numbers: Vec<u64>,
    price: i64,
    is_cancelled: bool,
    is_paid: bool,
}

/// The state of a draw: everything that decisions depend on.
#[derive(Debug, Clone, Default)]
pub struct Draw {
    /// The version of the last event in it.
    pub version: i64,
    price: Option<i64>,
    tickets: HashMap<String, Ticket>,
    drawn: Option<Vec<u64>>,
    /// Money in minus money out.
    pub balance: i64,
}

impl Draw {
    /// Applies an event.
    pub fn apply(&mut self, version: i64, fact: &Fact) {
        self.version = version;
        match fact {
            Fact::Opened { price } => self.price = Some(*price),
            Fact::Purchased { ticket, player, numbers, price } => {
                self.balance += price;
                let (player, numbers) = (player.clone(), numbers.clone());
                let bought = Ticket { player, numbers, price: *price, is_cancelled: false, is_paid: false };
                self.tickets.insert(ticket.clone(), bought);
            }
            Fact::Cancelled { ticket, price, .. } => {
                self.balance -= price;
                if let Some(ticket) = self.tickets.get_mut(ticket) {
                    ticket.is_cancelled = true;
                }
            }
            Fact::Drawn { numbers } => self.drawn = Some(numbers.clone()),
            Fact::Paid { ticket, amount, .. } => {
                self.balance -= amount;
                if let Some(ticket) = self.tickets.get_mut(ticket) {
                    ticket.is_paid = true;
                }
            }
        }
    }

    /// The events if a command is granted; none if it was granted before, so that a client that did not get the answer
    /// may repeat it.
    pub fn decide(&self, wish: &Wish) -> Result<Vec<Fact>, Refusal> {
        match wish {
            Wish::Open { .. } if self.price.is_some() => Ok(vec![]),
            Wish::Open { price } if *price > 0 => Ok(vec![Fact::Opened { price: *price }]),
            Wish::Open { .. } => Err(Refusal("a ticket must cost something")),
            Wish::Buy { ticket, player, numbers } => self.sell(ticket, player, numbers),
            Wish::Cancel { ticket } => self.take_back(ticket),
            Wish::Draw { numbers } => {
                self.price.ok_or(Refusal("there is no such draw"))?;
                Ok(if self.drawn.is_some() { vec![] } else { vec![Fact::Drawn { numbers: numbers.clone() }] })
            }
            Wish::PayOut => self.pay_out(),
        }
    }

    fn sell(&self, ticket: &str, player: &str, numbers: &[u64]) -> Result<Vec<Fact>, Refusal> {
        let price = self.price.ok_or(Refusal("there is no such draw"))?;
        if self.tickets.contains_key(ticket) {
            return Ok(vec![]);
        }
        if self.drawn.is_some() {
            return Err(Refusal("the numbers have been drawn"));
        }
        let mut different = numbers.to_vec();
        different.sort_unstable();
        different.dedup();
        if different.len() != CHOSEN || numbers.len() != CHOSEN || different.iter().any(|n| !(1..=HIGHEST).contains(n))
        {
            return Err(Refusal("a ticket has six different numbers from 1 to 49"));
        }
        let (ticket, player) = (ticket.to_owned(), player.to_owned());
        Ok(vec![Fact::Purchased { ticket, player, numbers: different, price }])
    }

    fn take_back(&self, id: &str) -> Result<Vec<Fact>, Refusal> {
        let ticket = self.tickets.get(id).ok_or(Refusal("there is no such ticket"))?;
        if ticket.is_cancelled {
            return Ok(vec![]);
        }
        if self.drawn.is_some() {
            return Err(Refusal("the numbers have been drawn"));
        }
        Ok(vec![Fact::Cancelled { ticket: id.to_owned(), player: ticket.player.clone(), price: ticket.price }])
    }

    fn pay_out(&self) -> Result<Vec<Fact>, Refusal> {
        let drawn = self.drawn.as_ref().ok_or(Refusal("the numbers have not been drawn"))?;
        let prize = |ticket: &Ticket| PRIZES[ticket.numbers.iter().filter(|number| drawn.contains(number)).count()];
        let won =
            self.tickets.iter().filter(|(_, ticket)| !ticket.is_cancelled && !ticket.is_paid && prize(ticket) > 0);
        let mut paid: Vec<Fact> = won
            .map(|(id, ticket)| Fact::Paid { ticket: id.clone(), player: ticket.player.clone(), amount: prize(ticket) })
            .collect();
        paid.sort_by_key(|fact| fact.payload("").to_string());
        Ok(paid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buy(ticket: &str, numbers: [u64; CHOSEN]) -> Wish {
        Wish::Buy { ticket: ticket.to_owned(), player: "p-1".to_owned(), numbers: numbers.to_vec() }
    }

    /// The draw after these commands were granted.
    fn after(wishes: &[Wish]) -> Draw {
        let mut draw = Draw::default();
        for wish in wishes {
            for fact in draw.decide(wish).unwrap_or_default() {
                draw.apply(draw.version + 1, &fact);
            }
        }
        draw
    }

    const OPEN: Wish = Wish::Open { price: 5 };

    #[test]
    fn a_ticket_is_sold_once_and_asking_again_changes_nothing() {
        let draw = after(&[OPEN, buy("t", [1, 2, 3, 4, 5, 6]), buy("t", [1, 2, 3, 4, 5, 6])]);
        assert_eq!((draw.version, draw.balance), (2, 5));
        assert_eq!(draw.decide(&buy("t", [1, 2, 3, 4, 5, 6])), Ok(vec![]));
    }

    #[test]
    fn nothing_is_sold_before_the_opening_or_after_the_draw() {
        assert!(after(&[]).decide(&buy("t", [1, 2, 3, 4, 5, 6])).is_err());
        let drawn = after(&[OPEN, buy("t", [1, 2, 3, 4, 5, 6]), Wish::Draw { numbers: vec![1, 2, 3, 4, 5, 6] }]);
        assert!(drawn.decide(&buy("u", [1, 2, 3, 4, 5, 6])).is_err());
        assert!(drawn.decide(&Wish::Cancel { ticket: "t".to_owned() }).is_err());
        assert_eq!(
            drawn.decide(&buy("t", [1, 2, 3, 4, 5, 6])),
            Ok(vec![]),
            "a client that did not get the answer asks again"
        );
    }

    #[test]
    fn numbers_are_six_different_ones_up_to_49() {
        for numbers in [[1, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 50]] {
            assert!(after(&[OPEN]).decide(&buy("t", numbers)).is_err(), "{numbers:?}");
        }
    }

    #[test]
    fn winners_are_paid_once_and_cancelled_tickets_win_nothing() {
        let wishes = [
            OPEN,
            buy("all", [1, 2, 3, 4, 5, 6]),
            buy("three", [1, 2, 3, 7, 8, 9]),
            buy("two", [1, 2, 7, 8, 9, 10]),
            buy("gone", [1, 2, 3, 4, 5, 6]),
            Wish::Cancel { ticket: "gone".to_owned() },
            Wish::Draw { numbers: vec![1, 2, 3, 4, 5, 6] },
            Wish::PayOut,
            Wish::PayOut,
        ];
        assert_eq!(after(&wishes).balance, 3 * 5 - 100_000 - 10);
        assert!(after(&wishes[..6]).decide(&Wish::PayOut).is_err());
    }

    #[test]
    fn events_are_read_as_they_were_written() {
        let facts = [
            Fact::Opened { price: 5 },
            Fact::Purchased { ticket: "t".to_owned(), player: "p".to_owned(), numbers: vec![1, 2], price: 5 },
            Fact::Cancelled { ticket: "t".to_owned(), player: "p".to_owned(), price: 5 },
            Fact::Drawn { numbers: vec![3] },
            Fact::Paid { ticket: "t".to_owned(), player: "p".to_owned(), amount: 10 },
        ];
        for fact in facts {
            assert_eq!(Fact::read(fact.event_type(), &fact.payload("d")).ok().as_ref(), Some(&fact));
        }
    }
}
