//! `DATABASE_URLS_FILE`: a line `NAME URL` for each of several databases that one process serves.

use super::conninfo;
use super::keywords::Parameters;
use super::secret_file::from_file;
use crate::schema::Schema;

/// The longest name; it is a label of metrics and a part of a path.
const MOST_CHARACTERS: usize = 63;

/// How a line is written.
const FORM: &str = "write NAME postgres://USER:PASSWORD@HOST:PORT/DATABASE, or NAME;schema=SCHEMA before the URL";

/// A line of the file.
pub(super) struct Line {
    /// The name of the database.
    pub(super) name: String,
    /// The schema of its outbox, if the line names one.
    pub(super) schema: Option<Schema>,
    /// The values of the connection string.
    pub(super) parameters: Parameters,
}

/// The names of the lines, distinct.
///
/// # Errors
///
/// One sentence; every line has been read.
pub(in crate::config) fn names(path: &str) -> Result<Vec<String>, String> {
    Ok(read(path)?.into_iter().map(|line| line.name).collect())
}

/// The chosen line, or the only one. If it is chosen, mistakes in other lines do not matter: they are those of other databases.
///
/// # Errors
///
/// One sentence, with the names if one has to be chosen.
pub(super) fn chosen(path: &str, name: Option<&str>) -> Result<Line, String> {
    if let Some(name) = name
        && let Some(found) = of_name(&from_file("DATABASE_URLS_FILE", path)?, name)
    {
        return found.map_err(|problem| format!("DATABASE_URLS_FILE={path:?}: {problem}"));
    }
    let mut lines = read(path)?;
    let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
    let names = names.join(", ");
    match name {
        None if lines.len() == 1 => lines.pop(),
        None => {
            return Err(format!(
                "DATABASE_URLS_FILE={path:?} has {} databases ({names}); choose one with --database NAME",
                lines.len()
            ));
        }
        Some(name) => lines.into_iter().find(|line| line.name == name),
    }
    .ok_or_else(|| {
        let name = name.unwrap_or_default();
        format!("OUTBOX_RELAY_DATABASE={name:?} is not in DATABASE_URLS_FILE={path:?}; it has {names}")
    })
}

fn read(path: &str) -> Result<Vec<Line>, String> {
    let text = from_file("DATABASE_URLS_FILE", path)?;
    parse(&text).map_err(|problem| format!("DATABASE_URLS_FILE={path:?}{problem}"))
}

/// All lines. A problem begins with the number of its line; the line itself may hold a password and is not shown.
fn parse(text: &str) -> Result<Vec<Line>, String> {
    let mut lines: Vec<Line> = Vec::new();
    for (number, text) in (1..).zip(text.lines()).map(|(number, line)| (number, line.trim())) {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let found = line(text).map_err(|problem| format!(", line {number}: {problem}"))?;
        if lines.iter().any(|known| known.name == found.name) {
            return Err(format!(
                ", line {number}: {:?} is named twice; give each database a name of its own",
                found.name
            ));
        }
        lines.push(found);
    }
    if lines.is_empty() { Err(format!(" names no database; {FORM}")) } else { Ok(lines) }
}

/// The first line that begins with this name.
fn of_name(text: &str, name: &str) -> Option<Result<Line, String>> {
    let is_it = |text: &&str| text.strip_prefix(name).is_some_and(|rest| rest.starts_with([';', ' ', '\t']));
    text.lines().map(str::trim).find(is_it).map(line)
}

/// Whether a database may have this name.
pub(in crate::config) fn is_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    !text.is_empty() && text.len() <= MOST_CHARACTERS && text.chars().all(is_allowed)
}

fn line(text: &str) -> Result<Line, String> {
    let (head, string) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let (name, options) = head.split_once(';').map_or((head, None), |(name, options)| (name, Some(options)));
    if !is_name(name) {
        return Err(format!(
            "the name (not shown) is not 1 to {MOST_CHARACTERS} of the characters A-Z a-z 0-9 _ -; {FORM}"
        ));
    }
    let schema = match options.map(|option| option.split_once('=')) {
        None => None,
        Some(Some(("schema", schema))) => {
            let is_plain = schema.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let shown = if is_plain { format!("{schema:?}") } else { "(not shown)".to_owned() };
            Some(Schema::parse(schema).map_err(|problem| format!("schema={shown} of {name} is not {problem}"))?)
        }
        Some(_) => return Err(format!("{name} has an option that is not known; the only one is ;schema=SCHEMA")),
    };
    let string = string.trim();
    if string.is_empty() {
        return Err(format!("{name} has no connection string; {FORM}"));
    }
    let parameters = conninfo::parse(string).map_err(|problem| format!("the connection string of {name} {problem}"))?;
    Ok(Line { name: name.to_owned(), schema, parameters })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        parse(text).err().unwrap_or_default()
    }

    #[test]
    fn a_line_is_a_name_and_a_connection_string() {
        let text =
            "# all shops\n\norders postgres://a:b@db/one\n  billing;schema=bills\thost=db dbname='two 2' user=a \n";
        let lines = parse(text).unwrap();
        let (orders, billing) = (&lines[0], &lines[1]);
        assert_eq!((orders.name.as_str(), orders.schema.clone()), ("orders", None));
        assert_eq!(orders.parameters["dbname"], "one");
        assert_eq!((billing.name.as_str(), billing.schema.clone()), ("billing", Schema::parse("bills").ok()));
        assert_eq!(billing.parameters["dbname"], "two 2");
    }

    #[test]
    fn a_chosen_line_is_found_whatever_the_others_are() {
        let text = "orders-2 postgres://h/x\nbilling nonsense\norders postgres://h/d\n";
        assert_eq!(of_name(text, "orders").unwrap().unwrap().parameters["dbname"], "d");
        assert!(of_name(text, "billing").unwrap().is_err() && of_name(text, "stock").is_none());
    }

    #[test]
    fn a_mistake_has_the_number_of_its_line_and_no_secret() {
        let table = [
            ("", "names no database"),
            ("# nothing\n", "names no database"),
            ("a postgres://h/d\na postgres://h/e\n", ", line 2: \"a\" is named twice"),
            ("\npostgres://app:hunter2@h/d", ", line 2: the name (not shown)"),
            ("a/b postgres://app:hunter2@h/d", ", line 1: the name (not shown)"),
            ("a", "a has no connection string"),
            ("a;role=x postgres://app:hunter2@h/d", "the only one is ;schema="),
            ("a;schema=My postgres://app:hunter2@h/d", "schema=\"My\" of a is not "),
            ("a;schema=b;postgres://app:hunter2@h/d", "schema=(not shown) of a is not "),
            ("a postgres://app:hunter2@[h/d", ", line 1: the connection string of a "),
        ];
        for (text, expected) in table {
            let problem = problem(text);
            assert!(problem.contains(expected) && !problem.contains("hunter2"), "{text:?}: {problem}");
        }
    }
}
