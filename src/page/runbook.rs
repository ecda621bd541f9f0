//! The runbook, as it was when this relay was built: the page links to its sections, and serves it if this repository has
//! no address of its own (`repository` in `Cargo.toml`). It is shown as it is written, section by section.

/// The text, in Markdown, for the schema `outbox`.
pub(super) const TEXT: &str = include_str!("../../docs/operations.md");

/// Where it is in the repository; the path under which it is served as well.
pub(super) const PATH: &str = "docs/operations.md";

/// Where a section is. It is relative, as in the alerts, unless the repository has an address.
pub(super) fn link(anchor: &str) -> String {
    match env!("CARGO_PKG_REPOSITORY").trim_end_matches('/') {
        "" => format!("{PATH}#{anchor}"),
        repository => format!("{repository}/blob/v{}/{PATH}#{anchor}", env!("CARGO_PKG_VERSION")),
    }
}

/// The anchor of a heading, as repositories make them.
pub(super) fn anchor(heading: &str) -> String {
    let is_kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(is_kept).collect::<String>().replace(' ', "-")
}

/// Heading and text of each section; what comes before the first one belongs to the title.
pub(super) fn sections(runbook: &str) -> Vec<(&str, &str)> {
    let body = runbook.strip_prefix("# ").unwrap_or(runbook);
    body.split("\n## ").map(section).collect()
}

fn section(section: &str) -> (&str, &str) {
    let (heading, text) = section.split_once('\n').unwrap_or((section, ""));
    (heading, text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sections_together_are_the_whole_runbook() {
        let sections = sections(TEXT);
        assert_eq!(sections[0].0, "Operations");
        assert!(sections.len() > 20, "{}", sections.len());
        let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
        let all: usize = sections.iter().map(|(heading, text)| letters(heading) + letters(text)).sum();
        // Each heading has lost its number signs.
        assert_eq!(all + 2 * (sections.len() - 1) + 1, letters(TEXT));
    }
}
