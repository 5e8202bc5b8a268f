//! A failure is retried as the job's policy says, and each kind of failure has its code in the result.

use std::time::Duration;

use job::{Failure, FailureCode, JobSpec, JobState};
use serde_json::{Value, json};
use tests::{Database, Fleet, Runner, claimed, declare_dead, job, until};

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
    worker.counted(r#"harness_requests_total{outcome="retried"}"#, 1.0).await;
    worker.counted(r#"harness_errors_total{code="harness_error"}"#, 1.0).await;
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
    third.counted(r#"harness_errors_total{code="worker_lost"}"#, 1.0).await;
}

/// Kills the worker that runs it.
const POISON: &str = "#!/bin/sh\nread -r line\nsleep 0.5\nkill -9 $PPID\nexec sleep 60\n";

#[tokio::test]
async fn a_job_that_kills_its_workers_ends_as_poison_and_its_neighbours_succeed() {
    let fleet = Fleet::new().await;
    let agents = fleet.agents(&[("poison", &fleet.program("poison.sh", POISON)), ("scripted", "")]);
    // A sandbox would not let it.
    let toml = std::fs::read_to_string(&agents).unwrap() + "[agents.poison.sandbox]\nlevel = \"off\"\n";
    std::fs::write(&agents, toml).unwrap();
    let mut poison = job("poison", "poison", json!(null));
    poison.retry.max_attempts = 100;
    let mut jobs = vec![poison.clone()];
    for n in 0..3 {
        let mut neighbour = job(&format!("n-{n}"), "scripted", json!({"count": 60, "delay_ms": 50}));
        neighbour.retry.max_attempts = 100;
        jobs.push(neighbour);
    }
    fleet.enqueue(&jobs).await;
    for n in 1..=3 {
        let name = format!("victim {n}");
        let mut worker = fleet.worker(&name).short_lease().set("AGENTS_FILE", &agents).start().await;
        worker.ended().await;
    }
    let _survivor = fleet.worker("survivor").short_lease().set("AGENTS_FILE", &agents).start().await;
    let view = fleet.ended(poison.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Failed, 3), "{view:?}");
    assert_eq!(failure(view).code, FailureCode::Poison);
    for neighbour in &jobs[1..] {
        let view = fleet.ended(neighbour.job_id).await;
        assert_eq!((view.state, view.iterations), (JobState::Succeeded, 60), "{view:?}");
    }
}

#[tokio::test]
async fn none_of_several_suspects_is_charged_with_the_death_of_their_worker() {
    let database = Database::new().await;
    let store = database.store();
    let jobs = ["s", "t", "u"].map(|session| job(session, "echo", json!(null)));
    let deaths = async || {
        let deaths = "SELECT deaths || ' ' || attempts FROM harness_jobs ORDER BY session_id";
        database.texts(deaths).await
    };
    let die_with = async |held: &[JobSpec]| {
        let dying = Runner::with_lease(&store, Duration::from_secs(1)).await;
        for spec in held {
            claimed(dying.claim(spec).await.unwrap());
        }
        let dead = async || (!declare_dead(&store).await.is_empty()).then_some(());
        until("the worker is declared dead", dead).await;
        assert_eq!(store.rescue().await.unwrap().len(), held.len());
    };
    die_with(&jobs).await;
    die_with(&jobs[..2]).await;
    assert_eq!(deaths().await, ["2 2", "2 2", "1 1"]);
    // Two suspects, and one job that is not.
    die_with(&jobs).await;
    assert_eq!(deaths().await, ["2 2", "2 2", "2 2"]);
    let apart = "SELECT count(DISTINCT due_at) FROM harness_jobs WHERE session_id IN ('s', 't')";
    assert_eq!(database.count(apart).await, 2, "they come apart from each other");
    // One suspect alone: this death is charged to it.
    die_with(&jobs[..1]).await;
    assert_eq!(deaths().await, ["3 3", "2 2", "2 2"]);
}

/// Works without end and makes no progress.
const STALLING: &str = r#"#!/usr/bin/env python3
import json, sys, time
sys.stdin.readline()
for n in range(100):
    note = {"memory": {"found": n}} if n < 5 else {"memory": {"found": 4}}
    print(json.dumps({"type": "checkpoint", "iterations": 1, "context_window": ["hm"], **note}), flush=True)
print(json.dumps({"type": "result", "output": "done"}), flush=True)
"#;

#[tokio::test]
async fn a_job_without_progress_is_stopped_with_its_own_reason() {
    let fleet = Fleet::new().await;
    let agents = fleet.agents(&[("stalling", &fleet.program("stalling.py", STALLING))]);
    let _worker = fleet.worker("worker").set("AGENTS_FILE", agents).start().await;
    let spec = JobSpec { max_stalled_iterations: Some(7), ..job("s", "stalling", json!(null)) };
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts, view.iterations), (JobState::Failed, 1, 5 + 7), "{view:?}");
    assert_eq!(failure(view).code, FailureCode::NoProgress);
}

/// Makes no progress, and crashes after two iterations.
const STALLING_CRASHING: &str = r#"#!/usr/bin/env python3
import json, sys
sys.stdin.readline()
for _ in range(2):
    print(json.dumps({"type": "checkpoint", "iterations": 1, "context_window": ["hm"]}), flush=True)
sys.exit(1)
"#;

#[tokio::test]
async fn iterations_without_progress_are_counted_over_all_attempts() {
    let fleet = Fleet::new().await;
    let agents = fleet.agents(&[("crashing", &fleet.program("crashing.py", STALLING_CRASHING))]);
    let _worker = fleet.worker("worker").set("AGENTS_FILE", agents).start().await;
    let mut spec = JobSpec { max_stalled_iterations: Some(5), ..job("s", "crashing", json!(null)) };
    (spec.retry.max_attempts, spec.retry.base_delay_ms) = (9, 10);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts, view.iterations), (JobState::Failed, 3, 5), "{view:?}");
    assert_eq!(failure(view).code, FailureCode::NoProgress);
}

#[tokio::test]
async fn a_deadline_ends_a_job_whether_it_runs_retries_or_waits() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let overdue = |spec: JobSpec| JobSpec { deadline_ms: Some(6_000), ..spec };
    let running = overdue(job("running", "scripted", json!({"count": 1000, "delay_ms": 50})));
    let mut retrying = overdue(failing("retrying", json!({"message": "again", "retryable": true})));
    (retrying.retry.base_delay_ms, retrying.retry.max_delay_ms) = (600_000, 600_000);
    let ahead = job("waiting", "scripted", json!({"count": 100, "delay_ms": 100}));
    let waiting = overdue(job("waiting", "echo", json!(1)));
    let behind = job("waiting", "echo", json!(2));
    let jobs = [running.clone(), retrying.clone(), ahead.clone(), waiting.clone(), behind.clone()];
    fleet.enqueue(&jobs).await;
    for (spec, attempts) in [(&running, 1), (&retrying, 1), (&waiting, 0)] {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!((view.state, view.attempts), (JobState::Failed, attempts), "{view:?}");
        assert_eq!(failure(view).code, FailureCode::DeadlineExceeded);
    }
    for spec in [&ahead, &behind] {
        assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }
}
