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
