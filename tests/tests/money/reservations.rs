//! A reservation is granted only where it fits under every limit, however many are asked for at once.

use std::time::Duration;

use futures::future::join_all;
use sqlx::Connection;
use store::{NewCall, Period, RateUse, Reserved, Settled, SpendScope, Take};
use tests::{Database, Runner, declare_dead};

use crate::caller::{Caller, account, cost, daily, limit, unknown};

#[tokio::test]
async fn what_is_held_makes_a_call_wait_and_only_what_is_spent_stops_it() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let caller = Caller::new(&runner, "s", &daily(100)).await;
    let first = caller.granted(60).await;
    let Reserved::Busy { account: busy } = caller.reserve(&caller.call(50)).await else { panic!("busy") };
    assert!(busy.starts_with("fleet:day:"), "{busy}");
    caller.settle(&first, cost(20)).await;
    let second = caller.granted(80).await;
    assert_eq!(account(&runner.store, "fleet:day:").await, (20, 80));
    caller.settle(&second, unknown()).await;
    assert_eq!(account(&runner.store, "fleet:day:").await, (100, 0));
    let Reserved::Spent { limit, shut, room, .. } = caller.reserve(&caller.call(1)).await else {
        panic!("spent")
    };
    assert_eq!((limit.micros(), shut, room.micros()), (100, false, 0));
    database.audited().await;
}

#[tokio::test]
async fn every_limit_counts_its_own_calls_and_the_lowest_holds() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let limits = [
        limit(SpendScope::Fleet, Period::Day, 1_000),
        limit(SpendScope::Fleet, Period::Month, 900),
        limit(SpendScope::Tenant, Period::Day, 800),
        limit(SpendScope::Agent, Period::Month, 700),
        limit(SpendScope::User, Period::Day, 600),
        limit(SpendScope::Session, Period::Life, 500),
        limit(SpendScope::Job, Period::Life, 400),
    ];
    let caller = Caller::new(&runner, "s", &limits).await;
    for (at, allowed) in [(6, 400), (5, 500), (4, 600), (3, 700), (2, 800), (1, 900), (0, 1_000)] {
        let caller = Caller { limits: limits[..=at].to_vec(), ..caller.clone() };
        let (scope, period) = (limits[at].scope.as_str(), limits[at].period.as_str());
        let answer = caller.reserve(&caller.call(allowed + 1)).await;
        let Reserved::Spent { account, limit, room, .. } = answer else { panic!("{scope}: {answer:?}") };
        assert!(account.starts_with(&format!("{scope}:{period}:")), "{account}");
        assert_eq!((limit.micros(), room.micros()), (allowed, allowed));
        let call = caller.granted(allowed).await;
        caller.settle(&call, store::CallOutcome::Free).await;
    }
    database.audited().await;
}

#[tokio::test]
async fn many_at_once_never_hold_more_than_the_limit() {
    let database = Database::new().await;
    let stores = [database.store(), database.store()];
    let runners = [Runner::register(&stores[0]).await, Runner::register(&stores[1]).await];
    let mut callers = Vec::new();
    for at in 0..24 {
        callers.push(Caller::new(&runners[at % 2], &format!("s-{at}"), &daily(1_000)).await);
    }
    let spending = callers.iter().map(async |caller| {
        let (mut spent, mut granted) = (0, 0);
        loop {
            let call = caller.call(30);
            match caller.reserve(&call).await {
                Reserved::Granted => {
                    granted += 1;
                    assert_eq!(
                        caller.settle(&call, cost(17)).await,
                        Settled::Now { overrun: job::Usd::ZERO }
                    );
                    spent += 17;
                }
                Reserved::Busy { .. } | Reserved::Later { .. } => {
                    tokio::time::sleep(Duration::from_millis(2)).await
                }
                Reserved::Spent { .. } => return (spent, granted),
                Reserved::Lost => panic!("the run is live"),
                Reserved::Answered(_) => panic!("nothing is stored"),
            }
        }
    });
    let done = database.audited_while(join_all(spending)).await;
    let spent: i64 = done.iter().map(|it| it.0).sum();
    assert!((970..=1_000).contains(&spent), "{spent} of 1000 in {done:?}");
    assert_eq!(account(&stores[0], "fleet:day:").await, (spent, 0));
    while stores[0].fold_accounts().await.expect("folded") > 0 {}
    assert_eq!(database.count("SELECT count(*) FROM harness_account_moves").await, 0);
    assert_eq!(account(&stores[0], "fleet:day:").await, (spent, 0));
    database.audited().await;
}

#[tokio::test]
async fn the_moves_of_an_account_are_folded_while_it_is_used() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let caller = Caller::new(&runner, "s", &daily(1_000_000)).await;
    // One after the other, so that each is a batch of its own.
    for _ in 0..200 {
        let call = caller.granted(10).await;
        caller.settle(&call, cost(2)).await;
    }
    let moves = "SELECT count(*) FROM harness_account_moves WHERE key LIKE 'fleet:day:%'";
    let moves = database.count(moves).await;
    assert!(moves < 300, "{moves} moves are not folded");
    assert_eq!(account(&runner.store, "fleet:day:").await, (400, 0));
    let folded =
        database.count("SELECT spent_microusd FROM harness_accounts WHERE key LIKE 'fleet:day:%'").await;
    assert!(folded > 0);
    while runner.store.fold_accounts().await.expect("folded") > 0 {}
    assert_eq!(database.count("SELECT count(*) FROM harness_account_moves").await, 0);
    assert_eq!(account(&runner.store, "tenant:month:").await, (400, 0));
    database.audited().await;
}

#[tokio::test]
async fn a_reservation_whose_reply_was_lost_is_asked_for_again_and_held_once() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let caller = Caller::new(&runner, "s", &daily(100)).await;
    let call = caller.granted(100).await;
    assert_eq!(caller.reserve(&call).await, Reserved::Granted);
    assert_eq!(account(&runner.store, "fleet:day:").await, (0, 100));
    caller.settle(&call, cost(5)).await;
    assert_eq!(caller.reserve(&call).await, Reserved::Lost, "it was settled");
    database.audited().await;
}

#[tokio::test]
async fn a_settlement_wins_over_the_reservation_that_arrives_after_it() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let caller = Caller::new(&runner, "s", &daily(100)).await;
    let call = caller.call(60);
    caller.settle(&call, store::CallOutcome::Free).await;
    assert_eq!(caller.reserve(&call).await, Reserved::Lost);
    assert_eq!(account(&runner.store, "fleet:day:").await, (0, 0));
    // The same while the reservation is under way: it waits for the account.
    for _ in 0..20 {
        let call = caller.call(60);
        let (reserved, _) =
            tokio::join!(caller.reserve(&call), caller.settle(&call, store::CallOutcome::Free));
        assert!(matches!(reserved, Reserved::Granted | Reserved::Lost), "{reserved:?}");
        assert_eq!(account(&runner.store, "fleet:day:").await, (0, 0));
    }
    database.audited().await;
}

#[tokio::test]
async fn a_run_that_is_over_reserves_nothing() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let ended = Caller::new(&runner, "ended", &daily(100)).await;
    ended.succeed().await;
    assert_eq!(ended.reserve(&ended.call(1)).await, Reserved::Lost);
    let before = Caller::new(&runner, "again", &daily(100)).await;
    before.hand_back().await;
    let now = before.again(&runner).await;
    assert_eq!(before.reserve(&before.call(1)).await, Reserved::Lost);
    now.granted(1).await;

    let dying = Runner::with_lease(&store, Duration::from_millis(1)).await;
    let lost = Caller::new(&dying, "lost", &daily(100)).await;
    tests::until("its lease is over", async || (!declare_dead(&store).await.is_empty()).then_some(())).await;
    store.rescue().await.expect("rescued");
    assert_eq!(lost.reserve(&lost.call(1)).await, Reserved::Lost);
    database.audited().await;
}

#[tokio::test]
async fn an_account_that_is_opened_after_the_locks_is_locked_before_it_is_decided_on() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let (first, late) =
        (Caller::new(&runner, "a", &daily(100)).await, Caller::new(&runner, "b", &daily(100)).await);
    // A reservation that has locked what is open, nothing, and waits for a limit of its key.
    runner.store.learn_rates(&[("k:requests:m".to_owned(), 9)]).await.expect("learnt");
    let takes = vec![Take { account: "k:requests:m".to_owned(), limit: None, amount: 1, as_produced: false }];
    let call = NewCall { rate_use: Some(RateUse { key: "k".to_owned(), takes }), ..late.call(60) };
    let (mut one, mut other) = (database.connect().await, database.connect().await);
    let mut holding = one.begin().await.expect("a transaction");
    sqlx::raw_sql("SELECT FROM harness_provider_rates FOR UPDATE")
        .execute(&mut *holding)
        .await
        .expect("locked");
    let waits_for = async |holder: i32| {
        let waiting =
            format!("SELECT count(*) FROM pg_stat_activity WHERE pg_blocking_pids(pid) @> ARRAY[{holder}]");
        tests::until("it waits", async || (database.count(&waiting).await > 0).then_some(())).await;
    };
    let pid = async |connection: &mut sqlx::PgConnection| -> i32 {
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await.expect("a process")
    };
    let meanwhile = async {
        waits_for(pid(&mut holding).await).await;
        // Another store, because a store's batches wait for each other.
        let opener = Runner { store: database.store(), ..runner.clone() };
        let opened = Caller { runner: opener, ..first.clone() };
        opened.settle(&opened.granted(1).await, store::CallOutcome::Free).await;
        // As a reservation under way: it has locked the account, and its hold is not there for others.
        let mut deciding = other.begin().await.expect("a transaction");
        sqlx::raw_sql(
            "SELECT FROM harness_accounts WHERE key LIKE 'fleet:day:%' FOR NO KEY UPDATE;
             INSERT INTO harness_account_moves (key, held_microusd)
             SELECT key, 60 FROM harness_accounts WHERE key LIKE 'fleet:day:%'",
        )
        .execute(&mut *deciding)
        .await
        .expect("held");
        let decider = pid(&mut deciding).await;
        holding.rollback().await.expect("released");
        waits_for(decider).await;
        deciding.commit().await.expect("committed");
    };
    let (reserved, ()) = tokio::join!(late.reserve(&call), meanwhile);
    assert!(matches!(reserved, Reserved::Busy { .. }), "{reserved:?}");
}

#[tokio::test]
async fn a_reservation_that_waits_for_a_newer_run_of_its_job_is_refused() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let caller = Caller::new(&runner, "s", &daily(100)).await;
    let mut other = database.connect().await;
    let mut rescuing = other.begin().await.expect("a transaction");
    sqlx::query("UPDATE harness_jobs SET epoch = nextval('harness_epoch')")
        .execute(&mut *rescuing)
        .await
        .expect("locked");
    let call = caller.call(10);
    let waiting = caller.reserve(&call);
    let committing = async {
        let blocked = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND wait_event_type = 'Lock'";
        tests::until("it waits", async || (database.count(blocked).await > 0).then_some(())).await;
        rescuing.commit().await.expect("committed");
    };
    let (reserved, ()) = tokio::join!(waiting, committing);
    assert_eq!(reserved, Reserved::Lost);
    assert_eq!(account(&runner.store, "fleet:day:").await, (0, 0));
}
