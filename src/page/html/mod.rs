//! The view as HTML. Everything that is shown goes through the template's types, which escape it; there is no markup in a
//! string. The page needs no script: that only asks for it again and replaces the parts marked `data-live`.

mod destinations;
mod facts;
mod overview;

use maud::{DOCTYPE, Markup, html};

use super::model::View;
use super::problems::{Problem, Severity};
use super::{runbook, words};

pub(super) use overview::overview;

/// How often a browser without scripts loads the page again, in seconds.
const REFRESH: u32 = 10;

/// The whole page.
pub(super) fn page(view: &View) -> String {
    let serious = view.problems.iter().filter(|problem| problem.severity != Severity::Note).count();
    let title = match &view.name {
        Some(name) => titled(serious, &format!("{name}, outbox-relay")),
        None => titled(serious, "outbox-relay"),
    };
    let body = html! {
        header {
            h1 {
                "outbox-relay " small { (env!("CARGO_PKG_VERSION")) }
                @if let Some(name) = &view.name { " " (name) }
            }
            p #facts data-live { (facts::head(view)) }
        }
        p #stale .stale role="alert" hidden { "Not up to date: the relay has not answered since " span #since {} "." }
        main {
            section aria-labelledby="problems-title" {
                h2 #problems-title { "What is wrong now" }
                div #problems data-live { (problems(&view.problems)) }
            }
            section aria-labelledby="destinations-title" {
                h2 #destinations-title { "Destinations" }
                div #destinations data-live { (destinations::table(view)) }
            }
            section aria-labelledby="others-title" {
                h2 #others-title { "Relays and replays" }
                div #others data-live { (facts::neighbours(view)) }
            }
            section aria-labelledby="settings-title" {
                h2 #settings-title { "Settings in force" }
                (facts::settings(view))
            }
        }
        footer { (facts::links(view)) }
    };
    document(
        &title,
        "",
        &html! {
            // Inside a noscript, so that a reload does not undo what the script keeps: the place, the selection, open parts.
            noscript { meta http-equiv="refresh" content=(REFRESH); }
            script src="status.js" defer {}
        },
        &body,
    )
}

/// The runbook, as it is written.
pub(super) fn runbook(text: &str) -> String {
    let body = html! {
        main .runbook {
            @for (index, (heading, text)) in runbook::sections(text).into_iter().enumerate() {
                section id=(runbook::anchor(heading)) {
                    @if index == 0 { h1 { (heading) } p { a href="../" { "Status of this relay" } } } @else { h2 { (heading) } }
                    pre { (text) }
                }
            }
        }
    };
    document("outbox-relay: operations", "../", &html! {}, &body)
}

/// `root` leads from the document to the page.
fn document(title: &str, root: &str, head: &Markup, body: &Markup) -> String {
    let document = html! {
        (DOCTYPE)
        html lang="en" data-version=(env!("CARGO_PKG_VERSION")) {
            head {
                meta charset="utf-8";
                title { (title) }
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                (head)
                link rel="stylesheet" href=(format!("{root}status.css"));
                link rel="icon" href=(format!("{root}icon.svg"));
            }
            body { (body) }
        }
    };
    document.into_string()
}

/// For the tab, where only the beginning can be seen.
fn titled(serious: usize, name: &str) -> String {
    match serious {
        0 => name.to_owned(),
        1 => format!("(1 problem) {name}"),
        more => format!("({more} problems) {name}"),
    }
}

fn problems(problems: &[Problem]) -> Markup {
    html! {
        @if problems.is_empty() {
            p .well { "Nothing that this relay knows of." }
        } @else {
            ul .problems {
                @for (index, Problem { severity, about, text, section }) in problems.iter().enumerate() {
                    li .(severity.word()) {
                        span .severity { (severity.word()) } " "
                        span .text {
                            @if let Some(name) = about { strong { (name) } " " }
                            (text)
                        } " "
                        a id=(format!("problem-{index}")) href=(runbook::link(section.anchor)) { (section.heading) }
                    }
                }
            }
        }
    }
}

/// A time, with the day for those who point at it.
fn time(moment: std::time::SystemTime, view: &View) -> Markup {
    let stamp = words::stamp(moment);
    html! { time datetime=(stamp) title=(stamp) { (words::moment(moment, view.now)) } }
}

#[cfg(test)]
mod properties;
