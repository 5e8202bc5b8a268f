//! Where a process listens: an IP address and a port. An error suggests the address that was probably meant.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub SocketAddr);

/// The port that the documentation uses.
const USUAL_PORT: u16 = 8_000;

impl FromStr for ListenAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(address) = text.parse() {
            return Ok(ListenAddress(address));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()),
            None => (text, text.parse().ok()),
        };
        // An IPv6 address contains colons itself.
        let bare = text.trim_matches(['[', ']']);
        let (host, port) = if bare.parse::<IpAddr>().is_ok() { (bare, None) } else { (host, port) };
        let ip = match host.trim_matches(['[', ']']) {
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            host => host.parse::<IpAddr>().unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        };
        let meant = SocketAddr::new(ip, port.unwrap_or(USUAL_PORT));
        Err(format!("got \"{text}\", expected an IP address and a port, such as {meant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_answered_by_the_one_that_was_meant() {
        for (given, meant) in [
            (":8080", "0.0.0.0:8080"),
            ("8080", "0.0.0.0:8080"),
            ("localhost:9000", "127.0.0.1:9000"),
            ("127.0.0.1", "127.0.0.1:8000"),
            ("::1", "[::1]:8000"),
            ("[::1]", "[::1]:8000"),
            ("admin.local:99999", "0.0.0.0:8000"),
            ("", "0.0.0.0:8000"),
        ] {
            let refused = given.parse::<ListenAddress>().unwrap_err();
            let expected = format!("got \"{given}\", expected an IP address and a port, such as {meant}");
            assert_eq!(refused, expected);
            assert!(meant.parse::<ListenAddress>().is_ok());
        }
    }
}
