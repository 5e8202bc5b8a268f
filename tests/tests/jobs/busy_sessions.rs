//! A session works on one job at a time, and each job chooses what to do when its session is busy.

use job::{FailureCode, JobSpec, JobState, OnBusy};
use serde_json::{Value, json};
use sqlx::Connection;
use tests::{Fleet, job, until};

fn with(on_busy: OnBusy, spec: JobSpec) -> JobSpec {
    JobSpec { on_busy, ..spec }
}

fn remembering(session: &str, iterations: usize, delay_ms: u64) -> JobSpec {
    let step = |n: usize| json!({"delay_ms": delay_ms, "cost_usd": 0.5, "memory": {"step": n}});
    job(session, "scripted", json!({"iterations": (1..=iterations).map(step).collect::<Vec<_>>()}))
}

#[tokio::test]
async fn a_job_that_will_not_wait_fails_at_once() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let first = remembering("s", 60, 100);
    fleet.enqueue(std::slice::from_ref(&first)).await;
    fleet.iterated(first.job_id, 1).await;
    let second = with(OnBusy::Reject, job("s", "echo", json!(2)));
    fleet.enqueue(std::slice::from_ref(&second)).await;
    let view = fleet.ended(second.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Failed, 0), "{view:?}");
    assert_eq!(view.failure.unwrap().code, FailureCode::SessionBusy);
    assert!(!fleet.view(first.job_id).await.unwrap().state.is_end(), "the other job is not disturbed");
    assert_eq!(fleet.ended(first.job_id).await.state, JobState::Succeeded);
    // If the session is free, the job is not refused.
    let third = with(OnBusy::Reject, job("s", "echo", json!(3)));
    fleet.enqueue(std::slice::from_ref(&third)).await;
    assert_eq!(fleet.ended(third.job_id).await.state, JobState::Succeeded);
}

#[tokio::test]
async fn an_interrupt_ends_the_running_job_at_its_next_checkpoint_and_keeps_its_state() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let first = remembering("s", 200, 100);
    fleet.enqueue(std::slice::from_ref(&first)).await;
    fleet.iterated(first.job_id, 2).await;
    let ran = fleet
        .producer(&["enqueue", "--session", "s", "--agent", "echo", "--input", "2", "--on-busy", "interrupt"])
        .await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let view = fleet.ended(first.job_id).await;
    assert_eq!((view.state, view.failure.unwrap().code), (JobState::Cancelled, FailureCode::Interrupted));
    assert!((2..200).contains(&view.iterations));
    let view2 = fleet.ended(ran.out.trim().parse().unwrap()).await;
    assert_eq!(view2.state, JobState::Succeeded);
    let session = fleet.session("s").await;
    assert_eq!(session.iteration_count, view.iterations);
    assert_eq!(session.memory["step"], json!(view.iterations), "what it did stays");
    assert_eq!(session.cost_usd, view.cost_usd);
}

#[tokio::test]
async fn a_rollback_leaves_the_session_as_it_was_and_the_cost_counted() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let before = remembering("s", 1, 0);
    fleet.enqueue(std::slice::from_ref(&before)).await;
    fleet.ended(before.job_id).await;
    let state = fleet.session("s").await;
    // One iteration takes an hour, so the rollback does not wait for it.
    let mut steps: Vec<Value> =
        (2..5).map(|n| json!({"cost_usd": 0.5, "memory": {"step": n, "more": n}})).collect();
    steps.push(json!({"delay_ms": 3_600_000}));
    let undone = job("s", "scripted", json!({"iterations": steps}));
    fleet.enqueue(std::slice::from_ref(&undone)).await;
    fleet.iterated(undone.job_id, 3).await;
    let next = with(OnBusy::Rollback, job("s", "scripted", json!({"iterations": [{"say": "next"}]})));
    // Only the message is published, so the worker that claims it asks the running job to give way.
    fleet.vhost.publish(vec![(job::encode(&next).into_bytes(), Default::default())]).await;
    let view = fleet.ended(undone.job_id).await;
    assert_eq!((view.state, view.iterations), (JobState::Cancelled, 3), "{view:?}");
    assert_eq!(fleet.ended(next.job_id).await.state, JobState::Succeeded);
    let session = fleet.session("s").await;
    assert_eq!(session.memory, state.memory);
    let context = session.context().unwrap();
    assert_eq!(context.len(), 2, "{context:?}");
    assert_eq!(context[1]["content"], json!("next"));
    assert!(session.feature_progress.get(undone.job_id.to_string()).is_none());
    assert_eq!((session.iteration_count, session.cost_usd.micros()), (1 + 3 + 1, 4 * 500_000));
}

#[tokio::test]
async fn many_jobs_ask_running_jobs_to_give_way_at_once_and_a_locked_one_delays_no_other() {
    let fleet = Fleet::new().await;
    // No slot is free for the asking jobs, so only the producer can ask for them.
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 3).start().await;
    let running = ["a", "b", "c"].map(|session| remembering(session, 5_000, 10));
    fleet.enqueue(&running).await;
    for spec in &running {
        fleet.iterated(spec.job_id, 1).await;
    }
    let [a, b, c] = running.each_ref().map(|spec| spec.job_id);
    let mut somebody = fleet.database.connect().await;
    let mut holding = somebody.begin().await.unwrap();
    let lock = sqlx::query("SELECT FROM harness_jobs WHERE job_id = $1::uuid FOR UPDATE").bind(b.to_string());
    lock.execute(&mut *holding).await.unwrap();

    let echo = |session, on_busy| with(on_busy, job(session, "echo", json!(1)));
    let asking = [
        echo("a", OnBusy::Rollback),
        echo("a", OnBusy::Interrupt),
        echo("b", OnBusy::Interrupt),
        echo("c", OnBusy::Enqueue),
    ];
    let ended_while_b_is_locked = async {
        let view = fleet.ended(a).await;
        holding.rollback().await.unwrap();
        view
    };
    let (view, ()) = tokio::join!(ended_while_b_is_locked, fleet.enqueue(&asking));
    assert_eq!(view.state, JobState::Cancelled);
    assert_eq!(fleet.session("a").await.memory.get("step"), None, "the rollback outweighs the interrupt");
    let view = fleet.ended(b).await;
    assert_eq!((view.state, view.failure.unwrap().code), (JobState::Cancelled, FailureCode::Interrupted));
    for spec in &asking[..3] {
        assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }
    assert!(!fleet.view(c).await.unwrap().state.is_end(), "this one was not asked");
}

/// Opens a tool call in the conversation, and waits for its stop signal.
const CALLING: &str = r#"#!/usr/bin/env python3
import json, sys, time
sys.stdin.readline()
call = {"role": "assistant", "content": [{"type": "tool_use", "id": "call-1", "name": "ls", "input": {}}]}
print(json.dumps({"type": "checkpoint", "iterations": 1, "context_window": [call]}), flush=True)
for n in range(1000):
    time.sleep(0.1)
    print(json.dumps({"type": "checkpoint", "iterations": 1, "memory": {"n": n}}), flush=True)
"#;

#[tokio::test]
async fn an_open_tool_call_is_closed_when_its_job_is_interrupted() {
    let fleet = Fleet::new().await;
    let agents = fleet.agents(&[("calling", &fleet.program("calling.py", CALLING)), ("echo", "")]);
    let _worker = fleet.worker("worker").set("AGENTS_FILE", agents).start().await;
    let first = job("s", "calling", json!(null));
    fleet.enqueue(std::slice::from_ref(&first)).await;
    fleet.iterated(first.job_id, 2).await;
    let next = with(OnBusy::Interrupt, job("s", "echo", json!(1)));
    fleet.enqueue(std::slice::from_ref(&next)).await;
    assert_eq!(fleet.ended(first.job_id).await.state, JobState::Cancelled);
    fleet.ended(next.job_id).await;
    let context = fleet.session("s").await.context().unwrap();
    let last = context.last().unwrap();
    assert_eq!(last["content"][0]["tool_use_id"], json!("call-1"), "{context:?}");
}

#[tokio::test]
async fn a_job_that_has_begun_keeps_its_turn() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let fail = json!({"fail": {"message": "not yet", "retryable": true, "attempts": 1}});
    let mut first = job("s", "scripted", json!({"iterations": [{"say": "a"}, fail, {"say": "b"}]}));
    (first.retry.base_delay_ms, first.retry.max_delay_ms) = (6_000, 6_000);
    let second = job("s", "scripted", json!({"iterations": [{"say": "c"}]}));
    fleet.enqueue(&[first.clone(), second.clone()]).await;
    let blocked = async || (fleet.view(second.job_id).await?.state == JobState::Blocked).then_some(());
    until("the second one waits", blocked).await;
    for spec in [&first, &second] {
        assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }
    let context = fleet.session("s").await.context().unwrap();
    let said: Vec<&str> = context.iter().map(|entry| entry["content"].as_str().unwrap()).collect();
    assert_eq!(said, ["a", "iteration 2 of 3", "b", "c"]);
}

/// A job of a session may be claimed while the end of the job before it hands it to another slot of the same worker.
#[tokio::test]
async fn a_job_that_is_handed_to_one_slot_while_another_claims_it_runs_at_once() {
    const SESSIONS: usize = 8;
    const JOBS: usize = 200;
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").set("WORKER_SLOTS", 32).start().await;
    let jobs = (0..JOBS).flat_map(|n| (0..SESSIONS).map(move |session| (session, n)));
    let jobs: Vec<JobSpec> =
        jobs.map(|(session, n)| job(&format!("s-{session}"), "echo", json!(n))).collect();
    // Raw messages: the ledger does not know them before they are claimed.
    let messages = jobs.iter().map(|spec| (job::encode(spec).into_bytes(), Default::default()));
    fleet.vhost.publish(messages.collect()).await;
    worker.counted("harness_requests_total{outcome=\"succeeded\"}", (SESSIONS * JOBS) as f64).await;
    let log = worker.log();
    let stranded: Vec<&str> = log.lines().filter(|line| line.contains("cannot be taken here")).collect();
    assert!(stranded.is_empty(), "{stranded:#?}");
    assert!(!log.contains("handed back"), "{log}");
}
