//! A call counts in the window of its reservation, by Postgres's clock in one time zone: at the end of a month, and on the
//! days that have 23 or 25 hours.

use std::time::{Duration, SystemTime};

use store::{Period, Reserved, SpendScope, Store};
use tests::{Database, OwnPostgres, Runner};

use crate::caller::{Caller, cost, limit};

/// Sets Postgres's clock to a Unix time.
fn set(postgres: &OwnPostgres, at: i64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    postgres.clock.set(at - i64::try_from(now).expect("a time"));
}

/// Checks how long the window lasts that has just begun.
async fn lasts(store: &Store, period: &str, hours: u64) {
    let turn = store.until_turn(&format!("fleet:{period}:now:")).await.expect("an answer").expect("a turn");
    let whole = Duration::from_secs(hours * 3_600);
    assert!(turn < whole && turn > whole - Duration::from_secs(120), "{turn:?} of {hours} h");
}

#[tokio::test]
async fn windows_turn_at_midnight_of_the_zone_also_when_clocks_are_changed() {
    let postgres = OwnPostgres::with_clock(0).await;
    let database = Database::new_on(&postgres.url).await;
    let store = database.store();
    assert_eq!(store.set_spend_zone("Europe/Berlin").await.expect("an answer"), "Europe/Berlin");
    let runner = Runner::register(&store).await;
    let limits = [limit(SpendScope::Fleet, Period::Day, 10), limit(SpendScope::Fleet, Period::Month, 10)];
    let caller = Caller::new(&runner, "s", &limits).await;

    // The night in which summer time begins.
    set(&postgres, 1_806_188_410); // 2027-03-27T23:00:10Z
    lasts(&store, "day", 23).await;
    set(&postgres, 1_806_530_370); // 2027-03-31T21:59:30Z
    let call = caller.granted(10).await;
    assert!(matches!(caller.reserve(&caller.call(1)).await, Reserved::Busy { .. }));
    // A minute later it is April there; in UTC it is not.
    set(&postgres, 1_806_530_430); // 2027-03-31T22:00:30Z
    caller.granted(10).await;
    assert!(matches!(caller.reserve(&caller.call(1)).await, Reserved::Busy { .. }));
    caller.settle(&call, cost(4)).await;
    for (account, spent, held) in [
        ("fleet:day:2027-03-31:", 4, 0),
        ("fleet:month:2027-03:", 4, 0),
        ("fleet:day:2027-04-01:", 0, 10),
        ("fleet:month:2027-04:", 0, 10),
    ] {
        let sum = |column| {
            format!(
                "SELECT coalesce(sum({column}), 0)::bigint FROM harness_account_moves WHERE key = '{account}'"
            )
        };
        let (has_spent, holds) =
            (database.count(&sum("spent_microusd")).await, database.count(&sum("held_microusd")).await);
        assert_eq!((has_spent, holds), (spent, held), "{account}");
    }
    // The night in which it ends is also the last of its month.
    set(&postgres, 1_824_933_610); // 2027-10-30T22:00:10Z
    lasts(&store, "day", 25).await;
    lasts(&store, "month", 25).await;
}
