-- Whether quiet destinations need a closer look: the cheapest question an idle relay can ask, many times a second.
--
-- $1 destinations. Guarantees: one row. "last_id" is the highest message id handed out so far, committed or not, to any
-- destination; "is_due" says whether a retry is due.
-- It names the partition, because planning a partitioned table costs more than running this.
-- Index: messages_pending_deferred. now() is this statement's start and, unlike clock_timestamp(), can use the index.
SELECT
    (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM outbox.messages_id_seq) AS last_id,
    EXISTS (SELECT FROM outbox.messages_pending AS m WHERE m.destination = ANY ($1) AND m.available_at <= now()) AS is_due
