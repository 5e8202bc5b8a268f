//! A job during whose runs two workers have died is a suspect. Most suspects are innocent, so suspicion must not hold
//! them up.

use std::time::Duration;

use job::JobSpec;
use serde_json::json;
use tests::{Fleet, Runner, Worker, claimed, declare_dead, job, steps, until, until_ok};

/// Waits until this many jobs make progress at a worker. A job that is given to it and handed back at once does not
/// count.
async fn runs(fleet: &Fleet, worker: &Worker, count: i64) {
    let id = worker.id().await;
    let running = format!(
        "SELECT count(DISTINCT job_id) FROM harness_jobs j JOIN harness_checkpoints c USING (job_id, epoch) WHERE worker_id = '{id}'"
    );
    let look = async || match fleet.database.count(&running).await {
        running if running == count => Ok(()),
        running => Err(running),
    };
    until_ok(&format!("it runs {count} jobs"), look).await;
}

/// Jobs of many seconds, each in its own session, that survive any number of deaths.
fn long(count: usize) -> Vec<JobSpec> {
    let one = |n| {
        let mut spec = steps(n, 600, 100);
        spec.retry.max_attempts = 100;
        spec
    };
    (0..count).map(one).collect()
}

#[tokio::test]
async fn an_announced_death_is_charged_to_no_job() {
    let fleet = Fleet::new().await;
    let mut spec = steps(0, 80, 100);
    spec.retry.max_attempts = 2;
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    // As when a node is taken away: SIGTERM, and SIGKILL long before the grace is over.
    for victim in ["first", "second", "third"] {
        let before = fleet.view(spec.job_id).await.expect("a job").iterations;
        let mut worker = fleet.worker(victim).short_lease().set("DRAIN_GRACE_S", 600).start().await;
        let id = worker.id().await;
        fleet.iterated(spec.job_id, before + 2).await;
        worker.terminate();
        let noticed = format!(
            "SELECT count(*) FROM harness_workers WHERE worker_id = '{id}' AND noticed_at IS NOT NULL"
        );
        until("it has recorded the notice", async || {
            (fleet.database.count(&noticed).await == 1).then_some(())
        })
        .await;
        worker.kill();
    }
    let _last = fleet.worker("last").start().await;
    fleet.undisturbed(std::slice::from_ref(&spec)).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn suspects_that_outlive_the_deaths_of_their_workers_run_beside_each_other() {
    let fleet = Fleet::new().await;
    let jobs = long(4);
    fleet.enqueue(&jobs).await;
    for victim in ["first", "second"] {
        let mut worker = fleet.worker(victim).short_lease().start().await;
        runs(&fleet, &worker, 4).await;
        worker.kill();
    }
    let suspects = "SELECT count(*) FROM harness_jobs WHERE deaths = 2";
    let rescued = async || {
        declare_dead(&fleet.store).await;
        fleet.store.rescue().await.unwrap();
        (fleet.database.count(suspects).await == 4).then_some(())
    };
    until("all are suspected", rescued).await;
    // This holds however long they ran here on a busy machine.
    fleet.database.execute("UPDATE harness_jobs SET killed_after_ms = 300").await;
    let third = fleet.worker("third").start().await;
    // Each takes a minute, so none is done when the last one begins.
    runs(&fleet, &third, 4).await;
    let cleared = "SELECT count(*) FROM harness_jobs WHERE deaths = 0 AND suspected_at IS NULL";
    until("the first ones are cleared", async || (fleet.database.count(cleared).await >= 3).then_some(()))
        .await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn suspects_wait_for_each_other_for_a_while_and_not_for_hours() {
    let fleet = Fleet::new().await;
    let jobs = long(4);
    fleet.enqueue(&jobs).await;
    // They ran for hours each time, and have been suspects for longer than any of them must wait.
    let suspected = "UPDATE harness_jobs SET deaths = 2, attempts = 2, killed_after_ms = 7200000,
                            suspected_at = now() - interval '2 minutes'";
    fleet.database.execute(suspected).await;
    let worker = fleet.worker("worker").start().await;
    runs(&fleet, &worker, 4).await;
}

#[tokio::test]
async fn suspects_that_have_died_together_are_alone_until_one_is_proved_or_cleared() {
    let fleet = Fleet::new().await;
    let jobs = long(3);
    fleet.enqueue(&jobs).await;
    let suspected = "UPDATE harness_jobs SET deaths = 2, attempts = 2, killed_after_ms = 7200000,
                            suspected_at = now() - interval '2 minutes'";
    fleet.database.execute(suspected).await;
    let mut victim = fleet.worker("victim").short_lease().start().await;
    runs(&fleet, &victim, 3).await;
    victim.kill();
    let before = fleet.database.count("SELECT last_value FROM harness_epoch").await;
    let worker = fleet.worker("worker").start().await;
    let shared = "SELECT count(*) FROM harness_jobs WHERE shared_deaths = 1 AND deaths = 2 AND attempts = 2";
    until("none is charged", async || (fleet.database.count(shared).await == 3).then_some(())).await;
    let one = format!("SELECT count(*) FROM harness_checkpoints WHERE epoch > {before}");
    until("one of them gets on", async || (fleet.database.count(&one).await > 20).then_some(())).await;
    drop(worker);
    let began = one.replace("count(*)", "count(DISTINCT job_id)");
    assert_eq!(fleet.database.count(&began).await, 1, "and no other one beside it");
}

#[tokio::test]
async fn a_suspect_is_cleared_only_by_the_worker_that_runs_it() {
    let fleet = Fleet::new().await;
    let store = &fleet.store;
    let first = Runner::register(store).await;
    let spec = job("s", "echo", json!(1));
    let run = claimed(first.claim(&spec).await.unwrap());
    assert_eq!(run.suspicion, None);
    let suspected = "UPDATE harness_jobs SET deaths = 2, killed_after_ms = 5000, suspected_at = now() - interval '1 minute'";
    fleet.database.execute(suspected).await;
    let stale = run.claim;
    let run = claimed(first.claim(&spec).await.unwrap());
    let suspicion = run.suspicion.expect("it is suspected");
    assert_eq!((suspicion.killed_after, suspicion.shared), (Some(Duration::from_secs(5)), false));
    assert!(suspicion.waited >= Duration::from_secs(60), "{suspicion:?}");
    assert_eq!(store.clear_suspicion(&stale).await.unwrap(), store::Fenced::Lost);
    assert_eq!(store.clear_suspicion(&run.claim).await.unwrap(), store::Fenced::Done(()));
    let run = claimed(first.claim(&spec).await.unwrap());
    assert_eq!((run.deaths, run.suspicion), (0, None));
}
