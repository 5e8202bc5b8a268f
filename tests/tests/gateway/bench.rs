//! A provider, a gateway before it, and one attempt that may use it.

use std::sync::Arc;
use std::time::Duration;

use model::{Attempt, Gateway, GatewaySettings, HostedCaps, Opened, Prices, Upstream};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tests::provider::{PROVIDER_KEY, Provider, client, tls};

use crate::accounts::Accounts;

pub struct Bench {
    pub provider: Provider,
    pub gateway: Gateway,
    pub accounts: Arc<Accounts>,
    pub attempt: Opened,
    pub client: Client,
}

impl Bench {
    pub async fn start() -> Bench {
        Bench::with(|_| {}).await
    }

    /// Starts with another time for which a request waits for room.
    pub async fn waiting(wait: Duration) -> Bench {
        Bench::with(|settings| settings.wait = wait).await
    }

    /// Starts with another time for which an answer is read on that nobody waits for.
    pub async fn draining(usage_drain: Duration) -> Bench {
        Bench::with(|settings| settings.usage_drain = usage_drain).await
    }

    /// Starts with other settings.
    pub async fn with(change: impl FnOnce(&mut GatewaySettings)) -> Bench {
        let provider = Provider::start().await;
        let upstream = Upstream { base_url: provider.base_url(), key: PROVIDER_KEY.into() };
        let mut settings = GatewaySettings {
            addr: "127.0.0.1:0".parse().expect("an address"),
            anthropic: Some(upstream.clone()),
            openai: Some(upstream),
            tls: tls(),
            prices: Prices::built_in(),
            usage_drain: Duration::from_secs(60),
            wait: Duration::from_secs(60),
            most_calls: 256,
        };
        change(&mut settings);
        let gateway = Gateway::start(settings).await.expect("started");
        let accounts = Arc::new(Accounts::default());
        let attempt = open(&gateway, &accounts);
        Bench { provider, gateway, accounts, attempt, client: client() }
    }

    /// Opens a later attempt at the same job.
    pub fn another_attempt(&self) -> Opened {
        open(&self.gateway, &self.accounts)
    }

    pub fn to(&self, path: &str, body: &Value) -> RequestBuilder {
        self.to_as(&self.attempt, path, body)
    }

    pub fn to_as(&self, attempt: &Opened, path: &str, body: &Value) -> RequestBuilder {
        let url = format!("http://{}{path}", self.gateway.addr());
        let request = self.client.post(url).header("content-type", "application/json").body(body.to_string());
        with_key(request, path, &token(attempt))
    }

    pub async fn send(&self, path: &str, body: &Value) -> Response {
        self.to(path, body).send().await.expect("an answer")
    }

    /// Checks the promise: what the provider bills is spent or held.
    pub fn check_bill(&self) {
        let (spent, held) = self.accounts.books(|books| (books.spent, books.held.values().sum::<u64>()));
        let bill = self.provider.bill_micros();
        assert!(bill <= spent + held, "the bill is {bill}, spent {spent}, held {held}");
    }
}

pub fn with_key(request: RequestBuilder, path: &str, key: &str) -> RequestBuilder {
    if path.starts_with("/v1/messages") {
        request.header("x-api-key", key).header("anthropic-version", "2023-06-01")
    } else {
        request.bearer_auth(key)
    }
}

pub fn token(attempt: &Opened) -> String {
    let [(_, _), (_, token), ..] = attempt.environment();
    token
}

fn open(gateway: &Gateway, accounts: &Arc<Accounts>) -> Opened {
    let models = ["claude-opus-5-5", "claude-haiku-4-5", "gpt-6-sol"].map(str::to_owned).to_vec();
    let (ledger, caps) = (accounts.attempt(), HostedCaps::default());
    gateway.open(Attempt { ledger, models, degrades: false, fit: None, caps }).expect("opened")
}

pub const PATHS: [&str; 3] = ["/v1/messages", "/v1/chat/completions", "/v1/responses"];

/// A request to each of [`PATHS`].
pub fn request(path: &str, stream: bool) -> Value {
    let messages = json!([{"role": "user", "content": "Say something."}]);
    match path {
        "/v1/messages" => {
            json!({"model": "claude-opus-5-5", "max_tokens": 50, "messages": messages, "stream": stream})
        }
        "/v1/chat/completions" => {
            json!({"model": "gpt-6-sol", "max_completion_tokens": 50, "messages": messages, "stream": stream})
        }
        _ => json!({"model": "gpt-6-sol", "max_output_tokens": 50, "input": messages, "stream": stream}),
    }
}
