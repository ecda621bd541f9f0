//! An error with its causes, in one sentence. Libraries keep the interesting half of an error in its source.

use std::error::Error;

/// The error and its causes, from the outside in.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// The error and its causes, separated by colons.
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error).skip(1).map(ToString::to_string) {
        // Some layers only repeat the text of the layer below.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The most characters of a foreign text that are shown.
const MAX_FOREIGN: usize = 300;

/// A text that somebody else wrote, fit for a log and a terminal: no control characters, and not too long.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(MAX_FOREIGN).collect()
}
