//! The receiver: OTLP over HTTP with protobuf, sent by the HTTP client that the fleet already uses.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use ureq::Agent;
use ureq::http::{HeaderName, HeaderValue};
use ureq::tls::TlsConfig;

use super::queue::Counts;
use crate::explain_http;

/// The longest answer that is read, in bytes.
const LONGEST_ANSWER: u64 = 4 << 20;

/// Where spans go.
pub struct Receiver {
    /// The whole address.
    pub url: String,
    /// The address without what may be secret.
    pub shown: String,
    /// The trusted authorities.
    pub tls: TlsConfig,
    /// Additional headers of every request. They are secret.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The timeout for a batch of spans, including retries.
    pub timeout: Duration,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("at", &self.shown).finish_non_exhaustive()
    }
}

/// Returns an exporter to this receiver. Causes of failures are noted in `counts`.
pub fn exporter(receiver: Receiver, counts: Counts) -> Result<SpanExporter, String> {
    let config = Agent::config_builder()
        .timeout_global(Some(receiver.timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .tls_config(receiver.tls);
    let client = Client { agent: config.build().into(), headers: receiver.headers, counts };
    SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(receiver.url)
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(receiver.timeout)
        .build()
        .map_err(|error| error.to_string())
}

/// A blocking client. Only the exporting thread uses it, and that thread may block.
struct Client {
    agent: Agent,
    headers: Vec<(HeaderName, HeaderValue)>,
    counts: Counts,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (mut parts, body) = request.into_parts();
        for (name, value) in &self.headers {
            parts.headers.insert(name.clone(), value.clone());
        }
        let answer = self.agent.run(Request::from_parts(parts, &body[..]))?;
        let (parts, mut body) = answer.into_parts();
        let body = body.with_config().limit(LONGEST_ANSWER).read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer =
            self.send(request).inspect_err(|error| self.counts.fails_because(explain_http(error)))?;
        if !answer.status().is_success() {
            let hint = match answer.status().as_u16() {
                401 | 403 => ", expected OTEL_EXPORTER_OTLP_HEADERS that it accepts",
                404 | 405 => ", expected a receiver of OTLP over HTTP",
                _ => "",
            };
            self.counts.fails_because(format!("got {}{hint}", answer.status()));
        }
        Ok(answer)
    }
}
