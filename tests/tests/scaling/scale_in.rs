//! A worker that is marked to be scaled away interrupts nothing and begins nothing; without its mark it works again.

use std::time::Duration;

use job::JobState;
use serde_json::json;
use store::{Leadership, MarkView, WorkerView};
use tests::{Fleet, Worker, done, job, leading, until, until_ok};

const LONG: Duration = Duration::from_secs(3_600);

async fn view(fleet: &Fleet, worker: &Worker) -> WorkerView {
    let id = worker.id().await;
    let views = fleet.store.pool_workers(&[Default::default()]).await.expect("the ledger");
    views.into_iter().find(|view| view.worker.to_string() == id).expect("a worker that has not ended")
}

async fn mark(fleet: &Fleet, leader: &Leadership, worker: &Worker, valid_for: Duration) {
    let id = view(fleet, worker).await.worker;
    assert_eq!(done(fleet.store.mark_drains(leader, &[id], valid_for).await.expect("an answer")), [id]);
}

async fn unmark(fleet: &Fleet, leader: &Leadership, worker: &Worker) {
    let id = view(fleet, worker).await.worker;
    assert_eq!(done(fleet.store.unmark_drains(leader, &[id]).await.expect("an answer")), [id]);
}

async fn drained(fleet: &Fleet, worker: &Worker) -> MarkView {
    let look = async || {
        let view = view(fleet, worker).await;
        view.mark.filter(|mark| mark.drained).ok_or(view)
    };
    until_ok("it is drained", look).await
}

async fn is_ready(worker: &Worker) -> bool {
    worker.get("/ready").await.0 == 200
}

#[tokio::test]
async fn an_idle_worker_is_drained_at_once_and_works_again_when_its_mark_is_taken_back() {
    let fleet = Fleet::new().await;
    let leader = leading(&fleet.store).await;
    let worker = fleet.worker("worker").set("POD_NAME", "pod-1").start().await;
    mark(&fleet, &leader, &worker, LONG).await;
    let confirmed = drained(&fleet, &worker).await;
    assert_eq!(confirmed.epoch, leader.epoch);
    let (status, ready) = worker.get_json("/ready").await;
    assert_eq!(
        (status, &ready["reasons"]["queue_consuming"]),
        (503, &json!("drained for scale-in")),
        "not ready before it is drained: {ready}"
    );
    assert_eq!(worker.get("/health").await.0, 200);
    worker.counted("harness_worker_drain_marked", 1.0).await;
    assert_eq!(view(&fleet, &worker).await.pod_name.as_deref(), Some("pod-1"));

    let spec = job("s", "echo", json!(1));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let queued = async || (fleet.view(spec.job_id).await?.state == JobState::Queued).then_some(());
    until("it is queued", queued).await;
    assert_eq!(fleet.vhost.waiting_and_consumers().await, (1, 0));
    assert!(fleet.view(spec.job_id).await.unwrap().started_at.is_none());

    unmark(&fleet, &leader, &worker).await;
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    until("it is ready", async || is_ready(&worker).await.then_some(())).await;
    assert_eq!(worker.metric("harness_worker_drain_marked").await, 0.0);
    assert_eq!(view(&fleet, &worker).await.mark, None);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_busy_worker_ends_its_job_stays_ready_meanwhile_and_begins_no_other() {
    let fleet = Fleet::new().await;
    let leader = leading(&fleet.store).await;
    let first = fleet.worker("first").start().await;
    let long = job("long", "scripted", json!({"count": 170, "delay_ms": 100}));
    let next = job("long", "scripted", json!({"count": 1}));
    fleet.enqueue(&[long.clone(), next.clone()]).await;
    fleet.iterated(long.job_id, 2).await;
    let blocked = async || (fleet.view(next.job_id).await?.state == JobState::Blocked).then_some(());
    until("the next job waits for its turn", blocked).await;

    mark(&fleet, &leader, &first, LONG).await;
    first.said("marked to be scaled away").await;
    // Its other slots take nothing: these jobs go to a worker that comes later.
    let others: Vec<_> = (0..4).map(|n| job(&format!("other-{n}"), "echo", json!(n))).collect();
    fleet.enqueue(&others).await;
    let second = fleet.worker("second").start().await;
    for spec in &others {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!(view.worker_id.unwrap().to_string(), second.id().await, "{view:?}");
    }
    let busy = view(&fleet, &first).await;
    assert_eq!(fleet.view(long.job_id).await.unwrap().state, JobState::Running, "still at it");
    assert!(is_ready(&first).await, "{:?}", first.get("/ready").await);
    assert_eq!((busy.held, busy.mark.map(|mark| mark.drained)), (1, Some(false)));

    drained(&fleet, &first).await;
    let ended = fleet.view(long.job_id).await.unwrap();
    assert_eq!((ended.state, ended.attempts, ended.iterations), (JobState::Succeeded, 1, 170), "{ended:?}");
    assert_eq!(ended.worker_id.unwrap().to_string(), first.id().await);
    assert!(!is_ready(&first).await);
    let view = fleet.ended(next.job_id).await;
    assert_eq!(view.worker_id.unwrap().to_string(), second.id().await, "{view:?}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_mark_that_nobody_renews_ends_by_itself() {
    let fleet = Fleet::new().await;
    let leader = leading(&fleet.store).await;
    let worker = fleet.worker("worker").start().await;
    mark(&fleet, &leader, &worker, Duration::from_secs(8)).await;
    worker.said("drained for scale-in").await;
    let spec = job("s", "echo", json!(1));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    worker.said("the mark is gone").await;
    until("it is ready", async || is_ready(&worker).await.then_some(())).await;

    // Marked again under the same epoch, it must confirm again that it is drained.
    mark(&fleet, &leader, &worker, LONG).await;
    drained(&fleet, &worker).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_drained_worker_that_is_asked_to_stop_is_gone_at_once() {
    let fleet = Fleet::new().await;
    let leader = leading(&fleet.store).await;
    let mut worker = fleet.worker("worker").start().await;
    mark(&fleet, &leader, &worker, LONG).await;
    drained(&fleet, &worker).await;
    worker.terminate();
    assert_eq!(worker.exit_within(Duration::from_secs(12)).await, 0);
    let stopped = "SELECT count(*) FROM harness_workers WHERE state = 'stopped'";
    assert_eq!(fleet.database.count(stopped).await, 1);
}

#[tokio::test]
async fn a_drained_worker_that_comes_back_from_the_dead_begins_nothing() {
    let fleet = Fleet::new().await;
    let leader = leading(&fleet.store).await;
    let first = fleet.worker("first").short_lease().start().await;
    let _second = fleet.worker("second").start().await;
    mark(&fleet, &leader, &first, LONG).await;
    drained(&fleet, &first).await;
    first.pause();
    let dead = "SELECT count(*) FROM harness_workers WHERE state = 'dead'";
    until("it is declared dead", async || (fleet.database.count(dead).await == 1).then_some(())).await;
    first.resume();
    first.said("goes on under a new id").await;
    let again = async || {
        let views = fleet.store.pool_workers(&[Default::default()]).await.expect("the ledger");
        let drained = |view: &WorkerView| view.mark.is_some_and(|mark| mark.drained);
        (views.len() == 2 && views.iter().any(drained)).then_some(())
    };
    until("it is drained under its new id", again).await;
    assert!(!is_ready(&first).await);
    assert!(!first.log().contains("the mark is gone"), "it was not in between");
}

#[tokio::test]
async fn no_job_is_interrupted_or_begun_by_workers_that_are_marked_in_the_middle_of_a_burst() {
    let fleet = Fleet::new().await;
    let leader = leading(&fleet.store).await;
    let workers = [fleet.worker("first").start().await, fleet.worker("second").start().await];
    let jobs: Vec<_> = (0..200)
        .map(|n| job(&format!("s-{}", n % 50), "scripted", json!({"count": 2, "delay_ms": 5})))
        .collect();
    let working = async {
        fleet.enqueue(&jobs).await;
        for spec in &jobs {
            let view = fleet.ended(spec.job_id).await;
            assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
        }
    };
    // Marks come and go, one worker after the other, whatever a slot is doing.
    let marking = async {
        for turn in 0.. {
            let worker = &workers[turn % 2];
            mark(&fleet, &leader, worker, LONG).await;
            drained(&fleet, worker).await;
            unmark(&fleet, &leader, worker).await;
            until("it takes jobs again", async || is_ready(worker).await.then_some(())).await;
        }
    };
    let all = async {
        tokio::select! {
            () = working => {}
            () = marking => {}
        }
    };
    fleet.database.audited_while(all).await;
}
