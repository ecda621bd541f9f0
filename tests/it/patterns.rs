//! The SQL in the documents runs as it is, and returns the values after the arrows.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::{Client, SimpleQueryMessage};

use support::test_bed::TestBed;

/// A statement of a document, and its documented result.
#[derive(Debug, Default)]
struct Example {
    line: usize,
    sql: String,
    outcome: Option<String>,
}

/// The statements of all SQL blocks. A statement ends with a semicolon outside of a function's body; `-- → …` after it
/// or on the next line is its result.
fn examples(document: &str) -> Result<Vec<Example>> {
    let mut examples: Vec<Example> = Vec::new();
    let mut current = Example::default();
    let mut is_sql = false;
    for (number, line) in (1..).zip(document.lines()) {
        if line.starts_with("```") {
            ensure!(current.sql.is_empty(), "line {number}: a statement has no end: {}", current.sql);
            is_sql = line == "```sql";
            continue;
        }
        if !is_sql {
            continue;
        }
        let (code, comment) = line.split_once("--").unwrap_or((line, ""));
        if code.trim().is_empty() {
            if let (Some(outcome), Some(last)) = (comment.trim().strip_prefix("→ "), examples.last_mut()) {
                last.outcome = Some(outcome.to_owned());
            }
            continue;
        }
        if current.sql.is_empty() {
            current.line = number;
        }
        current.sql.push_str(code.trim_end());
        current.sql.push('\n');
        let is_in_body = current.sql.matches("$$").count() % 2 == 1;
        if code.trim_end().ends_with(';') && !is_in_body {
            current.outcome = comment.trim().strip_prefix("→ ").map(str::to_owned);
            examples.push(std::mem::take(&mut current));
        }
    }
    Ok(examples)
}

/// The result of a statement: rows separated by semicolons, columns by commas; or its error code.
async fn outcome(client: &Client, sql: &str) -> Result<String> {
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(error) => {
            let error = error.as_db_error().context("no answer of the database")?;
            return Ok(format!("ERROR {}", error.code().code()));
        }
    };
    let rows: Vec<String> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let columns: Vec<&str> = (0..row.len()).map(|column| row.get(column).unwrap_or("NULL")).collect();
                Some(columns.join(", "))
            }
            _ => None,
        })
        .collect();
    Ok(if rows.is_empty() { "(none)".to_owned() } else { rows.join("; ") })
}

async fn run(document: &str) -> Result<(usize, usize)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let examples = examples(&fs::read_to_string(&path)?)?;
    let bed = TestBed::new().await?;
    for Example { line, sql, outcome: expected } in &examples {
        let actual = outcome(&bed.client, sql).await?;
        match expected {
            Some(expected) if actual != *expected => {
                bail!("{document}, line {line}: {expected} is said to come, but {actual} came of {sql}")
            }
            None if actual.starts_with("ERROR") => bail!("{document}, line {line}: {actual} came of {sql}"),
            _ => {}
        }
    }
    Ok((examples.len(), examples.iter().filter(|example| example.outcome.is_some()).count()))
}

#[tokio::test]
async fn the_patterns_do_what_they_say() -> Result<()> {
    let (statements, outcomes) = run("docs/patterns.md").await?;
    ensure!(statements >= 50 && outcomes >= 25, "only {statements} statements and {outcomes} outcomes were found");
    Ok(())
}

#[tokio::test]
async fn the_statements_about_the_event_store_run() -> Result<()> {
    let (statements, _) = run("docs/event-sourcing.md").await?;
    ensure!(statements >= 15, "only {statements} statements were found");
    Ok(())
}
