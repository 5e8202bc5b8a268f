use std::time::Duration;

use job::Usd;
use model::{Gateway, GatewayError, GatewaySettings, Outcome, Prices, Reserve};
use serde_json::{Value, json};
use tests::provider::tls;

use crate::bench::{Bench, PATHS, request, token, with_key};

#[tokio::test]
async fn only_the_token_of_a_running_attempt_is_served() {
    let bench = Bench::start().await;
    let url = |path: &str| format!("http://{}{path}", bench.gateway.addr());
    let ended = bench.another_attempt();
    let dead = token(&ended);
    drop(ended);
    for path in PATHS {
        for key in ["wrong", "", dead.as_str()] {
            let sent = bench.client.post(url(path)).body(request(path, false).to_string());
            assert_eq!(
                with_key(sent, path, key).send().await.expect("an answer").status(),
                401,
                "{path} {key}"
            );
        }
        let keyless = bench.client.post(url(path)).body("{}").send().await.expect("an answer");
        assert_eq!(keyless.status(), 401);
    }
    assert!(bench.provider.asked().is_empty());
    assert_eq!(bench.send(PATHS[0], &request(PATHS[0], false)).await.status(), 200);
}

#[tokio::test]
async fn no_path_leads_through_unmetered() {
    let bench = Bench::start().await;
    for path in [
        "/v1/files",
        "/v1/messages/batches",
        "/v1/batches",
        "/v1/complete",
        "/v1/responses/r_1",
        "/",
        "/v1/images/generations",
    ] {
        let answer = bench.send(path, &json!({})).await;
        assert_eq!(answer.status(), 404, "{path}");
        assert!(answer.text().await.expect("text").contains(&format!("`POST {path}` is not served")));
    }
    let url = format!("http://{}{}", bench.gateway.addr(), PATHS[0]);
    let read = bench.client.get(url).bearer_auth(token(&bench.attempt)).send().await.expect("an answer");
    assert!(read.text().await.expect("text").contains("`GET /v1/messages` is not served"));
    assert!(bench.provider.asked().is_empty());
}

#[tokio::test]
async fn a_request_without_a_bound_is_refused_in_the_shape_of_its_provider() {
    let bench = Bench::start().await;
    let mut unbounded = request(PATHS[0], false);
    unbounded["tools"] = json!([{"type": "web_search_20250305", "name": "web_search"}]);
    let answer = bench.send(PATHS[0], &unbounded).await;
    assert_eq!(answer.status(), 400);
    let answer: Value = serde_json::from_str(&answer.text().await.expect("text")).expect("JSON");
    assert_eq!(answer["type"], "error");
    assert_eq!(answer["error"]["type"], "invalid_request_error");
    assert!(answer["error"]["message"].as_str().expect("a text").starts_with("tools: `web_search_20250305`"));
    let mut other = request(PATHS[1], false);
    other["model"] = json!("gpt-99");
    let answer = bench.send(PATHS[1], &other).await;
    assert_eq!(answer.status(), 403);
    let answer: Value = serde_json::from_str(&answer.text().await.expect("text")).expect("JSON");
    assert_eq!(answer["error"]["code"], "model_not_allowed");
    let twice = r#"{"model":"claude-opus-5-5","max_tokens":1,"max_tokens":64000,"messages":[]}"#;
    let answer = bench.to(PATHS[0], &json!({})).body(twice).send().await.expect("an answer");
    assert_eq!(answer.status(), 400);
    assert!(bench.provider.asked().is_empty());
    assert_eq!(bench.attempt.metered().calls, 0);
}

#[tokio::test]
async fn what_the_ledger_does_not_grant_is_not_sent() {
    let bench = Bench::waiting(Duration::ZERO).await;
    bench.provider.count_nothing();
    let wait = |seconds: u64| Duration::from_millis(seconds * 1000 - 500);
    for (reserve, status, after) in [
        (Reserve::Busy { behind: "the job's $1".to_owned(), retry_after: wait(3) }, 429, Some("3")),
        (Reserve::Later { retry_after: wait(2) }, 429, Some("2")),
        (Reserve::Spent { limit: "agent x, 2026-11-28: $1".to_owned(), room: Usd::ZERO }, 402, None),
    ] {
        bench.accounts.books(|books| books.reserve = Some(reserve));
        let answer = bench.send(PATHS[0], &request(PATHS[0], false)).await;
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers().get("retry-after").map(|value| value.to_str().expect("text")), after);
    }
    assert_eq!(bench.accounts.books(|books| books.given_up), 1);
    bench.accounts.books(|books| books.down = true);
    let answer = bench.send(PATHS[2], &request(PATHS[2], false)).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.text().await.expect("text").contains("nothing was sent"));
    // Whether it was held is not known, so it is given back.
    assert_eq!(bench.accounts.outcome().await, Outcome::Free);
    assert!(bench.provider.asked().is_empty());
}

#[tokio::test]
async fn it_listens_on_loopback_alone() {
    let started = Gateway::start(GatewaySettings {
        addr: "0.0.0.0:0".parse().expect("an address"),
        anthropic: None,
        openai: None,
        tls: tls(),
        prices: Prices::built_in(),
        usage_drain: Duration::ZERO,
        wait: Duration::ZERO,
        most_calls: 1,
    });
    assert!(matches!(started.await, Err(GatewayError::NotLoopback(_))));
}
