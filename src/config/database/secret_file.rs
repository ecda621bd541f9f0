//! A file that holds a connection string, or several: for mounted secrets.

use super::conninfo;

/// The text of the file that a variable names.
pub(super) fn from_file(variable: &str, path: &str) -> Result<String, String> {
    if path.contains("://") {
        return Err(format!("{variable} holds a URL (not shown); name a file, or give the URL as DATABASE_URL"));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{variable}={path:?} cannot be read: {error}; check the path and its permissions"))?;
    match text.trim() {
        "" => Err(format!("{variable}={path:?} is empty; {}", conninfo::USE)),
        url => Ok(url.to_owned()),
    }
}
