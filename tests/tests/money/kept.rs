//! Daily sums outlive the calls, and calls are kept for as long as an account needs them. Each step of the upkeep is done,
//! whatever becomes of the others.

use std::time::Duration;

use store::{SpendBy, Store};
use tests::{Database, Fleet, Runner, declare_dead, until};

use crate::caller::{Caller, cost, daily};

const DAY: Duration = Duration::from_secs(86_400);

/// A ledger with partitions for the last hundred days.
async fn with_a_hundred_days() -> (Database, Store) {
    let database = Database::empty().await;
    database.migrate().await;
    let store = database.store();
    store.maintain_partitions(100 * DAY).await.expect("partitions");
    (database, store)
}

#[tokio::test]
async fn retention_takes_old_calls_and_leaves_their_daily_sums() {
    let (database, store) = with_a_hundred_days().await;
    let runner = Runner::register(&store).await;
    let caller = Caller::new(&runner, "s", &daily(1_000)).await;
    for micros in [3, 4] {
        caller.settle(&caller.granted(10).await, cost(micros)).await;
    }
    // They were made 90 days ago.
    database
        .execute(
            "WITH old AS (DELETE FROM harness_calls RETURNING *)
             INSERT INTO harness_calls
             SELECT made.* FROM old, jsonb_populate_record(NULL::harness_calls, to_jsonb(old) || jsonb_build_object(
                        'day', day - 90, 'reserved_at', reserved_at - interval '90 days',
                        'call_id', lpad(to_hex(('x' || substr(replace(call_id::text, '-', ''), 1, 12))::bit(48)::bigint
                                               - 90 * 86400000::bigint), 12, '0')
                                   || substr(replace(call_id::text, '-', ''), 13))) made;
             DELETE FROM harness_account_moves; DELETE FROM harness_accounts",
        )
        .await;
    caller.settle(&caller.granted(10).await, cost(5)).await;
    database.audited().await;
    let sums = store.spend(&[SpendBy::Day, SpendBy::User], 100).await.expect("sums");
    assert_eq!(sums.iter().map(|row| row.cost_microusd).collect::<Vec<_>>(), [7, 5]);
    store.maintain_partitions(2 * DAY).await.expect("partitions");
    assert_eq!(database.count("SELECT count(*) FROM harness_calls").await, 1);
    assert_eq!(database.count("SELECT count(*) FROM harness_spend").await, 1);
    assert_eq!(store.spend(&[SpendBy::Day, SpendBy::User], 100).await.expect("sums"), sums);
    database.audited().await;
}

#[tokio::test]
async fn a_call_that_is_held_keeps_its_partition() {
    let (database, store) = with_a_hundred_days().await;
    let runner = Runner::register(&store).await;
    let caller = Caller::new(&runner, "s", &daily(1_000)).await;
    caller.granted(10).await;
    database.execute("UPDATE harness_calls SET reserved_at = now() - interval '95 days'").await;
    let parts = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'harness_calls'::regclass";
    let before = database.count(parts).await;
    store.maintain_partitions(2 * DAY).await.expect("partitions");
    assert!(database.count(parts).await >= before - 1, "at most the first day of the oldest is not needed");
    assert_eq!(database.count("SELECT count(*) FROM harness_calls").await, 1);
}

#[tokio::test]
async fn upkeep_goes_on_behind_a_step_that_fails() {
    let fleet = Fleet::new().await;
    let dying = Runner::with_lease(&fleet.store, Duration::from_millis(1)).await;
    Caller::new(&dying, "s", &daily(1_000)).await.granted(10).await;
    until("its lease is over", async || (!declare_dead(&fleet.store).await.is_empty()).then_some(())).await;
    // The call that is left open cannot be counted, and the moves are folded all the same.
    let refuse = "
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not that'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON harness_calls FOR EACH ROW EXECUTE FUNCTION refuse()";
    fleet.database.execute(refuse).await;
    let moves = "SELECT count(*) FROM harness_account_moves";
    assert!(fleet.database.count(moves).await > 0);
    let _worker = fleet.worker("worker").start().await;
    until("they are folded", async || (fleet.database.count(moves).await == 0).then_some(())).await;
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_calls WHERE state = 'held'").await, 1);
}
