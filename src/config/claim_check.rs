//! The claim check of a destination: bodies that are too large for a message go to a bucket of S3, and the message says where.

use super::target::is_partition;

/// How large the part of the budget for messages is that one body may take. While it is read it is in memory twice, and
/// several destinations may read at the same time.
const SHARE_OF_MEMORY: usize = 8;

/// Where large bodies go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimCheckConfig {
    /// The bucket, in the region of the queue or topic.
    pub bucket: String,
    /// What the keys of objects begin with; empty, or it ends with a slash.
    pub prefix: String,
    /// Messages above this size go there, in bytes with attributes; `None` for those that the service could not take.
    pub above: Option<usize>,
    /// The key of KMS that objects are encrypted with; `None` for what the bucket does by default.
    pub key: Option<String>,
    /// The largest body, in bytes; it follows from the memory.
    pub max_bytes: usize,
}

/// The options as they are typed.
#[derive(Default)]
pub(super) struct Given {
    pub(super) place: Option<String>,
    pub(super) above: Option<String>,
    pub(super) key: Option<String>,
}

impl ClaimCheckConfig {
    /// Reads the options; `most` is the largest message that the target takes.
    ///
    /// # Errors
    ///
    /// What is wrong, and the remedy.
    pub(super) fn read(given: Given, most: usize) -> Result<Option<Self>, String> {
        let Given { place, above, key } = given;
        let Some(place) = place else {
            return match (above, key) {
                (None, None) => Ok(None),
                (Some(_), _) => Err("has claim-check-above and no claim-check; add claim-check=BUCKET".to_owned()),
                (_, Some(_)) => Err("has claim-check-key and no claim-check; add claim-check=BUCKET".to_owned()),
            };
        };
        let (bucket, prefix) = place.split_once('/').unwrap_or((&place, ""));
        let prefix = prefix.trim_matches('/');
        if !is_bucket(bucket) {
            return Err(format!(
                "has claim-check={place:?}; use BUCKET or BUCKET/PREFIX, the name of a bucket and no ARN or URL"
            ));
        }
        // The readers of AWS take such keys (Amazon SQS Extended Client Library, s3Key).
        let is_of_key = |c: char| c.is_ascii_alphanumeric() || "./_-".contains(c);
        if prefix.len() > 900 || !prefix.chars().all(is_of_key) {
            return Err(format!("has the prefix {prefix:?}; use at most 900 letters, digits, '.', '/', '_' and '-'"));
        }
        let above = above.map(|text| threshold(&text, most)).transpose()?;
        if let Some(key) = key.as_deref().filter(|key| !is_key(key)) {
            return Err(format!(
                "has claim-check-key={key:?}; use the ARN of a KMS key, arn:aws:kms:REGION:ACCOUNT:key/ID"
            ));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Some(Self { bucket: bucket.to_owned(), prefix, above, key, max_bytes: usize::MAX }))
    }

    /// Limits bodies to what the memory for messages allows.
    pub(super) fn fit(&mut self, memory_for_messages: usize) {
        self.max_bytes = memory_for_messages / SHARE_OF_MEMORY;
    }
}

/// As it would be typed.
impl std::fmt::Display for ClaimCheckConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, ";claim-check={}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix.trim_end_matches('/'))?;
        }
        if let Some(above) = self.above {
            write!(f, ";claim-check-above={above}")?;
        }
        self.key.as_ref().map_or(Ok(()), |key| write!(f, ";claim-check-key={key}"))
    }
}

fn threshold(text: &str, most: usize) -> Result<usize, String> {
    let bytes = text.parse::<bytesize::ByteSize>().ok().and_then(|size| usize::try_from(size.as_u64()).ok());
    bytes
        .filter(|bytes| (1024..=most).contains(bytes))
        .ok_or_else(|| format!("has claim-check-above={text:?}; use a size from 1KiB to {most} bytes, such as 256KiB"))
}

/// S3: 3 to 63 lower-case letters, digits, dots and hyphens, with a letter or digit at both ends (general purpose bucket
/// naming rules).
fn is_bucket(name: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-'))
}

fn is_key(arn: &str) -> bool {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let ["arn", partition, "kms", region, account, resource] = parts[..] else { return false };
    let is_resource = resource.starts_with("key/") || resource.starts_with("alias/");
    is_partition(partition)
        && !region.is_empty()
        && account.len() == 12
        && is_resource
        && !arn.contains([',', ';', ' '])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(place: &str, above: &str, key: &str) -> Result<Option<ClaimCheckConfig>, String> {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ClaimCheckConfig::read(Given { place: given(place), above: given(above), key: given(key) }, 262_144)
    }

    #[test]
    fn a_claim_check_names_a_bucket_and_what_goes_there() {
        let key = "arn:aws:kms:eu-west-1:123456789012:key/0a";
        for (place, above, key, expected, shown) in [
            ("bodies", "", "", ("bodies", "", None), ";claim-check=bodies"),
            ("b.o-dies/", "", "", ("b.o-dies", "", None), ";claim-check=b.o-dies"),
            (
                "bodies/a/b_c/",
                "64KiB",
                "",
                ("bodies", "a/b_c/", Some(65_536)),
                ";claim-check=bodies/a/b_c;claim-check-above=65536",
            ),
            (
                "bodies",
                "262144",
                key,
                ("bodies", "", Some(262_144)),
                ";claim-check=bodies;claim-check-above=262144;claim-check-key=arn:aws:kms:eu-west-1:123456789012:key/0a",
            ),
        ] {
            let found = read(place, above, key).unwrap().unwrap();
            assert_eq!((found.bucket.as_str(), found.prefix.as_str(), found.above), expected);
            assert_eq!(found.to_string(), shown);
        }
        assert_eq!(read("", "", ""), Ok(None));
    }

    #[test]
    fn a_wrong_claim_check_is_refused_with_the_remedy() {
        for (place, above, key, expected) in [
            ("", "64KiB", "", "no claim-check; add"),
            ("", "", "arn", "no claim-check; add"),
            ("Bodies", "", "", "use BUCKET or BUCKET/PREFIX"),
            ("s3://bodies", "", "", "use BUCKET or BUCKET/PREFIX"),
            ("arn:aws:s3:::bodies", "", "", "use BUCKET or BUCKET/PREFIX"),
            ("bo", "", "", "use BUCKET or BUCKET/PREFIX"),
            ("bodies/ä", "", "", "the prefix"),
            ("bodies", "2MiB", "", "use a size from 1KiB to 262144"),
            ("bodies", "1", "", "use a size from 1KiB"),
            ("bodies", "much", "", "use a size from 1KiB"),
            ("bodies", "", "alias/ours", "use the ARN of a KMS key"),
        ] {
            let problem = read(place, above, key).unwrap_err();
            assert!(problem.contains(expected) && problem.contains("; "), "{problem}");
        }
    }
}
