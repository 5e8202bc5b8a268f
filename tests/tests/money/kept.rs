//! Daily sums outlive the calls, and calls are kept for as long as an account needs them.

use std::time::Duration;

use store::{SpendBy, Store};
use tests::{Database, Runner};

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
