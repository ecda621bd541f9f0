//! The shipped rules with shorter times.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The rules with a minute shortened to this many seconds: every `for:`, every range in brackets, every number before
/// `# seconds`.
pub fn shortened(minute: u32) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/outbox-relay.rules.yml");
    let rules = std::fs::read_to_string(path)?;
    let mut changed = 0;
    let lines = rules.lines().map(|line| {
        let (line, count) = shorten(line, minute)?;
        changed += count;
        Ok(line)
    });
    let lines = lines.collect::<Result<Vec<String>>>()?;
    ensure!(changed >= 20, "only {changed} times were found in the rules");
    Ok(lines.join("\n") + "\n")
}

/// A line with its times shortened, and the number of times. Comments stay as they are.
fn shorten(line: &str, minute: u32) -> Result<(String, usize)> {
    if line.trim_start().starts_with('#') {
        return Ok((line.to_owned(), 0));
    }
    if let Some((before, duration)) = line.split_once("for: ") {
        return Ok((format!("{before}for: {}", seconds(duration.trim(), minute)?), 1));
    }
    if let Some((before, after)) = line.split_once(" # seconds") {
        let (rest, number) = before.rsplit_once(' ').context("no number before # seconds")?;
        let number: u32 = number.parse()?;
        ensure!(number.is_multiple_of(60), "{number} seconds are no whole minutes");
        return Ok((format!("{rest} {}{after}", number / 60 * minute), 1));
    }
    let mut parts = line.split('[');
    let (mut text, mut count) = (parts.next().unwrap_or_default().to_owned(), 0);
    for part in parts {
        let (inner, rest) = part.split_once(']').context("no bracket at the end of a range")?;
        match seconds(inner, minute) {
            Ok(range) => {
                text.push_str(&format!("[{range}]{rest}"));
                count += 1;
            }
            // A character class of a regular expression.
            Err(_) => text.push_str(&format!("[{inner}]{rest}")),
        }
    }
    Ok((text, count))
}

fn seconds(duration: &str, minute: u32) -> Result<String> {
    let minutes = match (duration.strip_suffix('m'), duration.strip_suffix('h')) {
        (Some(minutes), _) => minutes.parse::<u32>()?,
        (_, Some(hours)) => hours.parse::<u32>()? * 60,
        _ => anyhow::bail!("{duration} is neither minutes nor hours"),
    };
    Ok(format!("{}s", minutes * minute))
}
