//! A provider of models that keeps its own bill: Anthropic's Messages, OpenAI's Chat Completions and Responses.
//!
//! It refuses what the real ones refuse, and a test can give it faults, one for each of its next requests. Its bill has
//! its own prices and counts what it has *worked*, whether or not the answer arrived: what a gateway has settled and holds
//! must never be less.

mod answers;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// The key that it accepts.
pub const PROVIDER_KEY: &str = "sk-real-key";

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A status without any work; 429 comes with `Retry-After: 7`.
    Refuses(u16),
    /// A status after it has worked.
    Fails(u16),
    /// It works, and never answers.
    Stalls,
    /// The stream stalls after this many events.
    StallsAfter(usize),
    /// The connection is cut after this many events of a stream, or within the body of an answer that is none.
    CutAfter(usize),
    /// The answer is not JSON.
    Garbage,
    /// The answer reports no usage.
    NoUsage,
    /// The answer reports a usage of zero.
    ZeroUsage,
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its path.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// When it arrived.
    pub at: Instant,
}

/// A running provider. It ends when it is dropped.
pub struct Provider {
    addr: SocketAddr,
    state: Arc<Office>,
    serving: AbortHandle,
}

#[derive(Default)]
struct Office {
    faults: Mutex<VecDeque<Fault>>,
    asked: Mutex<Vec<Asked>>,
    bill_micros: Mutex<u64>,
    words: Mutex<u64>,
    pause: Mutex<Duration>,
    counts_nothing: AtomicBool,
    headers: Mutex<HeaderMap>,
}

/// Returns a TLS configuration that knows no authority: everything is on this machine.
pub fn tls() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    tls.expect("versions").with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
}

/// Returns an HTTP client that knows no proxy and no authority.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().tls_backend_preconfigured(tls()).no_proxy().build().expect("a client")
}

/// Which protocol a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Messages,
    Chat,
    Responses,
}

impl Speaks {
    fn path(self) -> &'static str {
        match self {
            Speaks::Messages => "/v1/messages",
            Speaks::Chat => "/v1/chat/completions",
            Speaks::Responses => "/v1/responses",
        }
    }
}

/// Micro-dollars per token of input and output.
const PRICES: [(&str, u64, u64); 3] =
    [("claude-opus-5-5", 4, 20), ("claude-haiku-4-5", 1, 5), ("gpt-6-sol", 2, 10)];

impl Provider {
    /// Starts one. It answers with twenty words, or fewer if the request's limit is lower.
    pub async fn start() -> Provider {
        let state = Arc::new(Office { words: Mutex::new(20), ..Office::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let spoken = |speaks| {
            post(move |State(office): State<Arc<Office>>, headers: HeaderMap, body: Bytes| async move {
                let mut response = answer(office.clone(), speaks, headers, body).await;
                response.headers_mut().extend(office.headers.lock().expect("not poisoned").clone());
                response
            })
        };
        let routes = Router::new()
            .route(Speaks::Messages.path(), spoken(Speaks::Messages))
            .route(Speaks::Chat.path(), spoken(Speaks::Chat))
            .route(Speaks::Responses.path(), spoken(Speaks::Responses))
            .route("/v1/messages/count_tokens", post(count_tokens))
            .route("/v1/models", get(models))
            .with_state(state.clone());
        // Events leave at once, as from a real provider.
        let listener = listener.tap_io(|connection| connection.set_nodelay(true).expect("a socket"));
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.expect("served") });
        Provider { addr, state, serving: serving.abort_handle() }
    }

    /// Returns its address, without `/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Closes its port, and returns when it is closed.
    pub async fn close(&self) {
        self.serving.abort();
        let refused = async || TcpStream::connect(self.addr).await.err();
        crate::until("the provider's port is closed", refused).await;
    }

    /// Adds a fault. Each request takes one.
    pub fn fault(&self, fault: Fault) {
        self.state.faults.lock().expect("not poisoned").push_back(fault);
    }

    /// Sets how many words an answer has, unless the request's limit is lower.
    pub fn say(&self, words: u64) {
        *self.state.words.lock().expect("not poisoned") = words;
    }

    /// Sets how long it waits before each event.
    pub fn pause(&self, pause: Duration) {
        *self.state.pause.lock().expect("not poisoned") = pause;
    }

    /// Adds a header to all its answers.
    pub fn report(&self, name: &'static str, value: u64) {
        self.state.headers.lock().expect("not poisoned").insert(name, value.into());
    }

    /// Refuses to count tokens from now on.
    pub fn count_nothing(&self) {
        self.state.counts_nothing.store(true, Ordering::Relaxed);
    }

    /// Returns its bill, in micro-dollars.
    pub fn bill_micros(&self) -> u64 {
        *self.state.bill_micros.lock().expect("not poisoned")
    }

    /// Returns all requests that arrived.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().expect("not poisoned").clone()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Lists no models, and notes nothing: it is free.
async fn models(headers: HeaderMap) -> Response {
    let key = headers.get("x-api-key").and_then(|key| key.to_str().ok());
    if key == Some(PROVIDER_KEY) && headers.contains_key("anthropic-version")
        || headers.get("authorization").is_some_and(|key| *key == *format!("Bearer {PROVIDER_KEY}"))
    {
        return axum::Json(json!({"data": []})).into_response();
    }
    StatusCode::UNAUTHORIZED.into_response()
}

async fn count_tokens(State(office): State<Arc<Office>>, headers: HeaderMap, body: Bytes) -> Response {
    if office.counts_nothing.load(Ordering::Relaxed) {
        return refusal(Speaks::Messages, 404, "not found");
    }
    office.note("/v1/messages/count_tokens", &headers, &body);
    axum::Json(json!({"input_tokens": tokens(&body)})).into_response()
}

async fn answer(office: Arc<Office>, speaks: Speaks, headers: HeaderMap, body: Bytes) -> Response {
    office.note(speaks.path(), &headers, &body);
    let fault = office.faults.lock().expect("not poisoned").pop_front();
    if let Some(Fault::Refuses(status)) = fault {
        let mut refused = refusal(speaks, status, "try again later");
        if status == 429 {
            refused.headers_mut().insert("retry-after", 7.into());
        }
        return refused;
    }
    let request = match check(speaks, &headers, &body) {
        Ok(request) => request,
        Err((status, why)) => return refusal(speaks, status, &why),
    };
    let limit = ["max_tokens", "max_completion_tokens", "max_output_tokens"];
    let limit = limit.iter().filter_map(|name| request[*name].as_u64()).max().unwrap_or(u64::MAX);
    let words = limit.min(*office.words.lock().expect("not poisoned"));
    let input = tokens(&body);
    let model = request["model"].as_str().unwrap_or_default();
    if let Some((_, input_price, output_price)) = PRICES.iter().find(|(name, ..)| *name == model) {
        *office.bill_micros.lock().expect("not poisoned") += input * input_price + words * output_price;
    }
    if let Some(Fault::Fails(status)) = fault {
        return refusal(speaks, status, "something broke");
    }
    if fault == Some(Fault::Stalls) {
        std::future::pending::<()>().await;
    }
    let usage = match fault {
        Some(Fault::NoUsage) => None,
        Some(Fault::ZeroUsage) => Some((0, 0)),
        _ => Some((input, words)),
    };
    let said = answers::Said { model, words, usage };
    if request["stream"] == json!(true) {
        let pause = *office.pause.lock().expect("not poisoned");
        return stream_of(answers::events(speaks, &said, &request), fault, pause);
    }
    let body = answers::whole(speaks, &said).to_string();
    let body = match fault {
        Some(Fault::Garbage) => Body::from("<html>bad gateway</html>"),
        Some(Fault::CutAfter(_)) => {
            let half = Bytes::from(body[..body.len() / 2].to_owned());
            Body::from_stream(stream::iter([Ok(half)]).chain(stream::once(cut())))
        }
        _ => Body::from(body),
    };
    ([("content-type", "application/json"), ("request-id", "req_1"), ("x-request-id", "req_1")], body)
        .into_response()
}

fn stream_of(mut events: Vec<String>, fault: Option<Fault>, pause: Duration) -> Response {
    let (mut is_cut, mut stalls) = (false, false);
    match fault {
        Some(Fault::CutAfter(count)) => {
            events.truncate(count);
            is_cut = true;
        }
        Some(Fault::StallsAfter(count)) => {
            events.truncate(count);
            stalls = true;
        }
        Some(Fault::Garbage) => events.insert(1, "data: {not json\n\n".to_owned()),
        _ => {}
    }
    let sent = stream::iter(events).then(move |event| async move {
        // Each event is a piece of its own, as from a model that is still thinking.
        tokio::time::sleep(pause).await;
        Ok(Bytes::from(event))
    });
    let stalled = stream::pending().take(usize::from(stalls));
    let body = Body::from_stream(sent.chain(stream::once(cut()).take(usize::from(is_cut))).chain(stalled));
    (
        [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("request-id", "req_1"),
            ("x-request-id", "req_1"),
        ],
        body,
    )
        .into_response()
}

/// Cuts a connection, after what was written before has left.
async fn cut() -> io::Result<Bytes> {
    tokio::time::sleep(Duration::from_millis(20)).await;
    Err(io::Error::other("cut"))
}

/// Refuses what the real providers refuse.
fn check(speaks: Speaks, headers: &HeaderMap, body: &[u8]) -> Result<Value, (u16, String)> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = match speaks {
        Speaks::Messages => header("x-api-key"),
        Speaks::Chat | Speaks::Responses => header("authorization").trim_start_matches("Bearer "),
    };
    if key != PROVIDER_KEY {
        return Err((401, "invalid x-api-key".to_owned()));
    }
    let request: Value = serde_json::from_slice(body).map_err(|error| (400, error.to_string()))?;
    let model = request["model"].as_str().ok_or((400, "model: Field required".to_owned()))?;
    if !PRICES.iter().any(|(name, ..)| *name == model) {
        return Err((404, format!("model: {model}")));
    }
    let is_message = speaks == Speaks::Messages;
    if is_message && header("anthropic-version").is_empty() {
        return Err((400, "anthropic-version: header is required".to_owned()));
    }
    if is_message && request["max_tokens"].as_u64().is_none() {
        return Err((400, "max_tokens: Field required".to_owned()));
    }
    let conversation = if speaks == Speaks::Responses { &request["input"] } else { &request["messages"] };
    if !(conversation.is_array() || speaks == Speaks::Responses && conversation.is_string()) {
        return Err((400, "messages: Field required".to_owned()));
    }
    Ok(request)
}

fn refusal(speaks: Speaks, status: u16, why: &str) -> Response {
    let body = match speaks {
        Speaks::Messages => json!({"type": "error", "error": {"type": "api_error", "message": why}}),
        Speaks::Chat | Speaks::Responses => {
            json!({"error": {"message": why, "type": "api_error", "code": null}})
        }
    };
    (StatusCode::from_u16(status).expect("a status"), axum::Json(body)).into_response()
}

/// Four bytes a token, as of ordinary text.
fn tokens(body: &[u8]) -> u64 {
    (body.len() as u64).div_ceil(4)
}

impl Office {
    fn note(&self, path: &str, headers: &HeaderMap, body: &Bytes) {
        let (path, headers, body) = (path.to_owned(), headers.clone(), body.clone());
        let asked = Asked { path, headers, body, at: Instant::now() };
        self.asked.lock().expect("not poisoned").push(asked);
    }
}
