//! A worker that is silent for longer than its lease is dead for good. Its jobs run elsewhere, once, and its later
//! calls are refused. When it comes back, it continues under another id.

use std::time::{Duration, SystemTime};

use job::JobState;
use serde_json::json;
use tests::{Fleet, Link, Proxy, job, until};

#[tokio::test]
async fn a_paused_worker_loses_its_job_and_goes_on_under_a_new_id() {
    let fleet = Fleet::new().await;
    // One slot, because the broker sends a worker that it believes alive as much as its free slots can take.
    let paused = fleet.worker("paused").short_lease().set("WORKER_SLOTS", 1).start().await;
    let old_id = paused.id().await;
    let spec = job("s", "scripted", json!({"count": 40, "delay_ms": 150}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.iterated(spec.job_id, 3).await;
    paused.pause();
    let before = fleet.left(spec.job_id).await;
    assert_eq!(before.worker_id.unwrap().to_string(), old_id);

    let other = fleet.worker("other").start().await;
    let running_there = async || {
        let view = fleet.view(spec.job_id).await?;
        (view.worker_id?.to_string() == other.id().await).then_some(())
    };
    until("the job runs on the other worker", running_there).await;
    // It continues in the middle of the job that it still believes it has.
    paused.resume();
    paused.said("declared dead").await;
    let registered = paused.said("goes on under a new id").await;
    assert!(!registered.contains(&old_id), "{registered}");

    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts, view.iterations), (JobState::Succeeded, 2, 40), "{view:?}");
    assert_eq!(view.worker_id.unwrap().to_string(), other.id().await);
    let output: serde_json::Value = serde_json::from_str(view.output.unwrap().as_str()).unwrap();
    assert_eq!(output["resumed_at"], json!(before.iterations));
    assert_eq!(fleet.session("s").await.iteration_count, 40, "nothing of the stale run was added");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, 1);
    paused.counted("harness_leases_lost_total", 1.0).await;
    paused.counted(r#"harness_requests_total{outcome="lost"}"#, 1.0).await;

    // The new id takes jobs; the old one never does again.
    drop(other);
    let next = job("s", "scripted", json!({"count": 1}));
    fleet.enqueue(std::slice::from_ref(&next)).await;
    let view = fleet.ended(next.job_id).await;
    assert_eq!(view.state, JobState::Succeeded);
    assert!(registered.contains(&view.worker_id.unwrap().to_string()), "{registered}");
    let dead =
        format!("SELECT count(*) FROM harness_workers WHERE state = 'dead' AND worker_id = '{old_id}'");
    assert_eq!(fleet.database.count(&dead).await, 1);
    assert_eq!(paused.get("/ready").await.0, 200);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_job_sent_to_a_paused_workers_free_slot_comes_back() {
    let fleet = Fleet::new().await;
    // The broker gives up a silent peer after two heartbeats: 30 s unless the address sets another interval.
    let address = format!("{}?heartbeat=1", fleet.vhost.url);
    let paused = fleet.worker("paused").short_lease().set("AMQP_URL", address).start().await;
    let queue = async || fleet.vhost.waiting_and_consumers().await;
    until("its slots are known to the broker", async || (queue().await.1 == 4).then_some(())).await;
    paused.pause();
    let jobs: Vec<_> = (0..4).map(|n| job(&format!("s-{n}"), "echo", json!(n))).collect();
    fleet.enqueue(&jobs).await;
    until("the jobs are sent to it", async || (queue().await.0 == 0).then_some(())).await;
    let other = fleet.worker("other").start().await;
    for spec in &jobs {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1));
        assert_eq!(view.worker_id.unwrap().to_string(), other.id().await);
    }
    paused.resume();
    paused.said("generation=2").await;
    let consuming = async || (paused.get("/ready").await.0 == 200).then_some(());
    until("it takes jobs again, on another connection", consuming).await;
}

#[tokio::test]
async fn jobs_that_waited_behind_a_dead_workers_job_follow_in_order() {
    let fleet = Fleet::new().await;
    let mut first = fleet.worker("first").short_lease().start().await;
    let mut jobs = vec![job("s", "scripted", json!({"iterations": [{}, {}, {"delay_ms": 6000}]}))];
    jobs.extend((1..4).map(|n| job("s", "scripted", json!({"count": n}))));
    fleet.enqueue(&jobs).await;
    fleet.iterated(jobs[0].job_id, 2).await;
    let blocked = async || {
        let count = fleet.database.count("SELECT count(*) FROM harness_jobs WHERE state = 'blocked'").await;
        (count == 3).then_some(())
    };
    until("the others wait for their turn", blocked).await;
    first.kill();
    let _second = fleet.worker("second").start().await;
    let mut finished = Vec::new();
    for (spec, attempts) in jobs.iter().zip([2, 1, 1, 1]) {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!((view.state, view.attempts), (JobState::Succeeded, attempts), "{view:?}");
        finished.push(view.finished_at.unwrap());
    }
    assert!(finished.is_sorted(), "{finished:?}");
    assert_eq!(fleet.session("s").await.iteration_count, 3 + 1 + 2 + 3);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_worker_that_hears_nothing_of_postgres_stops_its_programs_when_its_lease_is_over() {
    const LEASE: Duration = Duration::from_secs(2);
    let fleet = Fleet::new().await;
    let written = fleet.folder.path().join("written");
    let endless = format!("#!/bin/sh\nwhile :; do echo >> {}; sleep 0.02; done\n", written.display());
    let program = fleet.program("endless", &endless);
    let agents = fleet.agents(&[("endless", &program)]);
    let proxy = Proxy::to(&fleet.database.url).await;
    let through = proxy.through(&fleet.database.url);
    let launch = fleet.worker("worker").short_lease().set("AGENTS_FILE", agents);
    let worker = launch.set("DATABASE_URL", through).start().await;
    let spec = job("s", "endless", json!(null));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    until("the program runs", async || written.exists().then_some(())).await;

    // A heartbeat that is in flight now waits for its answer for longer than the lease.
    proxy.set(Link::Frozen);
    let frozen = SystemTime::now();
    worker.said("the lease on a job is lost").await;
    let last = written.metadata().unwrap().modified().unwrap();
    let ran_on = last.duration_since(frozen).unwrap();
    assert!(ran_on < LEASE + Duration::from_millis(800), "it ran on for {ran_on:?}");
}

#[tokio::test]
async fn messages_are_not_sent_to_a_worker_whose_lease_is_over() {
    let fleet = Fleet::new().await;
    let at = |name: &str| fleet.folder.path().join(name);
    let waiting = |began: &str, go: &str| {
        let [began, go] = [at(began), at(go)].map(|path| path.display().to_string());
        format!(
            "#!/bin/sh\n: > {began}\nwhile ! [ -e {go} ]; do sleep 0.05; done\necho '{{\"type\":\"result\"}}'\n"
        )
    };
    let first = fleet.program("first", &waiting("first-runs", "first-may-end"));
    let second = fleet.program("second", &waiting("second-runs", "second-may-end"));
    let agents = fleet.agents(&[("first", &first), ("second", &second)]);
    let launch = |name| fleet.worker(name).set("AGENTS_FILE", &agents);
    let runs = async |name: &str| until(name, async || at(name).exists().then_some(())).await;

    // The only slot of the healthy worker is busy, so the second job is run by the other one.
    let _healthy = launch("healthy").set("WORKER_SLOTS", 1).start().await;
    let (busy, spec) = (job("s-1", "first", json!(null)), job("s-2", "second", json!(null)));
    fleet.enqueue(std::slice::from_ref(&busy)).await;
    runs("first-runs").await;
    let proxy = Proxy::to(&fleet.database.url).await;
    let through = proxy.through(&fleet.database.url);
    let cut_off = launch("cut-off").short_lease().set("DATABASE_URL", through).start().await;
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    runs("second-runs").await;

    // Its job ends in the meantime, and the end cannot be recorded.
    proxy.set(Link::Frozen);
    std::fs::write(at("second-may-end"), "").unwrap();
    let queue = async || fleet.vhost.waiting_and_consumers().await;
    // Each of the two has one consumer, which holds its slot's message. The cut-off worker's free slots have none.
    let rescued = async || (queue().await == (1, 2)).then_some(());
    until("the rescued job waits for the healthy worker", rescued).await;
    std::fs::write(at("first-may-end"), "").unwrap();
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 2), "{view:?}");

    proxy.set(Link::Pass);
    cut_off.said("goes on under a new id").await;
    until("it consumes again", async || (queue().await.1 == 5).then_some(())).await;
    fleet.database.audited().await;
}
