//! The password for a new connection: given, from a password file, or printed by a command. It is read anew each time, so
//! that a rotation needs no restart.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use crate::aws::rds::Tokens;
use crate::causes;
use crate::config::{DatabaseConfig, Host, PasswordSource, Server};

/// How many bytes of a command's output are looked at.
const MAX_OUTPUT: u64 = 64 * 1024;

/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no password, in one sentence without the password.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoPassword {
    /// For the log and the terminal: with what a command has said.
    pub(super) problem: String,
    /// For readers who need no login: a command may say a secret.
    pub(super) shown: String,
}

impl From<String> for NoPassword {
    fn from(problem: String) -> Self {
        Self { shown: problem.clone(), problem }
    }
}

/// The password for this server; `None` if there is none, as for certificates and trust.
///
/// # Errors
///
/// When a command or IAM gives none.
pub(super) async fn password(config: &DatabaseConfig, server: &Server) -> Result<Option<String>, NoPassword> {
    match &config.password {
        PasswordSource::Given(password) => Ok(Some(password.clone())),
        PasswordSource::PassFile(path) => Ok(of_passfile(path, config, server).await),
        PasswordSource::Command(words) => of_command(words).await.map(Some),
        PasswordSource::RdsIam { ca_bundle } => {
            let Host::Name(name) = &server.host else {
                return Err("a token of IAM needs a host name".to_owned().into());
            };
            Ok(Tokens::new(ca_bundle.as_deref())?.token(name, server.port, &config.user).await.map(Some)?)
        }
    }
}

/// Whether a program or a service is asked for the password.
pub(super) fn is_costly(config: &DatabaseConfig) -> bool {
    matches!(config.password, PasswordSource::Command(_) | PasswordSource::RdsIam { .. })
}

/// Why there is no password although the server asks for one, and what helps.
pub(super) fn missing(config: &DatabaseConfig, server: &Server) -> String {
    match &config.password {
        PasswordSource::PassFile(path) if path.exists() => format!(
            "add a line for {}:{}:{}:{} to {}",
            host_in_passfile(server),
            server.port,
            config.database,
            config.user,
            path.display()
        ),
        _ => "give one in DATABASE_URL, PGPASSWORD or PGPASSFILE".to_owned(),
    }
}

/// A file that is not there, cannot be read or is none holds no password, as in libpq.
async fn of_passfile(path: &Path, config: &DatabaseConfig, server: &Server) -> Option<String> {
    let path = path.to_owned();
    // Reading may block, and other work waits for this thread. A pipe would block for ever.
    let read = move || path.is_file().then(|| std::fs::read(&path).ok()).flatten();
    let bytes = tokio::task::spawn_blocking(read).await.ok()??;
    let text = String::from_utf8_lossy(&bytes);
    let (host, port) = (host_in_passfile(server), server.port.to_string());
    in_passfile(&text, [&host, &port, &config.database, &config.user])
}

/// libpq compares what was given as the host; a socket in its usual folder is called localhost.
fn host_in_passfile(server: &Server) -> String {
    match (&server.host, server.address) {
        (Host::Socket(folder), _) if ["/var/run/postgresql", "/tmp"].iter().any(|usual| Path::new(usual) == folder) => {
            "localhost".to_owned()
        }
        (Host::Socket(folder), _) => folder.display().to_string(),
        (Host::Name(name), _) => name.clone(),
    }
}

/// The password of the first line that fits: `HOST:PORT:DATABASE:USER:PASSWORD`, where * fits everything and a backslash
/// takes the next character (PostgreSQL documentation, 34.16 The Password File).
fn in_passfile(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line.trim_end_matches('\r');
        for want in wanted {
            let (field, behind) = field(rest, Some(':'))?;
            if rest.split(':').next() != Some("*") && field != want {
                return None;
            }
            rest = behind;
        }
        field(rest, None).map(|(password, _)| password)
    })
}

/// The text up to an end that no backslash stands before, and what comes behind it.
fn field(text: &str, end: Option<char>) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c if Some(c) == end => return Some((value, &text[at + 1..])),
            c => value.push(c),
        }
    }
    end.is_none().then_some((value, ""))
}

/// The first line that the command prints.
async fn of_command(words: &[String]) -> Result<String, NoPassword> {
    let (program, arguments) = words.split_first().ok_or_else(|| "the password command is empty".to_owned())?;
    let failed = |problem: String| {
        // The arguments may hold a secret.
        format!("the password command {program:?} {problem}; try it by hand, without a shell")
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // With a group of its own, what it has started ends with it.
    let mut child = command.process_group(0).spawn().map_err(|error| failed(format!("cannot be started: {error}")))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = tokio::time::timeout(COMMAND_TIMEOUT, async {
        let (output, said) = tokio::join!(beginning(stdout), beginning(stderr));
        Ok::<_, std::io::Error>((child.wait().await?, output?, said?))
    });
    let ended = ended.await;
    if matches!(ended, Ok(Ok(_))) {
        group.0 = None;
    }
    let ended = ended.map_err(|_| failed(format!("did not end within {}s", COMMAND_TIMEOUT.as_secs())))?;
    let (status, output, said) = ended.map_err(|error| failed(format!("cannot be read: {error}")))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&said);
        let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let said: String = causes::harmless(said).chars().take(80).collect();
        let shown = format!("the password command {program:?} ended with {status}; see the log");
        return Err(NoPassword { problem: failed(format!("ended with {status}: {said}")), shown });
    }
    let text = String::from_utf8(output).map_err(|_| failed("printed bytes that are not UTF-8".to_owned()))?;
    match text.lines().next().unwrap_or_default() {
        "" => Err(failed("printed nothing".to_owned()).into()),
        password => Ok(password.to_owned()),
    }
}

/// The processes of a command that has not ended; they are killed with the value, also if nobody waits any more.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        self.0.map(|group| kill_process_group(group, Signal::KILL));
    }
}

/// The beginning of what a program prints; the rest is read and dropped, so that the program can end.
async fn beginning(stream: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, std::io::Error> {
    let (mut kept, Some(mut stream)) = (Vec::new(), stream) else { return Ok(Vec::new()) };
    (&mut stream).take(MAX_OUTPUT).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_is_read_as_libpq_does() {
        let text = "# comment\n\
            other:5432:*:*:wrong\n\
            db:5433:*:app:port\n\
            ::1:5432:a:b:never\n\
            \\:\\:1:5432:*:*:six\n\
            db:5432:shop:app:with\\:colon\\\\and:more\n\
            *:*:*:app:any\n";
        let find = |host, port, database, user| in_passfile(text, [host, port, database, user]);
        assert_eq!(find("db", "5432", "shop", "app").as_deref(), Some("with:colon\\and:more"));
        assert_eq!(find("db", "5433", "shop", "app").as_deref(), Some("port"));
        assert_eq!(find("::1", "5432", "shop", "app").as_deref(), Some("six"));
        assert_eq!(find("elsewhere", "1", "x", "app").as_deref(), Some("any"));
        assert_eq!(find("elsewhere", "1", "x", "nobody"), None);
    }

    #[tokio::test]
    async fn a_command_prints_the_password_and_its_failure_is_named_without_its_arguments() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(of_command(&words("printf one\\ntwo")).await.as_deref(), Ok("one"));
        for (command, problem) in [
            ("false secret", "ended with"),
            ("/does/not/exist secret", "cannot be started"),
            ("true secret", "nothing"),
        ] {
            let said = of_command(&words(command)).await.expect_err(command).problem;
            assert!(said.contains(problem) && !said.contains("secret"), "{said}");
        }
    }

    #[tokio::test]
    async fn what_a_failed_command_says_is_for_the_log_only() {
        let words = ["sh", "-c", "echo the key is secret >&2; exit 7"].map(str::to_owned);
        let NoPassword { problem, shown } = of_command(&words).await.unwrap_err();
        assert!(problem.contains("ended with exit status: 7: the key is secret"), "{problem}");
        assert_eq!(shown, "the password command \"sh\" ended with exit status: 7; see the log");
    }

    #[tokio::test]
    async fn what_a_command_has_started_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        // The shell's child would outlive it.
        let script = format!("sleep 61 & echo $! >{0}.new; mv {0}.new {0}; wait", path.display());
        let words = ["sh", "-c", &script].map(str::to_owned);
        let started = async {
            while !path.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Whoever waited for the password gives up.
        tokio::select! {
            said = of_command(&words) => assert_eq!(said.as_deref(), Ok("never")),
            () = started => {}
        }
        let process = std::fs::read_to_string(&path).unwrap();
        let status = format!("/proc/{}/stat", process.trim());
        let is_running = || std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z "));
        let ended = async {
            while is_running() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    }
}
