use std::time::Duration;

use model::{NoUsage, Opened, Outcome, Reserve};
use serde_json::{Value, json};

use crate::bench::{Bench, PATHS, request, token};

/// Asks as any program can, with the gateway's address and token alone.
async fn ask(bench: &Bench, attempt: &Opened, path: &str, body: Value) -> (u16, Value) {
    let url = format!("http://{}{path}", bench.gateway.addr());
    let sent = bench.client.post(url).bearer_auth(token(attempt)).body(body.to_string());
    let answer = sent.send().await.expect("an answer");
    let status = answer.status().as_u16();
    let kind = if status == 200 { "application/json" } else { "application/problem+json" };
    assert_eq!(answer.headers()["content-type"], kind);
    (status, serde_json::from_slice(&answer.bytes().await.expect("whole")).expect("JSON"))
}

#[tokio::test]
async fn something_else_is_reserved_and_settled_once_beside_the_model_calls() {
    let bench = Bench::start().await;
    bench.accounts.books(|books| books.limit = Some(150_000));
    let reserve = json!({"what": "search", "max_cost_usd": "0.10"});
    let (status, reserved) = ask(&bench, &bench.attempt, "/reserve", reserve.clone()).await;
    assert_eq!(status, 200, "{reserved}");
    assert_eq!(bench.accounts.books(|books| books.held.values().sum::<u64>()), 100_000);
    let settle = json!({"call_id": reserved["call_id"], "cost_usd": "0.07"});
    // Another attempt does not know it.
    assert_eq!(ask(&bench, &bench.another_attempt(), "/settle", settle.clone()).await.0, 404);
    // Nobody can check what it says, so it cannot take more from the others than it was given.
    let too_much = json!({"call_id": reserved["call_id"], "cost_usd": "0.100001"});
    let (status, problem) = ask(&bench, &bench.attempt, "/settle", too_much).await;
    let said =
        "cost_usd: got $0.100001, expected at most the $0.100000 that was reserved: reserve the rest first";
    assert_eq!((status, &problem["detail"]), (400, &json!(said)));
    let (status, settled) = ask(&bench, &bench.attempt, "/settle", settle.clone()).await;
    assert_eq!((status, &settled["call_id"]), (200, &reserved["call_id"]));
    let (status, problem) = ask(&bench, &bench.attempt, "/settle", settle).await;
    assert_eq!((status, &problem["code"]), (404, &json!("not_open")), "once");
    let (purchase, outcome) = bench.accounts.books(|books| books.purchases[0].clone());
    assert_eq!(purchase.what, "search");
    assert!(matches!(outcome, Outcome::Settled(settled) if settled.cost.micros() == 70_000));
    assert_eq!(bench.attempt.metered().cost.micros(), 70_000, "it is the job's cost");
    // What is left is not enough for the same again.
    let (status, problem) = ask(&bench, &bench.attempt, "/reserve", reserve).await;
    assert_eq!((status, &problem["code"]), (402, &json!("budget_exhausted")), "{problem}");
}

#[tokio::test]
async fn it_waits_for_room_and_makes_others_wait() {
    let bench = Bench::start().await;
    bench.accounts.books(|books| (books.limit, books.busy_retry_s) = (Some(150_000), 3_600));
    let reserve = json!({"what": "search", "max_cost_usd": "0.10"});
    let (_, first) = ask(&bench, &bench.attempt, "/reserve", reserve.clone()).await;
    let second = ask(&bench, &bench.attempt, "/reserve", reserve);
    let settled = async {
        tests::until("it waits", async || (bench.gateway.loads().waiting() == 1).then_some(())).await;
        ask(&bench, &bench.attempt, "/settle", json!({"call_id": first["call_id"], "cost_usd": "0.01"})).await
    };
    let (second, settled) = tokio::join!(second, settled);
    assert_eq!((second.0, settled.0), (200, 200));
}

#[tokio::test]
async fn what_is_not_settled_when_the_attempt_ends_counts_in_full() {
    let bench = Bench::start().await;
    let attempt = bench.another_attempt();
    let (status, _) = ask(&bench, &attempt, "/reserve", json!({"what": "gpu", "max_cost_usd": "0.25"})).await;
    assert_eq!(status, 200);
    attempt.close();
    assert_eq!(attempt.metered().cost.micros(), 250_000, "it is the job's cost at once");
    let (status, problem) =
        ask(&bench, &attempt, "/reserve", json!({"what": "gpu", "max_cost_usd": "0.25"})).await;
    assert_eq!((status, &problem["code"]), (401, &json!("invalid_api_key")), "nobody would settle it");
    let outcome = async || {
        bench.accounts.books(|books| {
            books
                .purchases
                .iter()
                .map(|(_, outcome)| outcome.clone())
                .find(|outcome| *outcome != Outcome::Free)
        })
    };
    let outcome = tests::until("it is settled", outcome).await;
    assert_eq!(outcome, Outcome::Unknown(NoUsage::NotSettled));
    assert_eq!(bench.accounts.books(|books| books.spent), 250_000);
    assert_eq!(attempt.metered().cost.micros(), 250_000, "once");
    drop(attempt);
    bench.gateway.stop().await;
}

#[tokio::test]
async fn a_request_that_is_wrong_is_answered_with_its_field() {
    let bench = Bench::waiting(Duration::ZERO).await;
    for (path, body, said) in [
        ("/reserve", json!({"what": "", "max_cost_usd": "1"}), "what: got 0 bytes"),
        ("/reserve", json!({"what": "a b", "max_cost_usd": "1"}), "what: got 3 bytes"),
        (
            "/reserve",
            json!({"what": "search", "max_cost_usd": "-1"}),
            "max_cost_usd: got \"-1\", expected dollars from 0",
        ),
        (
            "/reserve",
            json!({"what": "search", "max_cost_usd": "100000.01"}),
            "max_cost_usd: got $100000.010000, expected at most $100000.000000",
        ),
        ("/reserve", json!({"what": "search", "max_cost_usd": 1}), "body: invalid type"),
        ("/reserve", json!({"what": "search", "max_cost": "1"}), "body: unknown field `max_cost`"),
        ("/settle", json!({"call_id": "1", "cost_usd": "1"}), "body: "),
    ] {
        let (status, problem) = ask(&bench, &bench.attempt, path, body).await;
        assert_eq!(status, 400, "{problem}");
        assert!(problem["detail"].as_str().expect("a text").starts_with(said), "{said}: {problem}");
    }
    let retry_after = Duration::from_secs(3);
    bench
        .accounts
        .books(|books| books.reserve = Some(Reserve::Busy { behind: "job".to_owned(), retry_after }));
    let (status, problem) =
        ask(&bench, &bench.attempt, "/reserve", json!({"what": "x", "max_cost_usd": "1"})).await;
    assert_eq!((status, &problem["code"]), (429, &json!("budget_busy")));
    assert!(bench.accounts.books(|books| books.held.is_empty() && books.purchases.is_empty()));
    bench.accounts.books(|books| books.reserve = None);
    assert_eq!(bench.send(PATHS[0], &request(PATHS[0], false)).await.status(), 200);
}
