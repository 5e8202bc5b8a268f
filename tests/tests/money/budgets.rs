//! A limit that an operator sets holds for the next call, and counts what was spent before it.

use sqlx::Connection;
use store::{Budget, CallOutcome, Period, Reserved, SpendBy, SpendScope};
use tests::{Database, Runner};

use crate::caller::{Caller, account, cost, daily, usd};

fn budget(scope: SpendScope, period: Period, name: &str, micros: u64) -> Budget {
    Budget { scope, period, name: name.to_owned(), limit: usd(micros) }
}

#[tokio::test]
async fn a_limit_that_is_set_later_counts_what_was_spent_and_held_before() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let caller = Caller::new(&runner, "s", &[]).await;
    let (settled, held) = (caller.granted(50).await, caller.granted(30).await);
    caller.settle(&settled, cost(40)).await;
    let job = caller.spec.job_id.to_string();
    for (scope, period, name) in [
        (SpendScope::Fleet, Period::Day, ""),
        (SpendScope::Fleet, Period::Month, ""),
        (SpendScope::Tenant, Period::Day, "default"),
        (SpendScope::Agent, Period::Day, "coder"),
        (SpendScope::User, Period::Month, "default/ann"),
        (SpendScope::Session, Period::Life, "s"),
        (SpendScope::Job, Period::Life, job.as_str()),
    ] {
        let budget = budget(scope, period, name, 100);
        store.set_budget(&budget, "ann").await.expect("set");
        assert_eq!(store.budgets().await.expect("an answer"), [budget]);
        let over = caller.reserve(&caller.call(31)).await;
        assert!(
            matches!(&over, Reserved::Busy { account } if account.starts_with(scope.as_str())),
            "{over:?}"
        );
        let call = caller.granted(30).await;
        caller.settle(&call, CallOutcome::Free).await;
        assert!(store.remove_budget(scope, period, name, "ann").await.expect("an answer"));
        caller.settle(&caller.granted(31).await, CallOutcome::Free).await;
        database.audited().await;
    }
    caller.settle(&held, cost(30)).await;
    for scope in ["fleet:", "tenant:", "agent:", "user:", "session:", "job:"] {
        assert_eq!(account(&store, scope).await, (70, 0), "{scope}");
    }
    assert_eq!(database.count("SELECT count(*) FROM harness_audit_log").await, 14);
    database.audited().await;
}

#[tokio::test]
async fn a_limit_that_is_lowered_below_what_is_spent_stops_the_next_call() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let caller = Caller::new(&runner, "s", &daily(100)).await;
    caller.settle(&caller.granted(80).await, cost(80)).await;
    store.set_budget(&budget(SpendScope::Fleet, Period::Day, "", 50), "ann").await.expect("set");
    assert!(
        matches!(caller.reserve(&caller.call(1)).await, Reserved::Spent { limit, .. } if limit == usd(50))
    );
    database.audited().await;
    // The worker's own limit is lower now.
    store.set_budget(&budget(SpendScope::Fleet, Period::Day, "", 500), "ann").await.expect("set");
    assert!(
        matches!(caller.reserve(&caller.call(21)).await, Reserved::Spent { limit, .. } if limit == usd(100))
    );
    caller.granted(20).await;
}

/// Makes the reservation of a call of this cost wait in the middle, when it has looked at the limits, while somebody holds
/// the lock 42.
const HALT: &str = "
    CREATE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NEW; END $$;
    CREATE TRIGGER halt BEFORE INSERT ON harness_calls FOR EACH ROW
        WHEN (NEW.reserved_microusd = 61) EXECUTE FUNCTION halt()";

#[tokio::test]
async fn a_limit_that_is_set_for_the_first_time_counts_a_reservation_that_was_under_way() {
    let database = Database::new().await;
    let stores = [database.store(), database.store()];
    let [early, late] = [Runner::register(&stores[0]).await, Runner::register(&stores[1]).await];
    let (early, late) = (Caller::new(&early, "s", &[]).await, Caller::new(&late, "t", &[]).await);
    // Its accounts are open.
    early.settle(&early.granted(1).await, CallOutcome::Free).await;
    database.execute(HALT).await;
    let mut other = database.connect().await;
    let mut holding = other.begin().await.expect("a transaction");
    sqlx::query("SELECT pg_advisory_xact_lock(42)").execute(&mut *holding).await.expect("held");
    let waiting = async |count: i64| {
        let blocked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let look = async || (database.count(blocked).await == count).then_some(());
        tests::until(&format!("{count} wait"), look).await;
    };
    let first = early.call(61);
    let under_way = early.reserve(&first);
    let limited = async {
        waiting(1).await;
        let budget = budget(SpendScope::Fleet, Period::Day, "", 100);
        let (second, setting) = (late.call(61), stores[1].set_budget(&budget, "ann"));
        setting.await.expect("set");
        late.reserve(&second).await
    };
    // Either the limit waits for the first call, or the second call waits beside it.
    let releasing = async {
        waiting(2).await;
        holding.commit().await.expect("committed");
    };
    let (first, second, ()) = tokio::join!(under_way, limited, releasing);
    assert_eq!(first, Reserved::Granted);
    assert!(matches!(second, Reserved::Busy { .. }), "{second:?}");
    assert_eq!(account(&stores[0], "fleet:day:").await, (0, 61));
    database.audited().await;
}

#[tokio::test]
async fn the_zone_of_days_is_one_for_the_fleet_and_stays_once_anything_is_counted() {
    let database = Database::new().await;
    let store = database.store();
    assert_eq!(store.set_spend_zone("Asia/Kathmandu").await.expect("an answer"), "Asia/Kathmandu");
    assert!(store.set_spend_zone("Mars/Olympus").await.is_err());
    let runner = Runner::register(&store).await;
    let caller = Caller::new(&runner, "s", &daily(100)).await;
    caller.granted(1).await;
    assert_eq!(store.set_spend_zone("UTC").await.expect("an answer"), "Asia/Kathmandu");
    let local = "SELECT count(*) FROM harness_accounts
                  WHERE key = 'fleet:day:' || to_char(now() AT TIME ZONE 'Asia/Kathmandu', 'YYYY-MM-DD') || ':'";
    assert_eq!(database.count(local).await, 1);
    database.audited().await;
}

#[tokio::test]
async fn what_was_spent_is_summed_by_what_is_asked_for() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let (one, two) = (Caller::new(&runner, "s", &[]).await, Caller::new(&runner, "t", &[]).await);
    one.settle(&one.granted(10).await, cost(5)).await;
    one.settle(&one.granted(10).await, crate::caller::unknown()).await;
    two.granted(7).await;
    let rows = store.spend(&[SpendBy::Agent, SpendBy::Model], 1).await.expect("sums");
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].of, ["coder", "m"]);
    let row = &rows[0];
    assert_eq!((row.calls, row.cost_microusd, row.unknown_microusd, row.held_microusd), (3, 15, 10, 7));
    assert_eq!(
        (row.input_tokens, row.cache_read_tokens, row.cache_write_tokens, row.output_tokens),
        (3, 2, 1, 4)
    );
    let by_job = store.spend(&[SpendBy::Job], 1).await.expect("sums");
    assert_eq!(by_job.iter().map(|row| row.cost_microusd).sum::<i64>(), 15);
    assert_eq!(by_job.len(), 2);
    assert_eq!(store.spend(&[], 1).await.expect("sums")[0].calls, 3);
}
