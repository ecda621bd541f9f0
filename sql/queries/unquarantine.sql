-- Ends the quarantine of a message whose outcome was recorded after all.
--
-- $1 destination, $2 lane, $3 id, $4 event position. Index: quarantine_pkey.
DELETE FROM outbox.quarantine AS q
WHERE q.destination = $1 AND q.lane = $2 AND q.message_id = $3 AND q.event_position = $4
