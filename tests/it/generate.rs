//! Man pages, completions and the version, as packages and reports of faults contain them.

use std::process::{Command as Process, Stdio};

use anyhow::{Context as _, Result, ensure};

use support::relay::Command;

#[tokio::test]
async fn each_command_has_a_man_page_with_every_variable_and_no_value_of_the_environment() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().to_str().context("an odd folder")?;
    let secret = "postgres://app:hunter2-the-secret@127.0.0.1/lottery";
    let command = Command::new().env("DATABASE_URL", secret).env("OUTBOX_RELAY_BATCH_SIZE", "777");
    let ended = command.output(&["generate", "man", path]).await?;
    ensure!(ended.code == Some(0) && ended.stderr.is_empty(), "{ended:?}");
    for command in ["", "-run", "-migrate", "-dead-redrive", "-quarantine-list", "-replay", "-status", "-healthcheck"] {
        let page = std::fs::read_to_string(folder.path().join(format!("outbox-relay{command}.1")))?;
        ensure!(page.starts_with(".ie") || page.contains(".TH outbox"), "outbox-relay{command} is no man page: {page}");
        for variable in ["DATABASE_URL", "OUTBOX_RELAY_BATCH_SIZE", "RUST_LOG"] {
            ensure!(page.contains(variable), "outbox-relay{command}: no {variable}");
        }
        ensure!(!page.contains("hunter2") && !page.contains("777"), "outbox-relay{command} shows a value");
    }
    Ok(())
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() -> Result<()> {
    let ended = Command::new().output(&["generate", "man", "/dev/null/pages"]).await?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("/dev/null/pages"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn bash_completes_commands_and_settings() -> Result<()> {
    let ended = Command::new().output(&["generate", "completions", "bash"]).await?;
    ensure!(ended.code == Some(0), "{ended:?}");
    // It is longer than an argument may be.
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &ended.stdout)?;
    let script = r#"
        . "$1"
        complete -p outbox-relay >/dev/null
        COMP_WORDS=(outbox-relay run --batch); COMP_CWORD=2
        _outbox__relay outbox-relay --batch run
        echo "${COMPREPLY[@]}"
        COMP_WORDS=(outbox-relay mi); COMP_CWORD=1; COMPREPLY=()
        _outbox__relay outbox-relay mi outbox-relay
        echo "${COMPREPLY[@]}""#;
    let shell = Process::new("bash").args(["-euc", script, "bash"]).arg(file.path()).stdin(Stdio::null()).output()?;
    let completed = String::from_utf8(shell.stdout)?;
    ensure!(completed == "--batch-size\nmigrate\n", "{completed:?} {}", String::from_utf8_lossy(&shell.stderr));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let ended = Command::new().output(&["generate", "completions", shell]).await?;
        ensure!(ended.code == Some(0) && ended.stdout.contains("outbox-relay"), "{shell}: {ended:?}");
    }
    Ok(())
}

/// A source archive has no commit. Then the version stands alone.
#[tokio::test]
async fn the_version_names_the_commit_and_its_day() -> Result<()> {
    let ended = Command::new().output(&["--version"]).await?;
    let root = env!("CARGO_MANIFEST_DIR");
    let git = Process::new("git").args(["-C", root, "show", "--no-patch", "--format=%H %cs", "HEAD"]).output();
    let is_checkout = std::path::Path::new(root).join(".git").exists();
    let version = concat!("outbox-relay ", env!("CARGO_PKG_VERSION"));
    let expected = match git {
        Ok(output) if is_checkout && output.status.success() => {
            let text = String::from_utf8(output.stdout)?;
            let (commit, day) = text.trim().split_once(' ').context("no day")?;
            format!("{version} ({} {day})\n", &commit[..9])
        }
        _ => format!("{version}\n"),
    };
    ensure!(ended.stdout == expected, "{:?}, not {expected:?}", ended.stdout);
    Ok(())
}
