//! The variables that are nobody's settings alone, as they are set, for people to read: those that the AWS SDK, its HTTP client
//! and TLS read by themselves, and those of OpenTelemetry. Of a secret only that it is set is shown, of a key its end, and of a
//! URL neither user nor password.

use super::shown::{Origin, Shown};

/// What is shown of a value.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// All of it.
    All,
    /// A URL without user, password and query.
    Place,
    /// The last four characters.
    End,
    /// That it is set.
    Nothing,
}

/// The variables, what is shown of each, and the variable that counts instead if it is set.
const VARIABLES: [(&str, Part, Option<&str>); 55] = [
    ("AWS_REGION", Part::All, None),
    ("AWS_DEFAULT_REGION", Part::All, Some("AWS_REGION")),
    ("AWS_PROFILE", Part::All, None),
    ("AWS_CONFIG_FILE", Part::All, None),
    ("AWS_SHARED_CREDENTIALS_FILE", Part::All, None),
    ("AWS_ACCESS_KEY_ID", Part::End, None),
    ("AWS_SECRET_ACCESS_KEY", Part::Nothing, None),
    ("AWS_SESSION_TOKEN", Part::Nothing, None),
    ("AWS_ROLE_ARN", Part::All, None),
    ("AWS_ROLE_SESSION_NAME", Part::All, None),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", Part::All, None),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", Part::Place, None),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", Part::Place, None),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN", Part::Nothing, None),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", Part::All, None),
    ("AWS_EC2_METADATA_DISABLED", Part::All, None),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", Part::Place, None),
    ("AWS_ENDPOINT_URL", Part::Place, None),
    ("AWS_ENDPOINT_URL_S3", Part::Place, None),
    ("AWS_ENDPOINT_URL_SNS", Part::Place, None),
    ("AWS_ENDPOINT_URL_SQS", Part::Place, None),
    ("AWS_ENDPOINT_URL_STS", Part::Place, None),
    ("AWS_USE_FIPS_ENDPOINT", Part::All, None),
    ("AWS_USE_DUALSTACK_ENDPOINT", Part::All, None),
    ("AWS_CA_BUNDLE", Part::All, None),
    ("SSL_CERT_FILE", Part::All, None),
    ("SSL_CERT_DIR", Part::All, None),
    ("HTTPS_PROXY", Part::Place, None),
    ("https_proxy", Part::Place, Some("HTTPS_PROXY")),
    ("HTTP_PROXY", Part::Place, None),
    ("http_proxy", Part::Place, Some("HTTP_PROXY")),
    ("ALL_PROXY", Part::Place, None),
    ("all_proxy", Part::Place, Some("ALL_PROXY")),
    ("NO_PROXY", Part::All, None),
    ("no_proxy", Part::All, Some("NO_PROXY")),
    ("OTEL_SDK_DISABLED", Part::All, None),
    ("OTEL_TRACES_EXPORTER", Part::All, None),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", Part::Place, None),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", Part::Place, Some("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", Part::Nothing, None),
    ("OTEL_EXPORTER_OTLP_HEADERS", Part::Nothing, Some("OTEL_EXPORTER_OTLP_TRACES_HEADERS")),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", Part::All, None),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", Part::All, Some("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")),
    ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", Part::All, None),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", Part::All, Some("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")),
    ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", Part::All, None),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", Part::All, Some("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE")),
    ("OTEL_SERVICE_NAME", Part::All, None),
    ("OTEL_RESOURCE_ATTRIBUTES", Part::All, None),
    ("OTEL_TRACES_SAMPLER", Part::All, None),
    ("OTEL_TRACES_SAMPLER_ARG", Part::All, None),
    ("OTEL_BSP_SCHEDULE_DELAY", Part::All, None),
    ("OTEL_BSP_EXPORT_TIMEOUT", Part::All, None),
    ("OTEL_BSP_MAX_QUEUE_SIZE", Part::All, None),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", Part::All, None),
];

/// Each of these variables that is set and not empty.
pub fn surroundings() -> Vec<Shown> {
    let value = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    VARIABLES.iter().filter_map(|row| shown(row, value)).collect()
}

fn shown((name, part, instead): &(&str, Part, Option<&str>), value: impl Fn(&str) -> Option<String>) -> Option<Shown> {
    let text = value(name).filter(|text| !text.trim().is_empty())?;
    let mut shown = match part {
        Part::All => text,
        Part::Place => place(&text),
        Part::End => end(&text),
        Part::Nothing => "(set, not shown)".to_owned(),
    };
    if instead.is_some_and(|instead| value(instead).is_some()) {
        shown.push_str(" (not followed)");
    }
    let value = shown.replace(char::is_control, " ");
    Some(Shown { name: (*name).to_owned(), destination: None, value, origin: Origin::Environment })
}

/// A password may contain anything, so everything up to the last `@` goes.
fn place(url: &str) -> String {
    let scheme = ["http://", "https://"].into_iter().find(|scheme| url.starts_with(scheme)).unwrap_or_default();
    let rest = url.rsplit_once('@').map_or_else(|| &url[scheme.len()..], |(_, rest)| rest);
    format!("{scheme}{}", rest.split('?').next().unwrap_or_default())
}

fn end(key: &str) -> String {
    let count = key.chars().count();
    if count <= 4 {
        return "(set, not shown)".to_owned();
    }
    format!("…{}", key.chars().skip(count - 4).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_user_and_password() {
        let table = [
            ("http://proxy:3128", "http://proxy:3128"),
            ("proxy:3128", "proxy:3128"),
            ("http://user:hunter2@proxy:3128/", "http://proxy:3128/"),
            ("user:hunter2@proxy:3128", "proxy:3128"),
            ("http://user:hun@ter2@proxy", "http://proxy"),
            ("user:http://hunter2@proxy", "proxy"),
            ("https://host/path?token=hunter2", "https://host/path"),
            ("/v2/credentials/id", "/v2/credentials/id"),
        ];
        for (url, expected) in table {
            assert_eq!(place(url), expected, "{url}");
        }
    }

    #[test]
    fn of_a_key_the_end_is_shown_and_of_a_short_one_nothing() {
        assert_eq!(end("AKIAIOSFODNN7EXAMPLE"), "…MPLE");
        assert_eq!(end("test"), "(set, not shown)");
        assert_eq!(end("größe"), "…röße");
    }

    #[test]
    fn a_variable_that_another_one_replaces_is_marked_and_an_empty_one_is_left_out() {
        let set = |name: &str| match name {
            "HTTPS_PROXY" | "AWS_PROFILE" => Some(String::new()),
            "https_proxy" => Some("http://a".to_owned()),
            "http_proxy" => Some("http://b\n".to_owned()),
            _ => None,
        };
        let lines: Vec<Shown> = VARIABLES.iter().filter_map(|row| shown(row, set)).collect();
        let lines: Vec<(&str, &str)> = lines.iter().map(|line| (line.name.as_str(), line.value.as_str())).collect();
        assert_eq!(lines, [("https_proxy", "http://a (not followed)"), ("http_proxy", "http://b ")]);
    }
}
