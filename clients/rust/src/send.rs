//! Sending: one request and its answer, tried again where that may help.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Method, Response};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::address::{self, BadAddress};
use crate::error::{Error, Problem};
use crate::tries::{Tries, is_retried, retry_after};

/// How long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long an answer may take, beyond what was asked to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The same for a body of some megabytes.
const BATCH_WITHIN: Duration = Duration::from_secs(150);
/// How long a stream may be silent: a comment comes every 15 s.
const SILENT: Duration = Duration::from_secs(45);
/// A connection that lay idle for longer may have been closed by the other side, which does so after 75 s.
const IDLE: Duration = Duration::from_secs(30);

/// The API at an address, for the holder of a key; clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: Arc<str>,
    key: Option<HeaderValue>,
    pub(crate) retry_for: Duration,
    /// After this time without a byte a stream counts as cut off.
    pub(crate) silent: Duration,
}

/// A request.
pub(crate) struct Ask<'a> {
    method: Method,
    path: &'a str,
    body: Option<(&'static str, String)>,
    wait: Duration,
    within: Duration,
}

impl<'a> Ask<'a> {
    pub(crate) fn get(path: &'a str) -> Ask<'a> {
        Ask { method: Method::GET, path, body: None, wait: Duration::ZERO, within: ANSWER_WITHIN }
    }

    pub(crate) fn post(path: &'a str) -> Ask<'a> {
        Ask { method: Method::POST, ..Ask::get(path) }
    }

    pub(crate) fn delete(path: &'a str) -> Ask<'a> {
        Ask { method: Method::DELETE, ..Ask::get(path) }
    }

    /// With JSON.
    pub(crate) fn json(self, body: String) -> Ask<'a> {
        Ask { body: Some(("application/json", body)), ..self }
    }

    /// With a JSON object on each line.
    pub(crate) fn lines(self, body: String) -> Ask<'a> {
        Ask { body: Some(("application/x-ndjson", body)), within: BATCH_WITHIN, ..self }
    }

    /// The answer may take so long, if a job's end is waited for.
    pub(crate) fn waiting(self, wait: Duration) -> Ask<'a> {
        Ask { wait: Duration::from_secs(wait.as_secs()), ..self }
    }
}

impl Api {
    /// `own` are authorities (PEM) that are trusted beside the system's.
    pub(crate) fn new(url: &str, key: Option<&str>, own: Option<&str>) -> Result<Api, BadAddress> {
        let base = address::base(url)?;
        let key = key.map(address::authorization).transpose()?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(own))
            .connect_timeout(CONNECT_WITHIN)
            .pool_idle_timeout(IDLE)
            .redirect(Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| BadAddress::new("HARNESS_URL", error.to_string()))?;
        Ok(Api { http, base: base.into(), key, retry_for: Duration::from_secs(60), silent: SILENT })
    }

    /// Sends a request until it is answered for good, and reads the answer.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, ask: Ask<'_>) -> Result<T, Error> {
        self.read(&self.answer(ask).await?)
    }

    /// Sends a request until it is answered for good, and returns the answer's body.
    pub(crate) async fn answer(&self, ask: Ask<'_>) -> Result<Vec<u8>, Error> {
        let mut tries = Tries::begin(self.retry_for);
        loop {
            let (error, at_least) = match self.once(&ask).await {
                Ok(Ok(body)) => return Ok(body),
                Ok(Err((problem, at_least))) if is_retried(problem.status) => {
                    (Error::Refused(problem), at_least)
                }
                Ok(Err((problem, _))) => return Err(Error::Refused(problem)),
                Err(source) => (self.unreachable(source), Duration::ZERO),
            };
            tries.pause(error, at_least).await?;
        }
    }

    async fn once(&self, ask: &Ask<'_>) -> Result<Result<Vec<u8>, (Problem, Duration)>, reqwest::Error> {
        let answer = self.send(ask).await?;
        let (status, at_least) = (answer.status(), retry_after(answer.headers().get(RETRY_AFTER)));
        let body = answer.bytes().await?;
        if status.is_success() {
            return Ok(Ok(body.into()));
        }
        Ok(Err((Problem::read(status.as_u16(), &body), at_least)))
    }

    async fn send(&self, ask: &Ask<'_>) -> Result<Response, reqwest::Error> {
        let mut request = self.http.request(ask.method.clone(), format!("{}{}", self.base, ask.path));
        request = request.header(ACCEPT, "application/json").timeout(ask.within + ask.wait);
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key);
        }
        if let Some((kind, body)) = &ask.body {
            request = request.header(CONTENT_TYPE, *kind).body(body.clone());
        }
        if !ask.wait.is_zero() {
            request = request.header("prefer", format!("wait={}", ask.wait.as_secs()));
        }
        request.send().await
    }

    /// Begins to read a stream, behind the event of this id.
    pub(crate) async fn stream(&self, path: &str, last_event_id: &str) -> Result<Response, Error> {
        let mut request = self.http.get(format!("{}{path}", self.base)).header(ACCEPT, "text/event-stream");
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key);
        }
        if !last_event_id.is_empty() {
            request = request.header("last-event-id", last_event_id);
        }
        match timeout(ANSWER_WITHIN, request.send()).await {
            Ok(answer) => answer.map_err(|source| self.unreachable(source)),
            Err(_) => Err(self.cut_off()),
        }
    }

    pub(crate) fn cut_off(&self) -> Error {
        Error::CutOff { url: self.base.to_string() }
    }

    fn unreachable(&self, source: reqwest::Error) -> Error {
        Error::Unreachable { url: self.base.to_string(), source }
    }

    pub(crate) fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(body)
            .map_err(|source| Error::Unreadable { url: self.base.to_string(), source })
    }
}

/// One unreadable certificate of the system's must not prevent the use of the others.
fn tls(own: Option<&str>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let own = CertificateDer::pem_slice_iter(own.unwrap_or_default().as_bytes());
    roots.add_parsable_certificates(own.filter_map(Result::ok));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
