//! The meter: an HTTP server on the worker's loopback, through which programs call models with any SDK.
//!
//! A program gets a base URL and a token of its attempt ([`Gateway::open`]). The token dies with the attempt; the real keys
//! never leave the worker. Each request is one call with one reservation: it is read, reserved for through the attempt's
//! [`Ledger`], sent once, read beside while it passes, and settled, also if the program hangs up in the middle. The last
//! event of an answer is passed on only after the ledger has it, so what a program has seen whole is never paid twice.
//!
//! Served are `POST` `/v1/messages`, `/v1/messages/count_tokens`, `/v1/chat/completions`, `/v1/responses` and
//! `/v1/embeddings`, and `GET /v1/models`; `POST` `/reserve` and `/settle` for other things that cost. Everything else is refused by its name: nothing is passed on unmetered.
//!
//! | what | the program sees |
//! |---|---|
//! | no token, a wrong one, or one of an ended attempt | 401 |
//! | a request whose cost has no bound or no price | 400, with the field |
//! | a model that the agent does not name | 403 |
//! | a head of more than 32 KiB | 431 |
//! | more than 32 MiB of requests of an attempt at a time | its answer, later; 429 after a while |
//! | the limit has room again when others are done; a rate limit | its answer, later; 429 with `Retry-After` after a while |
//! | the budget is spent, also for a lower limit of output or the agent's next models if it allows them | 402 |
//! | the ledger cannot be asked | 503; nothing was sent |
//! | the provider cannot be reached | 502 |

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use axum::routing::{any, get, post};
use axum_server::Handle;
use axum_server::accept::NoDelayAcceptor;
use chrono::Utc;
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod admission;
mod attempt;
mod bodies;
mod counting;
mod exchange;
mod headers;
mod include_usage;
mod limits;
mod lines;
mod next_model;
mod places;
mod program;
mod purchase;
mod refusal;
mod responsive;
mod waiting;

use crate::prices::Prices;
use crate::provider::Provider;
use crate::wire::{MAX_REQUEST_BYTES, Wire};
use attempt::Shared;
pub use attempt::{Attempt, GATEWAY_VARIABLES, Metered, Opened};
use bodies::Weight;
use exchange::Exchange;
use lines::Lines;
pub use places::Load;
use places::Places;
use refusal::Refusal;

/// Where a provider is, and the key that pays.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Without `/v1` and without a slash at its end.
    pub base_url: String,
    /// The real key.
    pub key: SecretString,
}

impl Upstream {
    /// Returns a name for the key. Keys are random and long, so a part of the hash says nothing about them.
    pub fn fingerprint(&self) -> String {
        let hash = Sha256::digest(format!("harness provider key {}", self.key.expose_secret()));
        hash.iter().take(6).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }
}

/// What a gateway needs.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// Where it listens; loopback only.
    pub addr: SocketAddr,
    /// Anthropic, if there is a key.
    pub anthropic: Option<Upstream>,
    /// OpenAI, if there is a key.
    pub openai: Option<Upstream>,
    /// How providers are reached.
    pub tls: ClientConfig,
    /// What calls cost.
    pub prices: Prices,
    /// How long an answer that nobody waits for is still read, for its usage.
    pub usage_drain: Duration,
    /// How long a request waits here for room, before its program is refused.
    pub wait: Duration,
    /// The most calls that a provider is sent at a time.
    pub most_calls: usize,
}

/// A gateway that could not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// It would be reachable from elsewhere.
    #[error("GATEWAY_ADDR: {0} is not loopback, expected 127.0.0.1 or [::1]")]
    NotLoopback(SocketAddr),
    /// It cannot listen.
    #[error("GATEWAY_ADDR: {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// There is no client for the providers.
    #[error("the client for providers: {0}")]
    Client(String),
}

/// What a connection reads at once, at most. It keeps that much memory until its answer has ended. A request's head must fit into
/// it. (hyper's own bound is 400 KiB: a thousand requests of 200 kB took 400 MB.)
const READ_AHEAD: usize = 32 << 10;

/// A running gateway.
pub struct Gateway {
    inner: Arc<Inner>,
    addr: SocketAddr,
    stop: CancellationToken,
}

/// How much is under way.
pub struct Loads {
    places: [(Provider, Arc<Places>); 2],
    lines: Arc<Lines>,
}

impl Loads {
    /// Returns how each provider fares.
    pub fn now(&self) -> [(Provider, Load); 2] {
        self.places.each_ref().map(|(provider, places)| (*provider, places.load()))
    }

    /// Returns how many requests wait for room in a budget or a rate limit.
    pub fn waiting(&self) -> usize {
        self.lines.waiting()
    }
}

struct Inner {
    settings: GatewaySettings,
    client: reqwest::Client,
    attempts: Mutex<HashMap<[u8; 32], Arc<Shared>>>,
    /// The exchanges that are under way, whether or not their programs still wait.
    exchanges: TaskTracker,
    lines: Arc<Lines>,
    places: [(Provider, Arc<Places>); 2],
}

impl Gateway {
    /// Begins to listen.
    pub async fn start(settings: GatewaySettings) -> Result<Gateway, GatewayError> {
        if !settings.addr.ip().is_loopback() {
            return Err(GatewayError::NotLoopback(settings.addr));
        }
        let client = http_client::build(settings.tls.clone()).map_err(GatewayError::Client)?;
        let failed = |error| GatewayError::Listen(settings.addr, error);
        let listener = TcpListener::bind(settings.addr).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        // Events are small, and each is to arrive at once.
        let server = axum_server::from_tcp(listener).map_err(failed)?.acceptor(NoDelayAcceptor);
        let server = server.accept_error_handler(|_, error| {
            tracing::warn!(cause = %error, "the gateway cannot take a connection, trying again");
        });
        let (attempts, exchanges) = (Mutex::default(), TaskTracker::new());
        let places = [Provider::Anthropic, Provider::OpenAi]
            .map(|provider| (provider, Places::new(settings.most_calls)));
        let inner = Arc::new(Inner { settings, client, attempts, exchanges, lines: Lines::new(), places });
        let stop = CancellationToken::new();
        let handle = Handle::new();
        let mut server = server.handle(handle.clone());
        server.http_builder().http1().max_buf_size(READ_AHEAD);
        let serving = server.serve(routes(inner.clone()).into_make_service());
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(cause = %error, "the gateway has stopped listening");
            }
        });
        let stopped = stop.clone();
        tokio::spawn(async move {
            stopped.cancelled().await;
            handle.graceful_shutdown(None);
        });
        Ok(Gateway { inner, addr, stop })
    }

    /// Returns where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Lets an attempt call models, until what is returned is dropped.
    pub fn open(&self, attempt: Attempt) -> Result<Opened, getrandom::Error> {
        let mut random = [0; 32];
        getrandom::fill(&mut random)?;
        let text = random.iter().fold("hgw_".to_owned(), |text, byte| text + &format!("{byte:02x}"));
        let digest = digest(&text);
        let (today, prices) = (Utc::now().date_naive(), &self.inner.settings.prices);
        let most_output = |model: &String| Some((model.clone(), prices.find(model, today).ok()?.max_output));
        let most_output = attempt.models.iter().filter_map(most_output).collect();
        let shared = Arc::new(Shared::new(attempt, self.stop.child_token()));
        lock(&self.inner.attempts).insert(digest, shared.clone());
        let inner = Arc::downgrade(&self.inner);
        let close = move || {
            if let Some(inner) = inner.upgrade() {
                lock(&inner.attempts).remove(&digest);
            }
        };
        Ok(Opened::new(self.addr, SecretString::from(text), shared, most_output, Box::new(close)))
    }

    /// Returns what says how much is under way. It may outlive the gateway.
    pub fn loads(&self) -> Loads {
        Loads { places: self.inner.places.clone(), lines: self.inner.lines.clone() }
    }

    /// Takes no more calls, and waits until all that were sent are settled.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.inner.exchanges.close();
        self.inner.exchanges.wait().await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn routes(inner: Arc<Inner>) -> Router {
    let mut routes = Router::new()
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/v1/models", get(models))
        .route("/reserve", post(purchase::reserve))
        .route("/settle", post(purchase::settle))
        .fallback(any(not_served));
    for wire in [Wire::Messages, Wire::Chat, Wire::Responses, Wire::Embeddings] {
        let called = move |State(inner): State<Arc<Inner>>, request: Request| call(inner, wire, request);
        routes = routes.route(wire.path(), post(called));
    }
    // It counts for the routes that are there before it.
    routes.method_not_allowed_fallback(not_served).with_state(inner)
}

async fn call(inner: Arc<Inner>, wire: Wire, request: Request) -> Response {
    let provider = wire.provider();
    let begun = async {
        let attempt = inner.attempt(request.headers())?;
        let is_stored = request.headers().contains_key(headers::ONLY_STORED);
        let upstream = if is_stored { None } else { Some(inner.upstream(provider)?.clone()) };
        let (parts, body) = request.into_parts();
        let body = inner.body(&attempt, &parts.headers, body).await?;
        let Some(upstream) = upstream else {
            return exchange::stored(&attempt, wire, &body.0).await;
        };
        Exchange::begin(inner.clone(), attempt, upstream, wire, parts, body).await
    };
    begun.await.unwrap_or_else(|refusal| refusal.response(provider))
}

/// Counting is free at the provider, so it needs no reservation. It takes a place there, as a call does.
async fn count_tokens(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let counted = async {
        let attempt = inner.attempt(request.headers())?;
        let upstream = inner.upstream(Provider::Anthropic)?;
        let (parts, body) = request.into_parts();
        let (body, _weight) = inner.body(&attempt, &parts.headers, body).await?;
        let value = crate::json::parse(&body).map_err(|error| Refusal::invalid(format!("body: {error}")))?;
        let model = value.get("model").and_then(serde_json::Value::as_str).unwrap_or_default();
        attempt.check_model(model)?;
        let url = url(upstream, "/v1/messages/count_tokens", parts.uri.query());
        let headers = headers::to_provider(&parts.headers, Provider::Anthropic, &upstream.key);
        let places = inner.places(Provider::Anthropic);
        let until = Instant::now() + inner.settings.wait;
        let slot = waiting::slot(&attempt, (Provider::Anthropic, places), until).await?;
        let answered = inner.client.post(url).headers(headers).body(http_client::body(body)).send().await;
        slot.iter().for_each(|slot| slot.heard(&answered));
        let answered = answered.map_err(|error| Refusal::unreachable(&error))?;
        let (status, kept) = (answered.status(), headers::to_program(answered.headers()));
        let body = answered.bytes().await.map_err(|error| Refusal::unreachable(&error))?;
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        *response.headers_mut() = kept;
        Ok::<Response, Refusal>(response)
    };
    counted.await.unwrap_or_else(|refusal| refusal.response(Provider::Anthropic))
}

async fn models(State(inner): State<Arc<Inner>>, headers: HeaderMap) -> Response {
    let provider = headers::spoken(&headers);
    match inner.attempt(&headers) {
        Ok(attempt) => attempt.models_response(provider),
        Err(refusal) => refusal.response(provider),
    }
}

async fn not_served(method: Method, request: Request) -> Response {
    let provider = headers::spoken(request.headers());
    Refusal::not_served(&method, request.uri().path()).response(provider)
}

async fn read(body: Body) -> Result<axum::body::Bytes, Refusal> {
    axum::body::to_bytes(body, MAX_REQUEST_BYTES).await.map_err(|error| Refusal::unreadable(&error))
}

impl Inner {
    fn attempt(&self, headers: &HeaderMap) -> Result<Arc<Shared>, Refusal> {
        let token = headers::token(headers).ok_or_else(Refusal::no_token)?;
        lock(&self.attempts).get(&digest(token)).cloned().ok_or_else(Refusal::dead_token)
    }

    async fn body(
        &self,
        attempt: &Shared,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(axum::body::Bytes, Weight), Refusal> {
        attempt.bodies.read(self.settings.wait, headers, body).await
    }

    fn places(&self, provider: Provider) -> &Arc<Places> {
        let [anthropic, openai] = &self.places;
        match provider {
            Provider::Anthropic => &anthropic.1,
            Provider::OpenAi => &openai.1,
        }
    }

    fn upstream(&self, provider: Provider) -> Result<&Upstream, Refusal> {
        let upstream = match provider {
            Provider::Anthropic => &self.settings.anthropic,
            Provider::OpenAi => &self.settings.openai,
        };
        upstream.as_ref().ok_or_else(|| Refusal::no_key(provider))
    }
}

/// Returns where a request goes at a provider, with its program's query.
fn url(upstream: &Upstream, path: &str, query: Option<&str>) -> String {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}{path}{query}", upstream.base_url)
}

/// Tokens are looked up by their hash, so how long that takes says nothing about them.
fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing that holds these locks can leave what they guard half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bearer(key: &SecretString) -> String {
    format!("Bearer {}", key.expose_secret())
}

#[cfg(test)]
mod tests;
