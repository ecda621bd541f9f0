//! PostgreSQL's programs on this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::problem::Unusable;

/// The oldest major version that the relay supports.
const OLDEST: u32 = 13;

/// A folder with `initdb` and `postgres`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) folder: PathBuf,
    /// As `postgres --version` says it: `15.18`.
    pub(super) version: String,
}

impl Binaries {
    /// The folder that was given, or the first of these that can be used.
    pub(super) fn find(given: Option<&Path>, folders: Vec<PathBuf>) -> Result<Self, Unusable> {
        if let Some(folder) = given {
            return Self::in_folder(folder).ok_or_else(|| {
                let folder = folder.display();
                Unusable(format!(
                    "--postgres {folder} holds no PostgreSQL {OLDEST} or newer; name the folder of initdb and postgres, such \
                     as /usr/lib/postgresql/17/bin"
                ))
            });
        }
        folders.iter().find_map(|folder| Self::in_folder(folder)).ok_or_else(|| {
            Unusable(format!(
                "no PostgreSQL {OLDEST} or newer is on this machine (initdb and postgres, in PATH, where pg_config says, or in \
                 /usr/lib/postgresql); install it (apt-get install postgresql, brew install postgresql), name its folder \
                 with --postgres DIR, or set DATABASE_URL"
            ))
        })
    }

    fn in_folder(folder: &Path) -> Option<Self> {
        let folder = folder.canonicalize().ok()?;
        let server = folder.join("postgres");
        if !server.is_file() || !folder.join("initdb").is_file() {
            return None;
        }
        let told = Command::new(server).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        let version = version(&String::from_utf8_lossy(&told.stdout))?;
        Some(Self { folder, version })
    }
}

/// The version in `postgres (PostgreSQL) 15.18 (Debian 15.18-1)`, if it is supported. Of a link in PATH to a wrapper that
/// prints something else there is none.
fn version(told: &str) -> Option<String> {
    let version = told.strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|major: &u32| *major >= OLDEST).map(|_| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_supported_versions_are_taken() {
        assert_eq!(version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").as_deref(), Some("15.18"));
        assert_eq!(version("postgres (PostgreSQL) 18beta1\n").as_deref(), Some("18beta1"));
        assert_eq!(version("postgres (PostgreSQL) 12.22\n"), None);
        assert_eq!(version("something else\n"), None);
    }

    #[test]
    fn without_postgresql_the_error_says_what_helps() {
        let empty = tempfile::tempdir().unwrap();
        let nowhere =
            Binaries::find(None, vec![empty.path().to_owned(), PathBuf::from("/nonexistent")]).unwrap_err().to_string();
        for part in ["no PostgreSQL", "apt-get install postgresql", "--postgres DIR", "DATABASE_URL"] {
            assert!(nowhere.contains(part), "{nowhere}");
        }
        let given = Binaries::find(Some(empty.path()), Vec::new()).unwrap_err().to_string();
        assert!(given.contains(&empty.path().display().to_string()), "{given}");
    }
}
