//! What the gateway lets other jobs be given: whole answers to requests that say all that is asked.

use std::collections::HashMap;

use serde_json::json;
use tests::provider::Fault;

use crate::bench::{Bench, PATHS, request, with_key};

async fn caching() -> Bench {
    let bench = Bench::start().await;
    bench.accounts.books(|books| books.cache = Some(HashMap::new()));
    bench
}

fn kept(bench: &Bench) -> usize {
    bench.accounts.books(|books| books.cache.as_ref().map_or(0, HashMap::len))
}

#[tokio::test]
async fn another_job_is_given_whole_answers_in_their_order() {
    for (path, stream) in PATHS.into_iter().flat_map(|path| [(path, false), (path, true)]) {
        let bench = caching().await;
        let mut paid = Vec::new();
        for words in [3, 5] {
            bench.provider.say(words);
            paid.push(bench.send(path, &request(path, stream)).await.bytes().await.expect("whole"));
        }
        bench.accounts.settled(2).await;
        // It is an attempt at another job: no answers are stored for it.
        bench.accounts.books(|books| books.answers.clear());
        let other = bench.another_attempt();
        let mut body = request(path, stream);
        body["metadata"] = json!({"user_id": "fresh each time"});
        for paid in &paid {
            let given = bench.to_as(&other, path, &body).send().await.expect("an answer");
            assert_eq!(given.headers()["x-harness-cached"], "true");
            assert!(given.headers().get("x-harness-replayed").is_none());
            assert_eq!(given.bytes().await.expect("whole"), paid, "{path} {stream}");
        }
        assert_eq!(bench.provider.asked().len(), 2);
        assert_eq!((other.metered().cached, other.metered().calls), (2, 0));
        let third = bench.to_as(&other, path, &body).send().await.expect("an answer");
        assert!(third.headers().get("x-harness-cached").is_none(), "the third time is new");
        let fresh = bench.another_attempt();
        let beta = bench.to_as(&fresh, path, &body).header("anthropic-beta", "other-answers");
        let beta = beta.send().await.expect("an answer");
        assert!(beta.headers().get("x-harness-cached").is_none(), "a header may change what is answered");
    }
}

#[tokio::test]
async fn nothing_that_was_cut_or_failed_is_given_to_others() {
    for fault in [
        Fault::Refuses(429),
        Fault::Refuses(400),
        Fault::Fails(500),
        Fault::CutAfter(0),
        Fault::CutAfter(1),
        Fault::CutAfter(3),
        Fault::Garbage,
    ] {
        for (path, stream) in PATHS.into_iter().flat_map(|path| [(path, false), (path, true)]) {
            let bench = caching().await;
            bench.provider.fault(fault.clone());
            let _cut = bench.send(path, &request(path, stream)).await.bytes().await;
            bench.accounts.settled(1).await;
            assert_eq!(kept(&bench), 0, "{fault:?} {path} {stream}");
        }
    }
}

#[tokio::test]
async fn what_is_asked_beside_the_request_is_asked_each_time() {
    let bench = caching().await;
    let mut later = request(PATHS[2], false);
    later["previous_response_id"] = json!("resp_1");
    assert_eq!(bench.send(PATHS[2], &later).await.status(), 200);
    bench.accounts.settled(1).await;
    assert_eq!(kept(&bench), 0);
    // Its token is not part of what is asked.
    let url = format!("http://{}{}", bench.gateway.addr(), PATHS[0]);
    let sent = bench.client.post(url).body(request(PATHS[0], false).to_string());
    let answer =
        with_key(sent, PATHS[0], &crate::bench::token(&bench.attempt)).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(kept(&bench), 1);
}
