//! A failure is tried again as the job's policy says, and every way to fail has its name in the result.

use job::{Failure, FailureCode, JobSpec, JobState};
use serde_json::{Value, json};
use tests::{Fleet, job};

fn failing(session: &str, fail: Value) -> JobSpec {
    job(session, "scripted", json!({"iterations": [{"cost_usd": 0.5}, {"fail": fail}]}))
}

fn failure(view: store::JobView) -> Failure {
    view.failure.expect("a failure")
}

#[tokio::test]
async fn a_retryable_failure_is_tried_again_and_what_was_done_is_kept() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let spec = failing("s", json!({"message": "not yet", "retryable": true, "attempts": 1}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 2), "{view:?}");
    assert_eq!(view.failure, None);
    let output: Value = serde_json::from_str(view.output.unwrap().as_str()).unwrap();
    assert_eq!((&output["attempt"], &output["resumed_at"]), (&json!(2), &json!(1)));
    assert_eq!((view.iterations, view.cost_usd.micros()), (2, 500_000), "paid once");
    assert_eq!(worker.metric(r#"harness_requests_total{outcome="retried"}"#).await, 1.0);
    assert_eq!(worker.metric(r#"harness_errors_total{code="harness_error"}"#).await, 1.0);
}

#[tokio::test]
async fn a_permanent_failure_ends_the_job_at_once() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let spec = failing("s", json!({"message": "never", "retryable": false}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts, view.iterations), (JobState::Failed, 1, 1));
    let failure = failure(view);
    assert_eq!((failure.code, failure.message.as_str()), (FailureCode::HarnessError, "never"));
}

#[tokio::test]
async fn a_failure_that_lasts_ends_the_job_when_its_attempts_are_spent() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let mut spec = failing("s", json!({"message": "again", "retryable": true}));
    spec.retry.max_attempts = 3;
    let next = job("s", "scripted", json!({"count": 1}));
    fleet.enqueue(&[spec.clone(), next.clone()]).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Failed, 3));
    assert_eq!(failure(view).message, "again");
    let view = fleet.ended(next.job_id).await;
    assert_eq!(view.state, JobState::Succeeded, "the session goes on");
    assert_eq!(fleet.session("s").await.iteration_count, 2);
}

#[tokio::test]
async fn a_job_that_outlives_its_time_limit_fails_with_the_code_timeout() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let mut spec = job("s", "scripted", json!({"count": 100, "delay_ms": 100}));
    (spec.timeout_ms, spec.retry.max_attempts) = (Some(600), 2);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Failed, 2), "{view:?}");
    assert!((2..=12).contains(&view.iterations), "the second attempt went on: {view:?}");
    let failure = failure(view);
    assert_eq!(failure.code, FailureCode::Timeout);
    assert!(failure.message.contains("timeout_ms (600)"), "{failure}");
}

#[tokio::test]
async fn a_job_that_is_running_at_the_death_of_every_worker_ends_as_worker_lost() {
    let fleet = Fleet::new().await;
    let mut spec = job("s", "scripted", json!({"count": 1000, "delay_ms": 50}));
    spec.retry.max_attempts = 2;
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    for attempt in ["first", "second"] {
        let before = fleet.view(spec.job_id).await.unwrap().iterations;
        let mut worker = fleet.worker(attempt).short_lease().start().await;
        fleet.iterated(spec.job_id, before + 2).await;
        worker.kill();
    }
    let third = fleet.worker("third").short_lease().start().await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Failed, 2), "{view:?}");
    assert_eq!(fleet.session("s").await.iteration_count, view.iterations, "what was done stays");
    let failure = failure(view);
    assert_eq!(failure.code, FailureCode::WorkerLost);
    assert!(failure.message.contains("2 of 2"), "{failure}");
    assert_eq!(third.metric(r#"harness_errors_total{code="worker_lost"}"#).await, 1.0);
}
