//! The rate limits of a provider's key hold for all workers together, and a key that the provider refuses is shut for all.
//!
//! What was taken goes after a minute. Here that minute is made to pass by dating it back.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use futures::future::join_all;
use store::{CallOutcome, NewCall, RateUse, Reserved, ShutFor, Store, Take};
use tests::{Database, Runner};

use crate::caller::{Caller, cost, unknown};

const KEY: &str = "anthropic:0f1e2d3c4b5a";

fn take(limit: &str, per_minute: u64, amount: u64) -> Take {
    Take { account: format!("{KEY}:{limit}"), limit: Some(per_minute), amount, as_produced: false }
}

fn produced(per_minute: u64, amount: u64) -> Take {
    Take { as_produced: true, ..take("output_tokens", per_minute, amount) }
}

/// A limit that only answers name.
fn learnt(limit: &str, amount: u64) -> Take {
    Take { account: format!("{KEY}:{limit}:m"), limit: None, amount, as_produced: amount == 0 }
}

impl Caller {
    fn taking(&self, takes: &[Take]) -> NewCall {
        let rate_use = Some(RateUse { key: KEY.to_owned(), takes: takes.to_vec() });
        NewCall { rate_use, ..self.call(1) }
    }

    async fn took(&self, takes: &[Take]) -> NewCall {
        let call = self.taking(takes);
        assert_eq!(self.reserve(&call).await, Reserved::Granted);
        call
    }

    /// Returns when a call fits that does not fit now.
    async fn later(&self, takes: &[Take]) -> u64 {
        match self.reserve(&self.taking(takes)).await {
            Reserved::Later { retry_after, .. } => retry_after.as_secs(),
            other => panic!("{other:?}"),
        }
    }

    async fn settle_used(&self, call: &NewCall, outcome: CallOutcome, used: &[u64]) -> store::Settled {
        let settled = store::SettledCall {
            call: call.clone(),
            outcome,
            provider_request_id: None,
            answer: None,
            used: used.to_vec(),
        };
        self.runner.store.settle(settled).await.expect("an answer")
    }
}

/// A database in whose zone no midnight lies within the time that a test lets pass: a call counts for the day on which it
/// was reserved.
async fn by_day() -> Database {
    let database = Database::new().await;
    let zone = "CASE WHEN extract(hour FROM now() AT TIME ZONE 'UTC') < 12 THEN 'Etc/GMT-12' ELSE 'UTC' END";
    database.execute(&format!("UPDATE harness_spend_zone SET zone = {zone}")).await;
    database
}

async fn begin() -> (Database, Caller) {
    let database = by_day().await;
    let runner = Runner::register(&database.store()).await;
    let caller = Caller::new(&runner, "s", &[]).await;
    (database, caller)
}

/// Lets time pass for what was taken, and for the calls that took it. What is held ends in steps of ten seconds.
async fn pass(database: &Database, seconds: u64) {
    database
        .execute(&format!(
            "UPDATE harness_provider_moves SET counts_until = counts_until - interval '{seconds} s';
             UPDATE harness_calls SET reserved_at = reserved_at - interval '{seconds} s'"
        ))
        .await;
}

/// The end of a minute that begins now, as a wait of whole seconds: the second under way and one more count to it.
const MINUTE: RangeInclusive<u64> = 58..=62;

/// Whether a wait is within these bounds, or shorter by the time that has passed since the test began.
fn is_within(wait: u64, bounds: RangeInclusive<u64>, began: Instant) -> bool {
    (bounds.start().saturating_sub(began.elapsed().as_secs())..=*bounds.end()).contains(&wait)
}

#[tokio::test]
async fn many_workers_at_once_never_take_more_than_a_limit_allows_in_a_minute() {
    let database = by_day().await;
    let stores: Vec<Store> = (0..4).map(|_| database.store()).collect();
    let mut callers = Vec::new();
    for (at, store) in stores.iter().cycle().take(24).enumerate() {
        let runner = Runner::register(store).await;
        callers.push(Caller::new(&runner, &format!("s-{at}"), &[]).await);
    }
    // Requests end it, then input, then output.
    for (requests, input, output, granted) in
        [(30, 1_000_000, 1_000_000, 30), (900, 250, 900_000, 25), (900, 900_000, 215, 43)]
    {
        let takes = [take("requests", requests, 1), take("input_tokens", input, 10), produced(output, 5)];
        let asking = callers.iter().map(async |caller| {
            let mut calls = 0;
            loop {
                match caller.reserve(&caller.taking(&takes)).await {
                    Reserved::Granted => calls += 1,
                    Reserved::Later { .. } => return calls,
                    other => panic!("{other:?}"),
                }
            }
        });
        let calls: u64 = database.audited_while(join_all(asking)).await.into_iter().sum();
        // Two in one transaction may keep each other out, and then both ask again.
        assert!((granted - 6..=granted).contains(&calls), "{calls} of {granted}");
        let level = "SELECT coalesce(max(level), 0)::bigint
                       FROM (SELECT sum(amount) AS level FROM harness_provider_moves WHERE counts_until > now()
                              GROUP BY account) l";
        let most = [calls, calls * 10].into_iter().max().expect("two");
        assert_eq!(database.count(level).await, most as i64);
        pass(&database, 720).await;
    }
    database.audited().await;
}

#[tokio::test]
async fn what_was_taken_counts_for_a_minute_and_the_wait_ends_when_enough_of_it_has_gone() {
    let (began, (database, caller)) = (Instant::now(), begin().await);
    let asks = |amount| [take("input_tokens", 10, amount)];
    caller.took(&asks(6)).await;
    pass(&database, 40).await;
    caller.took(&asks(4)).await;
    assert!(is_within(caller.later(&asks(1)).await, 18..=22, began));
    assert!(is_within(caller.later(&asks(6)).await, 18..=22, began));
    assert!(is_within(caller.later(&asks(7)).await, MINUTE, began));
    pass(&database, 22).await;
    assert!(is_within(caller.later(&asks(7)).await, 36..=40, began));
    caller.took(&asks(6)).await;
    assert!(is_within(caller.later(&asks(1)).await, 36..=40, began));
    database.audited().await;
}

#[tokio::test]
async fn what_was_not_used_is_given_back_once_and_never_counts_for_less_than_nothing() {
    let (began, (database, caller)) = (Instant::now(), begin().await);
    let asks = |amount| [take("requests", 100, 1), take("input_tokens", 1_000, amount)];
    let call = caller.took(&asks(1_000)).await;
    caller.later(&asks(1)).await;
    for _ in 0..2 {
        caller.settle_used(&call, cost(1), &[1, 100]).await;
    }
    caller.later(&asks(901)).await;
    let late = caller.took(&asks(900)).await;
    // Its minute is over before it is settled, and another one has taken its place.
    pass(&database, 62).await;
    caller.took(&asks(1_000)).await;
    caller.settle_used(&late, cost(1), &[1, 0]).await;
    assert!(is_within(caller.later(&asks(1)).await, MINUTE, began));
    // Nor does one give back what it has never taken.
    let unsent = caller.taking(&asks(1_000));
    caller.settle_used(&unsent, CallOutcome::Free, &[0, 0]).await;
    assert_eq!(caller.reserve(&unsent).await, Reserved::Lost);
    caller.later(&asks(1)).await;
    database.audited().await;
}

#[tokio::test]
async fn output_is_held_until_it_is_settled_and_counts_for_a_minute_from_then_on() {
    let (database, caller) = begin().await;
    let asks = |amount| [produced(1_000, amount)];
    let call = caller.took(&asks(1_000)).await;
    pass(&database, 300).await;
    assert_eq!(caller.later(&asks(1)).await, 1, "it comes back when the other one is settled");
    caller.settle_used(&call, cost(1), &[300]).await;
    caller.later(&asks(701)).await;
    let call = caller.took(&asks(700)).await;
    pass(&database, 70).await;
    caller.took(&asks(300)).await;
    // What is not known was used in full, and a call that no one settles has it for eleven minutes.
    caller.settle_used(&call, unknown(), &[]).await;
    caller.later(&asks(1)).await;
    pass(&database, 70).await;
    caller.took(&asks(700)).await;
    caller.hand_back().await;
    caller.again(&caller.runner).await;
    assert_eq!(database.count("SELECT count(*) FROM harness_calls WHERE state = 'held'").await, 0);
    pass(&database, 730).await;
    let again = Caller::new(&caller.runner, "other", &[]).await;
    again.took(&asks(1_000)).await;
    database.audited().await;
}

#[tokio::test]
async fn a_call_that_takes_more_than_the_limit_passes_when_nothing_counts() {
    let (began, (database, caller)) = (Instant::now(), begin().await);
    let asks = |amount| [take("requests", 10, 1), take("input_tokens", 1_000, amount)];
    caller.took(&asks(1)).await;
    assert!(is_within(caller.later(&asks(5_000)).await, MINUTE, began));
    pass(&database, 62).await;
    caller.took(&asks(5_000)).await;
    assert!(is_within(caller.later(&asks(1)).await, MINUTE, began));
    pass(&database, 62).await;
    caller.took(&asks(1_000)).await;
    database.audited().await;
}

#[tokio::test]
async fn a_key_that_is_refused_is_shut_for_every_worker_and_for_no_other_key() {
    let (began, (database, caller)) = (Instant::now(), begin().await);
    let other = Caller::new(&Runner::register(&database.store()).await, "other", &[]).await;
    let shut = async |seconds| {
        caller
            .runner
            .store
            .shut_key(KEY, Duration::from_secs(seconds), ShutFor::RateLimit)
            .await
            .expect("shut")
    };
    shut(100).await;
    shut(30).await;
    let asks = [take("requests", 1_000, 1)];
    assert!(is_within(other.later(&asks).await, 95..=100, began), "the last end counts");
    assert!(is_within(other.later(&[]).await, 95..=100, began), "with or without limits");
    let mut with_another = caller.taking(&[]);
    with_another.rate_use = Some(RateUse { key: "openai:1".to_owned(), takes: Vec::new() });
    assert_eq!(caller.reserve(&with_another).await, Reserved::Granted);
    let keys = caller.runner.store.shut_keys().await.expect("keys");
    assert_eq!(
        keys.iter().map(|it| (it.key.as_str(), it.why.as_str())).collect::<Vec<_>>(),
        [(KEY, "rate_limit")]
    );
    database.execute("UPDATE harness_provider_keys SET shut_until = now()").await;
    other.took(&asks).await;
    assert!(caller.runner.store.shut_keys().await.expect("keys").is_empty());
}

#[tokio::test]
async fn limits_that_answers_report_hold_beside_those_that_are_named() {
    let (began, (database, caller)) = (Instant::now(), begin().await);
    let asks = [take("requests", 100, 1), learnt("requests", 1), learnt("input_tokens", 0)];
    let before = caller.took(&asks).await;
    let account = |limit: &str| format!("{KEY}:{limit}:m");
    let learn = async |requests| {
        let limits = [(account("requests"), requests), (account("input_tokens"), 500)];
        caller.runner.store.learn_rates(&limits).await.expect("learnt");
    };
    learn(3).await;
    // It took nothing of them, so it gives nothing back.
    caller.settle_used(&before, cost(1), &[1, 0, 0]).await;
    let mut calls = Vec::new();
    for _ in 0..3 {
        calls.push(caller.took(&asks).await);
    }
    let Reserved::Later { limit, .. } = caller.reserve(&caller.taking(&asks)).await else { panic!("later") };
    assert_eq!(limit, account("requests"));
    learn(10).await;
    // Of tokens, only what was used counts: a call waits while that is as much as the limit.
    for (used, call) in [499, 1].into_iter().zip(&calls) {
        caller.took(&asks).await;
        caller.settle_used(call, cost(1), &[1, 1, used]).await;
    }
    let Reserved::Later { limit, retry_after } = caller.reserve(&caller.taking(&asks)).await else {
        panic!("later")
    };
    assert_eq!(limit, account("input_tokens"));
    assert!(is_within(retry_after.as_secs(), MINUTE, began), "{retry_after:?}");
    database.audited().await;
}

#[tokio::test]
async fn accounts_are_folded_while_they_are_used_and_go_when_they_no_longer_count() {
    let (database, caller) = begin().await;
    let store = caller.runner.store.clone();
    let asks = [take("input_tokens", 100_000, 10), produced(100_000, 10)];
    for _ in 0..400 {
        let call = caller.took(&asks).await;
        caller.settle_used(&call, cost(1), &[7, 3]).await;
    }
    let moves = database.count("SELECT count(*) FROM harness_provider_moves").await;
    assert!(moves < 700, "{moves} moves are not folded");
    let level = |limit: &str| {
        format!("SELECT sum(amount)::bigint FROM harness_provider_moves WHERE account = '{KEY}:{limit}'")
    };
    assert_eq!(database.count(&level("input_tokens")).await, 2_800);
    assert_eq!(database.count(&level("output_tokens")).await, 1_200);
    caller.later(&[take("input_tokens", 2_809, 10)]).await;
    caller.took(&[take("input_tokens", 2_810, 10)]).await;
    database.audited().await;

    pass(&database, 800).await;
    database.execute("UPDATE harness_provider_rates SET changed_at = now() - interval '2 days'").await;
    store.shut_key(KEY, Duration::ZERO, ShutFor::Quota).await.expect("shut");
    database.execute("UPDATE harness_provider_keys SET shut_until = now() - interval '2 days'").await;
    store.forget_rates().await.expect("forgotten");
    for table in ["keys", "rates", "moves"] {
        assert_eq!(database.count(&format!("SELECT count(*) FROM harness_provider_{table}")).await, 0);
    }
    // A ledger that is restored begins anew.
    caller.took(&asks).await;
    store.shut_key(KEY, Duration::from_secs(60), ShutFor::Overloaded).await.expect("shut");
    store.revive("a test").await.expect("revived");
    for table in ["keys", "rates", "moves"] {
        assert_eq!(database.count(&format!("SELECT count(*) FROM harness_provider_{table}")).await, 0);
    }
    database.audited().await;
}
