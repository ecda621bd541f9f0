//! Every variable rejects what it must, names itself, its value and the remedy.

use super::check::{unknown_variable, variables};
use super::*;

fn flags() -> Flags {
    Flags {
        database_url: Some("postgres://app:secret@db:5432/lottery".to_owned()),
        destinations: Some("tickets=https://sqs.eu-west-1.amazonaws.com/1/tickets.fifo".to_owned()),
        ..Flags::default()
    }
}

fn mistakes(change: impl FnOnce(&mut Flags)) -> Vec<String> {
    let mut flags = flags();
    change(&mut flags);
    flags.relay().expect_err("must be refused").0
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
    assert_eq!(config.destinations[0].kind, QueueKind::Fifo);
}

/// A way to set one flag.
type Set = fn(&mut Flags, String);

/// Each variable with values it must refuse.
fn refused() -> Vec<(&'static str, Set, &'static [&'static str])> {
    vec![
        ("OUTBOX_RELAY_BATCH_SIZE", |f, v| f.batch_size = Some(v), &["0", "10001", "-1", "many", "1.5"]),
        ("OUTBOX_RELAY_REQUEST_SIZE", |f, v| f.request_size = Some(v), &["0", "11", "ten"]),
        ("OUTBOX_RELAY_MAX_IN_FLIGHT", |f, v| f.max_in_flight = Some(v), &["0", "1025", "x"]),
        ("OUTBOX_RELAY_POLL_INTERVAL", |f, v| f.poll_interval = Some(v), &["20", "0ms", "2m", "fast"]),
        ("OUTBOX_RELAY_FIFO_MODE", |f, v| f.fifo_mode = Some(v), &["loose", "Strict"]),
        ("OUTBOX_RELAY_MAX_ATTEMPTS", |f, v| f.max_attempts = Some(v), &["0", "1001", "ten"]),
        ("OUTBOX_RELAY_ON_DEAD", |f, v| f.on_dead = Some(v), &["stop", "Block"]),
        ("OUTBOX_RELAY_RETRY_INITIAL", |f, v| f.retry_initial = Some(v), &["200", "0s", "2h"]),
        ("OUTBOX_RELAY_RETRY_MAX", |f, v| f.retry_max = Some(v), &["1", "2days", "100ms"]),
        ("OUTBOX_RELAY_REQUEST_TIMEOUT", |f, v| f.request_timeout = Some(v), &["5", "99ms", "61s"]),
        ("OUTBOX_RELAY_DELIVERED_RETENTION", |f, v| f.delivered_retention = Some(v), &["24", "-1s", "never"]),
        ("OUTBOX_RELAY_DRAIN_TIMEOUT", |f, v| f.drain_timeout = Some(v), &["20", "2h"]),
        ("OUTBOX_RELAY_MEMORY", |f, v| f.memory = Some(v), &["160", "63MiB", "2TiB", "much", "-1MiB"]),
        ("OUTBOX_RELAY_HTTP_LISTEN", |f, v| f.http_listen = Some(v), &["9595", "localhost", ":9595"]),
        ("OUTBOX_RELAY_LOG_FORMAT", |f, v| f.log_format = Some(v), &["xml"]),
        (
            "OUTBOX_RELAY_DESTINATIONS",
            |f, v| f.destinations = Some(v),
            &["", "tickets", "tickets=", "=https://h/q", "t=ftp://h/q", "t=https://h", "a b=https://h/q", ","],
        ),
    ]
}

#[test]
fn every_variable_refuses_bad_values_with_a_sentence_that_names_it() {
    let table = refused();
    assert_eq!(table.len(), variables().len(), "a variable is missing here");
    for (name, set, values) in table {
        for value in values {
            let found = mistakes(|flags| set(flags, (*value).to_owned()));
            assert_eq!(found.len(), 1, "{name}={value}: {found:?}");
            assert!(found[0].contains(name), "{name}={value}: {found:?}");
            assert!(value.is_empty() || found[0].contains(value.trim()), "{name}={value}: {found:?}");
            assert!(found[0].contains("; "), "no remedy for {name}={value}: {found:?}");
        }
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let found = mistakes(|flags| {
        flags.batch_size = Some("0".to_owned());
        flags.poll_interval = Some("20".to_owned());
        flags.destinations = None;
        flags.database_url = Some("postgres://db:port/x".to_owned());
    });
    assert_eq!(found.len(), 4, "{found:?}");
}

#[test]
fn an_empty_variable_means_the_default() {
    let mut flags = flags();
    flags.batch_size = Some(String::new());
    assert_eq!(flags.relay().unwrap().tuning.batch_size, 2000);
}

#[test]
fn a_destination_named_twice_is_refused() {
    let found = mistakes(|f| f.destinations = Some("a=https://h/1,a=https://h/2".to_owned()));
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
fn what_kubernetes_says_of_services_is_no_misspelt_variable() {
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
        let mut flags = flags();
        flags.database_url = Some(url.to_owned());
        let database = flags.database().unwrap();
        (database.tls, database.root_certificate.clone().map(|path| path.display().to_string()), database.place())
    };
    let place = "db:5432/x".to_owned();
    assert_eq!(tls("postgres://u:p@db/x"), (TlsMode::Prefer, None, place.clone()));
    assert_eq!(tls("postgres://u:p@db/x?sslmode=disable&application_name=a"), (TlsMode::Disable, None, place.clone()));
    assert_eq!(tls("postgres://u:p@db/x?sslmode=require"), (TlsMode::Require, None, place.clone()));
    assert_eq!(
        tls("postgres://u:p@db/x?sslmode=require&sslrootcert=%2Fetc%2Fca.pem"),
        (TlsMode::VerifyCa, Some("/etc/ca.pem".to_owned()), place.clone())
    );
    assert_eq!(
        tls("host=db user=u dbname=x sslmode=verify-full sslrootcert=system"),
        (TlsMode::VerifyFull, None, place)
    );
}

#[test]
fn a_place_names_each_host_with_its_port() {
    let place = |url: &str| {
        let mut flags = flags();
        flags.database_url = Some(url.to_owned());
        flags.database().unwrap().place()
    };
    assert_eq!(place("postgres://u:p@a:1,b:2/x"), "a:1,b:2/x");
    assert_eq!(place("postgres://u:p@[::1]:6432/x"), "[::1]:6432/x");
    assert_eq!(place("host=a,b port=6432 user=u dbname=x"), "a:6432,b:6432/x");
    assert_eq!(place("hostaddr=::1 user=u dbname=x"), "[::1]:5432/x");
}

#[test]
fn a_password_keeps_every_sign_that_is_written_as_it_must_be() {
    let password = |url: &str| {
        let mut flags = flags();
        flags.database_url = Some(url.to_owned());
        let database = flags.database().unwrap();
        let password = database.connection.get_password().map(<[u8]>::to_vec).unwrap();
        (String::from_utf8(password).unwrap(), database.tls)
    };
    let expected = |password: &str, tls| (password.to_owned(), tls);
    assert_eq!(password("postgres://u:a%40b%3Fc@db/x?sslmode=require"), expected("a@b?c", TlsMode::Require));
    assert_eq!(password("postgres://u:a:b/c#d@db/x?sslmode=require"), expected("a:b/c#d", TlsMode::Require));
    assert_eq!(password("host=db user=u password='a  b' sslmode=require"), expected("a  b", TlsMode::Require));
    assert_eq!(password("host=db user=u password='a sslmode=disable'"), expected("a sslmode=disable", TlsMode::Prefer));
    assert_eq!(password("host=db user=u password='a\\' b' sslmode='disable'"), expected("a' b", TlsMode::Disable));
    assert_eq!(password(r"host=db user=u password=a\ b"), expected("a b", TlsMode::Prefer));
}

#[test]
fn an_sslmode_that_is_not_understood_never_becomes_a_lesser_one() {
    for url in ["host=db user=u sslmode = require", "postgres://u:p?q@db/x?sslmode=require"] {
        let found = mistakes(|flags| flags.database_url = Some(url.to_owned()));
        assert_eq!(found.len(), 1, "{found:?}");
    }
}

#[test]
fn no_mistake_and_no_debug_output_shows_the_password() {
    let found = mistakes(|f| f.database_url = Some("postgres://app:hunter2@db:port/x".to_owned()));
    assert!(!found.concat().contains("hunter2"), "{found:?}");
    let found = mistakes(|f| f.database_url = Some("postgres://app:hunter2@db/x?sslmode=sometimes".to_owned()));
    assert!(!found.concat().contains("hunter2"), "{found:?}");
    for half in ["postgres://app:a@?hunter2@db/x", "postgres://app:a@hunter2@db/x", "postgres://app:a@b/hunter2@db/x"] {
        let found = mistakes(|f| f.database_url = Some(half.to_owned()));
        assert!(found[0].contains("DATABASE_URL") && !found.concat().contains("hunter2"), "{found:?}");
    }
    let mut flags = flags();
    flags.database_url = Some("postgres://app:hunter2@db/x".to_owned());
    assert!(!format!("{:?}", flags.relay().unwrap()).contains("hunter2"));
}

#[test]
fn a_url_and_a_file_with_a_url_exclude_each_other() {
    let found = mistakes(|flags| flags.database_url_file = Some("/run/secrets/url".to_owned()));
    assert!(found[0].contains("DATABASE_URL_FILE"), "{found:?}");
    let found = mistakes(|flags| {
        flags.database_url = None;
        flags.database_url_file = Some("/does/not/exist".to_owned());
    });
    assert!(found[0].contains("/does/not/exist"), "{found:?}");
}
