use std::sync::Arc;
use std::time::Duration;

use model::{NoUsage, Outcome};
use serde_json::json;
use tests::provider::Fault;
use tokio::sync::Semaphore;

use crate::bench::{Bench, PATHS, request};

/// What a call costs by this outcome, as a word.
fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Settled(_) => "settled",
        Outcome::Free => "free",
        Outcome::Unknown(_) => "unknown",
    }
}

#[tokio::test]
async fn every_fault_of_a_provider_has_an_outcome_and_the_bill_is_covered() {
    for path in PATHS {
        for stream in [false, true] {
            let faults = [
                (Fault::Refuses(429), "free", 429),
                (Fault::Refuses(529), "free", 529),
                (Fault::Refuses(503), "free", 503),
                (Fault::Refuses(400), "free", 400),
                (Fault::Fails(500), "unknown", 500),
                (Fault::Garbage, "unknown", 200),
                (Fault::NoUsage, "unknown", 200),
                (Fault::ZeroUsage, "unknown", 200),
                (Fault::UsageTwice, "settled", 200),
                (Fault::CutAfter(2), "unknown", if stream { 200 } else { 502 }),
            ];
            for (fault, expected, status) in faults {
                let bench = Bench::start().await;
                bench.provider.fault(fault.clone());
                let answer = bench.send(path, &request(path, stream)).await;
                assert_eq!(answer.status(), status, "{path} {stream} {fault:?}");
                if fault == Fault::Refuses(429) {
                    assert_eq!(answer.headers()["retry-after"], "7");
                }
                let body = answer.text().await;
                assert!(
                    !stream || !matches!(fault, Fault::CutAfter(_)) || body.is_err(),
                    "a cut is not an end"
                );
                let outcome = bench.accounts.outcome().await;
                assert_eq!(kind(&outcome), expected, "{path} {stream} {fault:?}: {outcome:?}");
                bench.check_bill();
                assert!(bench.accounts.books(|books| books.held.is_empty()));
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_after_any_event_is_counted_in_full_and_not_stored() {
    for (path, events) in PATHS.into_iter().zip([7, 5, 9]) {
        for cut in 0..events {
            let bench = Bench::start().await;
            bench.provider.say(1);
            bench.provider.fault(Fault::CutAfter(cut));
            assert!(bench.send(path, &request(path, true)).await.text().await.is_err(), "{path} {cut}");
            let (call, settlement) = bench.accounts.settled(1).await.remove(0);
            assert_eq!(settlement.outcome, Outcome::Unknown(NoUsage::NoEnd), "{path} {cut}");
            assert_eq!(settlement.answer, None);
            assert_eq!(bench.attempt.metered().cost, call.bound.cost);
            bench.check_bill();
        }
    }
}

#[tokio::test]
async fn a_provider_that_is_away_costs_nothing() {
    for path in PATHS {
        for stream in [false, true] {
            let bench = Bench::start().await;
            bench.provider.close().await;
            assert_eq!(bench.send(path, &request(path, stream)).await.status(), 502, "{path} {stream}");
            assert_eq!(bench.accounts.outcome().await, Outcome::Free, "{path} {stream}");
        }
    }
}

#[tokio::test]
async fn a_program_that_hangs_up_pays_what_the_provider_bills() {
    for path in PATHS {
        let bench = Bench::start().await;
        bench.provider.pause(Duration::from_millis(20));
        let mut answer = bench.send(path, &request(path, true)).await;
        answer.chunk().await.expect("an event");
        drop(answer);
        let Outcome::Settled(settled) = bench.accounts.outcome().await else { panic!("{path}: not settled") };
        assert_eq!(settled.cost.micros(), bench.provider.bill_micros(), "{path}");
        assert!(bench.accounts.books(|books| books.answers.len() == 1), "{path}: it was whole");
    }
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_is_read_on_only_for_a_while() {
    for path in PATHS {
        for (fault, stream) in [(Fault::StallsAfter(3), true), (Fault::Stalls, true), (Fault::Stalls, false)]
        {
            let bench = Bench::draining(Duration::from_millis(50)).await;
            bench.provider.fault(fault.clone());
            let sent = bench.to(path, &request(path, stream)).send();
            let waiting = tokio::spawn(async move { sent.await.expect("an answer").bytes().await });
            tests::until("it is asked", async || (!bench.provider.asked().is_empty()).then_some(())).await;
            waiting.abort();
            let outcome = bench.accounts.outcome().await;
            assert_eq!(outcome, Outcome::Unknown(NoUsage::GivenUp), "{path} {stream} {fault:?}");
            bench.check_bill();
        }
    }
}

#[tokio::test]
async fn the_ledger_has_an_answer_before_its_last_event_is_passed_on() {
    for path in PATHS {
        let bench = Bench::start().await;
        let gate = Arc::new(Semaphore::new(0));
        *bench.accounts.gate.lock().expect("not poisoned") = Some(gate.clone());
        let mut answer = bench.send(path, &request(path, true)).await;
        let last = match path {
            "/v1/messages" => "event: message_stop",
            "/v1/chat/completions" => "[DONE]",
            _ => "event: response.completed",
        };
        let mut seen = String::new();
        while !seen.contains("w19 ") {
            seen += &String::from_utf8_lossy(&answer.chunk().await.expect("more").expect("an event"));
        }
        let more = tokio::time::timeout(Duration::from_millis(200), async {
            while let Some(chunk) = answer.chunk().await.expect("more") {
                seen += &String::from_utf8_lossy(&chunk);
            }
        });
        assert!(more.await.is_err(), "its end waits");
        assert!(!seen.contains(last), "{path}");
        gate.add_permits(1);
        while let Some(chunk) = answer.chunk().await.expect("more") {
            seen += &String::from_utf8_lossy(&chunk);
        }
        assert!(seen.contains(last), "{path}");
        let (_, settlement) = bench.accounts.settled(1).await.remove(0);
        assert_eq!(settlement.answer.expect("stored").body, seen, "as the program got it");
    }
}

#[tokio::test]
async fn the_bill_stays_within_the_limit_whatever_goes_wrong() {
    let bench = Bench::start().await;
    bench.accounts.books(|books| books.limit = Some(60_000));
    let faults = [Fault::Fails(500), Fault::CutAfter(4), Fault::Refuses(429), Fault::NoUsage, Fault::Garbage];
    let mut refused = 0;
    for round in 0..200_usize {
        if round % 3 == 0 {
            bench.provider.fault(faults[round % faults.len()].clone());
        }
        let path = PATHS[round % PATHS.len()];
        let mut body = request(path, round % 2 == 0);
        let conversation = if path == PATHS[2] { "input" } else { "messages" };
        body[conversation] = json!([{"role": "user", "content": format!("Say something, {round}.")}]);
        let answer = bench.send(path, &body).await;
        refused += usize::from([402, 429].contains(&answer.status().as_u16()));
        let _body = answer.bytes().await;
        bench.check_bill();
        assert!(bench.provider.bill_micros() <= 60_000);
    }
    assert!(refused > 10, "the limit was met");
    bench.gateway.stop().await;
}
