//! What may be shown of `options`, the command line of a session. Pure.
//!
//! PostgreSQL's own parameters hold no secret that a session could set. A name with a dot is the application's, and its
//! value may be a key (`-c app.jwt_secret=…`).

/// Stands for a value.
const NOT_SHOWN: &str = "(not shown)";

/// The text without the values of parameters whose names have a dot.
pub(super) fn shown(options: &str) -> String {
    words(options).into_iter().map(word_shown).collect()
}

/// In all ways to write it: `-c a.b=x`, `-ca.b=x`, `--a.b=x`.
fn word_shown(word: &str) -> String {
    match word.split_once('=') {
        Some((name, _)) if name.contains('.') => format!("{name}={NOT_SHOWN}"),
        _ => word.to_owned(),
    }
}

/// The words and the spaces between them, as PostgreSQL divides them: a backslash takes the next character
/// (`pg_split_opts`).
fn words(text: &str) -> Vec<&str> {
    let (mut words, mut start, mut was_space, mut is_taken) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        // PostgreSQL takes the vertical tab for a space, too.
        let is_space = !is_taken && (c.is_ascii_whitespace() || c == '\u{b}');
        if is_space != was_space {
            words.push(&text[start..at]);
            start = at;
        }
        was_space = is_space;
        is_taken = !is_taken && c == '\\';
    }
    words.push(&text[start..]);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_names_with_a_dot_are_not_shown_and_all_else_is() {
        for (options, expected) in [
            ("-c geqo=off", "-c geqo=off"),
            ("-c search_path=a.b  --work_mem=1MB", "-c search_path=a.b  --work_mem=1MB"),
            ("-c app.jwt_secret=X -c geqo=off", "-c app.jwt_secret=(not shown) -c geqo=off"),
            ("-capp.key=a=b --app.other=y\t-e", "-capp.key=(not shown) --app.other=(not shown)\t-e"),
            ("-c app.key=one\\ two\\\\ -c x=1", "-c app.key=(not shown) -c x=1"),
            ("-c app.key=ä\u{b}-c x=ö", "-c app.key=(not shown)\u{b}-c x=ö"),
            ("", ""),
            ("\\", "\\"),
        ] {
            assert_eq!(shown(options), expected, "{options}");
        }
    }
}
