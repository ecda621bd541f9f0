//! The relay's statements with parameters as large as they can be, and the index by which each may reach the messages.

/// A statement of the relay with parameters, and how it may reach the pending messages.
pub(super) struct Planned {
    pub(super) name: &'static str,
    pub(super) sql: &'static str,
    pub(super) types: &'static str,
    pub(super) arguments: &'static str,
    /// The index, and the columns that its condition must have so that it walks no more than needed.
    pub(super) pending: &'static [Way],
}

macro_rules! query {
    ($name:literal) => {
        include_str!(concat!("../../../sql/queries/", $name, ".sql"))
    };
}

pub(super) const LANES: &str = "'{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}'";
const CURSORS: &str = "'{9,9,9,9,9,9,9,9,9,9,9,9,9,9,9,9}'";
/// The most messages of each lane in one read, with the largest batch size.
const MANY: &str = "array_fill(625::bigint, '{16}')";
/// More bytes of each lane than these messages have.
const BYTES: &str = "array_fill(1000000::bigint, '{16}')";
/// The most messages in one settling.
const SETTLED_LANES: &str = "array_fill(3::smallint, '{2000}')";
const SETTLED: &str = "array_fill(7::bigint, '{2000}')";
const SETTLED_TIMES: &str = "array_fill(now(), '{2000}')";
/// The most groups in one question.
const GROUP_NAMES: &str = "array_fill('g1'::text, '{1000}')";
const TOPS: &str = "array_fill(30000::bigint, '{16}')";
const PKEY: &str = "messages_pending_pkey";
const DEFERRED: &str = "messages_pending_deferred";

const GROUPS: &str = "messages_pending_deferred_groups";

pub(super) type Way = (&'static str, &'static [&'static str]);

const ABOVE: Way = (PKEY, &["destination =", "lane =", "id >"]);
const ONE: Way = (PKEY, &["destination =", "lane =", "id ="]);
const DUE: Way = (DEFERRED, &["available_at <="]);
const AHEAD: Way = (DEFERRED, &["available_at >"]);
/// The first destination, and then the next one.
const FIRST: Way = (PKEY, &[]);
const HELD_BACK: Way = (DEFERRED, &["available_at ="]);
const ANY_DEFERRED: Way = (DEFERRED, &["destination ="]);
const ANY_DEFERRED_GROUP: Way = (GROUPS, &["destination ="]);
const OF_GROUP: Way = (GROUPS, &["destination =", "group_id ="]);

/// How other tables and partitions may be reached.
pub(super) const OTHERS: [(&str, Way); 13] = [
    ("served", ("served_pkey", &["destination ="])),
    ("messages_dead", ("messages_dead_groups", &["destination ="])),
    ("messages_dead", ("messages_dead_pkey", &["destination ="])),
    ("messages_delivered", ("messages_delivered_pkey", &["destination =", "lane =", "id ="])),
    ("messages_dead", ("messages_dead_pkey", &["destination =", "lane =", "id ="])),
    ("quarantine", ("quarantine_pkey", &["destination ="])),
    ("quarantine", ("quarantine_groups", &["destination ="])),
    ("events", ("events_pkey", &["position ="])),
    ("messages_id_seq", ("", &[])),
    ("messages_scheduled", ("messages_scheduled_due", &["destination ="])),
    // The next name.
    ("messages_scheduled", ("messages_scheduled_due", &["destination >"])),
    ("messages_scheduled", ("messages_scheduled_pkey", &["destination >"])),
    ("messages_scheduled", ("messages_scheduled_pkey", &["destination =", "lane =", "id ="])),
];

/// Words in capitals stand for the arrays above.
pub(super) const STATEMENTS: [Planned; 17] = [
    Planned { name: "watch", sql: query!("watch"), types: "text[]", arguments: "'{audit,tickets}'", pending: &[DUE] },
    Planned {
        name: "look",
        sql: query!("look"),
        types: "text, smallint[], bigint[], boolean, float8, boolean",
        arguments: "'audit', LANES, CURSORS, true, 60, true",
        pending: &[ABOVE, DUE, AHEAD, OF_GROUP],
    },
    Planned {
        name: "read",
        sql: query!("read"),
        types: "text, smallint[], bigint[], bigint[], bigint[], bigint, boolean, boolean, text, text, boolean, bigint",
        arguments: "'audit', LANES, CURSORS, MANY, BYTES, 1048576, true, true, '1', '', false, 16000000",
        pending: &[ABOVE, OF_GROUP, ANY_DEFERRED, ANY_DEFERRED_GROUP],
    },
    Planned {
        name: "read_groups",
        sql: query!("read_groups"),
        types: "text, smallint[], text[], bigint[], bigint[], bigint[], bigint, boolean, text, text, boolean, bigint[],
            bigint",
        arguments:
            "'audit', '{3,4}', '{g1,g2}', '{10,10}', '{20,20}', '{1000000,1000000}', 1048576, true, '1', '', false,
            '{900,900}', 1000000",
        pending: &[ABOVE],
    },
    Planned {
        name: "read_due",
        sql: query!("read_due"),
        types: "text, smallint[], bigint, bigint, text[], bigint, float8, boolean, text, text, boolean, boolean",
        arguments: "'audit', LANES, 1000, 1000000, '{g1}', 1048576, 60, true, '1', '', false, true",
        pending: &[DUE, AHEAD, OF_GROUP],
    },
    Planned {
        name: "rescan",
        sql: query!("rescan"),
        types: "text, smallint[], bigint[], bigint[], bigint, text[], text[], smallint[], boolean, text, text, text[]",
        arguments: "'audit', LANES, CURSORS, TOPS, 100, '{g1,g2}', '{5,6}', LANES, true, '1', '', '{g1}'",
        pending: &[ABOVE, OF_GROUP, ANY_DEFERRED, ANY_DEFERRED_GROUP],
    },
    Planned {
        name: "held_groups",
        sql: query!("held_groups"),
        types: "text, text[], boolean",
        arguments: "'audit', NAMES, true",
        pending: &[OF_GROUP],
    },
    Planned {
        name: "pending",
        sql: query!("pending"),
        types: "text, boolean, boolean, smallint[], bigint, bigint",
        arguments: "'audit', true, true, LANES, 10, 20000",
        pending: &[ABOVE, OF_GROUP, HELD_BACK],
    },
    Planned {
        name: "longest_groups",
        sql: query!("longest_groups"),
        types: "text, smallint[], bigint[], bigint, bigint",
        arguments: "'audit', LANES, CURSORS, 10000, 3",
        pending: &[ABOVE],
    },
    Planned {
        name: "unserved",
        sql: query!("unserved"),
        types: "text[], float8, bigint",
        arguments: "'{tickets}', 180, 100000",
        pending: &[FIRST],
    },
    Planned {
        name: "deliver",
        sql: query!("deliver"),
        types: "text, smallint[], bigint[], bigint[], timestamptz[], text[], text[]",
        arguments: "'audit', KEY_LANES, KEYS, KEYS, TIMES, KEYS, KEYS",
        pending: &[ONE],
    },
    Planned {
        name: "supersede",
        sql: query!("supersede"),
        types: "text, smallint[], bigint[], bigint[], timestamptz[], text[]",
        arguments: "'audit', KEY_LANES, KEYS, KEYS, TIMES, KEYS",
        pending: &[ONE],
    },
    Planned {
        name: "delete_delivered",
        sql: query!("delete_delivered"),
        types: "text, smallint[], bigint[], bigint[], timestamptz[]",
        arguments: "'audit', KEY_LANES, KEYS, KEYS, TIMES",
        pending: &[ONE],
    },
    Planned {
        name: "defer",
        sql: query!("defer"),
        types: "text, smallint[], bigint[], bigint[], timestamptz[], smallint[], bigint[], text[], text, text",
        arguments: "'audit', KEY_LANES, KEYS, KEYS, TIMES, KEY_LANES, KEYS, KEYS, '1', ''",
        pending: &[ONE],
    },
    Planned {
        name: "dead_letter",
        sql: query!("dead_letter"),
        types: "text, smallint[], bigint[], bigint[], timestamptz[], smallint[], text[], text, text",
        arguments: "'audit', KEY_LANES, KEYS, KEYS, TIMES, KEY_LANES, KEYS, '1', ''",
        pending: &[ONE],
    },
    Planned {
        name: "replace",
        sql: query!("replace"),
        types: "text, smallint[], bigint[], bigint[], timestamptz[]",
        arguments: "'audit', KEY_LANES, KEYS, KEYS, TIMES",
        pending: &[ONE],
    },
    Planned {
        name: "unmatched",
        sql: query!("unmatched"),
        types: "text, smallint[], bigint[], bigint[], timestamptz[], text[]",
        arguments: "'audit', KEY_LANES, KEYS, KEYS, TIMES, KEYS",
        pending: &[ONE],
    },
];

/// A statement's arguments, with words replaced by their arrays.
pub(super) fn written_out(arguments: &str) -> String {
    let arrays = [
        ("KEY_LANES", SETTLED_LANES),
        ("KEYS", SETTLED),
        ("TIMES", SETTLED_TIMES),
        ("NAMES", GROUP_NAMES),
        ("TOPS", TOPS),
        ("LANES", LANES),
        ("CURSORS", CURSORS),
        ("MANY", MANY),
        ("BYTES", BYTES),
    ];
    arrays.iter().fold(arguments.to_owned(), |all, (word, array)| all.replace(word, array))
}
