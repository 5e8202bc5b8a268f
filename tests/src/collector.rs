//! A receiver of traces: OTLP over HTTP, decoded with the protocol's own types. Also one that never answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::TIMEOUT;

/// A span as it was received.
#[derive(Clone, Debug)]
pub struct SeenSpan {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// 16 hexadecimal digits; empty for the first span of its process in a trace that the process began itself.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// `INTERNAL`, `PRODUCER` or `CONSUMER`.
    pub kind: String,
    /// Unix time in nanoseconds.
    pub start: u64,
    /// Unix time in nanoseconds.
    pub end: u64,
    /// The span's attributes.
    pub attributes: BTreeMap<String, Value>,
    /// The error, if it failed.
    pub error: Option<String>,
    /// The resource attributes of its process.
    pub resource: BTreeMap<String, Value>,
}

impl SeenSpan {
    /// The span's place as a `traceparent`.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace_id, self.span_id)
    }

    /// Whether it lies within the time of another span.
    pub fn is_within(&self, other: &SeenSpan) -> bool {
        other.start <= self.start && self.start <= self.end && self.end <= other.end
    }
}

/// A receiver that keeps what it gets.
pub struct Collector {
    /// Its address, for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub url: String,
    seen: watch::Receiver<Seen>,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Seen {
    spans: Vec<SeenSpan>,
    headers: Vec<HeaderMap>,
}

impl Collector {
    /// Starts a receiver that accepts everything.
    pub async fn start() -> Collector {
        Collector::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// As `start`, but at this address.
    pub async fn start_at(address: SocketAddr) -> Collector {
        let listener = TcpListener::bind(address).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (sender, seen) = watch::channel(Seen::default());
        let take = move |headers: HeaderMap, body: Bytes| async move { take(&sender, headers, &body) };
        let routes = Router::new().route("/v1/traces", post(take));
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.expect("served") });
        Collector { url, seen, _serving: AbortOnDropHandle::new(serving) }
    }

    /// Opens a port that accepts connections and never answers.
    pub async fn dead() -> (String, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let holding = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        (url, AbortOnDropHandle::new(holding))
    }

    /// Waits for at least `count` spans of this name that pass, and returns all of them so far.
    pub async fn spans(&self, count: usize, name: &str, pass: impl Fn(&SeenSpan) -> bool) -> Vec<SeenSpan> {
        let passing = |seen: &Seen| -> Vec<SeenSpan> {
            seen.spans.iter().filter(|span| span.name == name && pass(span)).cloned().collect()
        };
        let mut seen = self.seen.clone();
        match timeout(TIMEOUT, seen.wait_for(|seen| passing(seen).len() >= count)).await {
            Ok(seen) => passing(&seen.expect("a collector that serves")),
            Err(_) => {
                panic!("not within {} s: {count} spans {name} in {:#?}", TIMEOUT.as_secs(), self.all())
            }
        }
    }

    /// Waits for one span that passes.
    pub async fn span(&self, name: &str, pass: impl Fn(&SeenSpan) -> bool) -> SeenSpan {
        self.spans(1, name, pass).await.swap_remove(0)
    }

    /// All spans so far.
    pub fn all(&self) -> Vec<SeenSpan> {
        self.seen.borrow().spans.clone()
    }

    /// The headers of all requests so far.
    pub fn headers(&self) -> Vec<HeaderMap> {
        self.seen.borrow().headers.clone()
    }
}

fn take(sender: &watch::Sender<Seen>, headers: HeaderMap, body: &[u8]) -> Response {
    if headers.get("content-type").is_none_or(|kind| kind != "application/x-protobuf") {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let mut spans = Vec::new();
    for resource_spans in request.resource_spans {
        let resource = attributes(resource_spans.resource.unwrap_or_default().attributes);
        for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let kind = SpanKind::try_from(span.kind).expect("a kind").as_str_name();
            spans.push(SeenSpan {
                trace_id: hex(&span.trace_id),
                span_id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name,
                kind: kind.trim_start_matches("SPAN_KIND_").to_owned(),
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                attributes: attributes(span.attributes),
                // 2 is STATUS_CODE_ERROR.
                error: span.status.filter(|status| status.code == 2).map(|status| status.message),
                resource: resource.clone(),
            });
        }
    }
    sender.send_modify(|seen| {
        seen.spans.extend(spans);
        seen.headers.push(headers);
    });
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    ([("content-type", "application/x-protobuf")], answer).into_response()
}

fn attributes(given: Vec<KeyValue>) -> BTreeMap<String, Value> {
    let value = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::IntValue(number)) => json!(number),
        Some(Any::DoubleValue(number)) => json!(number),
        Some(Any::BoolValue(truth)) => json!(truth),
        other => panic!("an attribute type that we do not use: {other:?}"),
    };
    given.into_iter().map(|pair| (pair.key, value(pair.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
