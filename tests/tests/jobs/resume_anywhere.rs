//! Promise 3: any worker continues a session from its last checkpoint; finished iterations are not paid for twice.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use job::JobState;
use serde_json::{Value, json};
use tests::{Fleet, job};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// So many that a job runs on for seconds when the test has seen the first ones.
const STEPS: usize = 40;

fn output(view: &store::JobView) -> Value {
    serde_json::from_str(view.output.as_ref().expect("an output").as_str()).expect("JSON")
}

#[tokio::test]
async fn a_job_goes_on_at_the_next_iteration_when_its_worker_is_killed() {
    let fleet = Fleet::new().await;
    let mut first = fleet.worker("first").short_lease().start().await;
    let iteration =
        json!({"delay_ms": 150, "cost_usd": 0.0015, "input_tokens": 10, "output_tokens": 3, "say": "hm"});
    let spec = job("s", "scripted", json!({"iterations": vec![iteration; STEPS]}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.iterated(spec.job_id, 4).await;
    first.kill();
    let before = fleet.left(spec.job_id).await.iterations;

    let second = fleet.worker("second").start().await;
    let view = fleet.ended(spec.job_id).await;
    let output = output(&view);
    assert_eq!(view.state, JobState::Succeeded);
    assert_eq!(output["resumed_at"], json!(before), "exactly where the ledger stood");
    assert_eq!((&output["iterations"], &output["attempt"], view.attempts), (&json!(STEPS), &json!(2), 2));
    assert_eq!(view.worker_id.unwrap().to_string(), second.id().await);

    let session = fleet.session("s").await;
    assert_eq!((session.iteration_count, session.cost_usd.micros()), (40, 40 * 1_500));
    assert_eq!((session.input_tokens, session.output_tokens), (400, 120));
    assert_eq!(session.context_window.len(), STEPS);
    assert_eq!((view.iterations, view.cost_usd, view.input_tokens), (40, session.cost_usd, 400));
    // What was done before is not paid again.
    second.counted("harness_iterations_total", (40 - before) as f64).await;
}

#[tokio::test]
async fn a_service_does_each_step_once_when_its_worker_is_killed_or_stopped() {
    let fleet = Fleet::new().await;
    let service = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/service.py");
    let mut service = Command::new(service);
    let mut service = service.arg("0").stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("python3");
    let said = BufReader::new(service.stdout.take().expect("a pipe")).lines().next_line().await;
    let url = said.expect("read").expect("a line");
    let agents = fleet.folder.path().join("agents.toml");
    std::fs::write(&agents, format!("[agents.counter]\nharness = \"http\"\nurl = \"{url}\"\n")).unwrap();
    let launch = |name| fleet.worker(name).set("AGENTS_FILE", agents.display()).set("DRAIN_GRACE_S", 0);
    let mut first = launch("first").short_lease().start().await;
    let spec = job("s", "counter", json!({"steps": STEPS, "delay_ms": 150}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.iterated(spec.job_id, 3).await;
    first.kill();
    let before = fleet.left(spec.job_id).await.iterations;

    let mut second = launch("second").start().await;
    fleet.iterated(spec.job_id, before + 3).await;
    second.terminate();
    assert_eq!(second.exit().await, 0);
    let before = fleet.left(spec.job_id).await.iterations;
    let _third = launch("third").start().await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 2), "{view:?}");
    assert_eq!(output(&view), json!({"steps": STEPS, "resumed_at": before}));
    assert_eq!(fleet.session("s").await.iteration_count, STEPS as i64);
}

#[tokio::test]
async fn a_program_in_another_language_does_each_step_once_when_its_worker_is_killed() {
    let fleet = Fleet::new().await;
    for n in 0..STEPS {
        let text = format!("# Heading\nfile number {n} speaks of harvest\n");
        std::fs::write(fleet.folder.path().join(format!("{n}.md")), text).unwrap();
    }
    let mut first = fleet.worker("first").set("AGENTS_FILE", fleet.reader()).short_lease().start().await;
    let spec = job("s", "reader", json!({"folder": ".", "delay_ms": 150}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.iterated(spec.job_id, 3).await;
    first.kill();
    let before = fleet.left(spec.job_id).await.iterations;

    let _second = fleet.worker("second").set("AGENTS_FILE", fleet.reader()).start().await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    let output = output(&view);
    assert_eq!((&output["files"], &output["headings"]), (&json!(STEPS), &json!(STEPS)));
    assert_eq!(output["resumed_at"], json!(before));
    let session = fleet.session("s").await;
    assert_eq!(session.iteration_count, STEPS as i64);
    assert_eq!(session.memory["reader"]["files"], json!(STEPS));
    let said = session.context().unwrap();
    let files: BTreeSet<&str> =
        said.iter().map(|entry| entry["content"].as_str().unwrap().split(':').next().unwrap()).collect();
    assert_eq!((said.len(), files.len()), (STEPS, STEPS), "each file once: {said:?}");
}

#[tokio::test]
async fn the_next_job_of_a_session_finds_on_any_worker_what_the_last_one_left() {
    let fleet = Fleet::new().await;
    let step = |key: &str| json!({"iterations": [{"memory": {key: 1}, "cost_usd": 0.25}], "output": key});
    for (n, key) in ["a", "b", "c"].into_iter().enumerate() {
        let mut worker = fleet.worker(key).start().await;
        let spec = job("s", "scripted", step(key));
        fleet.enqueue(std::slice::from_ref(&spec)).await;
        assert_eq!(output(&fleet.ended(spec.job_id).await), json!(key));
        let session = fleet.session("s").await;
        assert_eq!(session.iteration_count, n as i64 + 1);
        assert_eq!(session.memory.as_object().unwrap().len(), n + 1);
        assert_eq!(session.cost_usd.micros(), (n as u64 + 1) * 250_000);
        worker.kill();
    }
    assert_eq!(fleet.session("s").await.memory, json!({"a": 1, "b": 1, "c": 1}));
}
