//! Where the API is, and the key for it.

use reqwest::header::HeaderValue;
use url::Url;

/// An address, a key or an authority that cannot be used. It never shows the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadAddress {
    /// The setting that usually holds it, such as `HARNESS_URL`.
    pub field: &'static str,
    /// What was given and what would be right.
    pub problem: String,
}

impl BadAddress {
    pub(crate) fn new(field: &'static str, problem: impl Into<String>) -> BadAddress {
        BadAddress { field, problem: problem.into() }
    }
}

/// Reads an address, and returns it without a slash at its end.
pub(crate) fn base(given: &str) -> Result<String, BadAddress> {
    let bad = |problem: &str| BadAddress::new("HARNESS_URL", problem);
    // What is no address may hold a key, so it is not shown.
    let url = Url::parse(given)
        .map_err(|error| bad(&format!("{error}, expected http:// or https:// and a host")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("a key belongs into HARNESS_API_KEY, not into the address"));
    }
    let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
    if !is_http || url.query().is_some() || url.fragment().is_some() {
        return Err(bad(&format!("got \"{url}\", expected http:// or https:// and a host")));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Returns the header that shows a key.
pub(crate) fn authorization(key: &str) -> Result<HeaderValue, BadAddress> {
    let key = key.trim();
    let is_text = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    let value = HeaderValue::from_str(&format!("Bearer {key}")).ok().filter(|_| is_text);
    let mut value =
        value.ok_or_else(|| BadAddress::new("HARNESS_API_KEY", "expected letters, digits and _"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_no_key() {
        assert_eq!(base("https://fleet.example.com/").as_deref(), Ok("https://fleet.example.com"));
        assert_eq!(base("http://127.0.0.1:8080/at/").as_deref(), Ok("http://127.0.0.1:8080/at"));
        for bad in
            ["fleet.example.com", "ftp://host", "http://user:secret@host", "http://host/?q", "", "unix:/x"]
        {
            let error = base(bad).unwrap_err();
            assert!(error.to_string().starts_with("HARNESS_URL: "), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_key_is_shown_by_no_error_and_no_debug() {
        assert!(!format!("{:?}", authorization("hfk_secret")).contains("secret"));
        for bad in ["", "secret\nkey", "secret key", "sécret"] {
            assert!(!authorization(bad).unwrap_err().to_string().contains("ret"), "{bad}");
        }
    }
}
