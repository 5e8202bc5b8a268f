//! What an attempt's equal requests are numbered by, and what is said of a request for which there is no room.

use axum::body::Bytes;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::gateway::attempt::Shared;

fn attempt(ledger: &Arc<Open>, degrades: bool, fit: Option<u64>) -> Attempt {
    let models = ["wide", "narrow"].map(str::to_owned).into();
    Attempt { ledger: ledger.clone(), models, degrades, fit, caps: HostedCaps::default() }
}

#[tokio::test]
async fn equal_requests_are_numbered_from_the_last_checkpoint_that_covers_answers() {
    let ledger = Arc::new(Open::default());
    let shared = Arc::new(Shared::new(attempt(&ledger, false, None), CancellationToken::new()));
    let place = async || shared.place([1; 32]).await.expect("a place");
    let numbers = |place: &crate::gateway::attempt::Place| (place.key.nth, place.of_attempt);
    let first = place().await;
    assert_eq!(numbers(&first), (0, 0));
    first.answered(0);
    let under_way = place().await;
    assert_eq!(numbers(&under_way), (1, 1));
    drop(place().await);
    *lock(&ledger.checkpoints) = Checkpoints { written: 1, covering: 0 };
    assert_eq!(numbers(&place().await), (2, 2), "it only says what was used");
    *lock(&ledger.checkpoints) = Checkpoints { written: 2, covering: 2 };
    let next = place().await;
    assert_eq!(numbers(&next), (0, 2), "an attempt that begins at the checkpoint asks for the first time");
    // It was under way, so no checkpoint covers its answer.
    under_way.answered(2);
    next.answered(2);
    assert_eq!(numbers(&place().await), (2, 3));
    *lock(&ledger.checkpoints) = Checkpoints { written: 3, covering: 3 };
    assert_eq!(numbers(&place().await), (0, 3));
}

/// Returns a gateway before a provider that notes what it is asked, and two models of it: `narrow` takes 100 tokens of output.
async fn two_models(asked: &Arc<Mutex<Vec<Bytes>>>) -> Gateway {
    let row = |name: &str, max_output: u64| {
        format!(
            "[[model]]\nname = \"{name}\"\nprovider = \"anthropic\"\nfrom = \"2026-01-01\"\ncontext_window = 10_000\n\
             max_output = {max_output}\ninput = \"1\"\noutput = \"1\"\n"
        )
    };
    let prices = Prices::default().with(&(row("wide", 8_000) + &row("narrow", 100))).expect("prices");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let base_url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = asked.clone();
    let answer = move |body: Bytes| async move {
        lock(&asked).push(body);
        let usage = json!({"input_tokens": 10, "output_tokens": 5});
        json!({"type": "message", "stop_reason": "end_turn", "usage": usage}).to_string()
    };
    let server = axum_server::from_tcp(listener).expect("a server");
    tokio::spawn(server.serve(Router::new().route("/v1/messages", post(answer)).into_make_service()));
    let settings = GatewaySettings {
        addr: "127.0.0.1:0".parse().expect("an address"),
        anthropic: Some(Upstream { base_url, key: "sk-real".into() }),
        openai: None,
        tls: tls(),
        prices,
        usage_drain: Duration::from_secs(1),
        wait: Duration::from_secs(9),
        most_calls: 8,
    };
    Gateway::start(settings).await.expect("started")
}

async fn send(gateway: &Gateway, opened: &Opened, body: &serde_json::Value) -> reqwest::Response {
    let [_, (_, token), ..] = opened.environment();
    let client = http_client::build(tls()).expect("a client");
    let url = format!("http://{}/v1/messages", gateway.addr());
    client.post(url).header("x-api-key", token).body(body.to_string()).send().await.expect("an answer")
}

fn asks(max_tokens: u64) -> serde_json::Value {
    json!({"model": "wide", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "hello"}]})
}

fn spent() -> Reserve {
    Reserve::Spent { limit: "the day's".to_owned(), room: Usd::from_micros(1) }
}

#[tokio::test]
async fn the_next_model_is_asked_for_no_more_output_than_it_has() {
    let (ledger, asked) = (Arc::new(Open::default()), Arc::default());
    let gateway = two_models(&asked).await;
    let opened = gateway.open(attempt(&ledger, true, None)).expect("opened");
    for (named, sent) in [(5_000, 100), (60, 60)] {
        lock(&ledger.reserve).push_back(spent());
        let answer = send(&gateway, &opened, &asks(named)).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-harness-model"], "narrow");
        let lowered =
            answer.headers().get("x-harness-output-limit").map(|limit| limit.to_str().expect("text"));
        assert_eq!(lowered, (named != sent).then_some("100"));
        let body: serde_json::Value =
            serde_json::from_slice(lock(&asked).last().expect("asked")).expect("a request");
        assert_eq!((&body["model"], &body["max_tokens"]), (&json!("narrow"), &json!(sent)));
    }
    // Its thinking has to end below the limit, so there is no such call.
    lock(&ledger.reserve).push_back(spent());
    let mut thinks = asks(5_000);
    thinks["thinking"] = json!({"type": "enabled", "budget_tokens": 2_000});
    assert_eq!(send(&gateway, &opened, &thinks).await.status(), 402);
}

#[tokio::test]
async fn a_refusal_says_what_the_request_can_cost_at_least() {
    let (ledger, asked) = (Arc::new(Open::default()), Arc::default());
    let gateway = two_models(&asked).await;
    let mut least = Vec::new();
    for fit in [None, Some(1_000), Some(6_000)] {
        let opened = gateway.open(attempt(&ledger, false, fit)).expect("opened");
        lock(&ledger.reserve).push_back(spent());
        assert_eq!(send(&gateway, &opened, &asks(5_000)).await.status(), 402);
        let WithoutRoom { request, most, least: at_least } = lock(&ledger.spent).pop().expect("noted");
        assert!(request.is_some());
        least.push((most.micros() - at_least.micros(), fit));
    }
    assert_eq!(least, [(0, None), (4_000, Some(1_000)), (0, Some(6_000))]);
}
