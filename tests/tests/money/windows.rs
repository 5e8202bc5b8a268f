//! A call counts in the window of its reservation, by Postgres's clock in one time zone: at the end of a month, and on the
//! days that have 23 or 25 hours.

use std::time::{Duration, SystemTime};

use job::{JobSpec, JobState};
use serde_json::json;
use store::{Period, Reserved, SpendScope, Store};
use tests::provider::Provider;
use tests::{Database, Fleet, OwnPostgres, Runner, until_ok};

use crate::caller::{Caller, cost, limit};
use crate::programs::{asks, worker};

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

#[tokio::test]
async fn jobs_that_wait_are_due_within_ten_minutes_of_the_turn_and_go_on_in_the_next_window() {
    let postgres = OwnPostgres::with_clock(0).await;
    let fleet = Fleet::on(Database::new_on(&postgres.url).await);
    let provider = Provider::start().await;
    // Ten minutes before a day ends, with the day of this machine's clock: job ids are of now.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let midnight = i64::try_from(now.div_ceil(86_400) * 86_400).expect("a time");
    set(&postgres, midnight - 600);
    // A question costs about 0.0005 dollars and holds 0.0022: a few are paid, and then no job has room for all of its three.
    let more = "on_exhausted = \"wait\"\n";
    let first = worker(&fleet, &provider, "first", more).set("BUDGET_DAILY", "0.004").start().await;
    let jobs: Vec<JobSpec> = (0..8).map(|n| asks(&format!("s-{n}"), json!({"questions": 3}))).collect();
    fleet.enqueue(&jobs).await;
    let wait = format!(
        "SELECT count(*) FROM harness_jobs WHERE state = 'scheduled' AND attempts = 0
         AND due_at BETWEEN to_timestamp({midnight}) AND to_timestamp({midnight} + 610)"
    );
    let ended = "SELECT count(*) FROM harness_results WHERE state = 'succeeded'";
    let all_wait = async || match (fleet.database.count(&wait).await, fleet.database.count(ended).await) {
        (waiting @ 6.., ended) if waiting + ended == 8 => Ok(()),
        other => Err(other),
    };
    until_ok("all that have not ended wait for the turn", all_wait).await;
    let spread = "SELECT extract(epoch FROM max(due_at) - min(due_at))::bigint FROM harness_jobs";
    assert!(fleet.database.count(spread).await > 60, "they do not come back together");
    let paid = || provider.asked().iter().filter(|asked| asked.path == "/v1/messages").count();
    let before = paid();
    assert!((1..24).contains(&before), "{before}");

    // The next window has room for all.
    drop(first);
    set(&postgres, midnight + 700);
    let _second = worker(&fleet, &provider, "second", more).set("BUDGET_DAILY", "1").start().await;
    for spec in &jobs {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
    }
    assert_eq!(paid(), 24, "nothing is paid again");
    let days = "SELECT count(DISTINCT day) FROM harness_calls WHERE state = 'settled'";
    assert_eq!(fleet.database.count(days).await, 2, "a call counts in the window of its reservation");
    let bill = "SELECT sum(cost_microusd)::bigint FROM harness_calls";
    assert_eq!(fleet.database.count(bill).await, provider.bill_micros() as i64);
    fleet.database.audited().await;
}
