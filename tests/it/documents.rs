//! The targets of the documents' links exist.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

fn documents() -> Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found: Vec<PathBuf> =
        ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"].iter().map(|name| root.join(name)).collect();
    let mut folders = ["docs", "deploy", "examples"].map(|name| root.join(name)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Text and target of each link to a file.
fn links(text: &str) -> Vec<(String, String)> {
    let after = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap_or_default().to_owned());
    let before = text.split("](").map(|rest| rest.rsplit('[').next().unwrap_or_default().to_owned());
    before.zip(after).filter(|(_, target)| !target.contains("://")).collect()
}

/// The anchors of a document's headings, as GitHub generates them.
pub fn anchors(text: &str) -> HashSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings.map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

#[test]
fn every_link_of_a_document_leads_to_a_file_a_heading_or_a_test() -> Result<()> {
    let mut count = 0;
    for document in documents()? {
        let text = fs::read_to_string(&document)?;
        for (name, target) in links(&text) {
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let folder = document.parent().context("a document has a folder")?;
            let path = if file.is_empty() { document.clone() } else { folder.join(file) };
            ensure!(path.exists(), "{}: {target} is not there", document.display());
            if !anchor.is_empty() {
                let has = anchors(&fs::read_to_string(&path)?).contains(anchor);
                ensure!(has, "{}: {target} has no such heading", document.display());
            }
            let name = name.trim_matches('`');
            let is_test =
                file.contains("tests/") && !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
            if is_test {
                let has = fs::read_to_string(&path)?.contains(&format!("fn {name}("));
                ensure!(has, "{}: there is no {name} in {file}", document.display());
            }
            count += 1;
        }
    }
    ensure!(count > 20, "only {count} links were found");
    Ok(())
}

/// The messages of log lines at level warn and error in a source file: the last literal of each call.
fn warnings(source: &str) -> Vec<String> {
    let calls = ["tracing::warn!(", "tracing::error!("].into_iter().flat_map(|call| source.split(call).skip(1));
    let literal = |call: &str| {
        let call = call.split_once(");\n").map_or(call, |(call, _)| call);
        call.rsplit('"').nth(1).map(|text| text.split(": {").next().unwrap_or(text).to_owned())
    };
    calls.filter_map(literal).collect()
}

#[test]
fn every_warning_of_the_relay_is_explained_in_the_runbook() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runbook = fs::read_to_string(root.join("docs/operations.md"))?;
    let lines = runbook.split("## Log lines").nth(1).context("the runbook has no table of log lines")?;
    let mut folders = vec![root.join("src")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.extend(warnings(&fs::read_to_string(&path)?));
            }
        }
    }
    ensure!(found.len() >= 10, "only {found:?}");
    for line in &found {
        ensure!(lines.contains(&format!("`{line}`")), "{line:?} is not in docs/operations.md under Log lines");
    }
    Ok(())
}
