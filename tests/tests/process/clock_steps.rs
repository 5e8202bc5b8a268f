//! Postgres's clock may be set by hand, by NTP or by a failover to a server whose clock differs. Such a step kills no
//! living worker, ends no mark and no leadership too early, and delays waiting jobs by at most a lease.

use std::time::{Duration, Instant};

use job::{FailureCode, JobSpec, JobState, RetryPolicy};
use serde_json::json;
use tests::{Database, Fleet, OwnPostgres, Processes, job, leading, until};

const HOUR_S: i64 = 3_600;

/// A fleet on a Postgres whose clock is ahead by this many seconds.
async fn fleet_on_clock(ahead_s: i64) -> (OwnPostgres, Fleet) {
    let postgres = OwnPostgres::with_clock(ahead_s).await;
    let database = Database::new_on(&postgres.url).await;
    (postgres, Fleet::on(database))
}

#[tokio::test]
async fn an_hour_ahead_no_living_worker_is_declared_dead_and_a_dead_one_still_is() {
    // Short, and long enough for a busy machine.
    const LEASE_S: u32 = 6;
    let (postgres, fleet) = fleet_on_clock(0).await;
    let worker = fleet.worker("worker").set("LEASE_S", LEASE_S).start().await;
    // This worker has seen a death, so it has watched for a whole lease.
    let watches = async |name: &str| {
        let mut gone = fleet.worker(name).set("LEASE_S", LEASE_S).start().await;
        let dead = format!(
            "SELECT count(*) FROM harness_workers WHERE worker_id = '{}' AND state = 'dead'",
            gone.id().await
        );
        gone.kill();
        until("a death is noticed", async || (fleet.database.count(&dead).await == 1).then_some(())).await;
    };
    watches("before").await;
    let spec = job("s", "scripted", json!({"count": 50, "delay_ms": 100}));
    // These wait behind it.
    let due_in = |half_hours: u64| JobSpec {
        deadline_ms: Some(half_hours * 1_800_000),
        ..job("s", "scripted", json!({"count": 1, "delay_ms": 0}))
    };
    let (near, far) = (due_in(1), due_in(4));
    fleet.enqueue(&[spec.clone(), near.clone(), far.clone()]).await;
    fleet.iterated(spec.job_id, 3).await;

    postgres.clock.set(HOUR_S);
    worker.said("clock was set ahead").await;
    let overdue = fleet.ended(near.job_id).await;
    assert_eq!(overdue.failure.map(|failure| failure.code), Some(FailureCode::DeadlineExceeded));
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
    assert_eq!(fleet.ended(far.job_id).await.state, JobState::Succeeded);
    watches("after").await;
    assert_eq!(worker.metric("harness_leases_lost_total").await, 0.0);
    fleet.database.audited().await;
}

/// Each job fails once, and then waits for a random part of twenty seconds.
fn waiting_jobs() -> Vec<JobSpec> {
    let fails = json!({"iterations": [{"fail": {"message": "not yet", "retryable": true, "attempts": 1}}]});
    let wait = RetryPolicy { max_attempts: 5, base_delay_ms: 20_000, max_delay_ms: 20_000 };
    let waits = |n| JobSpec { retry: wait.clone(), ..job(&format!("waits-{n}"), "scripted", fails.clone()) };
    (0..12).map(waits).collect()
}

async fn some_wait(fleet: &Fleet) {
    let later = "SELECT count(*) FROM harness_jobs WHERE state = 'scheduled' AND due_at > now() + interval '2 seconds'";
    until("some wait for their next attempt", async || (fleet.database.count(later).await > 2).then_some(()))
        .await;
}

#[tokio::test]
async fn a_fleet_that_starts_after_the_clock_was_mended_waits_no_longer_than_it_was_meant_to() {
    let (postgres, fleet) = fleet_on_clock(HOUR_S).await;
    let mut worker = fleet.worker("before").start().await;
    let waiting = waiting_jobs();
    fleet.enqueue(&waiting).await;
    some_wait(&fleet).await;
    worker.terminate();
    assert_eq!(worker.exit().await, 0);
    postgres.clock.set(0);

    let _worker = fleet.worker("after").start().await;
    for spec in &waiting {
        assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }
    fleet.database.audited().await;
}

#[tokio::test]
async fn an_hour_back_the_jobs_of_a_dead_worker_and_those_that_wait_go_on_soon() {
    let (postgres, fleet) = fleet_on_clock(HOUR_S).await;
    let mut first = fleet.worker("first").short_lease().start().await;
    let lost = job("lost", "scripted", json!({"count": 150, "delay_ms": 100}));
    let waiting = waiting_jobs();
    fleet.enqueue(std::slice::from_ref(&lost)).await;
    fleet.enqueue(&waiting).await;
    fleet.iterated(lost.job_id, 3).await;
    some_wait(&fleet).await;
    let lease = Duration::from_secs(10);
    let leader = fleet.store.lead("pools", "dies", lease).await.unwrap().expect("no other leader");
    // Both die with the server whose clock was wrong.
    first.kill();
    postgres.clock.set(0);

    let second = fleet.worker("second").start().await;
    fleet.iterated(lost.job_id, 75).await;
    let view = fleet.ended(lost.job_id).await;
    assert_eq!((view.state, view.attempts, view.iterations), (JobState::Succeeded, 2, 150), "{view:?}");
    assert_eq!(view.worker_id.unwrap().to_string(), second.id().await);
    for spec in &waiting {
        assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }
    let next = fleet.store.lead("pools", "lives", lease).await.unwrap().expect("no lease lasts for an hour");
    assert!(next.epoch > leader.epoch);
    assert_eq!(second.metric("harness_leases_lost_total").await, 0.0);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_marked_worker_takes_nothing_before_the_end_of_its_mark_whatever_the_clock_shows() {
    const VALID_FOR: Duration = Duration::from_secs(8);
    let (postgres, fleet) = fleet_on_clock(0).await;
    let worker = fleet.worker("worker").start().await;
    let leader = leading(&fleet.store).await;
    let id = worker.id().await.parse::<uuid::Uuid>().expect("an id").into();
    let marked = Instant::now();
    fleet.store.mark_drains(&leader, &[id], VALID_FOR).await.unwrap();
    until("it is drained", async || (worker.get("/ready").await.0 == 503).then_some(())).await;
    postgres.clock.set(HOUR_S);
    let spec = job("s", "echo", json!(1));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    assert!(marked.elapsed() >= VALID_FOR, "its pod could have gone at any moment: {:?}", marked.elapsed());
}

/// One to three workers, one per job, and one more every four seconds.
const POOL: &str = r#"
    [pools.default]
    target = "process"
    [pools.default.policy]
    min_replicas = 1
    max_replicas = 3
    mode = { type = "backlog", jobs_per_worker = 1 }
    scale_up = { stabilization_window_s = 0, select_policy = "Max", policies = [{ type = "Pods", value = 1, period_s = 4 }], tolerance = 0.0 }
    scale_down = { stabilization_window_s = 600, select_policy = "Max", policies = [], tolerance = 0.0 }
"#;

#[tokio::test]
async fn an_autoscaler_grows_on_after_a_step_back_and_keeps_its_size_after_one_ahead() {
    let (postgres, fleet) = fleet_on_clock(HOUR_S).await;
    let _processes = Processes::of(&fleet);
    let mut autoscaler = fleet.autoscaler("autoscaler", POOL).launch();
    fleet.workers_alive(1).await;
    let jobs: Vec<_> =
        (0..12).map(|n| job(&format!("s-{n}"), "scripted", json!({"count": 150, "delay_ms": 100}))).collect();
    fleet.enqueue(&jobs).await;
    // The third may be there already.
    let alive = "SELECT count(*) FROM harness_workers WHERE state = 'alive'";
    until("it grows", async || (fleet.database.count(alive).await >= 2).then_some(())).await;
    postgres.clock.set(0);
    fleet.workers_alive(3).await;
    fleet.undisturbed(&jobs).await;

    postgres.clock.set(HOUR_S);
    let decided = "SELECT count(*) FROM harness_scale_decisions
                    WHERE decided_at > clock_timestamp() - interval '1 minute' AND reason = 'scale_down_stabilized'
                      AND from_replicas = 3 AND desired_replicas = 3";
    until("it has decided by the new clock", async || {
        (fleet.database.count(decided).await > 0).then_some(())
    })
    .await;
    fleet.workers_alive(3).await;
    autoscaler.terminate();
    assert_eq!(autoscaler.exit().await, 0);
}
