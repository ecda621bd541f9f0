//! Every variable refuses bad values with a sentence that gives the variable, its value and the remedy.

use super::check::{unknown_variable, variables};
use super::*;
use crate::message::DestinationKind;

fn flags() -> Flags {
    Flags::default()
        .with("database-url", "postgres://app:secret@db:5432/lottery")
        .with("destinations", "tickets=https://sqs.eu-west-1.amazonaws.com/1/tickets.fifo")
}

fn mistakes(name: &str, value: &str) -> Vec<String> {
    flags().with(name, value).relay().expect_err("must be refused").0
}

#[test]
fn the_defaults_are_those_of_the_table() {
    let config = flags().relay().unwrap();
    let tuning = config.tuning;
    assert_eq!((tuning.batch_size, tuning.request_size, tuning.max_in_flight), (2000, 10, 256));
    assert_eq!(tuning.poll_interval, Duration::from_millis(20));
    assert_eq!(tuning.fifo_mode, FifoMode::Strict);
    assert_eq!(tuning.max_attempts, 10);
    assert_eq!((tuning.retry_initial, tuning.retry_max), (Duration::from_millis(200), Duration::from_secs(60)));
    assert_eq!(tuning.request_timeout, Duration::from_secs(5));
    assert_eq!(config.delivered_retention, Duration::from_secs(86_400));
    assert_eq!(config.drain_timeout, Duration::from_secs(20));
    assert_eq!(config.http_listen.to_string(), "0.0.0.0:9595");
    assert_eq!(config.destinations[0].kind, DestinationKind::Fifo);
}

/// Each setting with values it must refuse.
const REFUSED: [(&str, &[&str]); 21] = [
    ("batch-size", &["0", "10001", "-1", "many", "1.5"]),
    ("request-size", &["0", "11", "ten"]),
    ("max-in-flight", &["0", "1025", "x"]),
    ("poll-interval", &["20", "0ms", "2m", "fast"]),
    ("fifo-mode", &["loose", "Strict"]),
    ("max-attempts", &["0", "1001", "ten"]),
    ("on-dead", &["stop", "Block"]),
    ("retry-initial", &["200", "0s", "2h"]),
    ("retry-max", &["1", "2days", "100ms"]),
    ("request-timeout", &["5", "99ms", "61s"]),
    ("delivered-retention", &["24", "-1s", "never", "11years"]),
    ("drain-timeout", &["20", "2h"]),
    ("memory", &["160", "63MiB", "2TiB", "much", "-1MiB"]),
    ("http-listen", &["9595", "localhost", ":9595"]),
    ("log-format", &["xml"]),
    ("database-auth", &["iam", "Password", "rds-iam"]),
    ("database-connection-max-age", &["30", "0s", "2days"]),
    ("database", &["orders"]),
    ("schema", &["Outbox", "my-outbox", "pg_outbox", "select"]),
    ("database-password-command", &["cat /run/password"]),
    ("destinations", &["tickets", "tickets=", "=https://h/q", "t=ftp://h/q", "t=https://h", "a b=https://h/q", ","]),
];

#[test]
fn every_variable_refuses_bad_values_with_a_sentence_that_names_it() {
    assert_eq!(REFUSED.len(), variables().len(), "a variable is missing here");
    for (name, values) in REFUSED {
        let variable = format!("OUTBOX_RELAY_{}", name.replace('-', "_").to_uppercase());
        for value in values {
            let found = mistakes(name, value);
            assert_eq!(found.len(), 1, "{variable}={value}: {found:?}");
            assert!(found[0].contains(&variable), "{variable}={value}: {found:?}");
            let is_shown = !(value.is_empty() || name == "database-password-command");
            assert!(!is_shown || found[0].contains(value.trim()), "{variable}={value}: {found:?}");
            assert!(found[0].contains("; "), "no remedy for {variable}={value}: {found:?}");
        }
    }
}

#[test]
fn each_default_is_allowed() {
    for row in setting::ALL {
        let (name, default) = (row.info().name, row.default_text());
        if !default.is_empty() {
            assert!(flags().with(name, default).relay().is_ok(), "{name}");
        }
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let flags = flags()
        .with("batch-size", "0")
        .with("poll-interval", "20")
        .with("destinations", "tickets")
        .with("database-url", "postgres://db:port/x");
    let found = flags.relay().expect_err("must be refused").0;
    assert_eq!(found.len(), 4, "{found:?}");
}

#[test]
fn an_empty_variable_means_the_default() {
    assert_eq!(flags().with("batch-size", "").relay().unwrap().tuning.batch_size, 2000);
}

#[test]
fn a_destination_named_twice_is_refused() {
    let found = mistakes("destinations", "a=https://h/1,a=https://h/2");
    assert!(found[0].contains("twice"), "{found:?}");
}

#[test]
fn a_misspelt_variable_gets_a_suggestion() {
    let sentence = unknown_variable("OUTBOX_RELAY_BATCHSIZE").unwrap();
    assert!(sentence.contains("did you mean OUTBOX_RELAY_BATCH_SIZE?"), "{sentence}");
    for fine in ["OUTBOX_RELAY_BATCH_SIZE", "PATH"] {
        assert_eq!(unknown_variable(fine), None);
    }
}

#[test]
fn variables_that_kubernetes_sets_for_services_are_not_misspelt() {
    let of_a_service =
        ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_9595_TCP", "PORT_9595_TCP_PROTO"];
    for service in ["", "METRICS_", "POSTGRES_DB_"] {
        for variable in of_a_service.into_iter().chain(["PORT_9595_TCP_PORT", "PORT_9595_TCP_ADDR", "PORT_53_UDP_ADDR"])
        {
            let name = format!("OUTBOX_RELAY_{service}{variable}");
            assert_eq!(unknown_variable(&name), None, "{name}");
        }
    }
    for wrong in ["OUTBOX_RELAY_POLL", "OUTBOX_RELAY_PORTS", "OUTBOX_RELAY_SERVICE"] {
        assert!(unknown_variable(wrong).is_some(), "{wrong}");
    }
}

#[test]
fn sslmode_and_root_certificate_come_from_the_url() {
    let tls = |url: &str| {
        let flags = flags().with("database-url", url);
        let database = flags.database().unwrap();
        let roots = match &database.tls.roots {
            Roots::File(path) => Some(path.display().to_string()),
            Roots::System => None,
        };
        (database.tls.mode, roots, database.place())
    };
    let place = "db:5432/x".to_owned();
    assert_eq!(tls("postgres://u:p@db/x"), (TlsMode::Prefer, None, place.clone()));
    assert_eq!(tls("postgres://u:p@db/x?sslmode=disable&application_name=a"), (TlsMode::Disable, None, place.clone()));
    assert_eq!(tls("postgres://u:p@db/x?sslmode=require"), (TlsMode::Require, None, place.clone()));
    assert_eq!(
        tls("postgres://u:p@db/x?sslmode=require&sslrootcert=%2Fetc%2Fpasswd"),
        (TlsMode::VerifyCa, Some("/etc/passwd".to_owned()), place.clone())
    );
    assert_eq!(
        tls("host=db user=u dbname=x sslmode=verify-full sslrootcert=system"),
        (TlsMode::VerifyFull, None, place)
    );
}

#[test]
fn a_place_names_each_host_with_its_port() {
    let place = |url: &str| {
        let flags = flags().with("database-url", url);
        flags.database().unwrap().place()
    };
    assert_eq!(place("postgres://u:p@a:1,b:2/x"), "a:1,b:2/x");
    assert_eq!(place("postgres://u:p@[::1]:6432/x"), "[::1]:6432/x");
    assert_eq!(place("host=a,b port=6432 user=u dbname=x"), "a:6432,b:6432/x");
    assert_eq!(place("hostaddr=::1 user=u dbname=x"), "[::1]:5432/x");
}

#[test]
fn a_password_keeps_every_character_that_is_encoded_or_quoted() {
    let password = |url: &str| {
        let flags = flags().with("database-url", url);
        let database = flags.database().unwrap();
        (database.password, database.tls.mode)
    };
    let expected = |password: &str, tls| (PasswordSource::Given(password.to_owned()), tls);
    assert_eq!(password("postgres://u:a%40b%3Fc@db/x?sslmode=require"), expected("a@b?c", TlsMode::Require));
    assert_eq!(password("postgres://u:a:b?c#d@db/x?sslmode=require"), expected("a:b?c#d", TlsMode::Require));
    assert_eq!(password("host=db user=u password='a  b' sslmode=require"), expected("a  b", TlsMode::Require));
    assert_eq!(password("host=db user=u password='a sslmode=disable'"), expected("a sslmode=disable", TlsMode::Prefer));
    assert_eq!(password("host=db user=u password='a\\' b' sslmode='disable'"), expected("a' b", TlsMode::Disable));
    assert_eq!(password(r"host=db user=u password=a\ b"), expected("a b", TlsMode::Prefer));
}

#[test]
fn an_sslmode_that_cannot_be_read_never_becomes_a_weaker_one() {
    for url in
        ["host=db user=u sslmode=required", "postgres://u:p@db/x?sslmode=", "postgres://u:p@db/x?SSLMODE=require"]
    {
        let flags = flags().with("database-url", url);
        let mode = flags.database().map(|database| database.tls.mode);
        assert!(mode.is_err() || url.ends_with('=') && mode.unwrap() == TlsMode::Prefer, "{url}");
    }
    let flags = flags().with("database-url", "host=db user=u sslmode = require");
    assert_eq!(flags.database().unwrap().tls.mode, TlsMode::Require);
}

#[test]
fn no_mistake_and_no_debug_output_shows_the_password() {
    let found = mistakes("database-url", "postgres://app:hunter2@db:port/x");
    assert!(!found.concat().contains("hunter2"), "{found:?}");
    let found = mistakes("database-url", "postgres://app:hunter2@db/x?sslmode=sometimes");
    assert!(!found.concat().contains("hunter2"), "{found:?}");
    for half in ["postgres://app:a@?hunter2@db/x", "postgres://app:a@hunter2@db/x", "postgres://app:a@b/hunter2@db/x"] {
        let found = mistakes("database-url", half);
        assert!(found[0].contains("DATABASE_URL") && !found.concat().contains("hunter2"), "{found:?}");
    }
    let flags = flags().with("database-url", "postgres://app:hunter2@db/x");
    assert!(!format!("{:?}", flags.relay().unwrap()).contains("hunter2"));
}

#[test]
fn a_url_and_a_file_with_a_url_exclude_each_other() {
    let found = mistakes("database-url-file", "/run/secrets/url");
    assert!(found[0].contains("DATABASE_URL_FILE"), "{found:?}");
    let flags = flags().with("database-url", "").with("database-url-file", "/does/not/exist");
    let found = flags.relay().expect_err("must be refused").0;
    assert!(found[0].contains("/does/not/exist"), "{found:?}");
}

#[test]
fn a_schema_with_another_name_is_in_the_places_that_people_read() {
    let flags = flags().with("schema", "lottery_outbox");
    let database = flags.relay().unwrap().database;
    assert_eq!(database.schema.name(), "lottery_outbox");
    assert!(database.place_of_outbox().ends_with(" (schema lottery_outbox)"), "{}", database.place_of_outbox());
    assert!(database.application_name.starts_with("outbox-relay.lottery_outbox "), "{}", database.application_name);
    assert!(database.now().schema.is_renamed());
    let usual = flags.with("schema", "").relay().unwrap().database;
    assert!(usual.application_name.starts_with("outbox-relay "), "{}", usual.application_name);
    assert_eq!(usual.place_of_outbox(), usual.place());
}

#[test]
fn a_schema_that_would_need_quotes_or_is_taken_is_refused_with_the_reason() {
    for (name, reason) in [
        ("Lottery", "lower-case letters"),
        ("lottery-outbox", "lower-case letters"),
        ("1st", "beginning with a letter"),
        ("_outbox", "beginning with a letter"),
        ("größe", "lower-case letters"),
        ("o;drop", "lower-case letters"),
        (&"a".repeat(41), "1 to 40"),
        ("pg_outbox", "pg_"),
        ("order", "a word of SQL"),
        ("public", "a schema of its own"),
    ] {
        let found = mistakes("schema", name);
        assert_eq!(found.len(), 1, "{found:?}");
        let begins = format!("OUTBOX_RELAY_SCHEMA={name:?} is not ");
        assert!(found[0].starts_with(&begins) && found[0].contains(reason), "{found:?}");
    }
}
