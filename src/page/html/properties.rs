//! Whatever a name, a reason or a value contains, it stays text.

use proptest::prelude::*;

use super::super::model::view;
use super::super::samples::{Texts, measured};
use super::page;

/// The tags of a document with the names of their attributes: what a browser makes of it.
fn structure(document: &str) -> Vec<String> {
    let mut tags = Vec::new();
    let mut rest = document;
    while let Some((_, after)) = rest.split_once('<') {
        let (mut tag, mut quoted, mut end) = (String::new(), false, after.len());
        for (index, c) in after.char_indices() {
            match c {
                '"' => quoted = !quoted,
                '>' if !quoted => {
                    end = index + 1;
                    break;
                }
                _ if quoted => {}
                c => tag.push(c),
            }
        }
        tags.push(tag);
        rest = &after[end..];
    }
    tags
}

/// The text as a browser shows it.
fn unescaped(document: &str) -> String {
    document.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

/// Texts with all that has a meaning in HTML, or would have in a script, a URL or a style.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        Just("<script>alert(1)</script>".to_owned()),
        Just("\"><img src=x onerror=alert(1)>".to_owned()),
        Just("' onmouseover='alert(1)".to_owned()),
        Just("</td></table><!--".to_owned()),
        Just("&lt;b&gt;&amp;&#60;".to_owned()),
        Just("javascript:alert(1)".to_owned()),
        Just("</style></title></noscript>".to_owned()),
        "[<>\"'&=/`;#a-z\u{0}-\u{1f}\u{202e}ä漢]{0,12}",
        any::<String>(),
    ];
    proptest::collection::vec(pieces, 1..4).prop_map(|pieces| pieces.concat())
}

#[test]
fn a_tag_in_a_text_would_be_seen() {
    assert_ne!(structure("<p class=\"a\">x</p>"), structure("<p class=\"a\">x<b></p>"));
    assert_ne!(structure("<p class=\"a\">"), structure("<p class=\"a\" onclick=\"b\">"));
    assert_eq!(structure("<p class=\"a\">x</p>"), structure("<p class=\"b\">y</p>"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_text_contains_it_adds_no_tag_and_no_attribute(texts in proptest::collection::vec(hostile(), 8)) {
        let plain = page(&view(measured(&Texts::all("plain"))));
        let texts = Texts::from(texts);
        let hostile = page(&view(measured(&texts)));
        prop_assert_eq!(structure(&hostile), structure(&plain));
        prop_assert!(!hostile.contains(|c: char| c.is_control() && c != '\n'), "a control character");
        let shown = unescaped(&hostile);
        for text in texts.each() {
            prop_assert!(shown.contains(&super::words::short(text)), "{:?} is not shown", text);
        }
    }
}
