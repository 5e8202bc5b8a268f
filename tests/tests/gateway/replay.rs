use serde_json::json;

use crate::bench::{Bench, PATHS, request};

#[tokio::test]
async fn a_later_attempt_gets_the_answers_that_were_paid_in_their_order() {
    for (path, stream) in PATHS.into_iter().flat_map(|path| [(path, false), (path, true)]) {
        let bench = Bench::start().await;
        let mut paid = Vec::new();
        for words in [3, 5] {
            bench.provider.say(words);
            paid.push(bench.send(path, &request(path, stream)).await.bytes().await.expect("whole"));
        }
        bench.accounts.settled(2).await;
        assert_ne!(paid[0], paid[1]);
        let later = bench.another_attempt();
        let mut body = request(path, stream);
        body["metadata"] = json!({"user_id": "fresh each time"});
        for paid in &paid {
            let again = bench.to_as(&later, path, &body).send().await.expect("an answer");
            assert_eq!(again.headers()["x-harness-replayed"], "true");
            assert_eq!(again.bytes().await.expect("whole"), paid, "{path} {stream}");
        }
        assert_eq!(bench.provider.asked().len(), 2);
        assert_eq!((later.metered().replayed, later.metered().calls), (2, 0));
        let third = bench.to_as(&later, path, &body).send().await.expect("an answer");
        assert!(third.headers().get("x-harness-replayed").is_none(), "the third time is new");
        third.bytes().await.expect("whole");
        assert_eq!(bench.provider.asked().len(), 3);
    }
}

#[tokio::test]
async fn an_attempt_is_not_given_its_own_answers_again_and_refusals_take_no_turn() {
    let bench = Bench::start().await;
    bench.provider.fault(tests::provider::Fault::Refuses(429));
    assert_eq!(bench.send(PATHS[0], &request(PATHS[0], false)).await.status(), 429);
    bench.send(PATHS[0], &request(PATHS[0], false)).await;
    bench.send(PATHS[0], &request(PATHS[0], false)).await;
    let calls = bench.accounts.settled(3).await;
    let turns: Vec<u32> = calls.iter().map(|(call, _)| call.request.nth).collect();
    assert_eq!(turns, [0, 0, 1]);
    assert_eq!(bench.provider.asked().len(), 3);
}
