//! Where a destination's messages go: a queue by its URL, or a topic by its ARN.

use crate::message::Service;

/// A queue of SQS or a topic of SNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A queue, by its URL.
    Queue {
        /// As SQS shows it.
        url: String,
    },
    /// A topic, by its ARN.
    Topic {
        /// `arn:PARTITION:sns:REGION:ACCOUNT:NAME`.
        arn: String,
    },
}

impl Target {
    /// Reads a URL or an ARN.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and the remedy.
    pub(super) fn read(text: &str) -> Result<Self, &'static str> {
        if text.starts_with("arn:") {
            return topic(text);
        }
        // SQS knows no queue whose name ends with a slash.
        let url = text.trim_end_matches('/');
        if web_address(url).is_none_or(|(_, path)| path.is_empty()) {
            return Err(
                "has a bad queue URL; use the URL that SQS shows, https://HOST/ACCOUNT/QUEUE, or the ARN of an SNS topic",
            );
        }
        if url.contains(".console.aws.amazon.com") || url.contains('#') {
            return Err("is an address of the console; copy the URL from the details of the queue");
        }
        Ok(Self::Queue { url: url.to_owned() })
    }

    /// The service that it belongs to.
    pub fn service(&self) -> Service {
        match self {
            Self::Queue { .. } => Service::Sqs,
            Self::Topic { .. } => Service::Sns,
        }
    }

    /// The URL or the ARN.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Queue { url } => url,
            Self::Topic { arn } => arn,
        }
    }

    /// What it is called: "queue" or "topic".
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Queue { .. } => "queue",
            Self::Topic { .. } => "topic",
        }
    }
}

/// The region in a topic's ARN.
pub(crate) fn region_of_topic(arn: &str) -> &str {
    arn.split(':').nth(3).unwrap_or_default()
}

/// SNS: names of topics have 1 to 256 letters, digits, hyphens and underscores; those of FIFO topics end with `.fifo`
/// (CreateTopic, Name).
fn topic(arn: &str) -> Result<Target, &'static str> {
    let parts: Vec<&str> = arn.split(':').collect();
    let ["arn", partition, "sns", region, account, name] = parts[..] else {
        return Err(match parts[..] {
            [_, _, "sqs", ..] => "has the ARN of a queue; use its URL, https://sqs.REGION.amazonaws.com/ACCOUNT/QUEUE",
            [_, _, "sns", _, _, _, _] => "has the ARN of a subscription; leave out what follows the name of the topic",
            _ => BAD_TOPIC,
        });
    };
    let bare = name.strip_suffix(".fifo").unwrap_or(name);
    let is_name = !bare.is_empty()
        && name.len() <= 256
        && bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let is_region = region.contains('-')
        && region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    if is_partition(partition) && is_region && is_account && is_name {
        Ok(Target::Topic { arn: arn.to_owned() })
    } else {
        Err(BAD_TOPIC)
    }
}

/// aws, aws-cn, aws-us-gov and their kind.
pub(super) fn is_partition(text: &str) -> bool {
    text.starts_with("aws")
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Host and path of a URL that requests can be sent to.
pub(super) fn web_address(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    // An IPv6 address is in brackets.
    let end = authority.find(']').map_or_else(|| authority.find(':').unwrap_or(authority.len()), |at| at + 1);
    let (host, port) = authority.split_at(end);
    let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c));
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let has_good_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    (is_host && has_good_port && !text.contains(char::is_whitespace)).then_some((host, path))
}

const BAD_TOPIC: &str = "has a bad topic ARN; use arn:aws:sns:REGION:ACCOUNT:TOPIC, ACCOUNT with 12 digits";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_known_by_its_arn() {
        for arn in [
            "arn:aws:sns:eu-west-1:123456789012:tickets",
            "arn:aws:sns:eu-west-1:123456789012:tickets.fifo",
            "arn:aws-cn:sns:cn-north-1:123456789012:a_b-C9",
            "arn:aws-us-gov:sns:us-gov-west-1:000000000000:t",
        ] {
            let found = Target::read(arn).unwrap();
            assert_eq!((found.service(), found.as_str(), found.noun()), (Service::Sns, arn, "topic"));
            assert!(region_of_topic(arn).ends_with("-1"), "{arn}");
        }
    }

    #[test]
    fn what_is_no_topic_is_refused_with_the_remedy() {
        for (arn, expected) in [
            ("arn:aws:sqs:eu-west-1:123456789012:tickets", "ARN of a queue; use its URL"),
            ("arn:aws:sns:eu-west-1:123456789012:tickets:0a1b", "ARN of a subscription; leave out"),
            ("arn:aws:sns:eu-west-1:1234:tickets", "bad topic ARN; use arn:aws:sns:"),
            ("arn:aws:sns::123456789012:tickets", "bad topic ARN"),
            ("arn:aws:sns:eu-west-1:123456789012:", "bad topic ARN"),
            ("arn:aws:sns:eu-west-1:123456789012:.fifo", "bad topic ARN"),
            ("arn:aws:sns:eu-west-1:123456789012:a.b", "bad topic ARN"),
            ("arn:aws:kinesis:eu-west-1:123456789012:stream/a", "bad topic ARN"),
            ("arn:", "bad topic ARN"),
        ] {
            let problem = Target::read(arn).unwrap_err();
            assert!(problem.contains(expected) && problem.contains("; "), "{arn}: {problem}");
        }
    }
}
