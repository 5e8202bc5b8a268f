//! HTTP addresses of services, as settings give them. Credentials are taken out of the address, decoded, and sent as
//! HTTP Basic authentication.
//!
//! The rest of the address may be logged. The credentials are never printed.

use std::fmt;
use std::str;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::http::HeaderValue;
use url::Url;

/// A checked address without its credentials.
#[derive(Clone)]
pub struct HttpUrl {
    url: Url,
    user: Option<String>,
    password: Option<String>,
}

impl HttpUrl {
    /// Reads an address such as `http://user:p%40ss@host:4318`. The error says what is wrong, and shows no part of the
    /// text.
    pub fn parse(text: &str) -> Result<HttpUrl, String> {
        let text = text.trim();
        let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
        if !["http://", "https://"].iter().any(|scheme| lower.starts_with(scheme)) {
            return Err("does not start with http:// or https://".to_owned());
        }
        let mut url = Url::parse(text).map_err(|problem| format!("cannot be read ({problem}; {ENCODED})"))?;
        let behind = [Some(url.path()), url.query(), url.fragment()];
        if behind.into_iter().flatten().any(|part| part.contains('@')) {
            return Err(format!("has an @ after its host: {ENCODED}"));
        }
        if url.fragment().is_some() {
            return Err("has a # part, which no server gets".to_owned());
        }
        let user = Some(url.username()).filter(|user| !user.is_empty()).map(decoded).transpose()?;
        let password = url.password().map(decoded).transpose()?;
        if user.as_ref().is_some_and(|user| user.contains(':')) {
            return Err("has a user with a colon, which Basic credentials cannot hold".to_owned());
        }
        // Both are refused only for addresses without a host.
        let _ = (url.set_username(""), url.set_password(None));
        Ok(HttpUrl { url, user, password })
    }

    /// Returns the address as it was given, without its credentials.
    pub fn whole(&self) -> &str {
        self.url.as_str()
    }

    /// Returns the address without a trailing slash, so that a path can be appended.
    pub fn base(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Returns scheme, host and port, for logs.
    pub fn origin(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// Whether it has a query.
    pub fn has_query(&self) -> bool {
        self.url.query().is_some()
    }

    /// Whether it names a user and a password.
    pub fn has_password(&self) -> bool {
        self.user.is_some() && self.password.is_some()
    }

    /// Returns the header `Authorization`, if the address names a user or a password.
    pub fn authorization(&self) -> Option<HeaderValue> {
        self.user.as_ref().or(self.password.as_ref())?;
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        let credentials = STANDARD.encode(format!("{}:{}", part(&self.user), part(&self.password)));
        let mut value = HeaderValue::try_from(format!("Basic {credentials}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpUrl").field("at", &self.origin()).finish_non_exhaustive()
    }
}

const ENCODED: &str = "characters like / # ? @ % in a user or password must be percent-encoded";

fn decoded(text: &str) -> Result<String, String> {
    let bytes = percent_decoded(text).and_then(|bytes| String::from_utf8(bytes).ok());
    bytes.ok_or_else(|| format!("has credentials that cannot be decoded: {ENCODED}"))
}

/// Returns `None` for a % that is not followed by two hexadecimal digits.
pub(crate) fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        decoded.push((digit()? * 16 + digit()?) as u8);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_decoded_and_taken_out() {
        for (given, credentials) in [
            ("http://us%40er:p%40ss@host:4318", Some("us@er:p@ss")),
            ("http://me:s3cret@[::1]:15672/", Some("me:s3cret")),
            ("  https://me:a%2Fb%23c%3Fd%25@host \n", Some("me:a/b#c?d%")),
            ("http://token@host/base/", Some("token:")),
            ("http://me:%C3%A9@host", Some("me:é")),
            ("http://host", None),
        ] {
            let url = HttpUrl::parse(given).unwrap();
            let expected = credentials.map(|credentials| format!("Basic {}", STANDARD.encode(credentials)));
            let header = url.authorization().map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(header, expected, "{given}");
            assert!(!format!("{} {} {url:?}", url.base(), url.origin()).contains('@'), "{given}");
        }
        assert_eq!(HttpUrl::parse("http://me:x@[::1]:15672/").unwrap().base(), "http://[::1]:15672");
        assert_eq!(HttpUrl::parse("https://token@host:443/base/").unwrap().base(), "https://host/base");
    }

    #[test]
    fn a_wrong_address_is_refused_and_shows_nothing_of_itself() {
        for (given, problem) in [
            ("", "does not start with"),
            ("host:4318", "does not start with"),
            ("amqp://me:s3cret@host", "does not start with"),
            ("http://", "cannot be read"),
            ("http://me:s3cret@host:port", "cannot be read"),
            ("http://me:s3c/ret@host", "cannot be read"),
            ("http://me:12/s3cret@host", "has an @ after its host"),
            ("http://me:12?s3cret@host", "has an @ after its host"),
            ("http://me:12#s3cret@host", "has an @ after its host"),
            ("http://host/#s3cret", "has a # part"),
            ("http://me:s3cret%@host", "cannot be decoded"),
            ("http://me:s3cret%ff@host", "cannot be decoded"),
            ("http://m%3Ae:s3cret@host", "a user with a colon"),
        ] {
            let refused = HttpUrl::parse(given).err().unwrap_or_else(|| panic!("{given} is taken"));
            assert!(refused.contains(problem) && !refused.contains("s3c"), "{given}: {refused}");
        }
    }
}
