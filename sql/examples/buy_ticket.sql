-- A ticket is bought: the purchase and its messages are one transaction of ordinary statements, so either all of it
-- happens or nothing does. examples/lottery runs this file; an application in any language would do the same. Each
-- statement numbers its own parameters.

BEGIN;

-- Takes the draw's row lock, so the buyers of one draw wait for each other until COMMIT. Therefore events of the draw
-- get their versions, and messages of its group their ids, in the order of the purchases.
-- $1 draw
-- $1 draw
UPDATE lottery.draws SET tickets_sold = tickets_sold + 1 WHERE draw = $1 RETURNING tickets_sold;

-- The business row.
-- $1 ticket, $2 draw, $3 tickets_sold, $4 the numbers chosen
INSERT INTO lottery.tickets (ticket, draw, number_in_draw, numbers) VALUES ($1, $2, $3, $4);

-- The event. Its payload is stored here once and becomes the body of both messages. "destinations" says where it goes
-- and in which group, so that it can be replayed long after the messages are gone.
-- $1 draw, $2 tickets_sold, $3 ticket, $4 the numbers chosen
-- $1 draw, $2 tickets_sold, $3 ticket, $4 the numbers chosen
INSERT INTO outbox.events (event_type, stream_id, stream_version, payload, destinations)
VALUES (
    'TicketPurchased', $1::text, $2::bigint,
    jsonb_build_object('ticket', $3::bigint, 'draw', $1::text, 'numbers', $4::text),
    jsonb_build_object('tickets', $1::text, 'audit', NULL)
)
RETURNING position;

-- The destinations of the event: in the order of the draw to the FIFO queue, and in any order to the standard queue.
-- $1 position, $2 draw
INSERT INTO outbox.messages (destination, event_position, group_id)
VALUES ('tickets', $1, $2), ('audit', $1, NULL);

COMMIT;
