//! libpq's keywords (PostgreSQL documentation, 34.1.2 Parameter Key Words) with their environment variables (34.15), and
//! what becomes of each here. None is ignored without a word.

use std::collections::BTreeMap;

/// Keywords of libpq with the values that were given.
pub(super) type Parameters = BTreeMap<&'static str, String>;

/// What becomes of a keyword.
#[derive(Clone, Copy)]
enum Support {
    /// It has libpq's meaning.
    Used,
    /// Only these values, which make no difference here; the text is the remedy for others.
    Only(&'static [&'static str], &'static str),
}

use Support::{Only, Used};

const NONE: &[&str] = &[];
const KERBEROS: &str = "leave it out, and use a password or a client certificate";
const OAUTH: &str = "leave it out, and use a password, IAM or a client certificate";

/// Keyword, environment variable (empty if there is none), support.
const KEYWORDS: [(&str, &str, Support); 53] = [
    ("application_name", "PGAPPNAME", Used),
    ("channel_binding", "PGCHANNELBINDING", Used),
    (
        "client_encoding",
        "PGCLIENTENCODING",
        Only(&["auto", "UTF8", "utf8", "UTF-8", "utf-8"], "use UTF8 or leave it out"),
    ),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Used),
    ("dbname", "PGDATABASE", Used),
    ("fallback_application_name", "", Used),
    ("gssdelegation", "PGGSSDELEGATION", Only(&["0"], KERBEROS)),
    ("gssencmode", "PGGSSENCMODE", Only(&["disable", "prefer"], KERBEROS)),
    ("gsslib", "PGGSSLIB", Only(NONE, KERBEROS)),
    ("host", "PGHOST", Used),
    ("hostaddr", "PGHOSTADDR", Used),
    ("keepalives", "", Used),
    ("keepalives_count", "", Used),
    ("keepalives_idle", "", Used),
    ("keepalives_interval", "", Used),
    ("krbsrvname", "PGKRBSRVNAME", Only(&["postgres"], KERBEROS)),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS", Used),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", Only(&["3.0", "3.2", "latest"], "leave it out")),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", Only(&["3.0"], "protocol 3.0 is spoken; leave it out")),
    ("oauth_client_id", "", Only(NONE, OAUTH)),
    ("oauth_client_secret", "", Only(NONE, OAUTH)),
    ("oauth_issuer", "", Only(NONE, OAUTH)),
    ("oauth_scope", "", Only(NONE, OAUTH)),
    ("options", "PGOPTIONS", Used),
    ("passfile", "PGPASSFILE", Used),
    ("password", "PGPASSWORD", Used),
    ("port", "PGPORT", Used),
    ("replication", "", Only(&["false", "off", "no", "0"], "the relay needs no replication connection; leave it out")),
    ("require_auth", "PGREQUIREAUTH", Only(NONE, "use channel_binding=require or sslmode=verify-full")),
    ("requirepeer", "PGREQUIREPEER", Only(NONE, "leave it out and protect the folder of the socket")),
    ("requiressl", "PGREQUIRESSL", Only(&["0"], "use sslmode=require")),
    ("scram_client_key", "", Only(NONE, "use a password")),
    ("scram_server_key", "", Only(NONE, "use a password")),
    ("service", "PGSERVICE", Used),
    ("servicefile", "PGSERVICEFILE", Used),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Used),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Used),
    ("sslcert", "PGSSLCERT", Used),
    (
        "sslcertmode",
        "PGSSLCERTMODE",
        Only(&["allow", "disable"], "the server says whether it wants one (clientcert=verify-full)"),
    ),
    ("sslcompression", "PGSSLCOMPRESSION", Only(&["0"], "compression in TLS is unsafe; leave it out")),
    ("sslcrl", "PGSSLCRL", Used),
    ("sslcrldir", "PGSSLCRLDIR", Used),
    ("sslkey", "PGSSLKEY", Used),
    ("sslkeylogfile", "", Only(NONE, "leave it out")),
    ("sslmode", "PGSSLMODE", Used),
    ("sslnegotiation", "PGSSLNEGOTIATION", Used),
    ("sslpassword", "", Only(NONE, "decrypt the key: openssl pkey -in client.key -out decrypted.key")),
    ("sslrootcert", "PGSSLROOTCERT", Used),
    ("sslsni", "PGSSLSNI", Used),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Used),
    ("tcp_user_timeout", "", Used),
    ("user", "PGUSER", Used),
    ("krbsrvprinc", "", Only(NONE, KERBEROS)),
];

/// The keyword of this name.
pub(super) fn named(name: &str) -> Option<&'static str> {
    KEYWORDS.iter().map(|(keyword, ..)| *keyword).find(|keyword| *keyword == name)
}

/// The most similar keyword, if one is similar.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let similarity = |keyword: &str| strsim::jaro_winkler(keyword, name);
    let nearest = KEYWORDS.iter().map(|(keyword, ..)| *keyword).max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    nearest.filter(|keyword| similarity(keyword) > 0.85)
}

/// The environment variable of a keyword, if there is one.
pub(super) fn variable_of(keyword: &str) -> Option<&'static str> {
    KEYWORDS
        .iter()
        .find(|(name, ..)| *name == keyword)
        .map(|(_, variable, _)| *variable)
        .filter(|name| !name.is_empty())
}

/// All keywords with an environment variable.
pub(super) fn with_variables() -> impl Iterator<Item = (&'static str, &'static str)> {
    KEYWORDS.iter().map(|(keyword, variable, _)| (*keyword, *variable)).filter(|(_, variable)| !variable.is_empty())
}

/// Refuses what has no meaning here, by name. Secrets are not shown.
pub(super) fn refuse_unsupported(parameters: &Parameters) -> Vec<String> {
    let refused = parameters.iter().filter_map(|(keyword, value)| {
        let (_, _, support) = KEYWORDS.iter().find(|(name, ..)| name == keyword)?;
        match support {
            Only(allowed, remedy) if !value.is_empty() && !allowed.contains(&value.as_str()) => Some((keyword, remedy)),
            _ => None,
        }
    });
    refused
        .map(|(keyword, remedy)| match variable_of(keyword) {
            Some(variable) => {
                format!("{keyword} (in DATABASE_URL or as {variable}) is not supported with this value; {remedy}")
            }
            None => format!("{keyword} (in DATABASE_URL) is not supported; {remedy}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let parameters: Parameters =
            [("gssencmode", "require"), ("replication", "database"), ("sslpassword", "x"), ("sslcertmode", "allow")]
                .map(|(keyword, value)| (keyword, value.to_owned()))
                .into();
        let problems = refuse_unsupported(&parameters);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].starts_with("gssencmode (in DATABASE_URL or as PGGSSENCMODE)"), "{problems:?}");
        assert!(problems.iter().all(|problem| problem.len() < 200), "{problems:?}");
    }

    #[test]
    fn keywords_have_one_row_each() {
        let mut names: Vec<&str> = KEYWORDS.iter().map(|(keyword, ..)| *keyword).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYWORDS.len());
    }
}
