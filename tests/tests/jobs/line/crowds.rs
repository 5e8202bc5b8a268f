//! Crowds: a session, a pool or tenants with very many jobs hold up no other in the line.

use std::time::Duration;

use job::{JobId, JobSpec, JobState, Tenant};
use serde_json::json;
use store::Accepted;
use tests::{Fleet, job, steps, until, until_ok};
use tokio::time::Instant;

/// Puts jobs into the ledger, in order, and leaves all to the relays.
pub(super) async fn accept(fleet: &Fleet, jobs: &[JobSpec]) {
    for some in jobs.chunks(500) {
        let answers = fleet.store.accept(some).await.expect("the ledger");
        let is_granted = |answer: &Accepted| *answer == Accepted::New(JobState::Publishing);
        let granted = some.iter().zip(answers).filter(|(_, answer)| is_granted(answer));
        let granted: Vec<JobId> = granted.map(|(spec, _)| spec.job_id).collect();
        fleet.store.unconfirmed(&granted, Duration::ZERO).await.expect("the ledger");
    }
}

#[tokio::test]
async fn a_session_with_three_thousand_jobs_holds_up_no_other_session() {
    let fleet = Fleet::new().await;
    fleet.line("default").await;
    let _worker = fleet.worker("worker").start().await;
    let head = job("crowd", "scripted", json!({"iterations": [{"say": "a"}, {"delay_ms": 600_000}]}));
    accept(&fleet, std::slice::from_ref(&head)).await;
    fleet.iterated(head.job_id, 1).await;
    let crowd: Vec<JobSpec> = (0..3_000).map(|n| job("crowd", "echo", json!(n))).collect();
    accept(&fleet, &crowd).await;
    let others: Vec<JobSpec> = (0..40).map(|n| job(&format!("o-{n}"), "echo", json!(n))).collect();
    let begun = Instant::now();
    accept(&fleet, &others).await;
    fleet.undisturbed(&others).await;
    // One turn after the other for each of the crowd would take half a minute, also where nothing else runs.
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    let blocked = "SELECT count(*) FROM harness_jobs WHERE session_id = 'crowd' AND state = 'blocked'";
    let all_blocked = async || match fleet.database.count(blocked).await {
        3_000 => Ok(()),
        blocked => Err(blocked),
    };
    until_ok("the crowd is blocked", all_blocked).await;
    fleet.database.audited().await;

    let ran = fleet.producer(&["cancel", &head.job_id.to_string()]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    fleet.undisturbed(&crowd[..100]).await;
    let order = "SELECT output::text FROM harness_results WHERE session_id = 'crowd' AND state = 'succeeded'
                  ORDER BY started_at LIMIT 100";
    let wanted: Vec<String> = (0..100).map(|n: u32| n.to_string()).collect();
    assert_eq!(fleet.database.texts(order).await, wanted);
}

#[tokio::test]
async fn a_pool_without_a_worker_takes_no_place_of_its_tenants_in_another_pool() {
    let fleet = Fleet::new().await;
    let ran = fleet.producer(&["tenants", "create", "acme", "--max-running", "1"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    // Who admits looks at `a` first.
    for pool in ["a", "z"] {
        fleet.line(pool).await;
    }
    let in_pool = |pool: &str, n: usize| JobSpec {
        tenant: "acme".parse::<Tenant>().unwrap(),
        pool: pool.parse().unwrap(),
        ..steps(n, 1, 10)
    };
    let unserved: Vec<JobSpec> = (0..3).map(|n| in_pool("a", n)).collect();
    accept(&fleet, &unserved).await;
    let _relay = fleet.relay("relay").launch();
    let seen = "SELECT count(*) FROM harness_pools WHERE seen_at IS NOT NULL AND pool = 'a'";
    until("the jobs in `a` were looked at", async || (fleet.database.count(seen).await == 1).then_some(()))
        .await;
    let served: Vec<JobSpec> = (3..6).map(|n| in_pool("z", n)).collect();
    accept(&fleet, &served).await;
    let _worker = fleet.worker("worker").set("POOL", "z").start().await;
    fleet.undisturbed(&served).await;
    let _late = fleet.worker("late").set("POOL", "a").start().await;
    fleet.undisturbed(&unserved).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn two_thousand_tenants_that_came_and_went_hold_up_no_later_one() {
    let fleet = Fleet::new().await;
    fleet.line("default").await;
    // It admits from the first job to the last.
    let relay = fleet.relay("relay").launch();
    relay.said("lease=\"admission\"").await;
    let of = |tenant: &str, session: &str| JobSpec {
        tenant: tenant.parse().unwrap(),
        ..job(session, "echo", json!(1))
    };
    let backlog_of = async |tenant: &str| {
        let mut few = fleet.worker("few").set("WORKER_SLOTS", 1).start().await;
        let backlog: Vec<JobSpec> = (0..20).map(|n| of(tenant, &format!("s-{n}"))).collect();
        let begun = Instant::now();
        accept(&fleet, &backlog).await;
        fleet.undisturbed(&backlog).await;
        let took = begun.elapsed();
        few.terminate();
        assert_eq!(few.exit().await, 0);
        took
    };
    let before = backlog_of("earlier").await;
    let mut many = fleet.worker("many").set("WORKER_SLOTS", 32).start().await;
    let passing: Vec<JobSpec> = (0..2_000).map(|n| of(&format!("t-{n}"), "s")).collect();
    accept(&fleet, &passing).await;
    for left in [1_500, 1_000, 500, 0] {
        let some = async || match fleet.database.count("SELECT count(*) FROM harness_jobs").await {
            now if now <= left => Ok(()),
            now => Err(now),
        };
        until_ok(&format!("{left} are left"), some).await;
    }
    many.terminate();
    assert_eq!(many.exit().await, 0);
    let after = backlog_of("later").await;
    // A turn for each tenant that has left would take more than ten seconds, and more on a slow machine.
    assert!(after < (before * 3).max(Duration::from_secs(6)), "{before:?} before, {after:?} after");
    fleet.database.audited().await;
}
