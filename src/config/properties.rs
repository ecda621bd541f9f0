//! For any text: no panic, no sentence about a mistake without its variable, and no sentence with a password.

use proptest::prelude::*;

use super::*;

/// A password that no sentence contains by chance.
const PASSWORD: &str = "hunter2";

/// Texts that look like settings, and texts that do not.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~]{0,20}",
        "-?[0-9]{0,25}\\.?[0-9]{0,3} ?(ms|s|m|h|days|years|)",
        "[a-z=,:/.@?&%'\\\\ -]{0,30}",
        "([a-z]{0,3}=https?://[a-z.]{0,5}/?[a-z./]{0,9},?){0,3}",
    ]
}

/// A connection string that contains this password, with arbitrary text around the password and at the end.
fn connection_string() -> impl Strategy<Value = String> {
    let piece = || "[a-z0-9:/@?&=%.'\\\\ \\[\\],-]{0,6}";
    prop_oneof![
        (piece(), piece(), piece())
            .prop_map(|(before, after, rest)| format!("postgres://app:{before}{PASSWORD}{after}@db{rest}/x")),
        (piece(), piece(), piece()).prop_map(|(before, after, query)| format!(
            "postgres://app:{before}{PASSWORD}{after}@db/x?sslmode={query}"
        )),
        (piece(), piece(), piece())
            .prop_map(|(before, after, rest)| format!("host=db user=app password={before}{PASSWORD}{after} {rest}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_configuration_panic(texts in prop::collection::vec(prop::option::of(text()), setting::ALL.len())) {
        let typed = setting::ALL.iter().zip(texts).filter_map(|(row, text)| Some((row.info().name, text?)));
        let flags = typed
            .filter(|(name, _)| *name != "database-url-file")
            .fold(Flags::default(), |flags, (name, text)| flags.with(name, text));
        match flags.relay() {
            Ok(config) => {
                prop_assert!(config.tuning.retry_initial <= config.tuning.retry_max);
                prop_assert!((1..=10).contains(&config.tuning.request_size) && config.tuning.batch_size > 0);
            }
            Err(ConfigError(sentences)) => {
                prop_assert!(!sentences.is_empty());
                let names = ["OUTBOX_RELAY_", "DATABASE_URL", "sslmode"];
                for sentence in sentences {
                    prop_assert!(names.iter().any(|name| sentence.contains(name)), "{}", sentence);
                }
            }
        }
    }

    #[test]
    fn no_sentence_about_a_connection_string_shows_its_password(url in connection_string()) {
        let flags = Flags::default().with("database-url", url);
        match flags.database() {
            Ok(database) => {
                let shown = format!("{} {database:?}", database.place());
                prop_assert!(!shown.contains(PASSWORD), "{}", shown);
            }
            Err(error) => prop_assert!(!error.to_string().contains(PASSWORD), "{}", error),
        }
    }

    /// libpq's rules: quotes keep spaces together.
    #[test]
    fn a_password_arrives_as_it_was_quoted(password in "[a-z =&?@:]{1,12}") {
        let words = format!("host=db user=app password='{password}' sslmode=disable");
        let flags = Flags::default().with("database-url", words);
        let database = flags.database().unwrap();
        prop_assert_eq!(database.password, PasswordSource::Given(password.clone()));
        prop_assert_eq!(database.tls.mode, TlsMode::Disable);
        let encoded = percent_encoding::utf8_percent_encode(&password, percent_encoding::NON_ALPHANUMERIC);
        let url = format!("postgres://app:{encoded}@db/x?sslmode=disable");
        let flags = Flags::default().with("database-url", url);
        let database = flags.database().unwrap();
        prop_assert_eq!(database.password, PasswordSource::Given(password.clone()));
    }
}
