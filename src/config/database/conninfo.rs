//! libpq's two forms of a connection string, taken apart: `postgres://…` and `keyword=value …` (PostgreSQL documentation,
//! 34.1.1 Connection Strings). Text becomes keywords with their values; what a value means is decided in `mod.rs`.
//!
//! No message shows a part of the string that may belong to a password.

use super::keywords::{self, Parameters};

/// How a URL is written.
pub(super) const USE: &str = "use postgres://USER:PASSWORD@HOST:PORT/DATABASE";

/// Takes a connection string apart.
///
/// # Errors
///
/// The rest of a sentence that begins with the name of the variable.
pub(super) fn parse(text: &str) -> Result<Parameters, String> {
    if text.starts_with(['"', '\'']) {
        return Err("begins with a quotation mark; take it away, as env files keep them".to_owned());
    }
    match text.split_once("://") {
        Some(("postgres" | "postgresql", rest)) => Url { text, rest }.parse(),
        Some((scheme, _)) if !scheme.contains('=') => Err(format!("is not a URL of PostgreSQL; {USE}")),
        _ if !text.contains('=') => Err(format!("is neither a URL nor keyword=value pairs; {USE}")),
        _ => words(text),
    }
}

/// A URL and what is left of it behind the scheme.
struct Url<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Url<'a> {
    /// As libpq's `conninfo_uri_parse_options`: the credentials end at the first @ that comes before any /.
    fn parse(&self) -> Result<Parameters, String> {
        self.refuse_odd_percent_signs()?;
        let mut found = Parameters::new();
        let (authority, path, query) = self.pieces();
        let place = match authority.split_once('@') {
            Some((credentials, place)) => {
                let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
                set(&mut found, "user", user)?;
                set(&mut found, "password", password)?;
                place
            }
            None => authority,
        };
        if place.contains('@') {
            return Err("holds an @ in the user or password; write it as %40".to_owned());
        }
        if path.contains('@') {
            return Err(
                "holds an @ behind the first /; write a / of the password as %2F, and an @ of the database's name as %40"
                    .to_owned(),
            );
        }
        let (hosts, ports) = hosts(place)?;
        set(&mut found, "host", &hosts)?;
        set(&mut found, "port", &ports)?;
        set(&mut found, "dbname", path)?;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            self.option(&mut found, pair)?;
        }
        Ok(found)
    }

    /// What stands before the path, the path without its slash, and the query without its question mark.
    fn pieces(&self) -> (&'a str, &'a str, &'a str) {
        // A ? in the password does not begin the query.
        let credentials = self.rest.find(['@', '/']).filter(|at| self.rest[*at..].starts_with('@')).unwrap_or(0);
        let end = self.rest[credentials..].find(['/', '?']).map_or(self.rest.len(), |at| credentials + at);
        let (authority, behind) = self.rest.split_at(end);
        let (path, query) = behind.split_once('?').unwrap_or((behind, ""));
        (authority, path.strip_prefix('/').unwrap_or(path), query)
    }

    fn option(&self, found: &mut Parameters, pair: &str) -> Result<(), String> {
        let (key, value) = match pair.split_once('=') {
            Some((key, value)) if !value.contains('=') => (decoded(key)?, value),
            // A value with an = in it must be encoded; the text may be a part of a password.
            Some((key, _)) => {
                return Err(format!("has an option {:?} with a second =; write it as %3D", known(key)));
            }
            None => return Err("has an option without a =; write NAME=VALUE and & between options".to_owned()),
        };
        if key == "ssl" && value == "true" {
            found.insert("sslmode", "require".to_owned());
            return Ok(());
        }
        let keyword = keywords::named(&key).ok_or_else(|| unknown(&key, self.may_hold_a_secret(&key)))?;
        found.insert(keyword, decoded(value)?);
        Ok(())
    }

    /// Whether the name of an option may be a part of a password that was not encoded.
    fn may_hold_a_secret(&self, key: &str) -> bool {
        let of_credentials = usize::from(self.pieces().0.contains('@'));
        let is_word = key.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        !is_word || self.text.contains("password") || self.text.matches('@').count() > of_credentials
    }

    /// The position counts characters from the beginning of the URL.
    fn refuse_odd_percent_signs(&self) -> Result<(), String> {
        let is_hex = |at: usize| self.text.as_bytes().get(at).is_some_and(u8::is_ascii_hexdigit);
        let mut signs = self.text.match_indices('%').map(|(at, _)| at);
        match signs.find(|at| !(is_hex(at + 1) && is_hex(at + 2))) {
            Some(at) => Err(format!(
                "holds a percent sign at character {} without two hexadecimal digits behind it; write %25 for a percent sign",
                self.text[..at].chars().count() + 1
            )),
            None => Ok(()),
        }
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let bytes = percent_encoding::percent_decode_str(text).decode_utf8();
    let text = bytes.map_err(|_| "holds percent-encoded bytes that are not UTF-8".to_owned())?;
    if text.contains('\0') {
        return Err("holds %00; no value of PostgreSQL may hold a zero byte".to_owned());
    }
    Ok(text.into_owned())
}

fn set(found: &mut Parameters, keyword: &'static str, text: &str) -> Result<(), String> {
    let value = decoded(text)?;
    if !value.is_empty() {
        found.insert(keyword, value);
    }
    Ok(())
}

/// The hosts and their ports, each joined by commas as libpq wants them.
fn hosts(place: &str) -> Result<(String, String), String> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for one in place.split(',') {
        let (host, port) = match one.strip_prefix('[') {
            Some(rest) => {
                let (address, port) =
                    rest.split_once(']').ok_or("holds a [ without its ]; write IPv6 as [::1]:5432")?;
                if !(port.is_empty() || port.starts_with(':')) {
                    return Err("holds something between ] and the port; write IPv6 as [::1]:5432".to_owned());
                }
                (address, port.trim_start_matches(':'))
            }
            None => one.split_once(':').unwrap_or((one, "")),
        };
        if host.contains(['/', '?', '#', ' ']) {
            return Err(format!("holds a host with a /, ?, # or blank in it (not shown); {USE}"));
        }
        hosts.push(host);
        ports.push(port);
    }
    let ports = if ports.iter().all(|port| port.is_empty()) { String::new() } else { ports.join(",") };
    Ok((hosts.join(","), ports))
}

/// As libpq's `conninfo_parse`: blanks around = are allowed, quotes hold blanks, a backslash takes the next character.
fn words(text: &str) -> Result<Parameters, String> {
    let mut found = Parameters::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (key, behind) = rest.split_at(end);
        let value = behind.trim_start().strip_prefix('=').ok_or(
            "has a word without a = (not shown: it may be part of the password); quote values with blanks: password='a b'",
        )?;
        let keyword = keywords::named(key).ok_or_else(|| unknown(key, true))?;
        let (value, behind) = value_of(value.trim_start())?;
        found.insert(keyword, value);
        rest = behind.trim_start();
    }
    Ok(found)
}

/// The first value and what comes behind it.
fn value_of(text: &str) -> Result<(String, &str), String> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut characters = body.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && c.is_ascii_whitespace() => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted {
        return Err("has a quote without its end (not shown: it may be part of the password)".to_owned());
    }
    Ok((value, ""))
}

/// A keyword that libpq does not know. It is shown unless it may be the second half of a password.
fn unknown(key: &str, may_be_secret: bool) -> String {
    if may_be_secret {
        return "has an option that is unknown (not shown: it may be part of the password); docs/connections.md has the options"
            .to_owned();
    }
    let nearest = keywords::nearest(key).map(|keyword| format!(" (did you mean {keyword}?)")).unwrap_or_default();
    format!("has an option {key:?} that PostgreSQL does not know{nearest}; docs/connections.md has the options")
}

/// A keyword, or nothing of what may be a secret.
fn known(key: &str) -> &str {
    keywords::named(key).unwrap_or("…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(&'static str, String)> {
        parse(text).expect(text).into_iter().collect()
    }

    fn expected(pairs: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        pairs.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
    }

    #[test]
    fn a_url_is_taken_apart_as_libpq_does() {
        let table: &[(&str, &[(&str, &str)])] = &[
            ("postgres://", &[]),
            ("postgresql://h", &[("host", "h")]),
            ("postgres://h:1/d", &[("dbname", "d"), ("host", "h"), ("port", "1")]),
            ("postgres://u@h", &[("host", "h"), ("user", "u")]),
            ("postgres://u:p@h/d", &[("dbname", "d"), ("host", "h"), ("password", "p"), ("user", "u")]),
            ("postgres://u:p?x#y@h", &[("host", "h"), ("password", "p?x#y"), ("user", "u")]),
            ("postgres://u:a:b@h", &[("host", "h"), ("password", "a:b"), ("user", "u")]),
            ("postgres://u:%40%2F%25@h", &[("host", "h"), ("password", "@/%"), ("user", "u")]),
            ("postgres:///d", &[("dbname", "d")]),
            ("postgres://a:1,b:2,c/d", &[("dbname", "d"), ("host", "a,b,c"), ("port", "1,2,")]),
            ("postgres://[::1]:1,[fe80::1]/d", &[("dbname", "d"), ("host", "::1,fe80::1"), ("port", "1,")]),
            ("postgres://%2Fvar%2Frun/d", &[("dbname", "d"), ("host", "/var/run")]),
            ("postgres:///d?host=/tmp&port=7", &[("dbname", "d"), ("host", "/tmp"), ("port", "7")]),
            (
                "postgres://u@h/d?application_name=a@b",
                &[("application_name", "a@b"), ("dbname", "d"), ("host", "h"), ("user", "u")],
            ),
            ("postgres://h/d?ssl=true", &[("dbname", "d"), ("host", "h"), ("sslmode", "require")]),
            ("postgres://h?options=-c%20a%3Db", &[("host", "h"), ("options", "-c a=b")]),
        ];
        for (text, pairs) in table {
            assert_eq!(parsed(text), expected(pairs), "{text}");
        }
    }

    #[test]
    fn pairs_are_taken_apart_as_libpq_does() {
        let table: &[(&str, &[(&str, &str)])] = &[
            ("host=h", &[("host", "h")]),
            (" host = h   port=1 ", &[("host", "h"), ("port", "1")]),
            ("host=h password='a  b'", &[("host", "h"), ("password", "a  b")]),
            (r"password='it\'s' host=h", &[("host", "h"), ("password", "it's")]),
            (r"password=a\ b host=h", &[("host", "h"), ("password", "a b")]),
            (r"password=a\\b host=h", &[("host", "h"), ("password", r"a\b")]),
            ("host=a host=b", &[("host", "b")]),
            ("password= host=h", &[("password", "host=h")]),
            ("host='' port=1", &[("host", ""), ("port", "1")]),
        ];
        for (text, pairs) in table {
            assert_eq!(parsed(text), expected(pairs), "{text}");
        }
    }

    #[test]
    fn a_mistake_is_named_with_its_place_and_no_password_is_shown() {
        let table = [
            ("postgres://u:pa%zzs@h/d", "character 16 "),
            ("postgres://u:p@h/d%1", "character 19 "),
            ("postgres://u:secret@word@h/d", "%40"),
            ("postgres://u:secret/word@h/d", "%2F"),
            ("postgres://h/d?sslmod=require", "did you mean sslmode"),
            ("postgres://h/d?password=a&secret=b", "not shown"),
            ("postgres://h/d?sslmode", "without a ="),
            ("postgres://h/d?options=a=secret", "%3D"),
            ("postgres://[::1/d", "]"),
            ("mysql://u:secret@h/d", "not a URL of PostgreSQL"),
            ("host", "neither"),
            ("host=h password=a secret", "not shown"),
            ("host=h password='secret", "without its end"),
        ];
        for (text, problem) in table {
            let said = parse(text).expect_err(text);
            assert!(said.contains(problem), "{text}: {said}");
            assert!(!said.contains("secret"), "{text}: {said}");
        }
    }
}
