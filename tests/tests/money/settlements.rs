//! A call is settled once, by the one who made it, whenever that is.

use job::Usd;
use store::{Budget, CallOutcome, Period, Reserved, Settled, SpendScope};
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
async fn costs_that_no_sum_can_hold_stop_nothing() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let (store, caller) = (&runner.store, Caller::new(&runner, "s", &[]).await);
    for _ in 0..2 {
        let calls = [caller.granted(u64::MAX).await, caller.granted(10).await, caller.granted(10).await];
        tokio::join!(
            caller.settle(&calls[0], unknown()),
            caller.settle(&calls[1], cost(u64::MAX)),
            caller.settle(&calls[2], cost(u64::MAX)),
        );
        store.spend_gauges().await.expect("sums of moves");
        assert_eq!(account(store, "fleet:day:").await.0, i64::MAX);
        while store.fold_accounts().await.expect("folded") > 0 {}
    }
    assert_eq!(account(store, "fleet:day:").await.0, i64::MAX);
    let gauges = store.spend_gauges().await.expect("sums");
    assert_eq!(gauges.unknown, Usd::MAX);
    assert_eq!(store.spend(&[], 1).await.expect("sums")[0].cost_microusd, i64::MAX);
    store.paid_before(&caller.run.claim).await.expect("sums");
    let limit = usd(1_000);
    let budget = Budget { scope: SpendScope::Session, period: Period::Life, name: "s".to_owned(), limit };
    store.set_budget(&budget, "ann").await.expect("set");
    let answer = caller.reserve(&caller.call(1)).await;
    let Reserved::Spent { account: shut, .. } = answer else { panic!("{answer:?}") };
    assert!(store.reopen_account(&shut, "ann").await.expect("opened"));
}
