//! A call is settled once, by the one who made it, whenever that is.

use job::Usd;
use store::{
    Budget, CallOutcome, CheckpointRow, Fenced, MOST_OF_A_CALL, NewCall, Period, Reserved, Settled,
    SettledCall, SpendScope, StoreError,
};
use tests::{Database, Runner};

use crate::caller::{Caller, account, cost, daily, unknown, usd};

const NOW: Settled = Settled::Now { overrun: Usd::ZERO };

#[tokio::test]
async fn a_call_is_settled_once_and_the_first_word_counts() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let caller = Caller::new(&runner, "s", &daily(1_000)).await;
    let call = caller.granted(100).await;
    assert_eq!(caller.settle(&call, cost(40)).await, NOW);
    for outcome in [cost(40), cost(41), CallOutcome::Free, unknown()] {
        assert_eq!(caller.settle(&call, outcome).await, Settled::Before);
    }
    let call = caller.granted(100).await;
    assert_eq!(caller.settle(&call, CallOutcome::Free).await, NOW);
    assert_eq!(caller.settle(&call, cost(40)).await, Settled::Before);
    let call = caller.granted(100).await;
    assert_eq!(caller.settle(&call, unknown()).await, NOW);
    assert_eq!(caller.settle(&call, unknown()).await, Settled::Before);
    assert_eq!(account(&runner.store, "fleet:day:").await, (140, 0));
    assert_eq!(account(&runner.store, "user:month:").await, (140, 0));
    database.audited().await;
}

#[tokio::test]
async fn a_cost_that_is_not_known_can_be_learnt_later() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let caller = Caller::new(&runner, "s", &daily(1_000)).await;
    let call = caller.granted(100).await;
    caller.settle(&call, unknown()).await;
    let open = caller.granted(50).await;
    let listed = runner.store.unknown_calls(10).await.expect("an answer");
    assert_eq!(
        listed.iter().map(|it| (it.call_id, it.cost_microusd)).collect::<Vec<_>>(),
        [(call.call_id, 100)]
    );
    assert_eq!(listed[0].provider_request_id.as_deref(), Some("req-1"));
    let settle =
        async |id, micros| runner.store.settle_unknown(id, usd(micros), "ann").await.expect("an answer");
    assert!(!settle(open.call_id, 1).await, "it is under way");
    assert!(settle(call.call_id, 30).await);
    assert!(!settle(call.call_id, 40).await, "it is settled");
    assert_eq!(account(&runner.store, "fleet:day:").await, (30, 50));
    assert_eq!(database.count("SELECT count(*) FROM harness_audit_log WHERE act = 'call_settled'").await, 1);
    caller.settle(&open, cost(50)).await;
    database.audited().await;
}

#[tokio::test]
async fn a_call_that_costs_more_than_was_held_shuts_its_accounts() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let caller = Caller::new(&runner, "s", &daily(100)).await;
    let call = caller.granted(90).await;
    assert_eq!(caller.settle(&call, cost(95)).await, Settled::Now { overrun: usd(5) });
    let Reserved::Spent { account: shut_one, shut, .. } = caller.reserve(&caller.call(1)).await else {
        panic!("shut")
    };
    assert!(shut, "{shut_one}");
    database.audited().await;
    assert!(runner.store.reopen_account(&shut_one, "ann").await.expect("an answer"));
    caller.granted(5).await;
    database.audited().await;
}

#[tokio::test]
async fn a_cost_that_no_call_can_have_is_refused_where_it_would_enter() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let (store, caller) = (&runner.store, Caller::new(&runner, "s", &[]).await);
    let most = MOST_OF_A_CALL.micros();
    let refused = |error: StoreError| {
        let StoreError::Refused { message, .. } = &error else { panic!("{error:?}") };
        assert!(message.contains("got $1000000.000001, expected at most $1000000.000000"), "{message}");
        assert!(!error.is_retryable());
    };
    refused(store.reserve(caller.call(most + 1)).await.expect_err("it is refused"));
    let call = caller.granted(most).await;
    let (outcome, used) = (cost(most + 1), Vec::new());
    let settled = SettledCall { call: call.clone(), outcome, provider_request_id: None, answer: None, used };
    refused(store.settle(settled).await.expect_err("it is refused"));
    assert_eq!(account(store, "fleet:day:").await, (0, most as i64), "it is held until its cost is known");
    caller.settle(&call, unknown()).await;
    refused(store.settle_unknown(call.call_id, usd(most + 1), "ann").await.expect_err("it is refused"));
    assert!(store.settle_unknown(call.call_id, usd(most), "ann").await.expect("an answer"));
    assert_eq!(account(store, "fleet:day:").await, (most as i64, 0));
    database.audited().await;
}

#[tokio::test]
async fn more_than_an_account_can_hold_stops_nothing() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let (store, caller) = (&runner.store, Caller::new(&runner, "s", &[]).await);
    let most = MOST_OF_A_CALL.micros();
    caller.granted(1).await;
    // As if nine million calls had cost the most that one can.
    database
        .execute(&format!(
            "UPDATE harness_accounts SET spent_microusd = {top} - {most}, held_microusd = {top} - {most},
                                         overrun_microusd = {top} - {most}",
            top = i64::MAX
        ))
        .await;
    for _ in 0..2 {
        let calls = [caller.granted(most).await, caller.granted(1).await, caller.granted(1).await];
        tokio::join!(
            caller.settle(&calls[0], unknown()),
            caller.settle(&calls[1], cost(most)),
            caller.settle(&calls[2], cost(most)),
        );
        store.spend_gauges().await.expect("sums of moves");
        assert_eq!(account(store, "fleet:day:").await.0, i64::MAX);
        while store.fold_accounts().await.expect("folded") > 0 {}
    }
    assert_eq!(account(store, "fleet:day:").await.0, i64::MAX);
    let limit = usd(1_000);
    let name = caller.spec.agent_id.to_string();
    let budget = Budget { scope: SpendScope::Agent, period: Period::Month, name, limit };
    store.set_budget(&budget, "ann").await.expect("set");
    let answer = caller.reserve(&caller.call(1)).await;
    let Reserved::Spent { account: shut, .. } = answer else { panic!("{answer:?}") };
    assert!(store.reopen_account(&shut, "ann").await.expect("opened"));
}

/// What the run of a caller adds to its session for an answer.
fn added(caller: &Caller) -> CheckpointRow {
    CheckpointRow {
        claim: caller.run.claim.clone(),
        ordinal: 0,
        delta: "{}".to_owned(),
        entries: Some(r#"["said"]"#.into()),
        iterations: 1,
        cost: usd(9),
        input_tokens: 3,
        output_tokens: 4,
    }
}

fn settled(call: &NewCall) -> SettledCall {
    let outcome = cost(9);
    SettledCall { call: call.clone(), outcome, provider_request_id: None, answer: None, used: Vec::new() }
}

#[tokio::test]
async fn what_a_run_adds_for_an_answer_is_written_with_its_settlement_and_once() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let (store, caller) = (&runner.store, Caller::new(&runner, "s", &daily(100)).await);
    let call = caller.granted(10).await;
    let both = async || store.settle_and_checkpoint(settled(&call), added(&caller)).await.expect("an answer");
    assert_eq!(both().await, (NOW, Fenced::Done(())));
    // The reply was lost.
    assert_eq!(both().await, (Settled::Before, Fenced::Done(())));
    let rows = "SELECT count(*) FROM harness_checkpoints WHERE context_json::text = '[\"said\"]'";
    assert_eq!(database.count(rows).await, 1);
    assert_eq!(account(store, "fleet:day:").await, (9, 0));
    caller.succeed().await;
    assert_eq!(database.count("SELECT cost_microusd FROM harness_results").await, 9);
    database.audited().await;
}

#[tokio::test]
async fn a_run_that_has_lost_its_job_settles_and_adds_nothing() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let (store, stale) = (&runner.store, Caller::new(&runner, "s", &daily(100)).await);
    let call = stale.granted(10).await;
    stale.hand_back().await;
    let newer = stale.again(&runner).await;
    let both = store.settle_and_checkpoint(settled(&call), added(&stale)).await.expect("an answer");
    // What a run left open is unknown until the one who made it says what it cost.
    assert_eq!(both, (NOW, Fenced::Lost));
    assert_eq!(database.count("SELECT count(*) FROM harness_checkpoints").await, 0);
    assert_eq!(account(store, "fleet:day:").await, (9, 0));
    // The two may come together.
    let calls = [newer.granted(10).await, stale.call(10)];
    let (of_newer, of_stale) = tokio::join!(
        store.settle_and_checkpoint(settled(&calls[0]), added(&newer)),
        store.settle_and_checkpoint(settled(&calls[1]), added(&stale)),
    );
    assert_eq!(of_newer.expect("an answer").1, Fenced::Done(()));
    assert_eq!(of_stale.expect("an answer").1, Fenced::Lost);
    newer.succeed().await;
    database.audited().await;
}
