//! How texts are rewritten for a schema of another name: every place that names it, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::outbox::{MIGRATIONS, script};

const ROLES: &str = include_str!("../../../deploy/roles.sql");

fn other() -> Schema {
    Schema::parse("lottery_outbox").unwrap()
}

/// Texts that name the schema, and what they become; the name is where the tilde is.
const NAMING: [&str; 12] = [
    "SELECT ~.enqueue('a', 'T', '1')",
    "FROM ~.messages AS m",
    "'~.events'::regclass",
    "nspname = '~'",
    "hashtext('~' || $1)",
    "'~'::regnamespace",
    "CREATE SCHEMA ~;",
    "ON SCHEMA ~ FROM x",
    "current_setting('~.fenced', true)",
    "SET LOCAL ~.maintenance = ''on''",
    "-- see ~.check_event().",
    "(~.lane(g, p), 1-~.lane(g, p))",
];

/// Texts that have the word and do not name the schema.
const OTHERS: [&str; 12] = [
    "`outbox-relay migrate`",
    "LIKE 'outbox-relay %'",
    "let the outbox run empty",
    "the outbox. Then",
    "outbox's",
    "docs/outbox.md",
    "https://outbox.example",
    "my_outbox.events",
    "a.outbox.b",
    "SELECT outbox FROM t",
    "SCHEMA outbox_2",
    "outbox_relay_lag_seconds",
];

#[test]
fn every_place_that_names_the_schema_gets_its_name_and_no_other_word_does() {
    for text in NAMING {
        let (written, expected) = (text.replace('~', "outbox"), text.replace('~', "lottery_outbox"));
        assert_eq!(other().sql(&written), expected);
    }
    for text in OTHERS {
        assert_eq!(other().sql(text), text);
    }
}

#[test]
fn roles_are_named_after_the_schema_and_metrics_are_not() {
    let text =
        "GRANT SELECT ON outbox.events TO outbox_relay, outbox_operator; -- outbox_relay_lag_seconds my_outbox_relay";
    let expected = "GRANT SELECT ON x.events TO x_relay, x_operator; -- outbox_relay_lag_seconds my_outbox_relay";
    let schema = Schema::parse("x").unwrap();
    assert_eq!(schema.roles(text), expected);
    assert_eq!(schema.role("relay"), "x_relay");
}

/// What follows the word where it is prose in a literal, or the name of the program.
const NO_NAME: [&str; 3] = ["-relay", " run empty before", " in this database"];

/// The word, wherever it stands alone outside of comments and is a name. This knows nothing of the rules by
/// which texts are rewritten.
fn left(sql: &str) -> Vec<String> {
    let code: Vec<&str> = sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let found = code.match_indices("outbox").filter(|(at, word)| {
        let (before, after) = (&code[..*at], &code[at + word.len()..]);
        !before.ends_with(is_part) && !after.starts_with(is_part) && !NO_NAME.iter().any(|text| after.starts_with(text))
    });
    found.map(|(at, _)| code[at..].chars().take(40).collect()).collect()
}

#[test]
fn no_statement_no_migration_and_no_grant_names_the_schema_of_the_files_after_it_was_rewritten() {
    let schema = Schema::parse("x").unwrap();
    let statements = Statements::of(&schema);
    for (name, sql) in statements.all() {
        assert_eq!(left(sql), [""; 0], "{name}");
    }
    for migration in MIGRATIONS {
        assert_eq!(left(&schema.sql(migration.sql)), [""; 0], "{}", migration.name);
    }
    assert_eq!(left(&script(&schema)), [""; 0]);
    assert_eq!(left(&schema.roles(ROLES)), [""; 0]);
    assert!(!schema.roles(ROLES).contains("outbox_"), "a role is named after another schema");
    assert!(left(MIGRATIONS[0].sql).len() > 30, "nothing would be found");
}

#[test]
fn every_file_of_queries_is_a_statement() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/queries");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: BTreeSet<String> =
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    if cfg!(not(feature = "dev")) {
        files.remove("recorded");
    }
    let statements = Statements::of(&Schema::OUTBOX);
    let statements: BTreeSet<String> = statements.all().into_iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(statements, files);
}

fn name() -> impl Strategy<Value = Schema> {
    "[a-z][a-z0-9_]{0,39}".prop_filter_map("it is a word of SQL", |name| Schema::parse(&name).ok())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_schema_of_the_files_leaves_every_text_as_it_is(text in "(outbox|[ -~]|\\PC){0,40}") {
        prop_assert_eq!(&Schema::OUTBOX.sql(&text), &text);
        prop_assert!(matches!(Schema::OUTBOX.sql(&text), Cow::Borrowed(_)), "it was copied");
    }

    /// Whatever stands beside them.
    #[test]
    fn texts_are_rewritten_place_by_place(
        places in prop::collection::vec((0..NAMING.len() + OTHERS.len(), " |\n|, |\\)|;\t"), 0..20), schema in name(),
    ) {
        let (mut written, mut expected) = (String::new(), String::new());
        for (place, between) in places {
            let text = NAMING.iter().chain(&OTHERS).nth(place).unwrap();
            written.push_str(&format!("{}{between}", text.replace('~', "outbox")));
            expected.push_str(&format!("{}{between}", text.replace('~', schema.name())));
        }
        prop_assert_eq!(schema.sql(&written), expected);
    }

    /// A name as long as the one in the files shows it: every other character stays, in its place.
    #[test]
    fn only_whole_names_are_replaced(text in "(outbox|outbox\\.a|'outbox'|SCHEMA outbox|[ -~]|\\PC){0,20}") {
        let new = Schema::parse("abcdef").unwrap().sql(&text).into_owned();
        prop_assert_eq!(new.len(), text.len());
        let mut at = 0;
        while at < text.len() {
            if text.as_bytes()[at] == new.as_bytes()[at] {
                at += 1;
            } else {
                prop_assert_eq!((&text[at..at + 6], &new[at..at + 6]), ("outbox", "abcdef"));
                at += 6;
            }
        }
    }

    #[test]
    fn any_text_is_a_name_that_needs_no_quotes_or_is_refused_with_a_remedy(text in "[a-z_]{1,8}|[ -~]{0,50}|\\PC{0,10}") {
        match Schema::parse(&text) {
            Ok(schema) => {
                prop_assert_eq!(schema.name(), &text);
                prop_assert!((1..=40).contains(&text.len()) && !text.starts_with("pg_"));
                prop_assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'));
                prop_assert!(text.as_bytes()[0].is_ascii_lowercase());
            }
            Err(sentence) => prop_assert!(sentence.contains("; use ") && sentence.contains("such as lottery_outbox"), "{}", sentence),
        }
    }
}
