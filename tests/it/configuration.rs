//! Wrong settings are refused before anything starts: all at once, by name, with the remedy, and without showing a
//! secret.

use anyhow::{Context as _, Result, ensure};

use support::relay::{Command, Finished};

const SECRET: &str = "hunter2-the-secret";

/// A command that would start if its database and queue existed.
fn configured() -> Command {
    Command::new()
        .env("DATABASE_URL", format!("postgres://app:{SECRET}@127.0.0.1:1/lottery"))
        .env("OUTBOX_RELAY_DESTINATIONS", "tickets=http://127.0.0.1:1/000000000000/tickets.fifo")
        .env("OUTBOX_RELAY_HTTP_LISTEN", "127.0.0.1:0")
        .env("AWS_REGION", "us-east-1")
}

/// Each variable with values that it refuses.
const REFUSED: [(&str, &[&str]); 17] = [
    (
        "OUTBOX_RELAY_DESTINATIONS",
        &[
            "tickets",
            "=https://h/q",
            "t=ftp://h/q",
            "a=https://h/q,a=https://h/r",
            ",",
            "t=http://:80/q",
            "t=http://h:x/q",
            "t=https://h/q;rolle=x",
            "t=https://h/q;role=",
            "t=https://h/q;role=publisher",
            "t=https://h/q;external-id=abc",
            "t=https://h/q;role=arn:aws:iam::222222222222:role/p;external-id=a b",
        ],
    ),
    ("OUTBOX_RELAY_BATCH_SIZE", &["0", "10001", "-1", "many", "1.5"]),
    ("OUTBOX_RELAY_REQUEST_SIZE", &["0", "11", "ten"]),
    ("OUTBOX_RELAY_MAX_IN_FLIGHT", &["0", "1025", "x"]),
    ("OUTBOX_RELAY_POLL_INTERVAL", &["20", "0ms", "2m", "fast"]),
    ("OUTBOX_RELAY_FIFO_MODE", &["loose", "Strict"]),
    ("OUTBOX_RELAY_MAX_ATTEMPTS", &["0", "ten"]),
    ("OUTBOX_RELAY_ON_DEAD", &["stop", "Block"]),
    ("OUTBOX_RELAY_RETRY_INITIAL", &["200", "0s", "2h"]),
    ("OUTBOX_RELAY_RETRY_MAX", &["1", "100ms"]),
    ("OUTBOX_RELAY_REQUEST_TIMEOUT", &["5", "61s"]),
    ("OUTBOX_RELAY_DELIVERED_RETENTION", &["24", "-1s", "never"]),
    ("OUTBOX_RELAY_DRAIN_TIMEOUT", &["20", "2h"]),
    ("OUTBOX_RELAY_MEMORY", &["160", "63MiB", "much"]),
    ("OUTBOX_RELAY_HTTP_LISTEN", &["9595", "localhost", ":9595"]),
    ("OUTBOX_RELAY_LOG_FORMAT", &["xml"]),
    ("RUST_LOG", &["a=b=c"]),
];

fn ensure_refused(ended: &Finished) -> Result<()> {
    ensure!(ended.code == Some(2), "{ended:?}");
    ensure!(ended.stdout.is_empty(), "{ended:?}");
    for banned in ["panicked", "RUST_BACKTRACE", SECRET] {
        ensure!(!ended.stderr.contains(banned), "{banned} is in {}", ended.stderr);
    }
    for line in ended.stderr.lines() {
        ensure!(line.starts_with("outbox-relay: "), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn every_variable_refuses_bad_values_by_its_name() -> Result<()> {
    for (name, values) in REFUSED {
        for value in values {
            let ended = configured().env(name, *value).output(&["run"]).await?;
            ensure_refused(&ended)?;
            ensure!(ended.stderr.lines().count() == 1, "{name}={value}: {}", ended.stderr);
            ensure!(ended.stderr.contains(name), "{name}={value}: {}", ended.stderr);
            ensure!(ended.stderr.contains("; "), "no remedy for {name}={value}: {}", ended.stderr);
        }
    }
    Ok(())
}

#[tokio::test]
async fn all_mistakes_are_reported_at_once() -> Result<()> {
    let mut command = configured().env("DATABASE_URL", format!("postgres://app:{SECRET}@db:port/lottery"));
    for (name, values) in REFUSED.iter().filter(|(name, _)| *name != "RUST_LOG") {
        command = command.env(name, values[0]);
    }
    let ended = command.output(&["run", "--until-empty"]).await?;
    ensure_refused(&ended)?;
    for (name, _) in REFUSED.iter().filter(|(name, _)| *name != "RUST_LOG") {
        ensure!(ended.stderr.lines().any(|line| line.contains(name)), "{name} is not in\n{}", ended.stderr);
    }
    ensure!(ended.stderr.lines().any(|line| line.contains("DATABASE_URL")), "{}", ended.stderr);
    Ok(())
}

#[tokio::test]
async fn a_flag_wins_over_its_variable() -> Result<()> {
    let command = configured().env("OUTBOX_RELAY_BATCH_SIZE", "100");
    let ended = command.output(&["run", "--batch-size", "0"]).await?;
    ensure_refused(&ended)?;
    ensure!(ended.stderr.contains("OUTBOX_RELAY_BATCH_SIZE=\"0\""), "{}", ended.stderr);
    Ok(())
}

#[tokio::test]
async fn a_misspelt_variable_is_refused_with_the_right_one() -> Result<()> {
    let ended = configured().env("OUTBOX_RELAY_BATCHSIZE", "100").output(&["run"]).await?;
    ensure_refused(&ended)?;
    ensure!(ended.stderr.contains("did you mean OUTBOX_RELAY_BATCH_SIZE?"), "{}", ended.stderr);
    Ok(())
}

#[tokio::test]
async fn missing_required_settings_are_named() -> Result<()> {
    for (name, argument) in [("DATABASE_URL", "run"), ("DATABASE_URL", "migrate")] {
        for command in [configured().without(name), configured().env(name, "")] {
            let ended = command.output(&[argument]).await?;
            ensure_refused(&ended)?;
            ensure!(ended.stderr.lines().count() == 1, "{argument} without {name}: {}", ended.stderr);
            ensure!(ended.stderr.contains(&format!("{name} is not set")), "{}", ended.stderr);
        }
    }
    Ok(())
}

/// Secrets that stand where a path or a name belongs.
#[tokio::test]
async fn a_secret_in_the_wrong_variable_is_not_shown() -> Result<()> {
    let key = format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n");
    let url = format!("postgres://app:{SECRET}@db/lottery");
    for (name, value) in [
        ("PGSSLKEY", key.as_str()),
        ("PGSSLCERT", &key),
        ("PGSSLROOTCERT", &key),
        ("PGSERVICE", &url),
        ("PGHOSTADDR", SECRET),
        ("PGCONNECT_TIMEOUT", &format!("5;{SECRET}")),
        ("DATABASE_URL_FILE", &url),
    ] {
        let command = configured().without("DATABASE_URL").env("PGHOST", "db").env("PGSSLMODE", "require");
        let ended = command.env(name, value).output(&["migrate"]).await?;
        ensure_refused(&ended).with_context(|| name.to_owned())?;
    }
    Ok(())
}

#[tokio::test]
async fn no_mistake_in_the_database_url_shows_its_password() -> Result<()> {
    let wrong = [
        format!("postgres://app:{SECRET}@db:port/lottery"),
        format!("postgres://app:{SECRET}@db/lottery?sslmode=sometimes"),
        format!("postgres://app:{SECRET}@db/lottery?no_such_option=1"),
        format!("host=db password={SECRET} nonsense"),
        format!("mysql://app:{SECRET}@db/lottery"),
        format!("mysql://app:{SECRET}=x@db/lottery"),
        // A character in the password that ends it too early makes the rest look like another part of the URL.
        format!("postgres://app:x@{SECRET}@db/lottery"),
        format!("postgres://app:x@y/{SECRET}@db/lottery"),
        format!("postgres://app:x@y?{SECRET}=1@db/lottery"),
        format!("postgres://app:x@{SECRET}?y@db/lottery"),
        format!("postgres://app:x?y@db/lottery?no={SECRET}"),
        format!("postgres://db/lottery?user=app&password=x&{SECRET}=1"),
        format!("postgres://app:x@db#{SECRET}/lottery"),
        format!("host=db password=x {SECRET}=1"),
        format!("host=db password='x' {SECRET}=1"),
    ];
    for url in wrong {
        let ended = configured().env("DATABASE_URL", &url).output(&["migrate"]).await?;
        ensure_refused(&ended)?;
        ensure!(ended.stderr.contains("DATABASE_URL"), "{url}: {}", ended.stderr);
    }
    let ended = configured().env("DATABASE_URL", format!("postgres://app:x@{SECRET}@db/lottery"));
    let ended = ended.output(&["run"]).await?;
    ensure_refused(&ended)?;
    ensure!(ended.stderr.contains("holds an @ in the user or password; write it as %40"), "{}", ended.stderr);
    Ok(())
}

#[tokio::test]
async fn the_url_may_come_from_a_file_but_not_from_two_places() -> Result<()> {
    let path = std::env::temp_dir().join(format!("outbox-relay-url-{}", std::process::id()));
    std::fs::write(&path, format!("postgres://app:{SECRET}@127.0.0.1:1/from-the-file?connect_timeout=1\n"))?;
    let file = path.to_str().unwrap_or_default();
    let both = configured().env("DATABASE_URL_FILE", file).output(&["migrate"]).await?;
    let one = configured().without("DATABASE_URL").env("DATABASE_URL_FILE", file).output(&["migrate"]).await?;
    std::fs::write(&path, " \n")?;
    let empty = configured().without("DATABASE_URL").env("DATABASE_URL_FILE", file).output(&["migrate"]).await?;
    std::fs::remove_file(&path)?;
    let none = configured().without("DATABASE_URL").env("DATABASE_URL_FILE", file).output(&["migrate"]).await?;
    ensure_refused(&both)?;
    ensure!(both.stderr.contains("DATABASE_URL_FILE"), "{}", both.stderr);
    ensure!(one.code == Some(1) && one.stderr.contains("from-the-file"), "{one:?}");
    ensure!(!one.stderr.contains(SECRET), "{}", one.stderr);
    ensure_refused(&none)?;
    ensure!(none.stderr.contains(file), "{}", none.stderr);
    ensure_refused(&empty)?;
    ensure!(empty.stderr.contains(file) && empty.stderr.contains("is empty; "), "{}", empty.stderr);
    // Somebody may have put the secret itself where a path belongs.
    let url = format!("postgres://app:{SECRET}@127.0.0.1:1/lottery");
    let confused = configured().without("DATABASE_URL").env("DATABASE_URL_FILE", url);
    ensure_refused(&confused.output(&["migrate"]).await?)?;
    ensure!(!confused.output(&["migrate", "--help"]).await?.stdout.contains(SECRET), "--help shows a secret");
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_is_no_url_is_refused() -> Result<()> {
    let value = "not a url";
    for name in ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"] {
        for value in [value, "localhost:9324", "ftp://localhost:9324", "http://", "http://:9324", "http://h:0"] {
            let ended = configured().env(name, value).output(&["run"]).await?;
            ensure_refused(&ended)?;
            ensure!(ended.stderr.lines().count() == 1, "{name}={value}: {}", ended.stderr);
            ensure!(ended.stderr.contains(&format!("{name}={value:?}")), "{name}={value}: {}", ended.stderr);
            ensure!(ended.stderr.contains("; "), "no remedy for {name}={value}: {}", ended.stderr);
        }
    }
    // A value that may be a secret is not shown.
    let ended = configured().env("AWS_ENDPOINT_URL_SQS", format!("http://user:{SECRET}@h")).output(&["run"]).await?;
    ensure_refused(&ended)
}

#[tokio::test]
async fn a_queue_without_a_region_is_a_mistake_in_the_configuration() -> Result<()> {
    let ended = configured().without("AWS_REGION").env("AWS_EC2_METADATA_DISABLED", "true").output(&["run"]).await?;
    ensure_refused(&ended)?;
    ensure!(ended.stderr.lines().count() == 1 && ended.stderr.contains("set AWS_REGION"), "{}", ended.stderr);
    Ok(())
}

#[tokio::test]
async fn a_root_certificate_that_cannot_be_used_is_a_mistake_in_the_configuration() -> Result<()> {
    let path = std::env::temp_dir().join(format!("outbox-relay-root-{}", std::process::id()));
    let file = path.display();
    for content in [None, Some(""), Some("no certificate")] {
        if let Some(content) = content {
            std::fs::write(&path, content)?;
        }
        let url = format!("postgres://app:{SECRET}@127.0.0.1:1/lottery?sslmode=verify-full&sslrootcert={file}");
        for arguments in [&["run"][..], &["migrate"], &["dead", "list"]] {
            let ended = configured().env("DATABASE_URL", &url).output(arguments).await?;
            ensure_refused(&ended)?;
            ensure!(ended.stderr.lines().count() == 1, "{arguments:?} {content:?}: {}", ended.stderr);
            for part in ["sslrootcert", path.to_str().unwrap_or_default(), "; give a PEM file"] {
                ensure!(ended.stderr.contains(part), "{arguments:?} {content:?}: no {part} in {}", ended.stderr);
            }
        }
    }
    Ok(std::fs::remove_file(&path)?)
}

#[tokio::test]
async fn help_lists_every_flag_with_its_variable() -> Result<()> {
    for command in ["run", "migrate", "healthcheck"] {
        let help = configured().output(&[command, "--help"]).await?;
        ensure!(help.code == Some(0), "{help:?}");
        for (name, _) in REFUSED.iter().chain(&[
            ("DATABASE_URL", &[][..]),
            ("DATABASE_URL_FILE", &[][..]),
            ("DATABASE_URLS_FILE", &[][..]),
        ]) {
            ensure!(
                help.stdout.contains(&format!("[env: {name}")) || wraps(&help.stdout, name),
                "{command}: no {name}"
            );
        }
        ensure!(!help.stdout.contains(SECRET), "{command} --help shows a secret");
    }
    for command in [
        "run",
        "migrate",
        "check",
        "status",
        "pause",
        "resume",
        "set",
        "config",
        "healthcheck",
        "replay",
        "dead list",
        "dead show",
        "dead redrive",
        "dead discard",
    ] {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.push("--help");
        let help = configured().output(&arguments).await?;
        let example = format!("Examples:\n  outbox-relay {command}");
        ensure!(help.code == Some(0) && help.stdout.contains(&example), "{command}: {}", help.stdout);
    }
    let help = configured().output(&["--help"]).await?;
    for command in ["run", "migrate", "healthcheck", "Exit codes"] {
        ensure!(help.stdout.contains(command), "no {command} in {}", help.stdout);
    }
    Ok(())
}

/// Help text is wrapped, even between `[env:` and the name.
fn wraps(help: &str, name: &str) -> bool {
    let words: Vec<_> = help.split_whitespace().collect();
    words.windows(2).any(|pair| pair[0].ends_with("[env:") && pair[1].starts_with(name))
}

#[tokio::test]
async fn the_example_of_an_environment_shows_the_defaults() -> Result<()> {
    let shown = configured().output(&["config", "--json"]).await?;
    let shown: Vec<serde_json::Value> = serde_json::from_str(&shown.stdout)?;
    let example = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/.env.example"))?;
    let mut count = 0;
    for (name, value) in example.lines().filter_map(|line| line.strip_prefix("#OUTBOX_RELAY_")?.split_once('=')) {
        let setting = name.to_lowercase().replace('_', "-");
        let one = shown.iter().find(|one| one["setting"] == setting.as_str());
        let one = one.with_context(|| format!("{setting} is not a setting"))?;
        // The address is the only value that the test itself sets.
        let shown = one["value"].as_str().context("no value")?;
        // 24h equals one day.
        let is_same = match (humantime::parse_duration(shown), humantime::parse_duration(value)) {
            (Ok(shown), Ok(value)) => shown == value,
            _ => shown == value,
        };
        ensure!(setting == "http-listen" || is_same, "{setting}={value} is said to be the default of {one}");
        count += 1;
    }
    ensure!(count >= 12, "only {count} settings were found");
    Ok(())
}

#[tokio::test]
async fn the_page_on_configuration_has_every_variable_with_its_default() -> Result<()> {
    let help = configured().output(&["run", "--help"]).await?.stdout;
    // Help text is wrapped anywhere between words.
    let words: Vec<&str> = help.split_whitespace().collect();
    let help = words.join(" ");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md"))?;
    let mut count = 0;
    for part in help.split("[env: OUTBOX_RELAY_").skip(1) {
        let name = part.split([']', '=']).next().context("no name")?;
        let row = format!("| `OUTBOX_RELAY_{name}` |");
        let row = page
            .lines()
            .find(|line| line.starts_with(&row))
            .with_context(|| format!("docs/configuration.md lacks {name}"))?;
        let flag = format!("--{} <", name.to_lowercase().replace('_', "-"));
        let described = help.split(&flag).nth(1).with_context(|| format!("no flag {flag}"))?;
        let described = described.split(" --").next().unwrap_or(described);
        if let Some(default) = described.split("[default: ").nth(1).and_then(|rest| rest.split(']').next()) {
            let shown = row.split('|').nth(2).context("no default")?.trim().trim_matches('`');
            let is_same = match (humantime::parse_duration(shown), humantime::parse_duration(default)) {
                (Ok(shown), Ok(default)) => shown == default,
                _ => shown == default,
            };
            ensure!(is_same, "docs/configuration.md says {shown} for {name}, whose default is {default}");
        }
        count += 1;
    }
    ensure!(count == 21, "only {count} variables were found");
    Ok(())
}

#[tokio::test]
async fn unknown_flags_and_commands_are_usage_errors() -> Result<()> {
    for arguments in [&["run", "--batchsize", "1"][..], &["walk"], &[]] {
        let ended = configured().output(arguments).await?;
        ensure!(ended.code == Some(2), "{arguments:?}: {ended:?}");
        ensure!(ended.stderr.contains("Usage"), "{arguments:?}: {}", ended.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn config_shows_no_value_that_an_application_passes_to_its_session() -> Result<()> {
    let options = format!("-c app.jwt_secret={SECRET} -c geqo=off");
    for arguments in [&["config"][..], &["config", "--json"]] {
        let shown = configured().env("PGOPTIONS", &options).output(arguments).await?;
        ensure!(!shown.stdout.contains(SECRET) && !shown.stderr.contains(SECRET), "{shown:?}");
        ensure!(shown.stdout.contains("-c app.jwt_secret=(not shown) -c geqo=off"), "{}", shown.stdout);
    }
    Ok(())
}
