//! A destination as it is typed: `NAME=QUEUE_URL` or `NAME=TOPIC_ARN`, and its options, each after a `;`: the role to
//! assume, `;role=ARN;external-id=ID`, whether a standard queue is told groups, `;fair=true`, and where large bodies go,
//! `;claim-check=BUCKET`.
//!
//! A `;` ends the queue URL: no queue of SQS has one in its name. A comma separates destinations, so one in a role or in an
//! external id is written as `%2C`; neither may contain a percent sign.

use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::claim_check::{self, ClaimCheckConfig};
use super::target::{Target, is_partition};
use crate::message::{Accepts, ClaimCheck, DestinationKind};

/// The most characters shown of a value that is refused.
const SHOWN: usize = 80;

/// A destination, and the queue or topic behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationConfig {
    /// `outbox.messages.destination`.
    pub name: String,
    /// Where its messages go.
    pub target: Target,
    /// FIFO by the name of the target; otherwise fair if that is asked for.
    pub kind: DestinationKind,
    /// The role under which the target is used; `None` for the relay's own credentials.
    pub role: Option<RoleConfig>,
    /// Where bodies go that are too large; `None` if such messages are dead.
    pub claim_check: Option<ClaimCheckConfig>,
}

impl DestinationConfig {
    /// What it takes from the relay whose objects are called so in a bucket.
    pub fn accepts(&self, relay: &str) -> Accepts {
        let accepts = Accepts { service: self.target.service(), kind: self.kind, claim_check: None };
        let claim_check = self.claim_check.as_ref().map(|given| {
            Arc::new(ClaimCheck {
                bucket: given.bucket.clone(),
                prefix: given.prefix.clone(),
                relay: relay.to_owned(),
                above: given.above.unwrap_or(accepts.max_bytes()),
                max_bytes: given.max_bytes,
            })
        });
        Accepts { claim_check, ..accepts }
    }
}

/// A role of IAM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleConfig {
    /// `arn:PARTITION:iam::ACCOUNT:role/NAME`.
    pub arn: String,
    /// The external id that the role's trust policy asks for, if it does. For AWS this is no secret.
    pub external_id: Option<String>,
}

/// As it would be typed.
impl std::fmt::Display for DestinationConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name, self.target.as_str())?;
        if self.kind == DestinationKind::Fair {
            f.write_str(";fair=true")?;
        }
        if let Some(claim_check) = &self.claim_check {
            write!(f, "{claim_check}")?;
        }
        let Some(RoleConfig { arn, external_id }) = &self.role else { return Ok(()) };
        write!(f, ";role={}", arn.replace(',', "%2C"))?;
        external_id.as_ref().map_or(Ok(()), |id| write!(f, ";external-id={}", id.replace(',', "%2C")))
    }
}

/// Reads one destination.
///
/// # Errors
///
/// What is wrong with it, and the remedy.
pub(super) fn read(text: &str) -> Result<DestinationConfig, String> {
    let (queue, options) = text.split_once(';').unwrap_or((text, ""));
    let refused = |problem: &str| format!("{:?} {problem}", without_secret(queue));
    let Some((name, target)) = queue.split_once('=') else {
        return Err(refused("has no queue URL; use NAME=QUEUE_URL or NAME=TOPIC_ARN"));
    };
    let (name, target) = (name.trim(), target.trim());
    if name.starts_with(['"', '\'']) {
        return Err(refused("begins with a quotation mark; take it away, as env files keep them"));
    }
    if target.starts_with("arn:aws") && ["role", "external-id"].contains(&name) {
        return Err(format!("{name} stands behind a comma; write ; before it: NAME=QUEUE_URL;{name}=VALUE"));
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 80 || !name.chars().all(is_plain) {
        return Err(refused("has a bad name; use 1 to 80 letters, digits, '-', '_' or '.'"));
    }
    let target = Target::read(target).map_err(refused)?;
    let named = |problem: String| format!("destination {name:?} {problem}");
    let mut options = options_of(options).map_err(named)?;
    let kind = kind(target.as_str(), options.fair.as_deref()).map_err(named)?;
    let most = Accepts { service: target.service(), kind, claim_check: None }.max_bytes();
    let claim_check = ClaimCheckConfig::read(std::mem::take(&mut options.claim_check), most).map_err(named)?;
    let role = role(options).map_err(named)?;
    Ok(DestinationConfig { name: name.to_owned(), target, kind, role, claim_check })
}

/// The options of a destination as they are typed.
#[derive(Default)]
struct Options {
    role: Option<String>,
    external_id: Option<String>,
    fair: Option<String>,
    claim_check: claim_check::Given,
}

fn options_of(options: &str) -> Result<Options, String> {
    let mut found = Options::default();
    for option in options.split(';').map(str::trim).filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let (name, value) = (name.trim(), value.trim());
        let place = match name {
            "role" => &mut found.role,
            "external-id" => &mut found.external_id,
            "fair" => &mut found.fair,
            "claim-check" => &mut found.claim_check.place,
            "claim-check-above" => &mut found.claim_check.above,
            "claim-check-key" => &mut found.claim_check.key,
            _ if value.contains("://") => {
                return Err(format!("has a ; before {:?}; separate destinations with commas", shown(option)));
            }
            _ => {
                return Err(format!(
                    "has an unknown option {:?}; use role=ARN, external-id=ID, fair=true or claim-check=BUCKET",
                    shown(option)
                ));
            }
        };
        if value.is_empty() {
            return Err(format!("has an empty {name}; use {name}=VALUE, or leave it out"));
        }
        if place.is_some() {
            return Err(format!("has two options {name}; keep one of them"));
        }
        *place = Some(percent_decode_str(value).decode_utf8_lossy().into_owned());
    }
    Ok(found)
}

fn kind(target: &str, fair: Option<&str>) -> Result<DestinationKind, String> {
    match (DestinationKind::of(target), fair) {
        (kind, None | Some("false")) => Ok(kind),
        (DestinationKind::Fifo, Some("true")) => {
            Err("has fair=true and a FIFO queue or topic, which gets the groups anyway; leave fair out".to_owned())
        }
        (_, Some("true")) => Ok(DestinationKind::Fair),
        (_, Some(other)) => Err(format!("has fair={:?}; use true or false", shown(other))),
    }
}

/// The role that the options name.
fn role(options: Options) -> Result<Option<RoleConfig>, String> {
    match (options.role, options.external_id) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err("has an external-id and no role; add role=ARN, or leave it out".to_owned()),
        (Some(arn), _) if !is_role(&arn) => Err(format!(
            "has role={:?}, which is not the ARN of a role; use arn:aws:iam::ACCOUNT:role/NAME, ACCOUNT with 12 digits",
            shown(&arn)
        )),
        (Some(_), Some(id)) if !is_external_id(&id) => Err(format!(
            "has external-id={:?}, which AWS does not allow; use 2 to 1224 letters, digits or _+=,.@:/- (a comma as %2C)",
            shown(&id)
        )),
        (Some(arn), external_id) => Ok(Some(RoleConfig { arn, external_id })),
    }
}

/// `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME` (IAM, identifiers).
fn is_role(arn: &str) -> bool {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let ["arn", partition, "iam", "", account, resource] = parts[..] else { return false };
    let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let name = resource.strip_prefix("role/").unwrap_or_default();
    let is_name = !name.is_empty() && !name.ends_with('/') && name.chars().all(|c| is_of_name(c) || c == '/');
    is_partition(partition) && is_account && is_name
}

/// STS, AssumeRole, ExternalId.
fn is_external_id(id: &str) -> bool {
    (2..=1224).contains(&id.len()) && id.chars().all(|c| is_of_name(c) || c == ':' || c == '/')
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_+=,.@-".contains(c)
}

/// The beginning of a value, unless it may contain a password.
fn shown(value: &str) -> String {
    without_secret(value).chars().take(SHOWN).collect()
}

/// A URL may contain a user and a password, which are never shown.
pub(super) fn without_secret(text: &str) -> &str {
    if text.contains('@') { "(not shown)" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://sqs.eu-west-1.amazonaws.com/1/tickets.fifo";
    const ARN: &str = "arn:aws:iam::222222222222:role/publisher";

    #[test]
    fn a_destination_may_name_a_role_and_an_external_id() {
        let table = [
            (String::new(), None),
            (";".to_owned(), None),
            (format!(";role={ARN}"), Some((ARN, None))),
            (format!("; role = {ARN} ; external-id = abc "), Some((ARN, Some("abc")))),
            (format!(";external-id=a:/=b@c;role={ARN};"), Some((ARN, Some("a:/=b@c")))),
            (format!(";role={ARN};external-id=a%2Cb"), Some((ARN, Some("a,b")))),
            (
                ";role=arn:aws-us-gov:iam::000000000001:role/teams/lottery/a+b%2Cc.d@e_f-g".to_owned(),
                Some(("arn:aws-us-gov:iam::000000000001:role/teams/lottery/a+b,c.d@e_f-g", None)),
            ),
            (
                ";role=arn:aws-cn:iam::123456789012:role/r".to_owned(),
                Some(("arn:aws-cn:iam::123456789012:role/r", None)),
            ),
        ];
        for (options, expected) in table {
            let found = read(&format!("tickets={URL}{options}")).unwrap();
            assert_eq!((found.target.as_str(), found.kind), (URL, DestinationKind::Fifo), "{options}");
            let role = found.role.as_ref().map(|role| (role.arn.as_str(), role.external_id.as_deref()));
            assert_eq!(role, expected, "{options}");
            assert_eq!(read(&found.to_string()), Ok(found), "what is shown can be typed");
        }
    }

    #[test]
    fn a_wrong_option_is_refused_in_one_line_that_names_the_destination_and_the_remedy() {
        let table = [
            ("rolle=x", "unknown option \"rolle=x\""),
            ("Role=x", "unknown option \"Role=x\""),
            ("x", "unknown option \"x\""),
            ("role", "an empty role"),
            ("role=", "an empty role"),
            ("external-id=", "an empty external-id"),
            ("external-id=abc", "an external-id and no role"),
            ("role=ARN;role=ARN", "two options role"),
            ("role=ARN;external-id=ab;external-id=ab", "two options external-id"),
            ("role=publisher", "not the ARN of a role"),
            ("role=arn:aws:iam::222222222222:user/publisher", "not the ARN of a role"),
            ("role=arn:aws:iam::2222:role/publisher", "not the ARN of a role"),
            ("role=arn:aws:iam::222222222222:role/", "not the ARN of a role"),
            ("role=arn:aws:iam::222222222222:role/a b", "not the ARN of a role"),
            ("role=arn:aws:sts::222222222222:assumed-role/a/b", "not the ARN of a role"),
            ("role=arn:aws:iam:eu-west-1:222222222222:role/a", "not the ARN of a role"),
            ("role=arn:nobody:iam::222222222222:role/a", "not the ARN of a role"),
            ("role=ARN;external-id=a", "AWS does not allow"),
            ("role=ARN;external-id=a b", "AWS does not allow"),
            ("role=ARN;external-id=%00%FF", "AWS does not allow"),
            ("fair", "an empty fair"),
            ("fair=yes", "fair=\"yes\"; use true or false"),
            ("fair=true;fair=true", "two options fair"),
            ("fair=true", "a FIFO queue or topic, which gets the groups anyway"),
        ];
        for (options, expected) in table {
            let text = format!("tickets={URL};{}", options.replace("ARN", ARN));
            let problem = read(&text).expect_err(options);
            assert!(problem.starts_with("destination \"tickets\" has ") && problem.contains(expected), "{problem}");
            assert!(problem.contains("; ") && problem.len() < 170 && !problem.contains('\n'), "{problem}");
        }
    }

    #[test]
    fn a_standard_queue_may_be_fair() {
        let standard = "audit=https://sqs.eu-west-1.amazonaws.com/1/audit";
        let table = [
            ("", DestinationKind::Standard),
            (";fair=false", DestinationKind::Standard),
            ("; fair = true", DestinationKind::Fair),
            (";role=ARN;fair=true", DestinationKind::Fair),
        ];
        for (options, kind) in table {
            let found = read(&format!("{standard}{}", options.replace("ARN", ARN))).unwrap();
            assert_eq!(found.kind, kind, "{options}");
            assert_eq!(read(&found.to_string()), Ok(found), "what is shown can be typed");
        }
        assert_eq!(read(&format!("tickets={URL};fair=false")).unwrap().kind, DestinationKind::Fifo);
    }

    #[test]
    fn a_semicolon_ends_the_queue_url() {
        assert_eq!(read("t=https://h/q;").unwrap().target.as_str(), "https://h/q");
        assert!(read("t=https://h/q;x/y").is_err());
        assert!(read("t;role=x=https://h/q").is_err());
        let problem = read("t=https://user:hunter2@h/q;role=x").expect_err("user and password");
        assert!(!problem.contains("hunter2"), "{problem}");
    }
}
