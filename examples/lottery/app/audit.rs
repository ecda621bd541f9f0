//! What must be true at the end of any run: the money adds up, nothing was sold after a draw, and every read model
//! equals a recomputation from the events.

use anyhow::Result;
use tokio_postgres::Client;

/// An invariant, and a statement that counts its violations.
type Invariant = (&'static str, &'static str);

/// What must be true of the events themselves.
const OF_EVENTS: [Invariant; 5] = [
    (
        "no ticket was sold or cancelled after the draw",
        "SELECT count(*) FROM outbox.events AS e
         JOIN outbox.events AS d ON d.stream_id = e.stream_id AND d.event_type = 'NumbersDrawn'
         WHERE e.event_type IN ('TicketPurchased', 'TicketCancelled') AND e.stream_version > d.stream_version",
    ),
    (
        "each ticket was sold once, and given back once at most, if it was sold",
        "SELECT count(*) FROM (
            SELECT FROM outbox.events WHERE event_type IN ('TicketPurchased', 'TicketCancelled')
            GROUP BY payload ->> 'ticket', event_type HAVING count(*) > 1
            UNION ALL
            SELECT FROM outbox.events AS c WHERE c.event_type = 'TicketCancelled' AND NOT EXISTS (
                SELECT FROM outbox.events AS b WHERE b.event_type = 'TicketPurchased' AND b.stream_id = c.stream_id
                    AND b.payload ->> 'ticket' = c.payload ->> 'ticket' AND b.stream_version < c.stream_version)
         ) AS w",
    ),
    (
        "the numbers of a draw were drawn once",
        "SELECT count(*) FROM (
            SELECT FROM outbox.events WHERE event_type = 'NumbersDrawn' GROUP BY stream_id HAVING count(*) > 1
         ) AS w",
    ),
    (
        "every winner was paid the prize once, and nobody else was paid",
        "WITH won AS (
            SELECT b.stream_id AS draw, b.payload ->> 'ticket' AS ticket, (ARRAY[10, 100, 1000, 100000])[m.count - 2]::bigint AS amount
            FROM outbox.events AS b
            JOIN outbox.events AS d ON d.stream_id = b.stream_id AND d.event_type = 'NumbersDrawn'
            CROSS JOIN LATERAL (
                SELECT count(*)::int AS count FROM jsonb_array_elements(b.payload -> 'numbers') AS n (number)
                WHERE d.payload -> 'numbers' @> n.number
            ) AS m
            WHERE b.event_type = 'TicketPurchased' AND m.count >= 3 AND NOT EXISTS (
                SELECT FROM outbox.events AS c
                WHERE c.event_type = 'TicketCancelled' AND c.payload ->> 'ticket' = b.payload ->> 'ticket')
         ), paid AS (
            SELECT stream_id, payload ->> 'ticket', (payload ->> 'amount')::bigint FROM outbox.events WHERE event_type = 'PrizePaid'
         ) SELECT count(*) FROM (
            (SELECT * FROM won EXCEPT ALL SELECT * FROM paid) UNION ALL (SELECT * FROM paid EXCEPT ALL SELECT * FROM won)
         ) AS w",
    ),
    (
        "every stream has each version once",
        "SELECT count(*) FROM (SELECT max(stream_version) - count(*) AS gap FROM outbox.events GROUP BY stream_id) AS s WHERE gap <> 0",
    ),
];

/// What must be true of the read models, when they have caught up.
const OF_VIEWS: [Invariant; 4] = [
    (
        "the numbers of each draw are what the events say",
        "WITH truth AS (
            SELECT stream_id AS draw, (SELECT string_agg(n, ' ') FROM jsonb_array_elements_text(payload -> 'numbers') AS n) AS numbers
            FROM outbox.events WHERE event_type = 'NumbersDrawn'
         ) SELECT count(*) FROM views.sales AS s FULL JOIN truth AS t USING (draw) WHERE s.numbers IS DISTINCT FROM t.numbers",
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
            (SELECT * FROM truth EXCEPT ALL SELECT ticket, draw, player, state, won FROM views.tickets)
            UNION ALL
            (SELECT ticket, draw, player, state, won FROM views.tickets EXCEPT ALL SELECT * FROM truth)
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
            (SELECT * FROM truth EXCEPT ALL SELECT draw, price, sold, cancelled, revenue, refunds, prizes FROM views.sales)
            UNION ALL
            (SELECT draw, price, sold, cancelled, revenue, refunds, prizes FROM views.sales EXCEPT ALL SELECT * FROM truth)
         ) SELECT count(*) FROM wrong",
    ),
    (
        "the payouts are what the events say",
        "WITH truth AS (
            SELECT stream_id AS draw, count(*) AS winners, sum((payload ->> 'amount')::bigint)::bigint AS amount
            FROM outbox.events WHERE event_type = 'PrizePaid' GROUP BY stream_id
         ), wrong AS (
            (SELECT * FROM truth EXCEPT ALL SELECT draw, winners, amount FROM views.payouts)
            UNION ALL
            (SELECT draw, winners, amount FROM views.payouts EXCEPT ALL SELECT * FROM truth)
         ) SELECT count(*) FROM wrong",
    ),
];

/// Money in, money out and the balance, each from a separate read model with a separate queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Money {
    pub paid_in: i64,
    pub refunded: i64,
    pub won: i64,
    /// What is left of the price of the tickets that were not returned, according to the players' tickets.
    pub balance: i64,
}

impl Money {
    pub fn adds_up(&self) -> bool {
        self.paid_in == self.refunded + self.won + self.balance
    }
}

async fn broken_of(database: &Client, invariants: &[Invariant]) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for (invariant, count) in invariants {
        let count: i64 = database.query_one(*count, &[]).await?.get(0);
        if count > 0 {
            broken.push(format!("{invariant}: {count} do not fit"));
        }
    }
    Ok(broken)
}

/// Which invariants of the events are violated, and how often.
pub async fn broken_by_events(database: &Client) -> Result<Vec<String>> {
    broken_of(database, &OF_EVENTS).await
}

/// Which invariants are violated, and how often.
pub async fn broken(database: &Client) -> Result<Vec<String>> {
    let mut broken = broken_by_events(database).await?;
    broken.extend(broken_of(database, &OF_VIEWS).await?);
    let money = money(database).await?;
    if !money.adds_up() {
        broken.push(format!("money in is not money out and balance: {money:?}"));
    }
    Ok(broken)
}

/// The money: paid in and refunded according to the sales, won according to the payouts, balance according to the
/// tickets.
pub async fn money(database: &Client) -> Result<Money> {
    let query = "SELECT
        (SELECT coalesce(sum(revenue), 0)::bigint FROM views.sales),
        (SELECT coalesce(sum(refunds), 0)::bigint FROM views.sales),
        (SELECT coalesce(sum(amount), 0)::bigint FROM views.payouts),
        (SELECT coalesce(sum(s.price) FILTER (WHERE t.state <> 'cancelled'), 0)::bigint - coalesce(sum(t.won), 0)::bigint
            FROM views.tickets AS t JOIN views.sales AS s USING (draw))";
    let row = database.query_one(query, &[]).await?;
    Ok(Money { paid_in: row.get(0), refunded: row.get(1), won: row.get(2), balance: row.get(3) })
}
