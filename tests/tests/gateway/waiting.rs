use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use model::Reserve;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::bench::{Bench, PATHS, request};

/// A request for which far more is held than it costs.
fn greedy(stream: bool) -> Value {
    let mut body = request(PATHS[0], stream);
    body["max_tokens"] = json!(5_000);
    body
}

/// Sets a limit into which exactly one of the requests fits at a time, and asks on a timer only after an hour.
async fn narrow(bench: &Bench) {
    // The second one is bounded by the tokens that were counted for the first, as all after it.
    for _ in 0..2 {
        bench.send(PATHS[0], &greedy(false)).await.bytes().await.expect("whole");
    }
    let most = bench.accounts.settled(2).await[1].0.bound.cost.micros();
    bench.accounts.books(|books| {
        (books.limit, books.busy_retry_s) = (Some(books.spent + most * 3 / 2), 3_600);
    });
}

async fn waits(bench: &Bench, count: usize) {
    tests::until("they wait", async || (bench.gateway.loads().waiting() == count).then_some(())).await;
}

#[tokio::test]
async fn a_busy_request_waits_and_is_asked_again_when_another_one_is_settled() {
    let bench = Bench::start().await;
    narrow(&bench).await;
    bench.provider.say(1);
    let asking = (0..8).map(async |_| {
        let answer = bench.send(PATHS[0], &greedy(true)).await;
        let status = answer.status();
        answer.bytes().await.expect("whole");
        status.as_u16()
    });
    assert_eq!(join_all(asking).await, [200; 8]);
    bench.accounts.settled(10).await;
    bench.check_bill();
}

#[tokio::test]
async fn requests_get_their_room_in_the_order_in_which_they_came() {
    let bench = Bench::start().await;
    narrow(&bench).await;
    let gate = Arc::new(Semaphore::new(0));
    *bench.accounts.gate.lock().expect("not poisoned") = Some(gate.clone());
    let send = |number: usize| {
        let mut body = greedy(false);
        body["top_k"] = json!(number);
        tokio::spawn(bench.to(PATHS[0], &body).send())
    };
    let mut sent = vec![send(0)];
    tests::until("it is asked", async || (bench.provider.asked().len() == 3).then_some(())).await;
    for number in 1..6 {
        sent.push(send(number));
        waits(&bench, number).await;
    }
    assert_eq!(bench.attempt.idle(), Duration::ZERO, "a wait is a sign of life");
    gate.add_permits(6);
    for sent in sent {
        assert_eq!(sent.await.expect("joined").expect("an answer").status(), 200);
    }
    let order: Vec<Value> = bench.provider.asked()[2..]
        .iter()
        .map(|asked| serde_json::from_slice::<Value>(&asked.body).expect("JSON")["top_k"].clone())
        .collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    bench.check_bill();
}

fn told(answer: &reqwest::Response, header: &str) -> u64 {
    answer.headers()[header].to_str().expect("a text").parse().expect("a number")
}

#[tokio::test]
async fn programs_that_are_refused_together_are_told_different_moments_to_come_back() {
    let bench = Bench::waiting(Duration::ZERO).await;
    let retry_after = Duration::from_secs(1);
    for reserve in [Reserve::Busy { behind: "job".to_owned(), retry_after }, Reserve::Later { retry_after }] {
        bench.accounts.books(|books| books.reserve = Some(reserve));
        let asking = (0..20).map(async |_| {
            let answer = bench.send(PATHS[0], &request(PATHS[0], false)).await;
            assert_eq!(told(&answer, "retry-after"), 1, "whole seconds");
            told(&answer, "retry-after-ms")
        });
        let told: BTreeSet<u64> = join_all(asking).await.into_iter().collect();
        assert!(told.len() > 10, "{told:?}");
        assert!(told.iter().all(|wait| (1_000..=1_250).contains(wait)), "{told:?}");
    }
}

#[tokio::test]
async fn a_wait_ends_with_the_time_the_program_and_the_attempt() {
    let bench = Bench::waiting(Duration::from_millis(300)).await;
    let retry_after = Duration::from_secs(9);
    let later = Reserve::Later { retry_after };
    for reserve in [Reserve::Busy { behind: "job".to_owned(), retry_after }, later.clone()] {
        bench.accounts.books(|books| books.reserve = Some(reserve));
        let answer = bench.send(PATHS[0], &request(PATHS[0], false)).await;
        assert_eq!(answer.status(), 429);
        assert!((9..=11).contains(&told(&answer, "retry-after")));
    }
    let bench = Bench::start().await;
    bench.accounts.books(|books| books.reserve = Some(later));
    let sent = tokio::spawn(bench.to(PATHS[0], &request(PATHS[0], false)).send());
    waits(&bench, 1).await;
    sent.abort();
    waits(&bench, 0).await;
    let ends = bench.another_attempt();
    let sent = tokio::spawn(bench.to_as(&ends, PATHS[0], &request(PATHS[0], false)).send());
    waits(&bench, 1).await;
    drop(ends);
    assert_eq!(sent.await.expect("joined").expect("an answer").status(), 401);
    // Its lines never become durable, because its run has lost its lease.
    bench.accounts.books(|books| books.undurable = true);
    let ends = bench.another_attempt();
    let sent = tokio::spawn(bench.to_as(&ends, PATHS[0], &request(PATHS[0], false)).send());
    tests::until("it has arrived", async || {
        bench.accounts.books(|books| (books.waits_for_lines == 1).then_some(()))
    })
    .await;
    drop(ends);
    assert_eq!(sent.await.expect("joined").expect("an answer").status(), 401);
    bench.gateway.stop().await;
    // Nothing was held, so nothing is settled.
    assert!(bench.accounts.books(|books| books.calls.is_empty() && books.held.is_empty()));
    assert!(bench.provider.asked().is_empty());
}
