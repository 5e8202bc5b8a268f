use futures::future::join_all;
use model::{Load, Provider};
use tests::provider::Fault;

use crate::bench::{Bench, PATHS, request};

fn anthropic(bench: &Bench) -> Load {
    let loads = bench.gateway.loads().now();
    loads.into_iter().find(|(provider, _)| *provider == Provider::Anthropic).expect("it is there").1
}

#[tokio::test]
async fn a_provider_is_sent_no_more_calls_at_a_time_than_it_takes_and_the_others_wait() {
    let bench = Bench::with(|settings| settings.most_calls = 4).await;
    for _ in 0..4 {
        bench.provider.fault(Fault::Stalls);
    }
    let sent: Vec<_> =
        (0..6).map(|_| tokio::spawn(bench.to(PATHS[0], &request(PATHS[0], false)).send())).collect();
    tests::until("four are asked", async || (bench.provider.asked().len() == 4).then_some(())).await;
    assert_eq!(anthropic(&bench), Load { limit: 4, in_flight: 4 });
    assert_eq!(bench.accounts.books(|books| books.held.len()), 4, "nothing is held by what waits");
    // Another provider has places of its own.
    assert_eq!(bench.send(PATHS[1], &request(PATHS[1], false)).await.status(), 200);
    assert_eq!(bench.provider.asked().len(), 5);
    sent.iter().for_each(|sent| sent.abort());
}

#[tokio::test]
async fn a_provider_with_too_much_to_do_is_sent_half_as_many_until_it_answers_again() {
    let bench = Bench::with(|settings| settings.most_calls = 4).await;
    for status in [529, 429, 503] {
        let before = anthropic(&bench).limit;
        bench.provider.fault(Fault::Refuses(status));
        assert_eq!(bench.send(PATHS[0], &request(PATHS[0], false)).await.status(), status);
        assert_eq!(anthropic(&bench), Load { limit: (before / 2).max(1), in_flight: 0 }, "{status}");
    }
    // What a request itself did wrong says nothing of the provider.
    bench.provider.fault(Fault::Refuses(400));
    let crowd = async || {
        let asking = (0..8).map(async |_| {
            let answer = bench.send(PATHS[0], &request(PATHS[0], true)).await;
            answer.bytes().await.expect("whole");
        });
        join_all(asking).await;
        (anthropic(&bench).limit == 4).then_some(())
    };
    tests::until("it is sent as many as before", crowd).await;
    bench.check_bill();
}

#[tokio::test]
async fn an_attempt_that_sends_many_requests_does_not_keep_others_waiting() {
    let alone = |settings: &mut model::GatewaySettings| {
        (settings.most_calls, settings.usage_drain) = (1, std::time::Duration::from_millis(50));
    };
    let bench = Bench::with(alone).await;
    bench.provider.fault(Fault::Stalls);
    let first = tokio::spawn(bench.to(PATHS[0], &request(PATHS[0], false)).send());
    tests::until("it is asked", async || (bench.provider.asked().len() == 1).then_some(())).await;
    let greedy: Vec<_> =
        (0..40).map(|_| tokio::spawn(bench.to(PATHS[0], &request(PATHS[0], false)).send())).collect();
    // They are read one after the other, and wait.
    let other = bench.another_attempt();
    tests::until("they wait", async || (bench.attempt.idle().is_zero()).then_some(())).await;
    let mut body = request(PATHS[0], false);
    body["messages"][0]["content"] = serde_json::json!("The other one.");
    let modest = tokio::spawn(bench.to_as(&other, PATHS[0], &body).send());
    tests::until("it waits, too", async || other.idle().is_zero().then_some(())).await;
    // The stalled call is given up, and its place becomes free.
    first.abort();
    modest.await.expect("no panic").expect("an answer");
    let asked = bench.provider.asked();
    let place = asked.iter().position(|asked| asked.body.windows(14).any(|part| part == b"The other one."));
    assert!(place.is_some_and(|place| place <= 2), "{place:?} of {}", asked.len());
    greedy.iter().for_each(|sent| sent.abort());
}
