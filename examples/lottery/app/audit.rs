//! What must be true at the end of any run: the money adds up, nothing was sold after a draw, and every read model is what a
//! recomputation from the events says.

use anyhow::Result;
use tokio_postgres::Client;

/// Each invariant, with a statement that counts what breaks it.
const INVARIANTS: [(&str, &str); 5] = [
    (
        "no ticket was sold or cancelled after the draw",
        "SELECT count(*) FROM outbox.events AS e
         JOIN outbox.events AS d ON d.stream_id = e.stream_id AND d.event_type = 'NumbersDrawn'
         WHERE e.event_type IN ('TicketPurchased', 'TicketCancelled') AND e.stream_version > d.stream_version",
    ),
    (
        "every stream has each version once",
        "SELECT count(*) FROM (SELECT max(stream_version) - count(*) AS gap FROM outbox.events GROUP BY stream_id) AS s WHERE gap <> 0",
    ),
    (
        "the tickets of each player are what the events say",
        "WITH truth AS (
            SELECT b.payload ->> 'ticket' AS ticket, b.stream_id AS draw, b.payload ->> 'player' AS player,
                CASE WHEN c.position IS NOT NULL THEN 'cancelled' WHEN p.position IS NOT NULL THEN 'paid' ELSE 'bought' END AS state,
                coalesce((p.payload ->> 'amount')::bigint, 0) AS won
            FROM outbox.events AS b
            LEFT JOIN outbox.events AS c ON c.event_type = 'TicketCancelled' AND c.payload ->> 'ticket' = b.payload ->> 'ticket'
            LEFT JOIN outbox.events AS p ON p.event_type = 'PrizePaid' AND p.payload ->> 'ticket' = b.payload ->> 'ticket'
            WHERE b.event_type = 'TicketPurchased'
         ), wrong AS (
            (SELECT * FROM truth EXCEPT SELECT ticket, draw, player, state, won FROM views.tickets)
            UNION ALL
            (SELECT ticket, draw, player, state, won FROM views.tickets EXCEPT SELECT * FROM truth)
         ) SELECT count(*) FROM wrong",
    ),
    (
        "the sales of each draw are what the events say",
        "WITH truth AS (
            SELECT stream_id AS draw,
                coalesce(max((payload ->> 'price')::bigint) FILTER (WHERE event_type = 'DrawOpened'), 0) AS price,
                count(*) FILTER (WHERE event_type = 'TicketPurchased') AS sold,
                count(*) FILTER (WHERE event_type = 'TicketCancelled') AS cancelled,
                coalesce(sum((payload ->> 'price')::bigint) FILTER (WHERE event_type = 'TicketPurchased'), 0) AS revenue,
                coalesce(sum((payload ->> 'price')::bigint) FILTER (WHERE event_type = 'TicketCancelled'), 0) AS refunds,
                coalesce(sum((payload ->> 'amount')::bigint) FILTER (WHERE event_type = 'PrizePaid'), 0) AS prizes
            FROM outbox.events GROUP BY stream_id
         ), wrong AS (
            (SELECT * FROM truth EXCEPT SELECT draw, price, sold, cancelled, revenue, refunds, prizes FROM views.sales)
            UNION ALL
            (SELECT draw, price, sold, cancelled, revenue, refunds, prizes FROM views.sales EXCEPT SELECT * FROM truth)
         ) SELECT count(*) FROM wrong",
    ),
    (
        "the payouts are what the events say",
        "WITH truth AS (
            SELECT stream_id AS draw, count(*) AS winners, sum((payload ->> 'amount')::bigint)::bigint AS amount
            FROM outbox.events WHERE event_type = 'PrizePaid' GROUP BY stream_id
         ), wrong AS (
            (SELECT * FROM truth EXCEPT SELECT draw, winners, amount FROM views.payouts)
            UNION ALL
            (SELECT draw, winners, amount FROM views.payouts EXCEPT SELECT * FROM truth)
         ) SELECT count(*) FROM wrong",
    ),
];

/// Money in, money out and what is left, by the read models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Money {
    pub paid_in: i64,
    pub refunded: i64,
    pub won: i64,
    /// By the events: what the draws have.
    pub balance: i64,
}

impl Money {
    pub fn adds_up(&self) -> bool {
        self.paid_in == self.refunded + self.won + self.balance
    }
}

/// Which invariants are broken, and how often.
pub async fn broken(database: &Client) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for (invariant, count) in INVARIANTS {
        let count: i64 = database.query_one(count, &[]).await?.get(0);
        if count > 0 {
            broken.push(format!("{invariant}: {count} do not fit"));
        }
    }
    let money = money(database).await?;
    if !money.adds_up() {
        broken.push(format!("money in is not money out and balance: {money:?}"));
    }
    Ok(broken)
}

/// The money: in and out as the read models have it, the balance as the events have it.
pub async fn money(database: &Client) -> Result<Money> {
    let query = "SELECT
        (SELECT coalesce(sum(revenue), 0)::bigint FROM views.sales),
        (SELECT coalesce(sum(refunds), 0)::bigint FROM views.sales),
        (SELECT coalesce(sum(amount), 0)::bigint FROM views.payouts),
        (SELECT coalesce(sum(CASE event_type
            WHEN 'TicketPurchased' THEN (payload ->> 'price')::bigint
            WHEN 'TicketCancelled' THEN -(payload ->> 'price')::bigint
            WHEN 'PrizePaid' THEN -(payload ->> 'amount')::bigint ELSE 0 END), 0)::bigint FROM outbox.events)";
    let row = database.query_one(query, &[]).await?;
    Ok(Money { paid_in: row.get(0), refunded: row.get(1), won: row.get(2), balance: row.get(3) })
}
