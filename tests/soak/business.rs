//! What a purchase writes in its transaction beside the ticket: messages to further destinations, a receipt as text, a
//! reminder for later, and now and then the cancellation of somebody's reminder.

use anyhow::Result;
use fastrand::Rng;
use tokio_postgres::{Client, Statement};

use crate::destinations::Kind;
use support::lottery::shop::{Begun, Purchase, Writer};

/// A reminder is at most this far ahead, in milliseconds.
const AHEAD_MS: i64 = 6000;

/// One purchase in this many cancels a reminder.
const CANCELS_ONE_IN: u32 = 40;

/// The business's own record of its reminders: it is right whatever a server has lost, as each row is written in the
/// transaction that writes, moves or deletes the message.
const TABLES: &str = "
    CREATE TABLE lottery.reminders (
        ticket     bigint PRIMARY KEY,
        message_id bigint NOT NULL,
        deliver_at timestamptz NOT NULL,
        cancelled  boolean NOT NULL DEFAULT false
    );
    CREATE INDEX ON lottery.reminders (deliver_at) WHERE NOT cancelled";

/// The same event to one more destination.
const SEND_TOO: &str = "INSERT INTO outbox.messages (destination, event_position, group_id) VALUES ($1, $2, $3)";

const PRINT: &str = "SELECT outbox.enqueue('receipts', 'ReceiptPrinted', group_id => $1, body => $2,
    metadata => jsonb_build_object('ticket', $3::bigint::text, 'content-type', 'application/xml'))";

const REMIND: &str = "WITH at AS MATERIALIZED (SELECT clock_timestamp() + $4::bigint * interval '1 ms' AS deliver_at)
    INSERT INTO lottery.reminders (ticket, message_id, deliver_at)
    SELECT $1, outbox.enqueue('reminders', 'DrawReminder',
        jsonb_build_object('ticket', $1::bigint, 'draw', $2::text, 'number', $3::bigint), deliver_at => deliver_at), deliver_at
    FROM at";

/// $1 how many of those that fall due next to pass over. Some are due already, and it may be too late.
const CANCEL: &str = "WITH chosen AS (
        SELECT ticket, message_id FROM lottery.reminders
        WHERE NOT cancelled AND deliver_at > now() ORDER BY deliver_at OFFSET $1 LIMIT 1 FOR UPDATE SKIP LOCKED
    ), deleted AS (
        DELETE FROM outbox.messages_scheduled AS m USING chosen AS c
        WHERE m.destination = 'reminders' AND m.id = c.message_id RETURNING c.ticket
    )
    UPDATE lottery.reminders AS r SET cancelled = true FROM deleted AS d WHERE r.ticket = d.ticket";

/// Creates the tables of the further business.
pub async fn open(client: &Client) -> Result<()> {
    Ok(client.batch_execute(TABLES).await?)
}

/// Whether the receipt of this ticket goes to the bucket.
pub fn is_large(ticket: u64) -> bool {
    ticket.is_multiple_of(16)
}

/// The text of a receipt. A few are larger than what SQS takes.
pub fn receipt_text(ticket: u64, draw: &str, number_in_draw: u64) -> String {
    let words = match ticket {
        _ if ticket.is_multiple_of(2000) => 120_000,
        _ if is_large(ticket) => 1000,
        _ => ticket % 20,
    };
    let note = "Grüße & <Dank>\t".repeat(usize::try_from(words).unwrap_or_default());
    format!("<receipt  ticket=\"{ticket}\" draw='{draw}' number=\"{number_in_draw}\">{note}</receipt>\n")
}

/// The prepared statements of a session.
pub struct Business {
    send_too: Statement,
    print: Statement,
    remind: Statement,
    cancel: Statement,
}

impl Business {
    pub async fn prepare(writer: &Writer) -> Result<Business> {
        Ok(Business {
            send_too: writer.prepare_another(SEND_TOO).await?,
            print: writer.prepare_another(PRINT).await?,
            remind: writer.prepare_another(REMIND).await?,
            cancel: writer.prepare_another(CANCEL).await?,
        })
    }

    pub async fn write(&self, begun: &Begun<'_>, purchase: &Purchase, dice: &mut Rng) -> Result<()> {
        let Begun { transaction, number_in_draw, position } = begun;
        let Purchase { ticket, draw, .. } = purchase;
        let number = ticket.cast_unsigned();
        for kind in [Kind::Players, Kind::Feed].into_iter().filter(|kind| kind.is_for(number)) {
            transaction.execute(&self.send_too, &[&kind.name(), position, draw]).await?;
        }
        if Kind::Receipts.is_for(number) {
            let text = receipt_text(number, draw, number_in_draw.cast_unsigned());
            transaction.query_one(&self.print, &[draw, &text, ticket]).await?;
        }
        if Kind::Reminders.is_for(number) {
            let ahead = dice.i64(0..AHEAD_MS);
            transaction.execute(&self.remind, &[ticket, draw, number_in_draw, &ahead]).await?;
        }
        if dice.u32(..CANCELS_ONE_IN) == 0 {
            transaction.execute(&self.cancel, &[&dice.i64(0..20)]).await?;
        }
        Ok(())
    }
}
