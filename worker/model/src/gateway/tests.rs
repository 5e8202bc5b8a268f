//! What passes to a provider and what comes back, before a provider that notes where it is asked.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use job::Usd;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::*;
use crate::ledger::{
    Call, Checkpoints, Given, Ledger, MOST_OF_A_CALL, Purchase, Reserve, Settlement, Unavailable, WithoutRoom,
};
use crate::usage::{NoUsage, Outcome};
use crate::wire::HostedCaps;

mod attempts;

/// A provider that answers all with one status.
struct Stub {
    status: AtomicU16,
    /// The tokens of output that it reports.
    output: AtomicU64,
    asked: Mutex<Vec<String>>,
    /// Each answer takes one.
    answers: Semaphore,
}

/// Accounts that answer what they are asked to, and else grant everything.
#[derive(Default)]
struct Open {
    reserve: Mutex<VecDeque<Reserve>>,
    checkpoints: Mutex<Checkpoints>,
    /// Checkpoints that are written and not read yet.
    unread: AtomicU32,
    settled: Mutex<Vec<Outcome>>,
    /// After how many checkpoints each was settled.
    after: Mutex<Vec<u32>>,
    spent: Mutex<Vec<WithoutRoom>>,
    busy: Mutex<usize>,
}

#[async_trait]
impl Ledger for Open {
    async fn until_durable(&self) {
        lock(&self.checkpoints).written += self.unread.swap(0, Ordering::Relaxed);
    }

    async fn reserve(&self, _: &Call) -> Result<Reserve, Unavailable> {
        Ok(lock(&self.reserve).pop_front().unwrap_or(Reserve::Granted))
    }

    fn counts_in(&self, _: &str) -> bool {
        false
    }

    fn checkpoints(&self) -> Checkpoints {
        *lock(&self.checkpoints)
    }

    fn note_spent(&self, refused: &WithoutRoom) {
        lock(&self.spent).push(*refused);
    }

    fn note_busy(&self, _: &WithoutRoom) {
        *lock(&self.busy) += 1;
    }

    async fn settle(&self, _: &Call, settlement: Settlement) -> Result<(), Unavailable> {
        lock(&self.settled).push(settlement.outcome);
        lock(&self.after).push(settlement.after_checkpoints);
        Ok(())
    }

    async fn reserve_purchase(&self, _: &Purchase) -> Result<Reserve, Unavailable> {
        Ok(Reserve::Granted)
    }

    async fn settle_purchase(&self, _: &Purchase, _: Outcome) -> Result<(), Unavailable> {
        Ok(())
    }

    async fn look_up(&self, _: &Call) -> Result<Option<Given>, Unavailable> {
        Ok(None)
    }
}

struct Bench {
    stub: Arc<Stub>,
    accounts: Arc<Open>,
    gateway: Gateway,
    attempt: Opened,
    client: reqwest::Client,
}

const COUNT: &str = "/v1/messages/count_tokens";

fn tls() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    tls.expect("versions").with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
}

/// Those of the list, and a thousand dollars for a token of output in a model that nobody sells.
fn prices() -> Prices {
    let text = "[[model]]\nname = \"dear\"\nprovider = \"anthropic\"\nfrom = \"2026-01-01\"\ncontext_window = 1_000\n\
                max_output = 10_000\ninput = \"1\"\noutput = \"1000000000\"";
    Prices::built_in().with(text).expect("prices")
}

impl Bench {
    async fn answering(status: u16, most_calls: usize, wait: Duration) -> Bench {
        let (asked, answers) = (Mutex::default(), Semaphore::new(100));
        let stub = Arc::new(Stub { status: status.into(), output: 5.into(), asked, answers });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let base_url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = stub.clone();
        let answer = move |uri: Uri| async move {
            lock(&state.asked).push(uri.to_string());
            state.answers.acquire().await.expect("open").forget();
            let usage = json!({"input_tokens": 10, "output_tokens": state.output.load(Ordering::Relaxed)});
            let body = json!({"type": "message", "stop_reason": "end_turn", "usage": usage});
            let status = StatusCode::from_u16(state.status.load(Ordering::Relaxed)).expect("a status");
            (status, body.to_string()).into_response()
        };
        let server = axum_server::from_tcp(listener).expect("a server");
        tokio::spawn(server.serve(Router::new().fallback(any(answer)).into_make_service()));
        let upstream = Upstream { base_url, key: "sk-real".into() };
        let settings = GatewaySettings {
            addr: "127.0.0.1:0".parse().expect("an address"),
            anthropic: Some(upstream),
            openai: None,
            tls: tls(),
            prices: prices(),
            usage_drain: Duration::from_secs(1),
            wait,
            most_calls,
        };
        let gateway = Gateway::start(settings).await.expect("started");
        let accounts = Arc::new(Open::default());
        let (ledger, models) = (accounts.clone(), vec!["claude-opus-5-5".to_owned(), "dear".to_owned()]);
        let attempt = Attempt { ledger, models, degrades: false, fit: None, caps: HostedCaps::default() };
        let attempt = gateway.open(attempt).expect("opened");
        let client = http_client::build(tls()).expect("a client");
        Bench { stub, accounts, gateway, attempt, client }
    }

    async fn send(&self, path: &str) -> u16 {
        self.send_to("claude-opus-5-5", 10, path).await.status().as_u16()
    }

    async fn send_to(&self, model: &str, max_tokens: u64, path: &str) -> reqwest::Response {
        let url = format!("http://{}{path}", self.gateway.addr());
        let [_, (_, token), ..] = self.attempt.environment();
        let messages = json!([{"role": "user", "content": "hello"}]);
        let body = json!({"model": model, "max_tokens": max_tokens, "messages": messages});
        let request = self.client.post(url).header("x-api-key", token).body(body.to_string());
        request.send().await.expect("an answer")
    }

    /// Sends a call that the provider has and does not answer until it may: it takes as many permits as are returned.
    async fn unanswered(self: &Arc<Bench>) -> (JoinHandle<u16>, usize) {
        let answers = self.stub.answers.forget_permits(100);
        let bench = self.clone();
        let asking = tokio::spawn(async move { bench.send("/v1/messages").await });
        while self.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        (asking, answers)
    }

    fn asked(&self) -> Vec<String> {
        lock(&self.stub.asked).clone()
    }

    fn load(&self) -> Load {
        self.gateway.loads().now()[0].1
    }
}

#[tokio::test]
async fn the_query_of_a_request_goes_to_the_provider_as_it_is() {
    let bench = Bench::answering(200, 8, Duration::from_secs(9)).await;
    for path in ["/v1/messages?beta=true&of=a%2Fb+c", "/v1/messages", &format!("{COUNT}?beta=true")] {
        assert_eq!(bench.send(path).await, 200);
        assert_eq!(bench.asked().last().map(String::as_str), Some(path));
    }
}

#[tokio::test]
async fn a_key_that_the_provider_does_not_know_costs_nothing_and_the_program_is_told() {
    for status in [401, 403] {
        let bench = Bench::answering(status, 8, Duration::from_secs(9)).await;
        assert_eq!(bench.send("/v1/messages").await, status);
        assert_eq!(*lock(&bench.accounts.settled), [Outcome::Free]);
        assert_eq!(bench.attempt.metered().cost, Usd::ZERO);
        assert_eq!(bench.load().limit, 8, "the provider has not too much to do");
    }
}

#[tokio::test]
async fn a_checkpoint_that_nobody_has_read_yet_covers_no_answer_that_is_on_its_way() {
    let bench = Arc::new(Bench::answering(200, 8, Duration::from_secs(9)).await);
    let (asking, answers) = bench.unanswered().await;
    bench.accounts.unread.store(1, Ordering::Relaxed);
    bench.stub.answers.add_permits(answers);
    assert_eq!(asking.await.expect("joined"), 200);
    assert_eq!(*lock(&bench.accounts.after), [1]);
}

#[tokio::test]
async fn a_cost_that_no_call_can_have_counts_as_its_reservation_and_is_not_reserved() {
    let bench = Bench::answering(200, 8, Duration::from_secs(9)).await;
    let refused = bench.send_to("dear", 1_001, "/v1/messages").await;
    assert_eq!(refused.status(), 400);
    let said = refused.text().await.expect("a body");
    assert!(said.contains("$1001000.") && said.contains(&MOST_OF_A_CALL.to_string()), "{said}");
    assert!(bench.asked().is_empty() && lock(&bench.accounts.settled).is_empty());
    bench.stub.output.store(1_001, Ordering::Relaxed);
    assert_eq!(bench.send_to("dear", 10, "/v1/messages").await.status(), 200);
    assert_eq!(*lock(&bench.accounts.settled), [Outcome::Unknown(NoUsage::Absurd)]);
    let metered = bench.attempt.metered().cost;
    assert!((10_000_000_000..11_000_000_000).contains(&metered.micros()), "{metered}");
}

#[tokio::test]
async fn counting_tokens_takes_a_place_and_tells_when_the_provider_has_too_much_to_do() {
    let bench = Bench::answering(529, 8, Duration::from_secs(9)).await;
    assert_eq!(bench.send(COUNT).await, 529);
    assert_eq!(bench.load(), Load { limit: 4, in_flight: 0 });

    let bench = Arc::new(Bench::answering(200, 1, Duration::from_millis(50)).await);
    let (first, answers) = bench.unanswered().await;
    // A count that has no place is no call that had no room.
    assert_eq!(bench.send(COUNT).await, 429);
    assert_eq!((bench.asked().len(), *lock(&bench.accounts.busy)), (1, 0));
    assert_eq!(bench.send("/v1/messages").await, 429);
    assert_eq!((bench.asked().len(), *lock(&bench.accounts.busy)), (1, 1));
    bench.stub.answers.add_permits(answers);
    assert_eq!(first.await.expect("joined"), 200);
    assert_eq!(bench.send(COUNT).await, 200);
}
