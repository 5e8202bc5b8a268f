//! What a run left open counts in full, from the transaction on that ends the run.

use std::time::Duration;

use store::{CallOutcome, Reserved, Settled, Store};
use tests::{Database, Runner, declare_dead, until};

use crate::caller::{Caller, account, cost, daily, usd};

async fn die(store: &Store) {
    until("its lease is over", async || (!declare_dead(store).await.is_empty()).then_some(())).await;
}

#[tokio::test]
async fn a_dead_workers_calls_count_in_full_until_their_maker_settles_them() {
    let database = Database::new().await;
    let store = database.store();
    let dying = Runner::with_lease(&store, Duration::from_millis(1)).await;
    let caller = Caller::new(&dying, "s", &daily(1_000)).await;
    let calls = [caller.granted(100).await, caller.granted(200).await, caller.granted(300).await];
    caller.settle(&calls[0], cost(10)).await;
    die(&store).await;
    assert_eq!(account(&store, "fleet:day:").await, (10, 500), "a hold has no timer");
    store.rescue().await.expect("rescued");
    assert_eq!(account(&store, "fleet:day:").await, (510, 0));
    database.audited().await;
    let now = Settled::Now { overrun: usd(0) };
    assert_eq!(caller.settle(&calls[1], cost(20)).await, now);
    assert_eq!(caller.settle(&calls[2], CallOutcome::Free).await, now);
    assert_eq!(caller.settle(&calls[2], cost(1)).await, Settled::Before);
    assert_eq!(account(&store, "fleet:day:").await, (30, 0));
    database.audited().await;
}

#[tokio::test]
async fn a_newer_run_leaves_nothing_held_of_the_run_before_it() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let first = Caller::new(&runner, "s", &daily(1_000)).await;
    first.granted(100).await;
    // The reply to the claim was lost, so the same worker claims again.
    let second = first.again(&runner).await;
    assert_eq!(account(&runner.store, "fleet:day:").await, (100, 0));
    second.granted(7).await;
    second.hand_back().await;
    assert_eq!(
        account(&runner.store, "fleet:day:").await,
        (100, 7),
        "its answer may still be read to the end"
    );
    let third = second.again(&runner).await;
    assert_eq!(account(&runner.store, "fleet:day:").await, (107, 0));
    third.granted(1).await;
    database.audited().await;
}

#[tokio::test]
async fn a_call_of_a_job_that_has_ended_is_held_until_its_worker_is_gone() {
    let database = Database::new().await;
    let store = database.store();
    let dying = Runner::with_lease(&store, Duration::from_millis(1)).await;
    let stopping = Runner::register(&store).await;
    for runner in [&dying, &stopping] {
        let caller = Caller::new(runner, &runner.worker.to_string(), &daily(1_000)).await;
        caller.granted(50).await;
        caller.succeed().await;
    }
    assert_eq!(account(&store, "fleet:day:").await, (0, 100));
    die(&store).await;
    store.rescue().await.expect("rescued");
    assert_eq!(account(&store, "fleet:day:").await, (50, 50));
    store.mark_stopped(stopping.worker).await.expect("stopped");
    assert_eq!(account(&store, "fleet:day:").await, (100, 0));
    database.audited().await;
}

#[tokio::test]
async fn what_a_process_of_an_older_release_has_left_open_is_found() {
    let database = Database::new().await;
    let store = database.store();
    let (one, other) = (Runner::register(&store).await, Runner::register(&store).await);
    let dead = Caller::new(&one, "s", &daily(1_000)).await;
    dead.granted(10).await;
    let taken = Caller::new(&other, "t", &daily(1_000)).await;
    taken.granted(20).await;
    Caller::new(&other, "u", &daily(1_000)).await.granted(40).await;
    let job = taken.spec.job_id;
    let worker = one.worker;
    database
        .execute(&format!(
            "UPDATE harness_jobs SET epoch = nextval('harness_epoch') WHERE job_id = '{job}';
             UPDATE harness_workers SET state = 'dead', ended_at = now(), rescued_at = now() WHERE worker_id = '{worker}'"
        ))
        .await;
    assert_eq!(store.leave_lost_calls().await.expect("left"), 2);
    assert_eq!(account(&store, "fleet:day:").await, (30, 40));
    assert_eq!(store.leave_lost_calls().await.expect("left"), 0);
}

#[tokio::test]
async fn after_a_restore_every_call_that_was_held_counts_in_full() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let caller = Caller::new(&runner, "s", &daily(100)).await;
    caller.granted(40).await;
    // Another server has given out other numbers of transactions.
    store.fold_accounts().await.expect("folded");
    database.execute("UPDATE harness_accounts SET folded_tx = '9000000000'").await;
    caller.granted(60).await;
    assert!(matches!(caller.reserve(&caller.call(1)).await, Reserved::Busy { .. }));
    assert_eq!(account(&store, "fleet:day:").await, (0, 100));
    let revived = store.revive("ann").await.expect("revived");
    assert_eq!((revived.calls, revived.last_call.is_some()), (2, true));
    assert_eq!(account(&store, "fleet:day:").await, (100, 0));
    assert_eq!(database.count("SELECT count(*) FROM harness_accounts WHERE folded_tx <> '0'").await, 0);
    database.audited().await;
}
