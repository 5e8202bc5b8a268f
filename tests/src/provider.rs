//! A provider of models: Anthropic's Messages, OpenAI's Chat Completions and Responses, streamed or not, and OpenAI's
//! embeddings.
//!
//! It is the only double in these tests, because a real one costs. So it is stricter than a friend would be:
//!
//! - It refuses what the real ones refuse, in their words. `check` has the rules, each file with the pages of the
//!   documentation that say so; what no page says is left out.
//! - Thinking is signed over all that stood before it (`seal`): a changed system prompt, tool or earlier message is found.
//! - It compares each request with the last one of its conversation, letter by letter, and writes down what it finds
//!   (`memory`). A conversation is known by the first message of the user.
//! - It keeps a cache of prompts (`cache`), and a bill of its own (`price`): what it has *worked*, whether or not the
//!   answer arrived. What a gateway has settled and holds must never be less.
//! - A [`Script`] says what it answers, and what goes wrong.
//!
//! `tests/src/bin/provider` is the same as a process; `GET /double` is its report.
//!
//! Tokens: four bytes of a request's part are one, and so is each piece of an answer. Both are the same in every run.

mod wire;
mod fault;
mod letters;
mod seal;
mod script;
mod price;
mod request;
mod cache;
mod check;
mod memory;
mod answer;
mod office;
mod serve;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::HeaderMap;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

pub use fault::{Fault, Rule};
pub use memory::{Finding, FindingKind};
pub use office::Charged;
pub use price::Used;
pub use script::{Script, ToolCall, Turn};
pub use wire::Speaks;

use office::Office;

/// The key that it accepts.
pub const PROVIDER_KEY: &str = "sk-real-key";

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
    office: Arc<Office>,
    serving: AbortHandle,
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

impl Provider {
    /// Starts one. It answers with twenty words, or fewer if the request's limit is lower.
    pub async fn start() -> Provider {
        Provider::playing(Script::default()).await
    }

    /// Starts one that answers by a script.
    pub async fn playing(script: Script) -> Provider {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Provider::on(listener, Office::new(PROVIDER_KEY, script))
    }

    /// Starts one at an address, which keeps no bodies: a process that runs for long.
    pub async fn at(addr: SocketAddr, key: &str, script: Script) -> std::io::Result<Provider> {
        let office = Office::new(key, script).without_bodies();
        Ok(Provider::on(TcpListener::bind(addr).await?, office))
    }

    fn on(listener: TcpListener, office: Office) -> Provider {
        let addr = listener.local_addr().expect("an address");
        let office = Arc::new(office);
        let serving = tokio::spawn(serve::serve(listener, office.clone())).abort_handle();
        Provider { addr, office, serving }
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

    /// Answers by another script from now on.
    pub fn play(&self, script: Script) {
        self.office.play(script);
    }

    /// Adds a fault. Each request takes one.
    pub fn fault(&self, fault: Fault) {
        self.office.faults.lock().expect("not poisoned").push_back(fault);
    }

    /// Sets how many words an answer has, unless the request's limit is lower.
    pub fn say(&self, words: u64) {
        self.office.words.store(words, Ordering::Relaxed);
    }

    /// Sets how long it waits before each event.
    pub fn pause(&self, pause: Duration) {
        self.office.pause_ms.store(pause.as_millis() as u64, Ordering::Relaxed);
    }

    /// Adds a header to all its answers.
    pub fn report(&self, name: &'static str, value: u64) {
        self.office.headers.lock().expect("not poisoned").insert(name, value.into());
    }

    /// Refuses to count tokens from now on.
    pub fn count_nothing(&self) {
        self.office.counts_nothing.store(true, Ordering::Relaxed);
    }

    /// Returns its bill, in micro-dollars.
    pub fn bill_micros(&self) -> u64 {
        self.office.books().bill_micros
    }

    /// Returns all calls on its bill.
    pub fn charged(&self) -> Vec<Charged> {
        self.office.books().charged.clone()
    }

    /// Returns what it found wrong with requests.
    pub fn findings(&self) -> Vec<Finding> {
        self.office.books().memory.findings.clone()
    }

    /// Returns how many conversations it knows.
    pub fn conversations(&self) -> usize {
        self.office.books().memory.conversations()
    }

    /// Returns its report, as `GET /double` does.
    pub fn summary(&self) -> Value {
        serve::summary(&self.office)
    }

    /// Returns how many requests it let hang on order.
    pub fn hung(&self) -> u64 {
        self.office.hung.load(Ordering::Relaxed)
    }

    /// Returns all requests that arrived.
    pub fn asked(&self) -> Vec<Asked> {
        self.office.asked.lock().expect("not poisoned").clone()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
