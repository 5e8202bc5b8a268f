//! A client adds up the sums of all answers: each is of those calls that one request has looked at.

use axum::Router;
use axum::http::Uri;
use harness_fleet::{Client, SpendBy, Usd};
use serde_json::{Value, json};
use tests::{Api, Ran};
use tokio::net::TcpListener;

use super::python;

/// The sum of some calls, of which each costs 0.1 dollars and has three tokens.
fn sum(agent: &str, user: &str, calls: u64) -> Value {
    json!({"agent_id": agent, "user_id": user, "calls": calls, "cost_usd": calls as f64 / 10.0, "unknown_usd": 0.1,
           "held_usd": 0, "input_tokens": 3 * calls, "cache_read_tokens": 0, "cache_write_tokens": 1,
           "output_tokens": 1})
}

fn answer(uri: &Uri) -> Value {
    let query = uri.query().unwrap_or_default();
    let Some(rest) = query.strip_prefix("by=agent%2Cuser&days=31") else { return json!(query) };
    match rest {
        "" => json!({"items": [sum("b", "", 2), sum("b", "x", 1)], "next": "1"}),
        "&cursor=1" => json!({"items": [], "next": "2"}),
        "&cursor=2" => json!({"items": [sum("a", "", 4), sum("b", "", 1)]}),
        other => json!(other),
    }
}

async fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let routes = Router::new().fallback(|uri: Uri| async move { axum::Json(answer(&uri)) });
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}")
}

#[tokio::test]
async fn the_rust_client_adds_up_the_sums_of_all_answers() {
    let client = Client::new(&server().await, None).expect("an address");
    let sums = client.spend(&[SpendBy::Agent, SpendBy::User], 31).await.expect("sums");
    let shown: Vec<_> = sums
        .iter()
        .map(|sum| {
            (sum.agent_id.as_deref(), sum.user_id.as_deref(), sum.calls, sum.cost_usd, sum.input_tokens)
        })
        .collect();
    let usd = |tenths: u64| Usd::from_micros(tenths * 100_000);
    let expected = [("a", "", 4), ("b", "", 3), ("b", "x", 1)]
        .map(|(agent, user, calls)| (Some(agent), Some(user), calls, usd(calls), 3 * calls));
    assert_eq!(shown, expected);
    assert_eq!((sums[1].unknown_usd, sums[1].cache_write_tokens, sums[1].output_tokens), (usd(2), 2, 2));
}

#[tokio::test]
async fn the_python_client_adds_up_the_sums_of_all_answers() {
    let ran = Ran::of(python("spend.py", &Api::at(&server().await), ""), "").await;
    let shown: Vec<Value> = ran
        .json()
        .iter()
        .map(|sum| json!([sum["agent_id"], sum["user_id"], sum["calls"], sum["cost_usd"]]))
        .collect();
    assert_eq!(
        shown,
        [json!(["a", "", 4, 0.4]), json!(["b", "", 3, 0.3]), json!(["b", "x", 1, 0.1])],
        "{ran:?}"
    );
}
