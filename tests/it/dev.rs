//! `outbox-relay dev` in a build without it, as the production image has; `tests/dev` tests it in the other.

use anyhow::{Result, ensure};

use support::relay::Command;

#[tokio::test]
async fn a_build_without_dev_says_how_to_get_one() -> Result<()> {
    for arguments in [&["dev"][..], &["dev", "--queues", "a.fifo"], &["dev", "--data=x", "y", "-z"]] {
        let refused = Command::new().output(arguments).await?;
        let expected = "outbox-relay: this binary was built without the feature `dev`; build one that has it: \
                        cargo install --path . --features dev\n";
        ensure!(refused.code == Some(2) && refused.stderr == expected, "{arguments:?}: {refused:?}");
    }
    let help = Command::new().output(&["--help"]).await?;
    ensure!(help.stdout.contains("  healthcheck ") && !help.stdout.contains("  dev "), "{}", help.stdout);
    Ok(())
}
