//! Where a job's result may be sent: the names of queues that its caller may choose.
//!
//! The name comes from a caller we do not know, and our workers publish to it with rights that the caller may lack.
//! Names that a broker cannot take are refused, and so are those that belong to the fleet or to the broker. A setting
//! says which of the rest are allowed.
//!
//! A client that consumes from `amq.rabbitmq.reply-to` (direct reply-to,
//! <https://www.rabbitmq.com/docs/direct-reply-to>) gets from its broker a name that contains an Erlang process id.
//! RabbitMQ up to 4.1 decodes such a name unchecked, and closes the connection that publishes to a forged one. A name
//! that passes here still fails there in one case only: if it names a node that is not in the cluster.

use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::id::clip;

/// The prefix before the part that the broker makes.
const DIRECT: &str = "amq.rabbitmq.reply-to.";
/// The prefix of queue names that the broker chooses (`queue.declare` without a name).
const SERVER_NAMED: &str = "amq.gen-";
/// The greatest value of `erlang:phash2/1`.
const MAX_HASH: u32 = (1 << 27) - 1;
/// Erlang's greatest process number and serial (External Term Format, `NEW_PID_EXT`). Nodes fail at greater ones.
const MAX_PROCESS: (u32, u32) = ((1 << 28) - 1, (1 << 13) - 1);

/// Which names callers may choose: the setting `REPLY_TO_ALLOW`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyRule {
    /// Patterns in which `*` matches any text.
    allowed: Arc<[String]>,
}

/// A name that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyTo {
    /// A queue.
    Queue,
    /// A client that waits on a channel of one node of the broker. The node is known by the hash of its name.
    Client {
        /// The hash.
        node: u32,
    },
}

impl Default for ReplyRule {
    /// Allows every name that belongs neither to the broker nor to the fleet.
    fn default() -> ReplyRule {
        ReplyRule { allowed: ["*".to_owned()].into() }
    }
}

impl FromStr for ReplyRule {
    type Err = String;
    /// Reads patterns separated by commas.
    fn from_str(text: &str) -> Result<ReplyRule, String> {
        let patterns = text.split(',').map(str::trim);
        let allowed: Arc<[String]> =
            patterns.filter(|pattern| !pattern.is_empty()).map(str::to_owned).collect();
        match allowed.iter().find(|pattern| pattern.len() > 255 || pattern.chars().any(char::is_control)) {
            Some(pattern) => {
                let got = clip(&pattern.escape_default().to_string());
                Err(format!(
                    "got \"{got}\", expected names of queues with * for any text, separated by commas"
                ))
            }
            None => Ok(ReplyRule { allowed }),
        }
    }
}

impl ReplyRule {
    /// Returns what this name means, or why it is refused.
    pub fn check(&self, name: &str) -> Result<ReplyTo, String> {
        let got = || clip(&name.escape_debug().to_string());
        if let Some(made) = name.strip_prefix(DIRECT) {
            return direct(made).map(|node| ReplyTo::Client { node }).ok_or_else(|| {
                format!("got \"{}\", which names no client, expected what the broker put into the property reply_to", got())
            });
        }
        let reserved = name.starts_with("amq.") && !name.starts_with(SERVER_NAMED);
        if reserved || name.starts_with("harness.") {
            return Err(format!(
                "got \"{}\", expected a queue of yours: amq.* and harness.* are reserved",
                got()
            ));
        }
        if !self.allowed.iter().any(|pattern| matches(pattern, name)) {
            return Err(format!(
                "got \"{}\", expected a name that REPLY_TO_ALLOW allows ({})",
                got(),
                self.allowed.join(", ")
            ));
        }
        Ok(ReplyTo::Queue)
    }
}

/// Returns the node's hash from what the broker made: `BASE64(pid).BASE64(key)`, where the pid's node is `reply@HASH`.
fn direct(made: &str) -> Option<u32> {
    let (pid, key) = made.split_once('.')?;
    let pid = BASE64_STANDARD.decode(pid).ok()?;
    if BASE64_STANDARD.decode(key).ok()?.is_empty() {
        return None;
    }
    // NEW_PID_EXT, then the node as ATOM_UTF8_EXT or SMALL_ATOM_UTF8_EXT.
    let (length, rest) = match pid.as_slice() {
        [131, 88, 118, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        [131, 88, 119, length, rest @ ..] => (usize::from(*length), rest),
        _ => return None,
    };
    let (node, rest) = rest.split_at_checked(length)?;
    let (process, _creation) = rest.split_first_chunk::<8>().filter(|(_, creation)| creation.len() == 4)?;
    let [a, b, c, d, e, f, g, h] = *process;
    let (number, serial) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    if number > MAX_PROCESS.0 || serial > MAX_PROCESS.1 {
        return None;
    }
    let hash = std::str::from_utf8(node).ok()?.strip_prefix("reply@")?;
    let digits = !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_digit());
    hash.parse().ok().filter(|hash| digits && *hash <= MAX_HASH)
}

/// Whether the pattern, in which `*` matches any text, matches the whole name.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|start| name.strip_prefix(start)) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(between) = last.replace(part) {
            let Some((_, after)) = rest.split_once(between) else { return false };
            rest = after;
        }
    }
    last.map_or(rest.is_empty(), |end| rest.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A name as RabbitMQ 3.10 made it.
    const GENUINE: &str =
        "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA3MzExNDMwOAAAGvcAAAAAawmPZA==.cKz5+xVU/WVQ1u2igtb+nQ==";

    /// Returns a forged name.
    fn name(node: &[u8], number: u32, serial: u32) -> String {
        let length = (node.len() as u16).to_be_bytes();
        let rest = [number.to_be_bytes(), serial.to_be_bytes(), [0; 4]].concat();
        let pid = [&[131, 88, 118], &length[..], node, &rest].concat();
        format!("{DIRECT}{}.a2V5", BASE64_STANDARD.encode(pid))
    }

    #[test]
    fn a_client_is_known_by_the_name_that_its_broker_made() {
        let rule = ReplyRule::default();
        assert_eq!(rule.check(GENUINE), Ok(ReplyTo::Client { node: 73_114_308 }));
        assert_eq!(rule.check(&name(b"reply@0", 1, 0)), Ok(ReplyTo::Client { node: 0 }));
        let none: ReplyRule = "".parse().unwrap();
        assert!(none.check(GENUINE).is_ok(), "it reaches only the client that asked for it");
    }

    #[test]
    fn what_a_broker_could_not_decode_is_refused() {
        let plain = |pid: &[u8]| format!("{DIRECT}{}.a2V5", BASE64_STANDARD.encode(pid));
        let without_padding = GENUINE.replacen("==.", ".", 1);
        for bad in [
            "amq.rabbitmq.reply-to",
            &plain(b"nonsense"),
            "amq.rabbitmq.reply-to.",
            "amq.rabbitmq.reply-to.%%%.a2V5",
            &without_padding,
            &GENUINE[..GENUINE.len() - 25],
            &format!("{GENUINE}.a2V5"),
            &plain(&[131, 88, 118, 255, 255]),
            &name(b"reply", 1, 0),
            &name(b"reply@", 1, 0),
            &name(b"reply@+7", 1, 0),
            &name(b"reply@134217728", 1, 0),
            &name(b"rabbit@host", 1, 0),
            &name(b"reply@\xff", 1, 0),
            &name(b"reply@7", 1 << 28, 0),
            &name(b"reply@7", 1, 1 << 13),
        ] {
            let refused = ReplyRule::default().check(bad).unwrap_err();
            assert!(refused.contains("got \"amq.rabbitmq.reply-to"), "{bad}: {refused}");
        }
    }

    #[test]
    fn what_is_the_fleets_or_the_brokers_is_refused_and_patterns_allow_the_rest() {
        let any = ReplyRule::default();
        for reserved in ["harness.jobs.default", "harness.dead", "amq.direct", "amq.rabbitmq.trace"] {
            assert!(any.check(reserved).unwrap_err().contains("reserved"), "{reserved}");
        }
        for mine in ["replies", "harness", "amq.gen-Xa0", "a b"] {
            assert_eq!(any.check(mine), Ok(ReplyTo::Queue), "{mine}");
        }
        let some: ReplyRule = " results, team-*.replies,amq.gen-* ,*x*y*".parse().unwrap();
        for allowed in ["results", "team-a.replies", "team-.replies", "amq.gen-Xa0", "xy", "axbyc"] {
            assert_eq!(some.check(allowed), Ok(ReplyTo::Queue), "{allowed}");
        }
        for other in ["results2", "team-a.replies2", "my-team-a.replies", "yx", "harness.x.y"] {
            assert!(some.check(other).is_err(), "{other}");
        }
        assert!("a\u{7}".parse::<ReplyRule>().unwrap_err().contains("\\u{7}"));
    }

    proptest! {
        #[test]
        fn no_name_panics(name in ".*", pattern in ".*") {
            let rule: ReplyRule = pattern.parse().unwrap_or_default();
            let _ = rule.check(&name);
            let _ = rule.check(&format!("{DIRECT}{name}"));
        }

        #[test]
        fn a_pattern_without_a_star_is_its_own_name_and_nothing_else(name in "[a-z.]{0,9}", other in "[a-z.]{0,9}") {
            prop_assert_eq!(matches(&name, &other), name == other);
            let longer = [name.as_str(), &other].concat();
            let pattern = [&name, "*"].concat();
            prop_assert!(matches("*", &name) && matches(&pattern, &longer));
        }
    }
}
