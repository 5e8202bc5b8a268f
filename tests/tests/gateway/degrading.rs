use model::{Attempt, HostedCaps, Opened, Outcome};
use serde_json::{Value, json};

use crate::bench::{Bench, PATHS, request};

/// In the order of preference: an answer of the first costs four times as much as one of the last.
const MODELS: [&str; 3] = ["claude-opus-5-5", "gpt-6-sol", "claude-haiku-4-5"];

fn degrading(bench: &Bench) -> Opened {
    let (ledger, models) = (bench.accounts.attempt(), MODELS.map(str::to_owned).to_vec());
    bench
        .gateway
        .open(Attempt { ledger, models, degrades: true, fit: None, caps: HostedCaps::default() })
        .expect("opened")
}

#[tokio::test]
async fn where_a_limit_leaves_no_room_the_next_model_answers_and_the_answer_says_so() {
    let bench = Bench::start().await;
    bench.provider.count_nothing();
    for stream in [false, true] {
        let attempt = degrading(&bench);
        let mut body = request(PATHS[0], stream);
        body["metadata"] = json!({"user_id": "1.50"});
        let whole = bench.to_as(&attempt, PATHS[0], &body).send().await.expect("an answer");
        assert!(whole.headers().get("x-harness-model").is_none());
        whole.bytes().await.expect("whole");
        let settled = bench.accounts.settled(1).await;
        let most = settled[settled.len() - 1].0.bound.cost.micros();
        bench.accounts.books(|books| {
            books.limit = Some(books.spent + most - 1);
            books.answers.clear();
        });
        // It has counted no tokens yet, so the request is bounded as before.
        let attempt = degrading(&bench);
        let degraded = bench.to_as(&attempt, PATHS[0], &body).send().await.expect("an answer");
        assert_eq!(degraded.status(), 200);
        assert_eq!(degraded.headers()["x-harness-model"], "claude-haiku-4-5");
        let degraded = degraded.bytes().await.expect("whole");
        let asked = bench.provider.asked();
        let [first, second] =
            [1, 0].map(|back| String::from_utf8(asked[asked.len() - 1 - back].body.to_vec()).expect("text"));
        assert_eq!(first.replace("claude-opus-5-5", "claude-haiku-4-5"), second, "nothing else has changed");
        let calls = bench.accounts.settled(2).await;
        let (call, settlement) = calls.last().expect("a call");
        assert_eq!(call.model, "claude-haiku-4-5");
        assert!(matches!(&settlement.outcome, Outcome::Settled(settled) if settled.cost <= call.bound.cost));
        bench.check_bill();

        // The program sends the request that it sent before.
        let later = degrading(&bench);
        let again = bench.to_as(&later, PATHS[0], &body).send().await.expect("an answer");
        assert_eq!(again.headers()["x-harness-replayed"], "true");
        assert_eq!(again.bytes().await.expect("whole"), degraded);
        bench.accounts.books(|books| (books.limit, books.answers) = (None, Default::default()));
    }
}

#[tokio::test]
async fn a_call_is_spent_only_if_no_model_behind_it_fits() {
    let bench = Bench::start().await;
    bench.provider.count_nothing();
    bench.accounts.books(|books| books.limit = Some(0));
    let attempt = degrading(&bench);
    for (path, model) in [(PATHS[0], MODELS[0]), (PATHS[0], MODELS[2]), (PATHS[1], MODELS[1])] {
        let mut body = request(path, false);
        body["model"] = json!(model);
        let answer = bench.to_as(&attempt, path, &body).send().await.expect("an answer");
        assert_eq!(answer.status(), 402, "{model}");
        let answer: Value = serde_json::from_slice(&answer.bytes().await.expect("whole")).expect("JSON");
        assert!(answer["error"]["message"].as_str().expect("a text").contains("the job's $1"));
    }
    assert_eq!(bench.accounts.books(|books| books.asked), 4, "one of them had another model to try");
    // An agent that stops tries no other model.
    let answer = bench.send(PATHS[0], &request(PATHS[0], false)).await;
    assert_eq!(answer.status(), 402);
    assert_eq!(bench.accounts.books(|books| books.asked), 5);
    assert!(bench.provider.asked().is_empty());
}
