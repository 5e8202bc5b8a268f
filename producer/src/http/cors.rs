//! Which pages of other sites may ask from a browser.

use std::str::FromStr;
use std::time::Duration;

use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::CorsLayer;
use url::Url;

/// How long a browser keeps the answer.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// The origins of pages that may ask; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<HeaderValue>);

impl FromStr for Origins {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let origin = |text: &str| {
            let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
            let origin = url.map(|url| url.origin().ascii_serialization()).filter(|origin| origin == text);
            origin.and_then(|origin| HeaderValue::try_from(origin).ok()).ok_or_else(|| {
                format!(
                    "got \"{text}\", expected origins as browsers write them, such as https://app.example.com"
                )
            })
        };
        let given = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(Origins(given.map(origin).collect::<Result<_, _>>()?))
    }
}

impl Origins {
    /// Answers browsers; without any origin nothing is added. Keys are in a header, so no credentials are allowed.
    pub fn layer(&self) -> CorsLayer {
        let name = HeaderName::from_static;
        let asked = [
            ACCEPT,
            AUTHORIZATION,
            CONTENT_TYPE,
            name("idempotency-key"),
            name("last-event-id"),
            name("prefer"),
            name("traceparent"),
        ];
        let shown = [
            LOCATION,
            RETRY_AFTER,
            name("found-by"),
            name("idempotency-replayed"),
            name("ratelimit-limit"),
            name("ratelimit-remaining"),
            name("ratelimit-reset"),
        ];
        let layer = CorsLayer::new().allow_origin(self.0.clone());
        layer
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            .allow_headers(asked)
            .expose_headers(shown)
            .max_age(KEPT_FOR)
    }

    /// Whether it is one of them.
    pub fn has(&self, origin: &HeaderValue) -> bool {
        self.0.contains(origin)
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_listed_as_browsers_write_them() {
        let two: Origins = "https://app.example.com, http://localhost:3000".parse().expect("origins");
        assert_eq!(two.0, ["https://app.example.com", "http://localhost:3000"]);
        assert!("".parse::<Origins>().expect("none").is_empty());
        for wrong in [
            "*",
            "app.example.com",
            "https://app.example.com/",
            "https://App.example.com",
            "ftp://x",
            "https://x:443",
        ] {
            assert!(wrong.parse::<Origins>().is_err(), "{wrong}");
        }
    }
}
