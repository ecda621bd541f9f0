//! The schema of an outbox: its name, and texts that name it. Pure.
//!
//! The files in `sql/` and `deploy/roles.sql` are written for the schema `outbox`, so that they are SQL that everybody can
//! read and run. For a schema of another name their texts are rewritten here before they are used, each once: the
//! statements when an outbox is opened (`src/outbox/statements.rs`), the migrations when they are applied. What must not be
//! here: a statement, or a question to PostgreSQL.
//!
//! This file uses no other one: the support of the tests (`tests/support`) includes it as it is.

use std::borrow::Cow;

/// The name in the files.
const WRITTEN: &str = "outbox";

/// The longest name. PostgreSQL cuts names at 63 bytes, and the name of the schema is a part of others: of roles
/// (`NAME_application`) and of the sessions of a relay (`outbox-relay.NAME HOST/PID`).
const MOST_CHARACTERS: usize = 40;

/// Words that are no name without quotes: those of SQL in any version of PostgreSQL up to 18, other than its unreserved ones
/// (`pg_get_keywords`), and those that PL/pgSQL reserves besides ("pl_reserved_kwlist.h").
const RESERVED: &str = "\
    all analyse analyze and any array as asc asymmetric authorization begin between bigint binary bit boolean both by case \
    cast char character check coalesce collate collation column concurrently constraint create cross current_catalog \
    current_date current_role current_schema current_time current_timestamp current_user dec decimal declare default \
    deferrable desc distinct do else end except execute exists extract false fetch float for foreach foreign freeze from full \
    grant greatest group grouping having if ilike in initially inner inout int integer intersect interval into is isnull join \
    json json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize json_table \
    json_value lateral leading least left like limit localtime localtimestamp loop merge_action national natural nchar none \
    normalize not notnull null nullif numeric offset on only or order out outer overlaps overlay placing position precision \
    primary real references returning right row select session_user setof similar smallint some strict substring symmetric \
    system_user table tablesample then time timestamp to trailing treat trim true union unique user using values varchar \
    variadic verbose when where while window with xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces \
    xmlparse xmlpi xmlroot xmlserialize xmltable";

/// Schemas that are there already, and a prefix of settings that PostgreSQL keeps for PL/pgSQL.
const TAKEN: [&str; 3] = ["public", "information_schema", "plpgsql"];

/// The tasks for which `deploy/roles.sql` has a role each.
const TASKS: [&str; 5] = ["application", "relay", "operator", "reader", "consumer"];

/// The schema of an outbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd)]
pub struct Schema(Cow<'static, str>);

impl Schema {
    /// The one in the files.
    pub const OUTBOX: Self = Self(Cow::Borrowed(WRITTEN));

    /// A schema by its name, which needs no quotes in SQL, in PL/pgSQL and in settings: so texts stay as they are written
    /// but for this name.
    ///
    /// # Errors
    ///
    /// What the name is not, with the remedy: the rest of a sentence that begins with the name and `is not`.
    pub fn parse(name: &str) -> Result<Self, String> {
        let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        let remedy = "use another name, such as lottery_outbox";
        if !is_plain || name.len() > MOST_CHARACTERS {
            return Err(format!(
                "a name for the schema; use 1 to {MOST_CHARACTERS} lower-case letters, digits and underscores, beginning with \
                 a letter, such as lottery_outbox"
            ));
        }
        if name.starts_with("pg_") {
            return Err(format!("allowed: PostgreSQL keeps names that begin with pg_ for itself; {remedy}"));
        }
        if RESERVED.split_ascii_whitespace().any(|word| word == name) {
            return Err(format!("allowed: it is a word of SQL and would need quotes; {remedy}"));
        }
        if TAKEN.contains(&name) {
            return Err(format!("allowed: the outbox has a schema of its own, and this one is PostgreSQL's; {remedy}"));
        }
        Ok(Self(Cow::Owned(name.to_owned())))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Whether it has another name than in the files.
    pub fn is_renamed(&self) -> bool {
        self.0 != WRITTEN
    }

    /// A text of SQL for this schema. Code, literals and comments that name the schema get its name; what only has the same
    /// letters stays: prose, the program's name, paths and other names.
    pub fn sql<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.replace(text, names_schema)
    }

    /// The same for `deploy/roles.sql`, whose roles are named after the schema: two outboxes of a cluster do not share them.
    pub fn roles<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.replace(text, |before, after| names_schema(before, after) || names_role(before, after))
    }

    /// The name of the role for a task.
    pub fn role(&self, task: &str) -> String {
        format!("{}_{task}", self.0)
    }

    /// Replaces the word wherever it is meant; `is_meant` gets the texts before and after it.
    fn replace<'a>(&self, text: &'a str, is_meant: impl Fn(&str, &str) -> bool) -> Cow<'a, str> {
        if !self.is_renamed() {
            return Cow::Borrowed(text);
        }
        let (mut new, mut done) = (String::with_capacity(text.len() + text.len() / 4), 0);
        for (at, word) in text.match_indices(WRITTEN) {
            let (before, after) = (&text[..at], &text[at + word.len()..]);
            if is_meant(before, after) {
                new.push_str(&text[done..at]);
                new.push_str(&self.0);
                done = at + word.len();
            }
        }
        new.push_str(&text[done..]);
        Cow::Owned(new)
    }
}

impl Default for Schema {
    fn default() -> Self {
        Self::OUTBOX
    }
}

impl std::fmt::Display for Schema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether the word between these texts names the schema: before a dot and a name (`outbox.events`, also as a setting), as a
/// whole literal (`nspname = 'outbox'`), or behind SCHEMA.
fn names_schema(before: &str, after: &str) -> bool {
    let qualifies = after.strip_prefix('.').is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        && !before.ends_with(|c: char| is_of_a_name(c) || ['.', '/', '@'].contains(&c));
    let is_literal = before.ends_with('\'') && after.starts_with('\'');
    let is_named =
        before.ends_with("SCHEMA ") && !after.starts_with(|c: char| is_of_a_name(c) || ['.', '-'].contains(&c));
    qualifies || is_literal || is_named
}

/// Whether the word between these texts begins the name of a role.
fn names_role(before: &str, after: &str) -> bool {
    let is_task = |task: &str| {
        let rest = after.strip_prefix('_').and_then(|after| after.strip_prefix(task));
        rest.is_some_and(|rest| !rest.starts_with(is_of_a_name))
    };
    !before.ends_with(is_of_a_name) && TASKS.iter().any(|task| is_task(task))
}

/// Whether a character can be inside a name.
fn is_of_a_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}
