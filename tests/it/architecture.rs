//! The rules of the architecture: a module uses only lower floors, files of a module do not use each other in circles,
//! and each foreign crate is known in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Each module's floor, as in `src/lib.rs`.
const FLOORS: [(&str, u8); 27] = [
    ("files", 3),
    ("aws", 3),
    ("causes", 0),
    ("clock", 0),
    ("message", 1),
    ("schema", 1),
    ("way", 1),
    ("config", 2),
    ("reading", 2),
    ("retry", 3),
    ("metrics", 3),
    ("health", 3),
    ("board", 3),
    ("settings", 3),
    ("shutdown", 3),
    ("logging", 3),
    ("outbox", 4),
    ("publisher", 4),
    ("page", 4),
    ("traces", 4),
    ("relay", 5),
    ("janitor", 5),
    ("http", 5),
    ("daemon", 6),
    ("dev", 6),
    ("cli", 7),
    ("main", 8),
];

/// Names that only some files may use.
const CONFINED: [(&str, &[&str]); 8] = [
    ("tokio_postgres", &["outbox/"]),
    ("aws_config", &["aws/", "publisher/"]),
    ("aws_credential", &["aws/", "publisher/"]),
    ("aws_sdk", &["publisher/"]),
    ("aws_smithy", &["aws/", "publisher/"]),
    ("std::env", &["config/", "dev/host.rs"]),
    ("backoff::", &["retry.rs"]),
    ("prost", &["traces/"]),
];

/// Names that files in a folder may not use: the core of the relay decides and does nothing, so that a simulation can
/// run it.
const FORBIDDEN: [(&str, &str); 5] = [
    ("relay/core/", "tokio::"),
    ("relay/core/", "::now("),
    ("relay/core/", "tracing::"),
    ("relay/core/", "async "),
    ("relay/core/", "relay::executor"),
];

/// A source file: its path below `src`, and its code without comments and literals.
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

    /// The names of its module path, as in `crate::relay::core`.
    fn place(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs");
        path.trim_end_matches("/mod").split('/').map(str::to_owned).collect()
    }

    /// The paths of its `use` declarations from the root of the crate, without tests.
    fn imports(&self) -> Vec<Vec<String>> {
        let code = self.code.split("#[cfg(test)]").next().unwrap_or_default();
        let mut found = Vec::new();
        for declaration in code.split(';').filter_map(|piece| piece.rsplit_once("use ").map(|(_, path)| path)) {
            for path in spread(&declaration.split_whitespace().collect::<String>()) {
                found.extend(absolute(&self.place(), &path));
            }
        }
        found
    }

    /// The modules after `crate::`, including those in the braces of `use crate::{…}`.
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

/// The paths of `a::{b, c::{d, e}}`, one by one.
fn spread(path: &str) -> Vec<String> {
    let Some((before, group)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (mut depth, mut members, mut current) = (0, Vec::new(), String::new());
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => members.push(std::mem::take(&mut current)),
            c => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                current.push(c);
            }
        }
    }
    members.push(current);
    members.retain(|member| !member.is_empty());
    members.iter().flat_map(|member| spread(&format!("{before}{member}"))).collect()
}

/// A path of a file's `use`, from the root of the crate; `None` for a path of another crate.
fn absolute(place: &[String], path: &str) -> Option<Vec<String>> {
    let mut names: Vec<&str> = path.split("::").collect();
    let mut base = match names.first()? {
        &"crate" => Vec::new(),
        &"super" | &"self" => place.to_vec(),
        _ => return None,
    };
    if names[0] != "super" {
        names.remove(0);
    }
    while names.first() == Some(&"super") {
        base.pop();
        names.remove(0);
    }
    base.extend(names.into_iter().map(str::to_owned));
    Some(base)
}

/// The circles of files that use each other.
fn circles(sources: &[Source]) -> Vec<BTreeSet<String>> {
    let places: BTreeMap<Vec<String>, &str> =
        sources.iter().map(|source| (source.place(), source.path.as_str())).collect();
    let file_of = |names: &Vec<String>| (1..=names.len()).rev().find_map(|end| places.get(&names[..end]).copied());
    let mut reached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in sources {
        let used = source.imports().iter().filter_map(file_of).filter(|used| *used != source.path).collect();
        reached.insert(&source.path, used);
    }
    // Each file reaches the files that its used files reach; repeat until nothing is new.
    loop {
        let further =
            |files: &BTreeSet<&str>| files.iter().filter_map(|file| reached.get(file)).flatten().copied().collect();
        let next: BTreeMap<&str, BTreeSet<&str>> =
            reached.iter().map(|(file, files)| (*file, &further(files) | files)).collect();
        if next == reached {
            break;
        }
        reached = next;
    }
    let comes_back = |file: &str, other: &str| reached[other].contains(file);
    let circle = |(file, files): (&&str, &BTreeSet<&str>)| {
        let others: BTreeSet<String> =
            files.iter().filter(|other| comes_back(file, other)).map(|other| (*other).to_owned()).collect();
        (others.len() > 1).then_some(others)
    };
    let circles: BTreeSet<BTreeSet<String>> = reached.iter().filter_map(circle).collect();
    circles.into_iter().collect()
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
        // A match counts only at the beginning of a name.
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
fn no_files_use_each_other() -> Result<()> {
    let mut sources = sources()?;
    // Files that only tests see may use each other.
    sources.retain(|source| !["tests", "properties"].iter().any(|name| source.path.contains(name)));
    let circles = circles(&sources);
    ensure!(circles.is_empty(), "these files use each other: {circles:?}");
    Ok(())
}

#[test]
fn files_that_use_each_other_are_found() -> Result<()> {
    let text = |path: &str, text: &str| Source::new(path, text);
    let sources = [
        text("a/mod.rs", "mod b; mod c; mod d; use b::B;"),
        text("a/b.rs", "use std::fmt; use super::{d::D, c::{self, C}};"),
        text("a/c.rs", "pub(super) use crate::a::d::inner::D;"),
        text("a/d.rs", "use super::b::B; #[cfg(test)] mod tests { use super::super::c::C; }"),
    ];
    let seen = circles(&sources);
    let circle: BTreeSet<String> = ["a/b.rs", "a/c.rs", "a/d.rs"].map(str::to_owned).into();
    ensure!(seen == [circle], "{seen:?}");
    ensure!(circles(&sources[..3]).is_empty(), "only the way back closes it");
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
fn a_broken_rule_is_found() -> Result<()> {
    let broken = [
        ("outbox/read.rs", "use crate::publisher::Queue;"),
        ("publisher/mod.rs", "use crate::{message::Message, outbox::{Outbox, Claim}};"),
        ("retry.rs", "fn f() { crate::relay::stream(); }"),
        ("message.rs", "use crate::config::Tuning;"),
        ("reading.rs", "use crate::config::Tuning;"),
        ("relay/core/intake.rs", "let now = Time::now();"),
        ("relay/core/in_flight.rs", "tokio::spawn(f());"),
        ("janitor.rs", "use crate::http::ask;"),
        // So a view of the page can ask PostgreSQL nothing.
        ("page/mod.rs", "use crate::outbox::Outbox;"),
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
        ("config/mod.rs", "use crate::message::DestinationKind; let x = std::env::vars();"),
        (
            "relay/mod.rs",
            "/// [`crate::daemon`] does that.\nuse crate::outbox::Outbox; // crate::cli\nlet s = \"crate::cli\";",
        ),
        (
            "relay/session.rs",
            "let now = Time::now(); use crate::relay::Destination; use crate::{retry::Fault, publisher::{Load, Entry}};",
        ),
        ("cli.rs", "let my_backoff::x = draws_::y;"),
    ];
    for (path, text) in kept {
        let found = violations(&Source::new(path, text));
        ensure!(found.is_empty(), "{path} with {text:?} breaks no rule, seen were {found:?}");
    }
    Ok(())
}
