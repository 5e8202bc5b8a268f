use model::{Attempt, HostedCaps, Opened};
use serde_json::{Value, json};

use crate::bench::{Bench, PATHS, request};

fn open(bench: &Bench, fit: Option<u64>) -> Opened {
    let (ledger, models) =
        (bench.accounts.attempt(), vec!["claude-opus-5-5".to_owned(), "gpt-6-sol".to_owned()]);
    bench
        .gateway
        .open(Attempt { ledger, models, degrades: false, fit, caps: HostedCaps::default() })
        .expect("opened")
}

/// A request of this path for a long answer.
fn long(path: &str, question: &str) -> Value {
    let mut body = request(path, false);
    let messages = if path.ends_with("responses") { "input" } else { "messages" };
    body[messages] = json!([{"role": "user", "content": question}]);
    let (model, limit) = if path == PATHS[0] {
        ("claude-opus-5-5", "max_tokens")
    } else {
        ("gpt-6-sol", "max_completion_tokens")
    };
    let limit = if path.ends_with("responses") { "max_output_tokens" } else { limit };
    body["model"] = json!(model);
    body[limit] = json!(64_000);
    body
}

#[tokio::test]
async fn a_call_without_room_gets_the_limit_of_output_that_fits_and_the_answer_says_so() {
    let bench = Bench::start().await;
    for path in PATHS.into_iter().filter(|path| !path.ends_with("embeddings")) {
        bench.accounts.books(|books| books.limit = Some(books.spent + 200_000));
        let answer = bench
            .to_as(&open(&bench, Some(100)), path, &long(path, "first"))
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
        let limit = answer.headers()["x-harness-output-limit"].to_str().expect("text").to_owned();
        answer.bytes().await.expect("whole");
        let sent: Value =
            serde_json::from_slice(&bench.provider.asked().last().expect("asked").body).expect("JSON");
        let limits = ["max_tokens", "max_completion_tokens", "max_output_tokens"];
        let sent = limits.iter().filter_map(|name| sent[*name].as_u64()).max();
        assert_eq!(sent.map(|sent| sent.to_string()), Some(limit), "{path}");
        let settled = bench.accounts.settled(1).await;
        let held = settled.last().expect("a call").0.bound.cost.micros();
        assert!((190_000..=200_000).contains(&held), "{path}: {held}");
        bench.check_bill();

        // Below its least, or without leave, it is spent.
        for fit in [Some(63_000), None] {
            let answer =
                bench.to_as(&open(&bench, fit), path, &long(path, "second")).send().await.expect("an answer");
            assert_eq!(answer.status(), 402, "{path}");
        }
    }
}

#[tokio::test]
async fn a_call_without_room_is_counted_by_the_provider_once() {
    let bench = Bench::start().await;
    let mut body = request(PATHS[0], false);
    body["messages"] = json!([{"role": "user", "content": "x".repeat(40_000)}]);
    // Its 40,000 bytes would be held as 40,000 tokens; the provider counts a quarter.
    bench.accounts.books(|books| books.limit = Some(120_000));
    let answer = bench.send(PATHS[0], &body).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.headers().get("x-harness-output-limit").is_none());
    answer.bytes().await.expect("whole");
    let paths: Vec<String> = bench.provider.asked().iter().map(|asked| asked.path.clone()).collect();
    assert_eq!(paths, ["/v1/messages/count_tokens", PATHS[0]]);
    bench.check_bill();
    bench.accounts.books(|books| books.limit = Some(0));
    assert_eq!(bench.send(PATHS[0], &body).await.status(), 402);
}
