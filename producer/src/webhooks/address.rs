//! Where a webhook may be: at an address of the public internet, by HTTPS. Any other needs the setting
//! `WEBHOOK_ALLOW`.
//!
//! A tenant chooses the address, and this process connects from inside the operator's network. So the check is of
//! the address that the connection goes to, not of the name: a name may lead elsewhere a moment later.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// The longest address.
const LONGEST: usize = 2_048;

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(a: u16, b: u16, bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), bits)
}

/// What is not globally reachable, by IANA's registry of special-purpose addresses, and multicast.
/// <https://www.iana.org/assignments/iana-ipv4-special-registry>
const NOT_PUBLIC_V4: [Ipv4Net; 17] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
    v4(255, 255, 255, 255, 32),
    // Azure's metadata and DNS, which its virtual machines reach at a public address.
    v4(168, 63, 129, 16, 32),
];

/// All that is given out for use on the internet. Outside of it are loopback, link-local, unique local and multicast
/// addresses, and those that stand for an IPv4 address (mapped, NAT64).
const PUBLIC_V6: Ipv6Net = v6(0x2000, 0, 3);

/// What of it is for other purposes: protocols (Teredo), documentation, 6to4, which stands for an IPv4 address.
/// <https://www.iana.org/assignments/iana-ipv6-special-registry>
const NOT_PUBLIC_V6: [Ipv6Net; 4] =
    [v6(0x2001, 0, 23), v6(0x2001, 0x0db8, 32), v6(0x2002, 0, 16), v6(0x3fff, 0, 20)];

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !NOT_PUBLIC_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => {
            PUBLIC_V6.contains(&address) && !NOT_PUBLIC_V6.iter().any(|net| net.contains(&address))
        }
    }
}

/// Addresses that webhooks may have although they are not public, or are reached without TLS: the setting
/// `WEBHOOK_ALLOW`.
#[derive(Clone, Debug, Default)]
pub struct Allowed(Arc<[IpNet]>);

impl FromStr for Allowed {
    type Err = String;
    /// Reads networks and addresses separated by commas.
    fn from_str(text: &str) -> Result<Allowed, String> {
        let given = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let read = |part: &str| {
            let net = part.parse::<IpNet>().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
            net.map_err(|_| {
                let part = part.escape_debug();
                format!(
                    "got \"{part}\", expected networks such as 10.1.0.0/16 or fd00::/8, separated by commas"
                )
            })
        };
        Ok(Allowed(given.map(read).collect::<Result<_, _>>()?))
    }
}

impl Allowed {
    /// Returns whether a connection may go to this address, with TLS or without.
    pub(super) fn may_reach(&self, address: IpAddr, tls: bool) -> bool {
        // An IPv4 address in the form of an IPv6 one is reached as what it is.
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address)) || (tls && is_public(address))
    }

    /// Reads a webhook's address. Where a name leads is not looked up: it may lead elsewhere when something is sent.
    pub fn check(&self, text: &str) -> Result<Url, String> {
        if text.len() > LONGEST {
            return Err(format!("got {} characters, expected at most {LONGEST}", text.len()));
        }
        let url = Url::parse(text).map_err(|error| {
            format!("not an address ({error}), expected one such as https://example.com/hook")
        })?;
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            other => return Err(format!("got \"{other}:\", expected https:")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it has a user or a password in it, expected none".to_owned());
        }
        if url.fragment().is_some() {
            return Err("it has a fragment (#), expected none".to_owned());
        }
        if url.port() == Some(0) {
            return Err("got port 0, expected 1 to 65535".to_owned());
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) if tls || !self.0.is_empty() => return Ok(url),
            Some(Host::Domain(_)) => return Err("got \"http:\", expected https:".to_owned()),
            None => return Err("it has no host".to_owned()),
        };
        match self.may_reach(address, tls) {
            true => Ok(url),
            false if is_public(address.to_canonical()) => Err("got \"http:\", expected https:".to_owned()),
            false => Err("its address is not one of the public internet".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_policy_for_kubernetes_lets_through_what_is_reached_and_no_more() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/k8s/base/network.yaml");
        let policies = std::fs::read_to_string(file).unwrap();
        let policy =
            policies.split("\n---\n").find(|policy| policy.contains("\n  name: webhooks\n")).unwrap();
        let (_, egress) = policy.split_once("\n  egress:\n").unwrap();
        let (from, to) = egress.split_once("ports:").unwrap();
        let mut expected = vec!["0.0.0.0/0".parse::<IpNet>().unwrap()];
        expected.extend(NOT_PUBLIC_V4.map(IpNet::from));
        expected.push(PUBLIC_V6.into());
        expected.extend(NOT_PUBLIC_V6.map(IpNet::from));
        let words = from.split_whitespace().map(|word| word.trim_matches('"'));
        let named: Vec<IpNet> = words.filter_map(|word| word.parse().ok()).collect();
        assert_eq!(named, expected);
        // Of any port.
        assert_eq!(to.split_whitespace().collect::<Vec<_>>(), ["-", "protocol:", "TCP"]);
    }

    #[test]
    fn what_is_not_public_is_refused_in_any_notation() {
        let none = Allowed::default();
        for refused in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "017700000001",
            "0177.0.0.1",
            "0",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.100.100.200",
            "169.254.169.254",
            "0xa9fea9fe",
            "2852039166",
            "169.254.43518",
            "192.0.0.192",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "１２７.0.0.1",
            "127。0。0。1",
            "%31%32%37.0.0.1",
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::ffff:10.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::1]",
            "[fe80::1]",
            "[fec0::1]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[ff02::1]",
            "[2001::1]",
            "[2001:db8::1]",
            "[2002:7f00:1::]",
            "[3fff::1]",
            "[100::1]",
            "[5f00::1]",
        ] {
            for url in [
                format!("https://{refused}/"),
                format!("https://{refused}:8443/x"),
                format!("http://{refused}/"),
            ] {
                assert!(none.check(&url).is_err(), "{url}");
            }
        }
        for public in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "[2606:4700:4700::1111]",
            "[::ffff:1.1.1.1]",
            "example.com",
        ] {
            let check = none.check(&format!("https://{public}/hook?x=1"));
            // A mapped address is reached as the IPv4 address that it is.
            assert!(check.is_ok(), "{public}: {check:?}");
            assert!(none.check(&format!("http://{public}/")).is_err(), "{public}");
        }
    }

    #[test]
    fn other_addresses_than_plain_ones_are_refused() {
        let none = Allowed::default();
        let long = format!("https://example.com/{}", "x".repeat(LONGEST));
        for refused in [
            "",
            "example.com",
            "//example.com",
            "ftp://example.com",
            "file:///etc/passwd",
            "https://",
            "https://u@example.com",
            "https://u:p@example.com",
            "https://:p@example.com",
            "https://example.com/#f",
            "https://example.com:0/",
            "https://example.com:65536/",
            "https://[fe80::1%25eth0]/",
            "gopher://1.1.1.1",
            "https://exa mple.com/",
            &long,
        ] {
            assert!(none.check(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn what_is_allowed_may_be_private_and_without_tls() {
        let allowed: Allowed = "10.1.0.0/16, 127.0.0.2, fd00:1::/32".parse().unwrap();
        for url in [
            "http://10.1.2.3/",
            "https://10.1.2.3/",
            "http://127.0.0.2:81/",
            "http://[fd00:1::7]/",
            "http://[::ffff:10.1.2.3]/",
        ] {
            assert!(allowed.check(url).is_ok(), "{url}");
        }
        for url in ["http://10.2.0.1/", "https://127.0.0.1/", "http://1.1.1.1/", "https://[fd00:2::7]/"] {
            assert!(allowed.check(url).is_err(), "{url}");
        }
        for wrong in ["10.1.0.0/33", "example.com", "10.1", "10.1.0.0/16 fd00::/8"] {
            assert!(wrong.parse::<Allowed>().is_err(), "{wrong}");
        }
        assert!("".parse::<Allowed>().is_ok());
    }
}
