//! From where a request comes: the connection's address, or what a proxy of ours says about it.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use ipnet::IpNet;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Proxies whose `X-Forwarded-For` is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl FromStr for TrustedProxies {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let network = |text: &str| {
            text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
                format!(
                    "got \"{text}\", expected addresses and networks, such as 10.0.0.7,10.1.0.0/16,fd00::/8"
                )
            })
        };
        let given = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(TrustedProxies(given.map(network).collect::<Result<_, _>>()?))
    }
}

impl TrustedProxies {
    /// Whether this is the address of one of them.
    pub fn has(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address.to_canonical()))
    }

    /// The address of a request's caller. Each proxy adds the address that it sees at the end, so what stands before
    /// the first one that is not ours is anybody's word.
    fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut caller = peer;
        let values = headers.get_all(FORWARDED_FOR);
        let given: Vec<&str> =
            values.iter().flat_map(|value| value.to_str().unwrap_or("?").split(',')).collect();
        for hop in given.into_iter().rev() {
            if !self.has(caller) {
                break;
            }
            let Some(address) = address(hop.trim()) else { break };
            caller = address;
        }
        caller.to_canonical()
    }

    /// The address of a request's caller; none where there is no connection.
    pub fn of(&self, parts: &Parts) -> Option<IpAddr> {
        let ConnectInfo(peer) = parts.extensions.get::<ConnectInfo<SocketAddr>>()?;
        Some(self.caller(peer.ip(), &parts.headers))
    }
}

/// Some proxies add the port.
fn address(hop: &str) -> Option<IpAddr> {
    let bare = hop.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    bare.or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_listed_proxies_say_is_believed() {
        let trusted: TrustedProxies = "10.0.0.0/8, fd00::1".parse().expect("a list");
        let caller = |peer: &str, given: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in given {
                headers.append(FORWARDED_FOR, value.parse().expect("a header"));
            }
            trusted.caller(peer.parse().expect("an address"), &headers).to_string()
        };
        assert_eq!(caller("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(caller("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(caller("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(caller("::ffff:10.0.0.1", &["198.51.100.7:443"]), "198.51.100.7");
        assert_eq!(caller("fd00::1", &["[2001:db8::7]:443"]), "2001:db8::7");
        // The caller has written the first one itself.
        assert_eq!(caller("10.0.0.1", &["1.1.1.1, 198.51.100.7", "10.0.0.2"]), "198.51.100.7");
        assert_eq!(caller("10.0.0.1", &["198.51.100.7, nonsense"]), "10.0.0.1");
        assert_eq!(caller("10.0.0.1", &["198.51.100.7, \u{e9}"]), "10.0.0.1");
        assert_eq!("".parse(), Ok(TrustedProxies::default()));
        assert!("10.0.0.0/33".parse::<TrustedProxies>().is_err());
        assert!("proxy.example".parse::<TrustedProxies>().is_err());
    }
}
