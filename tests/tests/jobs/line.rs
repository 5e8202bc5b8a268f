//! In a pool with a line, whose turn it is follows from the rules: begun jobs, lanes, tenants, limit keys, order; and
//! nothing is lost on the way. Here are the rules; turns, limits, outages and crowds have a file each.

mod turns;
mod limits;
mod outages;
mod crowds;
mod grants;
mod busy;
mod departed;

use std::collections::BTreeMap;
use std::time::Duration;

use job::{JobSpec, JobState, Lane, LimitKeys, Name, OnBusy, Tenant};
use serde_json::json;
use store::{Accepted, End, Grant, Leadership, LinePlace, LineTake, PoolSeen, Store};
use tests::{Database, Fleet, Runner, claimed, job, until};

const LEASE: Duration = Duration::from_secs(60);
/// Counts the jobs with the key `k` that have a place.
const AT_WORK: &str =
    "SELECT count(*) FROM harness_jobs WHERE line = 'k' AND state IN ('publishing', 'queued', 'running')";

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

async fn admitting(store: &Store, holder: &str) -> Leadership {
    store.lead("admission", holder, LEASE).await.expect("an answer").expect("nobody else leads")
}

fn first(lane: i16, tenant: &str, line: &str, most: u32) -> LineTake {
    LineTake { place: LinePlace { lane, tenant: tenant.to_owned(), line: line.to_owned(), behind: 0 }, most }
}

async fn with_line() -> (Database, Store) {
    let database = Database::new().await;
    let store = database.store();
    store.set_line("a test", &name("default"), true).await.expect("a line");
    (database, store)
}

async fn states(store: &Store, jobs: &[JobSpec]) -> Vec<JobState> {
    let ids: Vec<_> = jobs.iter().map(|job| job.job_id).collect();
    let views = store.jobs(&ids).await.expect("the ledger");
    ids.iter().map(|id| views.iter().find(|view| view.job_id == *id).expect("a job").state).collect()
}

async fn create_tenants(fleet: &Fleet, tenants: &[&str]) {
    for tenant in tenants {
        let ran = fleet.producer(&["tenants", "create", tenant]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
    }
}

/// Waits until who admits has looked with what is set now: what it has read of that is at most a second old.
async fn looked(fleet: &Fleet) {
    let then = fleet.database.texts("SELECT (now() + interval '1.5 seconds')::text").await.remove(0);
    let seen = format!("SELECT count(*) FROM harness_pools WHERE seen_at > '{then}'");
    until("who admits has looked", async || (fleet.database.count(&seen).await > 0).then_some(())).await;
}

#[tokio::test]
async fn a_message_counts_for_as_long_as_it_is_on_its_way_and_pools_are_asked_together() {
    let (database, store) = with_line().await;
    let pool = name("default");
    let leadership = admitting(&store, "one").await;
    let jobs = ["a", "b"].map(|session| job(session, "echo", json!(1)));
    let none = store.pools_with_lines(&[(pool.clone(), None)]).await.unwrap();
    store.accept(&jobs).await.unwrap();
    let demand = store.demand(std::slice::from_ref(&pool), LEASE).await.unwrap().remove(0);
    assert!(demand.line_is_old && demand.in_line == 2, "nobody has looked: {demand:?}");
    let one = store.pools_with_lines(&[(pool.clone(), None), (name("other"), None)]).await.unwrap();
    assert_eq!((none.len(), one.into_iter().collect::<Vec<_>>()), (0, vec![pool.clone()]));
    store.admit(&leadership, &pool, &[first(2, "default", "", 5)]).await.unwrap();
    // One has been published for longer than any transaction takes; it waits for a slot.
    let long_ago = "UPDATE harness_jobs SET state = 'queued', state_since = now() - interval '1 hour' WHERE session_id = 'a'";
    database.execute(long_ago).await;
    let count = |facts: &store::LineFacts| facts.in_flight.iter().map(|jobs| jobs.jobs).sum::<u64>();
    let all = store.line_facts(&store::OldestInFlight::new()).await.unwrap();
    assert_eq!(count(&all), 2);
    let again = store.line_facts(&all.oldest).await.unwrap();
    assert_eq!((count(&again), &again.oldest), (2, &all.oldest));
    // With that one gone, the next look begins later. What another transaction commits late is still found.
    database.execute("DELETE FROM harness_jobs WHERE session_id = 'a'").await;
    let later = store.line_facts(&again.oldest).await.unwrap();
    assert!(count(&later) == 1 && later.oldest["default"] > all.oldest["default"]);
    database.execute("UPDATE harness_jobs SET state_since = now() - interval '10 seconds'").await;
    assert_eq!(count(&store.line_facts(&later.oldest).await.unwrap()), 1);
}

#[tokio::test]
async fn a_job_waits_in_its_line_until_it_is_admitted_and_a_message_does_not_overtake() {
    let (database, store) = with_line().await;
    let runner = Runner::register(&store).await;
    let jobs = [job("a", "echo", json!(1)), JobSpec { lane: Lane::High, ..job("b", "echo", json!(2)) }];
    let waiting = Accepted::New(JobState::Waiting);
    assert_eq!(store.accept(&jobs).await.unwrap(), [waiting.clone(), waiting]);
    assert!(matches!(runner.claim(&jobs[0]).await.unwrap(), store::Answer::NotDue), "it is not its turn");
    let pool = name("default");
    let found = store.find_lines(&pool, None, 3, 10).await.unwrap();
    assert_eq!(found.iter().map(|place| place.lane).collect::<Vec<_>>(), [1, 2]);
    let behind = store.find_lines(&pool, Some(&found[0]), 3, 10).await.unwrap();
    assert_eq!(behind, found[1..], "one after the other");

    let leadership = admitting(&store, "one").await;
    let admitted = store.admit(&leadership, &pool, &[first(1, "default", "", 5)]).await.unwrap();
    assert_eq!(admitted.due.iter().map(|due| due.job_id).collect::<Vec<_>>(), [jobs[1].job_id]);
    assert_eq!(states(&store, &jobs).await, [JobState::Waiting, JobState::Publishing]);
    claimed(runner.claim(&jobs[1]).await.unwrap());

    store.resign(&leadership).await.unwrap();
    let successor = admitting(&store, "two").await;
    let all = [first(2, "default", "", 5)];
    assert!(store.admit(&leadership, &pool, &all).await.unwrap().looked_at.is_empty(), "it leads no more");
    assert_eq!(store.admit(&successor, &pool, &all).await.unwrap().due.len(), 1);
    database.audited().await;
}

#[tokio::test]
async fn in_a_session_order_wins_over_the_lane() {
    let (database, store) = with_line().await;
    let runner = Runner::register(&store).await;
    let pool = name("default");
    let jobs = [
        JobSpec { lane: Lane::Low, ..job("s", "echo", json!(1)) },
        JobSpec { lane: Lane::High, ..job("s", "echo", json!(2)) },
        JobSpec { lane: Lane::High, ..job("s", "echo", json!(3)) },
    ];
    store.accept(&jobs).await.unwrap();
    let leadership = admitting(&store, "one").await;
    let admitted = store.admit(&leadership, &pool, &[first(1, "default", "", 5)]).await.unwrap();
    assert!(admitted.due.is_empty() && admitted.looked_at.len() == 2);
    store.block(&admitted.busy).await.unwrap();
    assert_eq!(states(&store, &jobs).await, [JobState::Waiting, JobState::Blocked, JobState::Blocked]);
    database.audited().await;
    assert_eq!(store.admit(&leadership, &pool, &[first(3, "default", "", 5)]).await.unwrap().due.len(), 1);
    let run = claimed(runner.claim(&jobs[0]).await.unwrap());
    // Nothing else waits in the pool, as was seen lately, so the next one needs no turn.
    database.execute("UPDATE harness_pools SET seen_at = now()").await;
    let next = runner.succeed(&run).await.unwrap().next.expect("the next one of the session");
    assert_eq!(next.claim.job_id(), jobs[1].job_id);
    // Now something does.
    store.accept(&[job("other", "echo", json!(1))]).await.unwrap();
    database.execute("UPDATE harness_pools SET waiting = 1").await;
    assert!(runner.succeed(&next).await.unwrap().next.is_none());
    store.take_due(10).await.unwrap();
    assert_eq!(states(&store, &jobs[2..]).await, [JobState::Waiting]);
    database.audited().await;
}

#[tokio::test]
async fn what_has_begun_before_is_the_first_again() {
    let (database, store) = with_line().await;
    let runner = Runner::register(&store).await;
    let pool = name("default");
    let spec = JobSpec { lane: Lane::Low, ..job("s", "echo", json!(1)) };
    store.accept(std::slice::from_ref(&spec)).await.unwrap();
    let leadership = admitting(&store, "one").await;
    store.admit(&leadership, &pool, &[first(3, "default", "", 1)]).await.unwrap();
    let run = claimed(runner.claim(&spec).await.unwrap());
    store.conclude(runner.conclusion(&run, End::HandBack { delay: Duration::ZERO })).await.unwrap();
    let (due, taken) = store.take_due(10).await.unwrap();
    assert!(due.is_empty() && taken == 1);
    let found = store.find_lines(&pool, None, 3, 10).await.unwrap();
    assert_eq!(found.iter().map(|place| place.lane).collect::<Vec<_>>(), [0]);
    assert_eq!(store.admit(&leadership, &pool, &found_takes(&found)).await.unwrap().due.len(), 1);
    claimed(runner.claim(&spec).await.unwrap());
    database.audited().await;
}

#[tokio::test]
async fn a_session_is_demand_for_one_job_in_however_many_lines_it_waits() {
    let (_database, store) = with_line().await;
    let keyed = |n: usize| JobSpec {
        limits: LimitKeys::of([name(&format!("k-{n}"))]).unwrap(),
        ..job("s", "echo", json!(n))
    };
    let mut jobs: Vec<JobSpec> = (0..5).map(keyed).collect();
    jobs.push(JobSpec { lane: Lane::High, ..job("other", "echo", json!(1)) });
    store.accept(&jobs).await.unwrap();
    let pool = name("default");
    let lines = store.find_lines(&pool, None, 3, 10).await.unwrap();
    let counts = store.count_lines(&pool, &lines, 10).await.unwrap();
    assert_eq!(counts.iter().map(|count| (count.jobs, count.heads)).collect::<Vec<_>>(), {
        [(1, 1), (1, 1), (1, 0), (1, 0), (1, 0), (1, 0)]
    });
}

#[tokio::test]
async fn the_first_jobs_of_lines_are_seen_as_what_waits_for_a_slot() {
    let (database, store) = with_line().await;
    let leadership = admitting(&store, "one").await;
    let jobs = [job("a", "echo", json!(1)), JobSpec { lane: Lane::Low, ..job("b", "echo", json!(2)) }];
    store.accept(&jobs).await.unwrap();
    database
        .execute("UPDATE harness_jobs SET state_since = now() - interval '3 days' WHERE session_id = 'b'")
        .await;
    let now = store.fleet_now(5).await.unwrap();
    let oldest: Vec<_> = now.oldest.iter().map(|job| (job.session_id.as_str(), job.state.as_str())).collect();
    assert_eq!(oldest, [("b", "waiting"), ("a", "waiting")]);
    let seen = PoolSeen { low: 1, could_run: 1, oldest_ms: 90_000, ..PoolSeen::default() };
    let noted = BTreeMap::from([(name("default"), (seen, Grant::default()))]);
    store.note_seen(&leadership, &noted).await.unwrap();
    let gauges = store.pool_gauges().await.unwrap();
    assert!(
        gauges[0].oldest_in_line >= Duration::from_secs(90) && gauges[0].oldest_queued.is_zero(),
        "{gauges:?}"
    );
}

#[tokio::test]
async fn a_next_job_waits_for_its_turn_where_the_line_was_not_looked_at_lately() {
    let (database, store) = with_line().await;
    let runner = Runner::register(&store).await;
    let leadership = admitting(&store, "one").await;
    let pool = name("default");
    for (seen_at, is_lately) in [("NULL", false), ("now() - interval '11 seconds'", false), ("now()", true)] {
        database.execute("DELETE FROM harness_jobs").await;
        let jobs = [1, 2].map(|n| job("s", "echo", json!(n)));
        store.accept(&jobs).await.unwrap();
        let admitted = store.admit(&leadership, &pool, &[first(2, "default", "", 5)]).await.unwrap();
        store.block(&admitted.busy).await.unwrap();
        database.execute(&format!("UPDATE harness_pools SET waiting = 0, seen_at = {seen_at}")).await;
        let run = claimed(runner.claim(&jobs[0]).await.unwrap());
        let next = runner.succeed(&run).await.unwrap().next;
        assert_eq!(next.is_some(), is_lately, "seen at {seen_at}");
    }
    database.audited().await;
}

#[tokio::test]
async fn a_worker_takes_no_next_job_of_another_pool() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let jobs = [job("s", "echo", json!(1)), JobSpec { pool: name("gpu"), ..job("s", "echo", json!(2)) }];
    store.accept(&jobs).await.unwrap();
    let run = claimed(runner.claim(&jobs[0]).await.unwrap());
    assert!(matches!(runner.claim(&jobs[1]).await.unwrap(), store::Answer::Blocked));
    assert!(runner.succeed(&run).await.unwrap().next.is_none());
    assert_eq!(states(&store, &jobs[1..]).await, [JobState::Scheduled], "it is published to its own pool");
    database.audited().await;
}

fn found_takes(found: &[LinePlace]) -> Vec<LineTake> {
    found.iter().map(|place| LineTake { place: place.clone(), most: 10 }).collect()
}

#[tokio::test]
async fn a_fleet_with_a_line_ends_every_job_and_keeps_to_limits() {
    let fleet = Fleet::new().await;
    let set = fleet.producer(&["pools", "line", "default", "on"]).await;
    assert_eq!((set.code, set.out.trim()), (0, "default has a line now"), "{set:?}");
    let limit = fleet.producer(&["limits", "set", "k", "--max", "2"]).await;
    assert_eq!(limit.code, 0, "{limit:?}");
    let keyed = |n: u32| JobSpec {
        limits: LimitKeys::of([name("k")]).unwrap(),
        ..job(&format!("k-{n}"), "scripted", json!({"iterations": [{"delay_ms": 100}]}))
    };
    let jobs: Vec<JobSpec> = (0..40)
        .map(|n| match n % 4 {
            0 => keyed(n),
            1 => JobSpec { lane: Lane::High, ..job(&format!("s-{}", n % 3), "echo", json!(n)) },
            2 => JobSpec { lane: Lane::Low, ..job(&format!("s-{}", n % 3), "echo", json!(n)) },
            _ => job(&format!("o-{n}"), "echo", json!(n)),
        })
        .collect();
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 8).start().await;
    fleet.enqueue(&jobs).await;
    let mut most = 0;
    for spec in &jobs {
        until("it has ended", async || {
            most = most.max(fleet.database.count(AT_WORK).await);
            let view = fleet.view(spec.job_id).await?;
            view.state.is_end().then_some(())
        })
        .await;
    }
    assert!(most <= 2, "{most} at work");
    for spec in &jobs {
        assert_eq!(fleet.view(spec.job_id).await.unwrap().state, JobState::Succeeded);
    }
    fleet.database.audited().await;
}

#[tokio::test]
async fn what_holds_a_job_back_is_said_and_is_no_demand() {
    let fleet = Fleet::new().await;
    let tenant: Tenant = "acme".parse().unwrap();
    fleet.producer(&["tenants", "create", "acme", "--max-running", "1"]).await;
    fleet.producer(&["pools", "line", "default", "on"]).await;
    fleet.producer(&["limits", "set", "k", "--max", "0"]).await;
    let keyed = JobSpec { limits: LimitKeys::of([name("k")]).unwrap(), ..job("a", "echo", json!(1)) };
    let theirs: Vec<JobSpec> = (0..3)
        .map(|n| JobSpec {
            tenant: tenant.clone(),
            ..job(&format!("t-{n}"), "scripted", json!({"iterations": [{"delay_ms": 60_000}]}))
        })
        .collect();
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 4).start().await;
    fleet.enqueue(&theirs).await;
    fleet.enqueue(std::slice::from_ref(&keyed)).await;
    let running = "SELECT count(*) FROM harness_jobs WHERE state = 'running'";
    until("one runs", async || (fleet.database.count(running).await == 1).then_some(())).await;
    let seen = "SELECT seen::text FROM harness_pools WHERE seen ->> 'held_by_limit' = '1' AND seen ->> 'held_by_tenant' = '2'";
    until("what holds them back is seen", async || {
        (!fleet.database.texts(seen).await.is_empty()).then_some(())
    })
    .await;
    assert_eq!(fleet.database.count("SELECT could_run FROM harness_pools").await, 0);
    let demand = fleet.database.store().demand(&[name("default")], LEASE).await.unwrap().remove(0);
    assert_eq!((demand.running, demand.in_line, demand.oldest_in_line_ms), (1, 0, None), "{demand:?}");
    let top = fleet.producer(&["top", "--once"]).await;
    let held = top.out.lines().skip_while(|line| !line.contains("held back by a limit")).nth(2);
    let held: Vec<&str> = held.unwrap_or_default().split_whitespace().filter(|cell| *cell != "│").collect();
    assert_eq!(held, ["default", "default", "k", "1"], "{top:?}");
    let why = fleet.producer(&["why", &keyed.job_id.to_string()]).await;
    assert!(why.out.contains("the limit of key k holds it back: 0 of 0 have a place"), "{why:?}");
    let why = fleet.producer(&["why", &theirs[2].job_id.to_string()]).await;
    assert!(why.out.contains("the max_running of tenant acme holds it back: 1 of 1 have a place"), "{why:?}");
    let listed = fleet.producer(&["pools", "list", "--json"]).await.json();
    assert_eq!((&listed[0]["line"], &listed[0]["seen"]["held_by_tenant"]), (&json!(true), &json!(2)));

    // Without a line nothing is held back.
    let off = fleet.producer(&["pools", "line", "default", "off"]).await;
    assert_eq!(off.code, 0, "{off:?}");
    assert_eq!(fleet.ended(keyed.job_id).await.state, JobState::Succeeded);
    until("all run", async || (fleet.database.count(running).await == 3).then_some(())).await;
}

#[tokio::test]
async fn a_job_that_would_not_wait_for_its_session_is_answered_at_its_turn() {
    let fleet = Fleet::new().await;
    fleet.producer(&["pools", "line", "default", "on"]).await;
    let _worker = fleet.worker("worker").start().await;
    let long = job("s", "scripted", json!({"iterations": [{"say": "a"}, {"delay_ms": 60_000}]}));
    fleet.enqueue(std::slice::from_ref(&long)).await;
    fleet.iterated(long.job_id, 1).await;
    let rejected = JobSpec { on_busy: OnBusy::Reject, ..job("s", "echo", json!(1)) };
    let waits = job("s", "echo", json!(2));
    let rolls_back = JobSpec { on_busy: OnBusy::Rollback, ..job("s", "echo", json!(3)) };
    fleet.enqueue(&[rejected.clone(), waits.clone()]).await;
    assert_eq!(fleet.ended(rejected.job_id).await.failure.unwrap().code.as_str(), "session_busy");
    until("it waits for its session", async || {
        (fleet.view(waits.job_id).await?.state == JobState::Blocked).then_some(())
    })
    .await;
    fleet.enqueue(std::slice::from_ref(&rolls_back)).await;
    assert_eq!(fleet.ended(long.job_id).await.state, JobState::Cancelled);
    for spec in [&waits, &rolls_back] {
        assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }
    fleet.database.audited().await;
}

#[tokio::test]
async fn admitters_that_are_killed_in_turn_lose_nothing_and_pass_no_limit() {
    let fleet = Fleet::new().await;
    fleet.producer(&["pools", "line", "default", "on"]).await;
    fleet.producer(&["limits", "set", "k", "--max", "3"]).await;
    let jobs: Vec<JobSpec> = (0..240)
        .map(|n| JobSpec {
            lane: Lane::ALL[n % 3],
            limits: LimitKeys::of((n % 2 == 0).then(|| name("k"))).unwrap(),
            ..job(&format!("s-{}", n % 80), "scripted", json!({"iterations": [{"delay_ms": 30}]}))
        })
        .collect();
    let mut worker = fleet.worker("worker-0").short_lease().start().await;
    fleet.enqueue(&jobs).await;
    let left = "SELECT count(*) FROM harness_jobs";
    let mut most = 0;
    for round in 1..4 {
        let until = std::time::Instant::now() + Duration::from_millis(1_500);
        while std::time::Instant::now() < until {
            most = most.max(fleet.database.count(AT_WORK).await);
        }
        worker.kill();
        worker = fleet.worker(&format!("worker-{round}")).short_lease().start().await;
    }
    until("all have ended", async || {
        most = most.max(fleet.database.count(AT_WORK).await);
        (fleet.database.count(left).await == 0).then_some(())
    })
    .await;
    assert!((1..=3).contains(&most), "{most} at work");
    let ended = "SELECT DISTINCT state || ' ' || count(*) FROM harness_results GROUP BY state";
    assert_eq!(fleet.database.texts(ended).await, ["succeeded 240"]);
    fleet.database.audited().await;
}
