//! The broker's address: reads `AMQP_URL`, reports what is wrong with it, and never shows the password.

use lapin::uri::AMQPUri;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use url::{Url, form_urlencoded};

/// The parameters that a URL may have. The first five are lapin's. The last names a file, as in RabbitMQ's own clients.
const PARAMETERS: [&str; 6] =
    ["heartbeat", "frame_max", "channel_max", "connection_timeout", "auth_mechanism", "cacertfile"];

/// `AMQP_URL` cannot be used. The text says what is wrong and what would be right. It never holds the password.
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
    own_authorities: Option<String>,
    shown: String,
}

impl Address {
    pub(crate) fn parse(
        url: &str,
        default_heartbeat_s: u16,
        default_frame_max: u32,
        own_authorities: Option<&str>,
    ) -> Result<Address, ConfigError> {
        let refuse = |problem: &str| Err(ConfigError { problem: problem.to_owned() });
        let url = url.trim();
        if url.is_empty() {
            return refuse("is empty");
        }
        if !["amqp://", "amqps://"].iter().any(|scheme| url.starts_with(scheme)) {
            return refuse("does not start with amqp:// or amqps://");
        }
        // This check comes first, because the text after the host may be the end of a password.
        if behind_host(url).contains('@') {
            return refuse("has an @ after its host: characters like / # ? @ must be percent-encoded");
        }
        // The parser's errors quote a part of the URL, never the whole. Check nevertheless.
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
        if uri.vhost.is_empty() {
            return refuse("names the empty vhost: end it with /%2f, or leave the last slash out");
        }
        if uri.vhost.len() > 255 {
            return refuse("names a vhost of more than 255 bytes");
        }
        let by_url = read_parameters(url).map_err(|problem| ConfigError { problem })?;
        if by_url.is_some() && !url.starts_with("amqps://") {
            return refuse("names a cacertfile, but does not start with amqps://");
        }
        let own_authorities = by_url.or_else(|| own_authorities.map(str::to_owned));
        uri.query.heartbeat.get_or_insert(default_heartbeat_s);
        uri.query.frame_max.get_or_insert(default_frame_max);
        let vhost = if uri.vhost == "/" { "%2f" } else { &uri.vhost };
        let (user, host) = (&uri.authority.userinfo.username, &uri.authority.host);
        let brackets = if host.contains(':') { ["[", "]"] } else { ["", ""] };
        let [open, close] = brackets;
        let shown = format!("{}://{user}@{open}{host}{close}:{}/{vhost}", uri.scheme, uri.authority.port);
        Ok(Address { uri, own_authorities, shown })
    }

    pub(crate) fn uri(&self) -> AMQPUri {
        self.uri.clone()
    }

    /// Returns the authorities to trust in addition to the system's, as PEM. The broker's certificate is always
    /// verified.
    pub(crate) fn own_authorities(&self) -> Option<String> {
        self.own_authorities.clone()
    }

    /// Returns the address for logs and errors, without the password.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }
}

/// Returns path, query and fragment.
fn behind_host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find(['/', '?', '#']).map_or("", |at| &rest[at..])
}

/// Refuses parameters that would be ignored. Returns the authorities that one of them names, as PEM.
fn read_parameters(url: &str) -> Result<Option<String>, String> {
    let mut own_authorities = None;
    let parsed = Url::parse(url).ok();
    // A `+` means itself, because this is a URL and not a form.
    let query = parsed.as_ref().and_then(Url::query).unwrap_or_default().replace('+', "%2B");
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !PARAMETERS.contains(&name.as_ref()) {
            let verify = if name == "verify" { "; a certificate is always verified" } else { "" };
            return Err(format!("has the parameter {name:?}, there are {}{verify}", PARAMETERS.join(", ")));
        }
        if name == "cacertfile" {
            let pem = std::fs::read_to_string(value.as_ref())
                .map_err(|error| format!("names the cacertfile {value}, which cannot be read: {error}"))?;
            check_authorities(&pem).map_err(|problem| format!("names the cacertfile {value}, {problem}"))?;
            own_authorities = Some(pem);
        }
    }
    Ok(own_authorities)
}

/// Checks that each certificate can be an authority, because lapin silently leaves out those that cannot.
fn check_authorities(pem: &str) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for (certificate, nth) in CertificateDer::pem_slice_iter(pem.as_bytes()).zip(1..) {
        let added = certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        added.map_err(|problem| format!("whose certificate {nth} cannot be used: {problem}"))?;
    }
    if roots.is_empty() { Err("which has no certificate (PEM) in it".to_owned()) } else { Ok(()) }
}

/// Returns the host if it is an IPv6 address. lapin's parser finds no host in one, and would silently connect to
/// localhost.
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
        let address = Address::parse("amqp://me:s3cret@rabbit:5673/jobs?heartbeat=7", 15, 0, None).unwrap();
        assert_eq!(address.shown(), "amqp://me@rabbit:5673/jobs");
        assert_eq!(address.uri().query.heartbeat, Some(7));
        assert_eq!(
            Address::parse("amqp://rabbit", 15, 0, None).unwrap().shown(),
            "amqp://guest@rabbit:5672/%2f"
        );
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
            "amqp://me:12?s3cret@rabbit/x",
            "amqp://me:12?heartbeat=s3cret@rabbit/x",
            "amqp://me:12#s3cret@rabbit/x",
            "amqp://me:s3cret@rabbit/",
            "amqp://me:s3cret@rabbit/x?heartbeat=often",
            "amqps://me:s3cret@rabbit/x?verify=verify_none",
            "amqps://me:s3cret@rabbit/x?cacertfile=/nowhere/ca.pem",
            "amqps://me:s3cret@rabbit/x?cacertfile=/dev/null",
            &format!("amqp://me:s3cret@rabbit/{}", "x".repeat(256)),
        ] {
            let text = Address::parse(url, 15, 0, None).err().unwrap_or_else(|| panic!("{url}")).to_string();
            assert!(text.starts_with("AMQP_URL "), "{text}");
            assert!(!text.contains("s3cret"), "{text}");
            assert!(text.contains("expected amqp://"), "{text}");
        }
    }

    #[test]
    fn a_parameter_that_would_be_ignored_is_named_with_those_that_there_are() {
        let refused =
            Address::parse("amqps://me:x@rabbit/x?hearbeat=5", 15, 0, None).err().unwrap().to_string();
        assert!(
            refused.contains("has the parameter \"hearbeat\", there are heartbeat, frame_max"),
            "{refused}"
        );
    }

    #[test]
    fn a_file_is_named_as_urls_name_it() {
        let url = "amqps://me:x@rabbit/x?cacertfile=/nowhere/a+b%20c%40d.pem";
        let refused = Address::parse(url, 15, 0, None).err().unwrap().to_string();
        assert!(refused.contains("the cacertfile /nowhere/a+b c@d.pem, which cannot be read"), "{refused}");
    }

    #[test]
    fn whitespace_around_it_is_cut() {
        assert_eq!(
            Address::parse(" amqp://rabbit/x\n", 15, 0, None).unwrap().shown(),
            "amqp://guest@rabbit:5672/x"
        );
    }

    #[test]
    fn an_ipv6_host_is_kept() {
        let address = Address::parse("amqp://me:x@[fd00::1]:5672/%2f", 15, 0, None).unwrap();
        assert_eq!(address.uri().authority.host, "fd00::1");
        assert_eq!(address.shown(), "amqp://me@[fd00::1]:5672/%2f");
    }
}
