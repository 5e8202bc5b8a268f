//! A limit of all calls of a session or a job holds for as long as there may be another call. It names a user by any id that a
//! job may have.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection};
use store::{Budget, NewCall, Period, Reserved, SpendScope};
use tests::{Database, Fleet, Runner, until};

use crate::caller::{Caller, account, cost, limit, usd};

const MONTH: Duration = Duration::from_secs(30 * 86_400);

fn for_life(scope: SpendScope, name: &str) -> Budget {
    Budget { scope, period: Period::Life, name: name.to_owned(), limit: usd(100) }
}

#[tokio::test]
async fn a_limit_for_life_does_not_begin_anew_after_months_without_a_call() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let limits = [limit(SpendScope::Job, Period::Life, 100)];
    let (lives, ended, named) = (
        Caller::new(&runner, "lives", &limits).await,
        Caller::new(&runner, "ended", &limits).await,
        Caller::new(&runner, "named", &limits).await,
    );
    store.set_budget(&for_life(SpendScope::Session, "ended"), "ann").await.expect("set");
    store.set_budget(&for_life(SpendScope::Job, &named.spec.job_id.to_string()), "ann").await.expect("set");
    for caller in [&lives, &ended, &named] {
        caller.settle(&caller.granted(60).await, cost(60)).await;
    }
    ended.succeed().await;
    named.succeed().await;
    while store.fold_accounts().await.expect("folded") > 0 {}
    database
        .execute(
            "UPDATE harness_accounts SET changed_at = now() - interval '90 days' WHERE key LIKE '%:life:%'",
        )
        .await;
    store.forget_spend(MONTH).await.expect("forgotten");
    let mut kept = vec![
        format!("job:life::{}", lives.spec.job_id),
        format!("job:life::{}", named.spec.job_id),
        "session:life::ended".to_owned(),
    ];
    kept.sort();
    let life = "SELECT key FROM harness_accounts WHERE key LIKE '%:life:%' ORDER BY key";
    assert_eq!(database.texts(life).await, kept, "of the job that has ended nothing can be spent");
    let refused = lives.reserve(&lives.call(41)).await;
    assert!(matches!(refused, Reserved::Spent { .. }), "{refused:?}");
    let later = Caller::new(&runner, "ended", &[]).await;
    let refused = later.reserve(&later.call(41)).await;
    assert!(
        matches!(&refused, Reserved::Spent { account, .. } if account == "session:life::ended"),
        "{refused:?}"
    );
    later.granted(40).await;
}

#[tokio::test]
async fn an_account_that_is_opened_locks_its_calls_in_the_order_in_which_settlements_do() {
    for (scope, key) in [(SpendScope::Session, "session:life:"), (SpendScope::Job, "job:life:")] {
        let database = Database::new().await;
        let runner = Runner::register(&database.store()).await;
        let caller = Caller::new(&runner, "s", &[]).await;
        // The one with the greater id lies first in the table and its index.
        let (lower, greater) = (caller.call(10), caller.call(10));
        for call in [&greater, &lower] {
            assert_eq!(caller.reserve(call).await, Reserved::Granted);
        }
        let mut other = database.connect().await;
        let mut settling = other.begin().await.expect("a transaction");
        let lock = format!("SELECT FROM harness_calls WHERE call_id = '{}' FOR UPDATE", lower.call_id);
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *settling).await.expect("locked");
        let opener = Caller { limits: vec![limit(scope, Period::Life, 100)], ..caller };
        let call = opener.call(1);
        let meanwhile = async {
            let blocked = "SELECT count(*) FROM pg_stat_activity
                            WHERE datname = current_database() AND wait_event_type = 'Lock'";
            until("it waits", async || (database.count(blocked).await > 0).then_some(())).await;
            let free = format!(
                "SELECT count(*) FROM (SELECT FROM harness_calls WHERE call_id = '{}' FOR UPDATE SKIP LOCKED) free",
                greater.call_id
            );
            assert_eq!(database.count(&free).await, 1, "{scope:?}: the greater id is locked first");
            settling.rollback().await.expect("released");
        };
        let (reserved, ()) = tokio::join!(opener.reserve(&call), meanwhile);
        assert_eq!(reserved, Reserved::Granted);
        assert_eq!(account(&runner.store, key).await, (0, 21), "{scope:?}");
        database.audited().await;
    }
}

#[tokio::test]
async fn a_limit_names_a_user_by_any_id_that_a_job_may_have() {
    let fleet = Fleet::new().await;
    let longest = "é".repeat(127);
    for user in ["ann@example.com", "=1+1, \"she\": said/it", longest.as_str()] {
        let of = format!("--user={user}");
        let set = fleet.producer(&["budget", "set", "0.000010", "--per", "day", &of]).await;
        assert_eq!(set.code, 0, "{set:?}");
        let runner = Runner::register(&fleet.store).await;
        let caller = Caller::new(&runner, "s", &[]).await;
        let call = |micros| NewCall { user_id: Some(user.to_owned()), ..caller.call(micros) };
        let refused = caller.reserve(&call(11)).await;
        assert!(
            matches!(&refused, Reserved::Spent { account, .. } if account.ends_with(user)),
            "{refused:?}"
        );
        assert_eq!(caller.reserve(&call(10)).await, Reserved::Granted);
        let removed = fleet.producer(&["budget", "remove", "--per", "day", &of]).await;
        assert_eq!(removed.code, 0, "{removed:?}");
        caller.succeed().await;
    }
    for user in [String::new(), "a\nb".to_owned(), "x".repeat(256)] {
        let refused =
            fleet.producer(&["budget", "set", "1", "--per", "day", &format!("--user={user}")]).await;
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.err.contains("expected 1 to 255 bytes without control characters"), "{refused:?}");
    }
}
