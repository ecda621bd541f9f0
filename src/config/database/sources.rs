//! What was given for the connection, and where: the connection string or its file, then a service file, then libpq's
//! environment variables (PostgreSQL documentation, 34.15 to 34.17). The first that names a value counts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::keywords::{self, Parameters};
use super::secret_file::from_file;
use super::{DatabaseAuth, conninfo, options, several};
use crate::config::setting::present;
use crate::schema::Schema;

/// The settings of the relay about the connection, as text; kept, so that files can be read again.
#[derive(Clone, Default)]
pub(in crate::config) struct Given {
    /// `DATABASE_URL`.
    pub(in crate::config) url: Option<String>,
    /// `DATABASE_URL_FILE`.
    pub(in crate::config) file: Option<String>,
    /// `DATABASE_URLS_FILE`.
    pub(in crate::config) urls_file: Option<String>,
    /// `OUTBOX_RELAY_DATABASE`.
    pub(in crate::config) chosen: Option<String>,
    /// `OUTBOX_RELAY_DATABASE_PASSWORD_COMMAND`.
    pub(in crate::config) password_command: Option<String>,
    /// `OUTBOX_RELAY_DATABASE_AUTH`.
    pub(in crate::config) auth: DatabaseAuth,
    /// Certificates to trust for AWS instead of the system's, in PEM.
    pub(in crate::config) ca_bundle: Option<Vec<u8>>,
    /// `OUTBOX_RELAY_DATABASE_CONNECTION_MAX_AGE`.
    pub(in crate::config) connection_max_age: Duration,
    /// `OUTBOX_RELAY_SCHEMA`.
    pub(in crate::config) schema: Schema,
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Given").field("file", &self.file).field("auth", &self.auth).finish_non_exhaustive()
    }
}

/// A value of the connection, for people to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownParameter {
    /// libpq's keyword.
    pub keyword: &'static str,
    /// The value; no secret.
    pub value: String,
    /// Where it comes from, such as `DATABASE_URL` or `PGSSLMODE`.
    pub origin: String,
}

/// Values and their origins.
pub(super) struct Gathered {
    /// All values.
    pub(super) parameters: Parameters,
    /// The line of `DATABASE_URLS_FILE` from which they come: its name, and its schema if it names one.
    pub(super) line: Option<(String, Option<Schema>)>,
    origins: BTreeMap<&'static str, String>,
    home: Option<PathBuf>,
}

impl Gathered {
    /// A value; empty counts as not given, as in libpq.
    pub(super) fn get(&self, keyword: &str) -> Option<&str> {
        self.parameters.get(keyword).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The password file: the one that was named, or libpq's default.
    pub(super) fn passfile(&self) -> PathBuf {
        let named = self.get("passfile").map(PathBuf::from);
        named.or_else(|| Some(self.home.as_ref()?.join(".pgpass"))).unwrap_or_default()
    }

    /// A file of libpq's folder in the home directory, if it exists and nothing replaces it.
    pub(super) fn file_at_home(&self, is_replaced: bool, name: &str) -> Option<PathBuf> {
        let path = self.home.as_ref()?.join(".postgresql").join(name);
        (!is_replaced && path.exists()).then_some(path)
    }

    /// Adds the connection string, wherever it was given; returns whether one was.
    fn add_string(&mut self, given: &Given) -> Result<bool, String> {
        let (url, file) = (present(given.url.as_deref()), present(given.file.as_deref()));
        let (urls_file, chosen) = (present(given.urls_file.as_deref()), present(given.chosen.as_deref()));
        if chosen.is_some_and(|chosen| !several::is_name(chosen)) {
            return Err("OUTBOX_RELAY_DATABASE (not shown) is not a name; use one of DATABASE_URLS_FILE, or DATABASE_URL for a URL".to_owned());
        }
        if let (Some(chosen), None) = (chosen, urls_file) {
            return Err(format!(
                "OUTBOX_RELAY_DATABASE={chosen:?} names a line of DATABASE_URLS_FILE, which is not set; set it, or leave the name out"
            ));
        }
        match (url, file, urls_file) {
            (None, None, None) => return Ok(false),
            (Some(url), None, None) => {
                let parsed = conninfo::parse(url).map_err(|problem| format!("DATABASE_URL {problem}"))?;
                self.add(parsed, |_| "DATABASE_URL".to_owned());
            }
            (None, Some(path), None) => {
                let parsed = conninfo::parse(&from_file("DATABASE_URL_FILE", path)?);
                let parsed =
                    parsed.map_err(|problem| format!("DATABASE_URL in DATABASE_URL_FILE={path:?} {problem}"))?;
                self.add(parsed, |_| "DATABASE_URL_FILE".to_owned());
            }
            (None, None, Some(path)) => {
                let line = several::chosen(path, chosen)?;
                self.add(line.parameters, |_| format!("DATABASE_URLS_FILE, {}", line.name));
                self.line = Some((line.name, line.schema));
            }
            _ => {
                let all = [("DATABASE_URL", url), ("DATABASE_URL_FILE", file), ("DATABASE_URLS_FILE", urls_file)];
                let set: Vec<&str> = all.iter().filter(|(_, text)| text.is_some()).map(|(name, _)| *name).collect();
                return Err(format!("{} are both set; keep one of them", set[..2].join(" and ")));
            }
        }
        Ok(true)
    }

    /// Adds the values that nothing before has named, not even as empty: as in libpq, `PGSSLMODE` does not replace
    /// `sslmode=''`.
    fn add(&mut self, parameters: impl IntoIterator<Item = (&'static str, String)>, origin: impl Fn(&str) -> String) {
        for (keyword, value) in parameters {
            if !self.parameters.contains_key(keyword) {
                self.origins.insert(keyword, origin(keyword));
                self.parameters.insert(keyword, value);
            }
        }
    }

    pub(super) fn shown(&self) -> Vec<ShownParameter> {
        let is_secret = |keyword: &str| ["password", "sslpassword", "oauth_client_secret"].contains(&keyword);
        let given = self.parameters.iter().filter(|(_, value)| !value.is_empty());
        let shown = given.map(|(keyword, value)| ShownParameter {
            keyword,
            value: match *keyword {
                keyword if is_secret(keyword) => "(set, not shown)".to_owned(),
                "options" => options::shown(value),
                _ => value.clone(),
            },
            origin: self.origins.get(keyword).cloned().unwrap_or_default(),
        });
        let mut shown: Vec<ShownParameter> = shown.collect();
        if self.get("sslmode").is_none() {
            let value = if self.get("sslrootcert") == Some("system") { "verify-full" } else { "prefer" };
            shown.push(ShownParameter { keyword: "sslmode", value: value.to_owned(), origin: "default".to_owned() });
        }
        shown
    }
}

/// Gathers what was given.
///
/// # Errors
///
/// One sentence.
pub(super) fn gather(given: &Given) -> Result<Gathered, String> {
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let mut gathered = Gathered { parameters: Parameters::new(), line: None, origins: BTreeMap::new(), home };
    let has_string = gathered.add_string(given)?;
    let service = gathered.get("service").map(str::to_owned).or_else(|| variable("PGSERVICE"));
    if service.as_ref().is_some_and(|service| service.contains("://")) {
        return Err(
            "PGSERVICE holds a URL (not shown); name a service of the service file, or use DATABASE_URL".to_owned()
        );
    }
    if let Some(service) = &service {
        let parameters = of_service(service, &gathered)?;
        gathered.add(parameters, |_| format!("service {service}"));
    }
    let variables = keywords::with_variables().filter_map(|(keyword, name)| Some((keyword, variable(name)?)));
    gathered
        .add(variables.collect::<Vec<_>>(), |keyword| keywords::variable_of(keyword).unwrap_or_default().to_owned());
    let names_server = ["host", "hostaddr"].iter().any(|keyword| gathered.get(keyword).is_some());
    if !has_string && service.is_none() && !names_server {
        return Err("DATABASE_URL is not set (nor DATABASE_URL_FILE, PGHOST or PGSERVICE); set it to postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned());
    }
    Ok(gathered)
}

/// The values of a service: in the user's service file, else in the system's.
fn of_service(service: &str, gathered: &Gathered) -> Result<Parameters, String> {
    let of_user =
        gathered.get("servicefile").map(PathBuf::from).or_else(|| variable("PGSERVICEFILE").map(PathBuf::from));
    let is_named = of_user.is_some();
    let of_user = of_user.or_else(|| Some(gathered.home.as_ref()?.join(".pg_service.conf")));
    let of_system = variable("PGSYSCONFDIR").map(|folder| PathBuf::from(folder).join("pg_service.conf"));
    let mut tried = Vec::new();
    for path in of_user.into_iter().chain(of_system) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if is_named && tried.is_empty() => {
                return Err(format!("PGSERVICEFILE={:?} cannot be read: {error}; check the path", path.display()));
            }
            Err(_) => {
                tried.push(path.display().to_string());
                continue;
            }
        };
        if let Some(found) = in_service_file(&text, service)
            .map_err(|(line, problem)| format!("{}, line {line}: {problem}", path.display()))?
        {
            return Ok(found);
        }
        tried.push(path.display().to_string());
    }
    Err(format!(
        "the service {service:?} (PGSERVICE) is defined nowhere (looked in {}); set PGSERVICEFILE",
        tried.join(", ")
    ))
}

/// The section of a service file. An error has the number of its line; no value is shown.
fn in_service_file(text: &str, service: &str) -> Result<Option<Parameters>, (usize, String)> {
    let mut found: Option<Parameters> = None;
    for (number, line) in (1..).zip(text.lines()).map(|(number, line)| (number, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            if found.is_some() {
                break;
            }
            found = (name == service).then(Parameters::new);
            continue;
        }
        let Some(section) = &mut found else { continue };
        let (key, value) = line.split_once('=').ok_or((number, "write keyword=value without blanks".to_owned()))?;
        let keyword = keywords::named(key).filter(|keyword| !["service", "servicefile"].contains(keyword));
        let keyword = keyword.ok_or((number, "the keyword is not one for a service file".to_owned()))?;
        // As in libpq, the first counts.
        section.entry(keyword).or_insert_with(|| value.to_owned());
    }
    Ok(found)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_one_section_of_its_file() {
        let text = "# all\n[a]\nhost=one\n\n[b]\nhost=two\nport=6000\npassword=a=b\n[c]\nnonsense\n";
        let found = in_service_file(text, "b").unwrap().unwrap();
        let pairs: Vec<_> = found.into_iter().collect();
        let expected = [("host", "two"), ("password", "a=b"), ("port", "6000")];
        assert_eq!(pairs, expected.map(|(keyword, value)| (keyword, value.to_owned())));
        assert!(in_service_file(text, "d").unwrap().is_none());
        assert_eq!(in_service_file(text, "c").unwrap_err().0, 10);
    }
}
