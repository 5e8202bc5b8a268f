//! The broker's address: reads `AMQP_URL`, says what is wrong with it, and never shows the password.

use lapin::uri::AMQPUri;

/// `AMQP_URL` cannot be used. The text says what is wrong and what would be right; it never holds the password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "AMQP_URL {problem}, expected amqp://USER:PASSWORD@HOST:5672/VHOST (amqps:// for TLS; %2f is the vhost /)"
)]
pub struct ConfigError {
    problem: String,
}

/// A checked address.
#[derive(Clone)]
pub(crate) struct Address {
    uri: AMQPUri,
    shown: String,
}

impl Address {
    pub(crate) fn parse(
        url: &str,
        default_heartbeat_s: u16,
        default_frame_max: u32,
    ) -> Result<Address, ConfigError> {
        let refuse = |problem: &str| Err(ConfigError { problem: problem.to_owned() });
        if url.is_empty() {
            return refuse("is empty");
        }
        if !["amqp://", "amqps://"].iter().any(|scheme| url.starts_with(scheme)) {
            return refuse("does not start with amqp:// or amqps://");
        }
        // The parser's own words are about a part of the URL, never the whole of it; but make sure.
        let mut uri: AMQPUri = match url.parse() {
            Ok(uri) => uri,
            Err(problem) if problem.contains("://") => return refuse("cannot be read"),
            Err(problem) => {
                let hint = "characters like / # ? @ in a user or password must be percent-encoded";
                return refuse(&format!("cannot be read ({problem}; {hint})"));
            }
        };
        if let Some(host) = ipv6_host(url) {
            uri.authority.host = host.to_owned();
        }
        if uri.vhost.contains('@') || uri.authority.host.contains('@') {
            return refuse("has an @ after its host: characters like / # ? @ must be percent-encoded");
        }
        if uri.vhost.is_empty() {
            return refuse("names the empty vhost: end it with /%2f, or leave the last slash out");
        }
        if uri.vhost.len() > 255 {
            return refuse("names a vhost of more than 255 bytes");
        }
        uri.query.heartbeat.get_or_insert(default_heartbeat_s);
        uri.query.frame_max.get_or_insert(default_frame_max);
        let vhost = if uri.vhost == "/" { "%2f" } else { &uri.vhost };
        let (user, host) = (&uri.authority.userinfo.username, &uri.authority.host);
        let shown = format!("{}://{user}@{host}:{}/{vhost}", uri.scheme, uri.authority.port);
        Ok(Address { uri, shown })
    }

    pub(crate) fn uri(&self) -> AMQPUri {
        self.uri.clone()
    }

    /// For logs and errors: without the password.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }
}

/// The parser of lapin takes an IPv6 address for none at all and would quietly connect to localhost.
fn ipv6_host(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    Some(host.strip_prefix('[')?.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        let address = Address::parse("amqp://me:s3cret@rabbit:5673/jobs?heartbeat=7", 15, 0).unwrap();
        assert_eq!(address.shown(), "amqp://me@rabbit:5673/jobs");
        assert_eq!(address.uri().query.heartbeat, Some(7));
        assert_eq!(Address::parse("amqp://rabbit", 15, 0).unwrap().shown(), "amqp://guest@rabbit:5672/%2f");
    }

    #[test]
    fn a_wrong_address_is_refused_by_name_and_without_its_password() {
        for url in [
            "",
            "rabbit:5672",
            "http://me:s3cret@rabbit",
            "amqp:me:s3cret@rabbit",
            "amqp://me:s3cret@rabbit:port/x",
            "amqp://me:s3cret#@rabbit/x",
            "amqp://me:12/s3cret@rabbit/x",
            "amqp://me:s3cret@rabbit/",
            "amqp://me:s3cret@rabbit/x?heartbeat=often",
            &format!("amqp://me:s3cret@rabbit/{}", "x".repeat(256)),
        ] {
            let text = Address::parse(url, 15, 0).err().unwrap_or_else(|| panic!("{url}")).to_string();
            assert!(text.starts_with("AMQP_URL "), "{text}");
            assert!(!text.contains("s3cret"), "{text}");
            assert!(text.contains("expected amqp://"), "{text}");
        }
    }

    #[test]
    fn an_ipv6_host_is_kept() {
        let address = Address::parse("amqp://me:x@[fd00::1]:5672/%2f", 15, 0).unwrap();
        assert_eq!(address.uri().authority.host, "fd00::1");
    }
}
