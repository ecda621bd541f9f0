//! The trace context that an event carries in its metadata: `traceparent` and `tracestate` (W3C Trace Context, level 2). Pure.

/// The longest `tracestate` that is passed on; shorter ones must be (W3C Trace Context, "tracestate Limits").
const MAX_STATE: usize = 512;

/// The trace that an event belongs to, and the span in which it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
    pub(super) flags: u8,
}

impl TraceContext {
    /// Reads a `traceparent`; `None` if it is not valid.
    pub fn parse(traceparent: &str) -> Option<Self> {
        // version-traceid-spanid-flags; a version after the first may have more behind another hyphen.
        let (known, more) = traceparent.as_bytes().split_at_checked(55)?;
        let (version, rest) = known.split_at(2);
        let [version] = hex(version)?;
        let is_form = rest[0] == b'-' && rest[33] == b'-' && rest[50] == b'-';
        let is_end = more.is_empty() || (version > 0 && more[0] == b'-');
        if version == 0xff || !is_form || !is_end {
            return None;
        }
        let (trace_id, span_id, [flags]) = (hex(&rest[1..33])?, hex(&rest[34..50])?, hex(&rest[51..53])?);
        (trace_id != [0; 16] && span_id != [0; 8]).then_some(Self { trace_id, span_id, flags })
    }

    /// Whether somebody records the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }
}

/// Two digits for each byte, letters in lower case.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// A `tracestate` that can be passed on, or nothing: without it the context stays valid.
pub(super) fn state(tracestate: &str) -> &str {
    let is_good = tracestate.len() <= MAX_STATE && tracestate.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    if is_good { tracestate } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_traceparent_is_read() {
        let context = TraceContext::parse(GOOD).unwrap();
        assert_eq!(u128::from_be_bytes(context.trace_id), 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(u64::from_be_bytes(context.span_id), 0xb7ad_6b71_6920_3331);
        assert!(context.is_sampled());
        assert!(!TraceContext::parse(&GOOD.replace("-01", "-02")).unwrap().is_sampled());
        // A later version may add to the end (W3C Trace Context, "Versioning of traceparent").
        for later in [GOOD.replacen("00", "cc", 1), GOOD.replacen("00", "01", 1) + "-more"] {
            assert_eq!(TraceContext::parse(&later), Some(context), "{later}");
        }
    }

    #[test]
    fn an_invalid_traceparent_is_no_context() {
        for bad in [
            "",
            "00",
            "none",
            &GOOD[..54],
            &(GOOD.to_owned() + "-more"),
            &(GOOD.to_owned() + " "),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("00", "0g", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            &GOOD.replace('-', "_"),
            &GOOD.replace("-01", "-0x"),
            &(GOOD.replacen("00", "01", 1) + "more"),
            "00-0af7651916cd43dd8448eb211c80319ä-b7ad6b7169203331-0",
            &"ä".repeat(40),
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_tracestate_that_cannot_be_passed_on_is_left_out() {
        assert_eq!(state("vendor=a,other=b:1"), "vendor=a,other=b:1");
        assert_eq!((state("vendor=ä"), state("a=\n"), state(&"x".repeat(513))), ("", "", ""));
    }
}
