//! Tells the program which commit it is built from, for `--version`.
//!
//! The commit and its day come from `BUILD_COMMIT` and `BUILD_COMMIT_DATE` (an image is built without the
//! repository), else from git. A source archive has neither, and the version stands alone.
//!
//! None of these names begins with `OUTBOX_RELAY_`: cargo passes them on to what it runs, and the relay refuses unknown ones.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let given = |name: &str| {
        println!("cargo:rerun-if-env-changed={name}");
        std::env::var(name).ok().filter(|value| !value.is_empty())
    };
    let (commit, date) = (given("BUILD_COMMIT"), given("BUILD_COMMIT_DATE"));
    let (commit, date) = if commit.is_some() { (commit, date) } else { from_git() };
    let commit = commit.map(|commit| commit.chars().take(9).collect::<String>());
    let build: Vec<String> = [commit.clone(), date].into_iter().flatten().collect();
    let version = env!("CARGO_PKG_VERSION");
    let version = if build.is_empty() { version.to_owned() } else { format!("{version} ({})", build.join(" ")) };
    println!("cargo:rustc-env=BUILD_VERSION={version}");
    println!("cargo:rustc-env=BUILD_REVISION={}", commit.unwrap_or_default());
}

/// The commit that is checked out, and its day.
fn from_git() -> (Option<String>, Option<String>) {
    // Sources that were unpacked inside some other repository are not at its commit.
    let Some(root) = git(&["rev-parse", "--show-toplevel"]) else { return (None, None) };
    let same = |path: &str| std::fs::canonicalize(path).ok();
    if same(&root) != same(env!("CARGO_MANIFEST_DIR")) {
        return (None, None);
    }
    // The log of HEAD grows with every commit and checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| same(log).is_some()) {
        println!("cargo:rerun-if-changed={log}");
    }
    (git(&["rev-parse", "HEAD"]), git(&["show", "--no-patch", "--format=%cs", "HEAD"]))
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}
