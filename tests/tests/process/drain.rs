//! A worker that is asked to stop ends short jobs and hands back long ones, and this spends no attempt.

use std::time::Duration;

use job::JobState;
use serde_json::{Value, json};
use tests::{Fleet, job, until};

fn output(view: &store::JobView) -> Value {
    serde_json::from_str(view.output.as_ref().expect("an output").as_str()).expect("JSON")
}

#[tokio::test]
async fn short_jobs_end_and_long_ones_go_on_elsewhere_without_a_spent_attempt() {
    let fleet = Fleet::new().await;
    let mut first = fleet.worker("first").set("DRAIN_GRACE_S", 12).start().await;
    let short = job("short", "scripted", json!({"iterations": [{"delay_ms": 10}, {"delay_ms": 5_000}]}));
    let long = job("long", "scripted", json!({"count": 60, "delay_ms": 400}));
    // The next job of its session: a draining worker leaves it to others.
    let next = job("short", "scripted", json!({"count": 1}));
    fleet.enqueue(&[short.clone(), long.clone(), next.clone()]).await;
    fleet.iterated(short.job_id, 1).await;
    fleet.iterated(long.job_id, 2).await;
    let blocked = async || (fleet.view(next.job_id).await?.state == JobState::Blocked).then_some(());
    until("the next job waits for its turn", blocked).await;

    first.terminate();
    first.said("draining").await;
    let (status, ready) = first.get_json("/ready").await;
    assert_eq!((status, &ready["reasons"]["queue_consuming"]), (503, &json!("draining")), "{ready}");
    assert_eq!(first.get("/health").await.0, 200);
    let late = job("late", "scripted", json!({"count": 1}));
    fleet.enqueue(std::slice::from_ref(&late)).await;
    assert_eq!(first.exit().await, 0);

    let view = fleet.view(short.job_id).await.unwrap();
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1));
    let handed_back = fleet.view(long.job_id).await.unwrap();
    assert_eq!(handed_back.attempts, 0, "{handed_back:?}");
    assert!(matches!(handed_back.state, JobState::Scheduled | JobState::Publishing | JobState::Queued));
    for spec in [&next, &late] {
        let view = fleet.view(spec.job_id).await.unwrap();
        assert!(!view.state.is_end() && view.started_at.is_none(), "{view:?}");
    }
    let stopped = "SELECT count(*) FROM harness_workers WHERE state = 'stopped' AND ended_at IS NOT NULL";
    assert_eq!(fleet.database.count(stopped).await, 1, "it has signed off");

    let second = fleet.worker("second").start().await;
    for spec in [&long, &next, &late] {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
        assert_eq!(view.worker_id.unwrap().to_string(), second.id().await);
    }
    let output = output(&fleet.view(long.job_id).await.unwrap());
    assert_eq!((&output["resumed_at"], &output["attempt"]), (&json!(handed_back.iterations), &json!(1)));
    assert!(handed_back.iterations >= 2);
    assert_eq!(fleet.session("long").await.iteration_count, 60);
}

#[tokio::test]
async fn a_program_is_asked_to_stop_finishes_its_step_and_goes_on_elsewhere() {
    let fleet = Fleet::new().await;
    for n in 0..20 {
        std::fs::write(fleet.folder.path().join(format!("{n:02}.md")), "words\n").unwrap();
    }
    let launch = |name: &str| fleet.worker(name).set("AGENTS_FILE", fleet.reader()).set("DRAIN_GRACE_S", 0);
    let mut first = launch("first").start().await;
    let spec = job("s", "reader", json!({"folder": ".", "delay_ms": 300}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.iterated(spec.job_id, 2).await;
    first.terminate();
    assert_eq!(first.exit().await, 0);
    let before = fleet.view(spec.job_id).await.unwrap();
    assert_eq!(before.attempts, 0, "{before:?}");
    assert!(before.iterations < 20);

    let _second = launch("second").start().await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts, view.iterations), (JobState::Succeeded, 1, 20), "{view:?}");
    assert_eq!(output(&view)["resumed_at"], json!(before.iterations));
}

#[tokio::test]
async fn an_idle_worker_is_gone_at_once() {
    let fleet = Fleet::new().await;
    let mut worker = fleet.worker("worker").start().await;
    worker.terminate();
    assert_eq!(worker.exit_within(Duration::from_secs(20)).await, 0);
    assert_eq!(
        fleet.database.count("SELECT count(*) FROM harness_workers WHERE state <> 'stopped'").await,
        0
    );
}
