use model::Outcome;
use serde_json::json;
use tests::provider::PROVIDER_KEY;

use crate::bench::{Bench, PATHS, request, token, with_key};

#[tokio::test]
async fn an_answer_passes_unchanged_and_is_settled_at_what_the_provider_bills() {
    for path in PATHS {
        for stream in [false, true] {
            let bench = Bench::start().await;
            let mut body = request(path, stream);
            if path.contains("chat") {
                body["stream_options"] = json!({"include_usage": true});
            }
            let passed = bench.send(path, &body).await;
            assert_eq!(passed.status(), 200, "{path}");
            assert_eq!(passed.headers()["x-request-id"], "req_1");
            let passed = passed.bytes().await.expect("whole");
            let bill = bench.provider.bill_micros();
            let direct =
                bench.client.post(format!("{}{path}", bench.provider.base_url())).body(body.to_string());
            let direct = with_key(direct, path, PROVIDER_KEY).send().await.expect("an answer");
            assert_eq!(passed, direct.bytes().await.expect("whole"), "{path} {stream}");
            let asked = bench.provider.asked();
            assert_eq!(asked[0].body, asked[1].body, "the request passed unchanged too");
            let (call, settlement) = bench.accounts.settled(1).await.remove(0);
            let Outcome::Settled(settled) = settlement.outcome else { panic!("{:?}", settlement.outcome) };
            assert_eq!(settled.cost.micros(), bill, "{path} {stream}");
            assert!(call.bound.cost >= settled.cost);
            assert_eq!(settlement.provider_request_id.as_deref(), Some("req_1"));
            assert_eq!(bench.attempt.metered().cost, settled.cost);
        }
    }
}

#[tokio::test]
async fn a_chat_stream_is_asked_for_its_usage_and_the_program_sees_no_more_than_it_asked_for() {
    let bench = Bench::start().await;
    let body = request(PATHS[1], true);
    let passed = bench.send(PATHS[1], &body).await.text().await.expect("whole");
    assert!(passed.ends_with("data: [DONE]\n\n"));
    assert!(!passed.contains("\"choices\":[]"), "{passed}");
    assert!(String::from_utf8_lossy(&bench.provider.asked()[0].body).contains("\"include_usage\":true"));
    assert!(matches!(bench.accounts.outcome().await, Outcome::Settled(_)));
}

#[tokio::test]
async fn the_provider_gets_the_real_key_and_the_program_never_does() {
    let bench = Bench::start().await;
    for path in PATHS {
        let sent = bench.to(path, &request(path, true)).header("openai-organization", "theirs").send().await;
        let text = format!("{:?}", sent.expect("an answer").text().await);
        assert!(!text.contains(PROVIDER_KEY));
    }
    for asked in bench.provider.asked() {
        let headers = format!("{:?}", asked.headers);
        assert!(!headers.contains(&token(&bench.attempt)), "{headers}");
        assert!(!headers.contains("theirs"), "another account would pay");
    }
    let environment = format!("{:?}", bench.attempt.environment());
    assert!(!environment.contains(PROVIDER_KEY));
}

#[tokio::test]
async fn tokens_are_counted_and_models_are_listed_for_nothing() {
    let bench = Bench::start().await;
    let counted = bench.send("/v1/messages/count_tokens", &request(PATHS[0], false)).await;
    assert_eq!(counted.status(), 200);
    assert!(counted.text().await.expect("text").contains("input_tokens"));
    let url = format!("http://{}/v1/models", bench.gateway.addr());
    let listed = bench.client.get(url).bearer_auth(token(&bench.attempt)).send().await.expect("an answer");
    assert!(listed.text().await.expect("text").contains("claude-haiku-4-5"));
    assert_eq!(bench.attempt.metered().calls, 0);
}

#[tokio::test]
async fn the_next_turn_of_a_conversation_is_reserved_by_what_was_counted() {
    let bench = Bench::start().await;
    let mut body = request(PATHS[0], false);
    body["system"] = json!("s".repeat(20_000));
    bench.send(PATHS[0], &body).await;
    let messages = body["messages"].as_array_mut().expect("a list");
    messages.extend([
        json!({"role": "assistant", "content": "Something."}),
        json!({"role": "user", "content": "More."}),
    ]);
    bench.send(PATHS[0], &body).await;
    let calls = bench.accounts.settled(2).await;
    assert!(calls[0].0.bound.input > 20_000);
    assert!(calls[1].0.bound.input < 6_000, "{:?}", calls[1].0.bound);
    bench.check_bill();
}
