//! A call counts in the window of its reservation, by Postgres's clock in one time zone: at the end of a month, and on the
//! days that have 23 or 25 hours.

use std::time::{Duration, SystemTime};

use job::{JobSpec, JobState};
use serde_json::json;
use store::{Period, Reserved, SpendScope, Store};
use tests::provider::Provider;
use tests::{Database, Fleet, OwnPostgres, Runner, until, until_ok};

use crate::caller::{Caller, cost, limit};
use crate::programs::{asks, worker};

/// Sets Postgres's clock to a Unix time.
fn set(postgres: &OwnPostgres, at: i64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    postgres.clock.set(at - i64::try_from(now).expect("a time"));
}

/// Checks how long the window of an account lasts that has just begun.
async fn lasts(store: &Store, account: &str, hours: u64) {
    let turn = until_turn(store, account).await;
    let whole = Duration::from_secs(hours * 3_600);
    assert!(turn < whole && turn > whole - Duration::from_secs(120), "{turn:?} of {hours} h");
}

async fn until_turn(store: &Store, account: &str) -> Duration {
    store.until_turn(account).await.expect("an answer").expect("a turn")
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
    lasts(&store, "fleet:day:2027-03-28:", 23).await;
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
    lasts(&store, "agent:day:2027-10-31:coder", 25).await;
    lasts(&store, "user:month:2027-10:default/a:b", 25).await;
    // Who asks after the turn has nothing to wait for.
    for ended in ["agent:day:2027-10-30:coder", "fleet:month:2027-09:"] {
        assert_eq!(until_turn(&store, ended).await, Duration::ZERO, "{ended}");
    }
    assert_eq!(store.until_turn("session:life::s").await.expect("an answer"), None);
}

/// The Unix time of the next midnight, by the day of this machine's clock: job ids are of now.
fn midnight() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    i64::try_from(now.div_ceil(86_400) * 86_400).expect("a time")
}

#[tokio::test]
async fn jobs_that_wait_are_due_within_ten_minutes_of_the_turn_and_go_on_in_the_next_window() {
    let postgres = OwnPostgres::with_clock(0).await;
    let fleet = Fleet::on(Database::new_on(&postgres.url).await);
    let provider = Provider::start().await;
    // Ten minutes before a day ends.
    let midnight = midnight();
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

#[tokio::test]
async fn a_job_that_was_refused_before_the_turn_and_ends_behind_it_comes_back_within_ten_minutes() {
    let postgres = OwnPostgres::with_clock(0).await;
    let fleet = Fleet::on(Database::new_on(&postgres.url).await);
    let provider = Provider::start().await;
    let midnight = midnight();
    set(&postgres, midnight - 300);
    let launch =
        worker(&fleet, &provider, "worker", "on_exhausted = \"wait\"\n").set("BUDGET_DAILY", "0.004");
    // Its lease outlives the change of the clock.
    let _worker = launch.set("LEASE_S", 3_600).start().await;
    let go = fleet.folder.path().join("go");
    let spec = asks("s", json!({"questions": 99, "hangs": true, "go": go}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let halted = fleet.folder.path().join("go.halted");
    until("a question is refused", async || halted.exists().then_some(())).await;
    set(&postgres, midnight + 60);
    std::fs::write(&go, "").expect("written");
    let waits = "SELECT count(*) FROM harness_jobs WHERE state = 'scheduled' AND attempts = 0";
    until("it waits", async || (fleet.database.count(waits).await == 1).then_some(())).await;
    let due = format!("SELECT extract(epoch FROM due_at)::bigint - {midnight} FROM harness_jobs");
    let due = fleet.database.count(&due).await;
    assert!((60..=60 + 600 + 60).contains(&due), "{due} s after the turn");
    fleet.database.audited().await;
}
