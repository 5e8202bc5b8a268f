//! Turns on a real fleet: the one that came first with the most does not have all of them.

use job::{JobId, JobSpec, Lane, LimitKeys};
use serde_json::json;
use tests::{Fleet, job};

use super::{create_tenants, name};

/// A job in a session of its own, which takes a while.
fn slow(session: &str, delay_ms: u32) -> JobSpec {
    job(session, "scripted", json!({"count": 1, "delay_ms": delay_ms}))
}

/// Enqueues `many`, which one slot runs one after the other, and then `few`. Returns how many of `many` have begun since, before
/// the last of `few` did.
async fn begun_between(fleet: &Fleet, many: &[JobSpec], few: &[JobSpec]) -> i64 {
    fleet.line("default").await;
    fleet.enqueue(many).await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 1).start().await;
    fleet.ended(many[0].job_id).await;
    fleet.enqueue(few).await;
    fleet.undisturbed(few).await;
    let few: Vec<JobId> = few.iter().map(|spec| spec.job_id).collect();
    let few = few.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ");
    let between = format!(
        "SELECT count(*) FROM harness_results
          WHERE job_id NOT IN ({few})
            AND started_at BETWEEN (SELECT min(accepted_at) FROM harness_results WHERE job_id IN ({few}))
                               AND (SELECT max(started_at) FROM harness_results WHERE job_id IN ({few}))"
    );
    let begun = fleet.database.count(&between).await;
    fleet.database.audited().await;
    begun
}

#[tokio::test]
async fn a_high_job_has_the_next_turn_though_thirty_low_ones_came_first() {
    let fleet = Fleet::new().await;
    let low: Vec<JobSpec> =
        (0..30).map(|n| JobSpec { lane: Lane::Low, ..slow(&format!("l-{n}"), 400) }).collect();
    let high = JobSpec { lane: Lane::High, ..slow("h", 1) };
    // Two or three have had their turn before it came; a slow machine sends some more ahead.
    let begun = begun_between(&fleet, &low, &[high]).await;
    assert!(begun <= 6, "{begun} low jobs began before it");
}

#[tokio::test]
async fn a_tenants_three_jobs_do_not_wait_for_sixty_of_another() {
    let fleet = Fleet::new().await;
    create_tenants(&fleet, &["busy", "small"]).await;
    let of = |tenant: &str, n: usize| JobSpec {
        tenant: tenant.parse().unwrap(),
        ..slow(&format!("{tenant}-{n}"), 100)
    };
    let busy: Vec<JobSpec> = (0..60).map(|n| of("busy", n)).collect();
    let small: Vec<JobSpec> = (0..3).map(|n| of("small", n)).collect();
    // They take turns, behind what was on its way.
    let begun = begun_between(&fleet, &busy, &small).await;
    assert!(begun <= 15, "{begun} jobs of the busy tenant began before the last of these");
}

#[tokio::test]
async fn a_keys_three_jobs_do_not_wait_for_sixty_of_another_key() {
    let fleet = Fleet::new().await;
    let of = |key: &str, n: usize| JobSpec {
        limits: LimitKeys::of([name(key)]).unwrap(),
        ..slow(&format!("{key}-{n}"), 100)
    };
    let many: Vec<JobSpec> = (0..60).map(|n| of("many", n)).collect();
    let few: Vec<JobSpec> = (0..3).map(|n| of("few", n)).collect();
    let begun = begun_between(&fleet, &many, &few).await;
    assert!(begun <= 15, "{begun} jobs of the other key began before the last of these");
}
