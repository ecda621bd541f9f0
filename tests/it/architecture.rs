//! The arrows of the house: a module uses lower floors only, and what is foreign is known in one place.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Each module's floor, as `src/lib.rs` tells.
const FLOORS: [(&str, u8); 18] = [
    ("files", 3),
    ("clock", 0),
    ("message", 1),
    ("config", 2),
    ("reading", 2),
    ("retry", 3),
    ("metrics", 3),
    ("health", 3),
    ("shutdown", 3),
    ("logging", 3),
    ("outbox", 4),
    ("sqs", 4),
    ("relay", 5),
    ("janitor", 5),
    ("http", 5),
    ("daemon", 6),
    ("cli", 7),
    ("main", 8),
];

/// What only some files may name.
const CONFINED: [(&str, &[&str]); 7] = [
    ("tokio_postgres", &["outbox/", "config/database.rs"]),
    ("aws_config", &["sqs/"]),
    ("aws_credential", &["sqs/"]),
    ("aws_sdk", &["sqs/"]),
    ("aws_smithy", &["sqs/"]),
    ("std::env", &["config/"]),
    ("backoff::", &["retry.rs"]),
];

/// What files in a folder may not name: the core of the relay decides and does nothing, so that a simulation can run it.
const FORBIDDEN: [(&str, &str); 5] = [
    ("relay/core/", "tokio::"),
    ("relay/core/", "::now("),
    ("relay/core/", "tracing::"),
    ("relay/core/", "async "),
    ("relay/core/", "super::super::session"),
];

/// A source file: its path below `src` and its code, comments and texts left out.
struct Source {
    path: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), code: code_of(text) }
    }

    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The modules that follow `crate::`, braces of `use crate::{…}` included.
    fn used(&self) -> Vec<String> {
        let mut used = Vec::new();
        for rest in self.code.split("crate::").skip(1) {
            match rest.strip_prefix('{') {
                Some(group) => used.extend(names_of(group)),
                None => used.push(first_name(rest)),
            }
        }
        used
    }
}

/// The code without comments and literals, so that prose breaks no rule.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        for piece in line.split('"').step_by(2) {
            let before_comment = piece.split("//").next().unwrap_or_default();
            code.push_str(before_comment);
            if before_comment.len() < piece.len() {
                break;
            }
        }
        code.push('\n');
    }
    code
}

fn first_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first names of the paths in `a::{b, c}, d}`.
fn names_of(group: &str) -> Vec<String> {
    let (mut depth, mut names, mut current) = (0, Vec::new(), String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(first_name(std::mem::take(&mut current).trim())),
            _ if depth == 0 => current.push(c),
            _ => {}
        }
    }
    names.push(first_name(current.trim()));
    names.retain(|name| !name.is_empty());
    names
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// Every broken rule of a file, one sentence each.
fn violations(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let own = source.module();
    let Some(own_floor) = floor(own) else {
        return vec![format!("src/{} is on no floor", source.path)];
    };
    for used in source.used() {
        let is_below = floor(&used).is_some_and(|floor| floor < own_floor);
        if used != own && !is_below {
            found.push(format!("src/{} on floor {own_floor} uses {used}", source.path));
        }
    }
    for (name, places) in CONFINED {
        let is_at_home = places.iter().any(|place| source.path.starts_with(place));
        // A name begins where no other goes on.
        let mut uses = source.code.match_indices(name);
        let is_whole = |at: usize| !source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if !is_at_home && uses.any(|(at, _)| is_whole(at)) {
            found.push(format!("src/{} names {name}", source.path));
        }
    }
    for (folder, name) in FORBIDDEN {
        if source.path.starts_with(folder) && source.code.contains(name) {
            found.push(format!("src/{} names {name}", source.path));
        }
    }
    found
}

fn sources() -> Result<Vec<Source>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path: PathBuf = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(&root)?.to_str().context("a file name that is not text")?;
                sources.push(Source::new(below, &std::fs::read_to_string(&path)?));
            }
        }
    }
    sources.retain(|source| source.path != "lib.rs");
    Ok(sources)
}

#[test]
fn modules_use_lower_floors_only() -> Result<()> {
    let sources = sources()?;
    ensure!(sources.len() > 20, "only {} files were found", sources.len());
    let mut text = String::new();
    for violation in sources.iter().flat_map(violations) {
        writeln!(text, "{violation}")?;
    }
    ensure!(text.is_empty(), "{text}");
    Ok(())
}

#[test]
fn every_module_of_the_library_has_a_floor() -> Result<()> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"))?;
    let mut modules = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("pub mod ")) {
        modules.push(line.trim_end_matches(';').to_owned());
    }
    ensure!(modules.len() > 10, "{modules:?}");
    for module in &modules {
        ensure!(floor(module).is_some(), "{module} is on no floor");
    }
    for (module, _) in FLOORS.iter().filter(|(module, _)| *module != "main") {
        ensure!(modules.iter().any(|declared| declared == module), "there is no module {module}");
    }
    Ok(())
}

#[test]
fn a_broken_rule_would_be_seen() -> Result<()> {
    let broken = [
        ("outbox/read.rs", "use crate::sqs::Queue;"),
        ("sqs/mod.rs", "use crate::{message::Message, outbox::{Outbox, Claim}};"),
        ("retry.rs", "fn f() { crate::relay::stream(); }"),
        ("message.rs", "use crate::config::Tuning;"),
        ("reading.rs", "use crate::config::Tuning;"),
        ("relay/core/intake.rs", "let now = Time::now();"),
        ("relay/core/flight.rs", "tokio::spawn(f());"),
        ("janitor.rs", "use crate::http::ask;"),
        ("relay/mod.rs", "use tokio_postgres::Client;"),
        ("outbox/mod.rs", "use aws_sdk_sqs::Client;"),
        ("daemon.rs", "let level = std::env::var(\"RUST_LOG\");"),
        ("relay/report.rs", "use backoff::ExponentialBackoff;"),
        ("stray.rs", ""),
    ];
    for (path, text) in broken {
        let found = violations(&Source::new(path, text));
        ensure!(found.len() == 1, "{path} with {text:?} breaks one rule, seen were {found:?}");
    }
    let kept = [
        ("config/mod.rs", "use crate::message::QueueKind; let x = std::env::vars();"),
        (
            "relay/mod.rs",
            "/// [`crate::daemon`] does that.\nuse crate::outbox::Outbox; // crate::cli\nlet s = \"crate::cli\";",
        ),
        (
            "relay/session.rs",
            "let now = Time::now(); use crate::relay::Destination; use crate::{retry::Fault, sqs::{Load, Entry}};",
        ),
        ("cli.rs", "let my_backoff::x = draws_::y;"),
    ];
    for (path, text) in kept {
        let found = violations(&Source::new(path, text));
        ensure!(found.is_empty(), "{path} with {text:?} breaks no rule, seen were {found:?}");
    }
    Ok(())
}
