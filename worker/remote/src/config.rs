//! The settings of `harness = "http"`, and their check. This module does not know how a service is asked.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use harness::ConfigError;
use http::{HeaderMap, HeaderName, HeaderValue};
use lines::Limits;
use rustls::ClientConfig;
use serde::Deserialize;
use url::Url;

use crate::Remote;

const WEEK_MS: u64 = 7 * 86_400_000;
const MIB: u64 = 1024 * 1024;

/// The settings of `harness = "http"`. What a service is sent and may answer is in [the contract](crate).
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteConfig {
    /// Where the service is.
    pub url: String,
    /// Headers of each request, such as `Authorization`.
    pub headers: BTreeMap<String, String>,
    /// Wall-clock limit of one attempt; an hour unless set, a week at most.
    pub timeout_ms: u64,
    /// The longest silence of an answer; five minutes unless set.
    pub idle_timeout_ms: u64,
    /// How long a service may take to end its answer once it was asked to stop; five seconds unless set, ten minutes at
    /// most. Keep it below the 15 seconds for which the worker waits for a stopped run.
    pub stop_grace_ms: u64,
    /// The longest line of an answer; 1 MiB unless set.
    pub max_line_bytes: usize,
    /// The longest answer; 64 MiB unless set.
    pub max_output_bytes: u64,
}

impl Default for RemoteConfig {
    fn default() -> Self {
        RemoteConfig {
            url: String::new(),
            headers: BTreeMap::new(),
            timeout_ms: 3_600_000,
            idle_timeout_ms: 300_000,
            stop_grace_ms: 5_000,
            max_line_bytes: MIB as usize,
            max_output_bytes: 64 * MIB,
        }
    }
}

/// Leaves out the address, which may hold a password, and the headers' values, which may be secrets.
impl fmt::Debug for RemoteConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteConfig").field("headers", &self.headers.keys()).finish_non_exhaustive()
    }
}

/// Settings that have been checked, in the form that a run needs.
pub(crate) struct Settings {
    pub url: Url,
    pub headers: HeaderMap,
    pub limits: Limits,
    pub stop_grace: Duration,
    pub max_line_bytes: usize,
    pub max_output_bytes: u64,
}

impl RemoteConfig {
    /// Checks the settings. The error lists everything that is wrong.
    pub fn build(self, tls: &ClientConfig) -> Result<Remote, Vec<ConfigError>> {
        let mut problems = self.out_of_range();
        let url = self.address().map_err(|error| problems.push(error));
        let headers = self.headers(&mut problems);
        let client = http_client::build(tls.clone())
            .map_err(|problem| problems.push(ConfigError::new("url", problem)));
        match (url, client) {
            (Ok(url), Ok(client)) if problems.is_empty() => {
                let limits = Limits {
                    timeout: Duration::from_millis(self.timeout_ms),
                    idle_timeout: Duration::from_millis(self.idle_timeout_ms),
                };
                let settings = Settings {
                    url,
                    headers,
                    limits,
                    stop_grace: Duration::from_millis(self.stop_grace_ms),
                    max_line_bytes: self.max_line_bytes,
                    max_output_bytes: self.max_output_bytes,
                };
                Ok(Remote { settings, client })
            }
            _ => Err(problems),
        }
    }

    fn out_of_range(&self) -> Vec<ConfigError> {
        let ranges = [
            ("timeout_ms", self.timeout_ms, 1, WEEK_MS),
            ("idle_timeout_ms", self.idle_timeout_ms, 1, WEEK_MS),
            ("stop_grace_ms", self.stop_grace_ms, 0, 600_000),
            ("max_line_bytes", self.max_line_bytes as u64, 1024, 64 * MIB),
            ("max_output_bytes", self.max_output_bytes, self.max_line_bytes as u64, 1024 * 1024 * MIB),
        ];
        let wrong = ranges.iter().filter(|(_, got, least, most)| !(least..=most).contains(&got));
        let said = |(setting, got, least, most): &(&str, u64, u64, u64)| {
            ConfigError::new(*setting, format!("got {got}, expected {least} to {most}"))
        };
        wrong.map(said).collect()
    }

    fn address(&self) -> Result<Url, ConfigError> {
        let expected = "expected an address such as https://agents.example.com/run, without a password";
        let wrong = |problem: &str| ConfigError::new("url", format!("{problem}, {expected}"));
        if self.url.is_empty() {
            return Err(wrong("missing"));
        }
        let url = Url::parse(&self.url).map_err(|error| wrong(&format!("no address: {error}")))?;
        match url.scheme() {
            "http" | "https" if url.password().is_some() || !url.username().is_empty() => {
                Err(wrong("got a login in the address, which headers can hold"))
            }
            "http" | "https" => Ok(url),
            scheme => Err(wrong(&format!("got the scheme {scheme}"))),
        }
    }

    fn headers(&self, problems: &mut Vec<ConfigError>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let setting = format!("headers.{name}");
            let parsed = (HeaderName::try_from(name), HeaderValue::try_from(value));
            match parsed {
                (Ok(own), _) if own.as_str().starts_with("harness-") || own == "traceparent" => {
                    problems.push(ConfigError::new(setting, "it is set for each job, expected another name"));
                }
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(true);
                    headers.insert(name, value);
                }
                _ => problems.push(ConfigError::new(setting, "no header of HTTP, expected visible ASCII")),
            }
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;
    use rustls::crypto::ring;

    use super::*;

    fn tls() -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
    }

    #[test]
    fn all_that_is_wrong_is_named_and_no_secret_is_shown() {
        let config = RemoteConfig {
            url: "ftp://agents/run".to_owned(),
            headers: [("Harness-Epoch", "9"), ("a b", "c"), ("X-Key", "line\nbreak"), ("X-Fine", "secret")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            timeout_ms: 0,
            ..RemoteConfig::default()
        };
        assert!(!format!("{config:?}").contains("secret"));
        let errors = config.build(&tls()).err().expect("refused");
        let settings: Vec<&str> = errors.iter().map(|error| error.setting.as_str()).collect();
        assert_eq!(settings, ["timeout_ms", "url", "headers.Harness-Epoch", "headers.X-Key", "headers.a b"]);
        for (url, said) in [("", "missing"), ("run", "no address"), ("http://a:b@c/", "a login")] {
            let errors = RemoteConfig { url: url.to_owned(), ..RemoteConfig::default() }.build(&tls());
            let errors = errors.err().expect("refused");
            assert!(errors[0].problem.contains(said), "{url}: {errors:?}");
        }
        let fine = RemoteConfig { url: "https://agents/run".to_owned(), ..RemoteConfig::default() };
        assert!(fine.build(&tls()).is_ok());
    }
}
