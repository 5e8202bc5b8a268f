//! Agents on real workers, on each wire, that ask a person: a job waits without a worker, goes on on another one, and each
//! answer of its model is paid once.

use job::{JobSpec, JobState};
use lapin::BasicProperties;
use serde_json::{Value, json};
use store::JobView;
use tests::{Api, until_ok};

use super::desk::{AGENTS, Desk, jobs, output};

/// A tool that does what the note does, and is made when a person has approved it.
fn sign(desk: &Desk) -> String {
    let folder = desk.fleet.folder.path();
    format!(
        "[agents.AGENT.tools.sign]\ncommand = [{:?}]\ndescription = \"Signs.\"\napprove = true\n\
         env = {{ FOLDER = {folder:?} }}\n\
         input_schema = {{ type = \"object\", properties = {{ say = {{ type = \"string\" }} }}, required = [\"say\"] }}",
        folder.join("note")
    )
}

fn turn(tools: &[(&str, &str)]) -> String {
    let call = |(name, input): &(&str, &str)| format!(r#"{{"name": "{name}", "input": {input}}}"#);
    let calls: Vec<String> = tools.iter().map(call).collect();
    format!(r#"{{"thinking": "So be it.", "tools": [{}]}}"#, calls.join(","))
}

const QUESTION: (&str, &str) = ("ask_human", r#"{"question": "Which colour?"}"#);

/// Waits until a job asks something else than this call.
async fn asks(desk: &Desk, spec: &JobSpec, before: &str) -> JobView {
    let asks = |view: &JobView| view.questions.first().is_some_and(|asked| asked.call_id.as_str() != before);
    let look = async || match desk.fleet.view(spec.job_id).await {
        Some(view) if view.state == JobState::AwaitingInput && asks(&view) => Ok(view),
        other => Err(other),
    };
    let view = until_ok("the job waits for a person", look).await;
    assert_eq!((view.attempts, view.worker_id.as_ref()), (0, None), "{view:?}");
    view
}

fn call_of(view: &JobView) -> String {
    view.questions[0].call_id.as_str().to_owned()
}

/// Answers by the command.
async fn answer(desk: &Desk, spec: &JobSpec, call: &str, given: &[&str]) {
    let id = spec.job_id.to_string();
    let ran = desk.fleet.producer(&[&["answer", &id, "--call", call], given].concat()).await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// The API for a caller who may answer.
async fn api(desk: &Desk, door: &tests::Worker) -> Api {
    let create = ["keys", "create", "--tenant", "default", "--scope", "submit,read,content"];
    let key = desk.fleet.producer(&create).await;
    assert_eq!(key.code, 0, "{key:?}");
    Api::of(door).await.with_key(key.out.trim())
}

#[tokio::test]
async fn a_job_that_asks_goes_on_on_another_worker_with_what_a_person_decides() {
    let turns = [
        turn(&[("note", r#"{"say": "before"}"#), QUESTION]),
        // Nobody is asked for what could not be made.
        turn(&[("sign", r#"{"say": 7}"#)]),
        turn(&[("sign", r#"{"say": "this"}"#)]),
        turn(&[("sign", r#"{"say": "that"}"#)]),
    ];
    let desk = Desk::new(&format!("\"asks\": [{}, {{\"text\": \"Done.\"}}]", turns.join(","))).await;
    let launch = |name: &str| desk.worker_with(name, "ask_human = true", &sign(&desk));
    let mut first = launch("first").start().await;
    let jobs = jobs("asks");
    desk.fleet.enqueue(&jobs).await;
    let mut calls = Vec::new();
    for spec in &jobs {
        let view = asks(&desk, spec, "").await;
        // The answer counts as an iteration once its question is answered.
        assert_eq!((view.iterations, desk.notes(spec.session_id.as_str())), (0, 1), "{view:?}");
        let shown = desk.fleet.producer(&["status", &spec.job_id.to_string()]).await;
        assert!(shown.out.contains("Which colour?"), "{shown:?}");
        calls.push(call_of(&view));
    }
    first.terminate();
    assert_eq!(first.exit().await, 0, "what waits for a person holds up no worker");

    // One answer comes by the command, one over HTTP, one as a message.
    let (second, door) = (launch("second").start().await, desk.fleet.door("door").start().await);
    let api = api(&desk, &door).await;
    let path = |spec: &JobSpec| format!("/v1/jobs/{}/answers", spec.job_id);
    answer(&desk, &jobs[0], &calls[0], &["--json", "\"blue\"", "--by", "Ada"]).await;
    api.post(&path(&jobs[1]), &json!({"call_id": calls[1], "answer": "blue"})).await.is(200);
    let message = json!({"schema": "harness.input.v1", "job_id": jobs[2].job_id, "call_id": calls[2], "answer": "blue"});
    desk.fleet.vhost.publish(vec![(message.to_string().into_bytes(), BasicProperties::default())]).await;
    for (spec, before) in jobs.iter().zip(&calls) {
        let view = asks(&desk, spec, before).await;
        let question: Value = serde_json::from_str(view.questions[0].question.as_str()).expect("JSON");
        assert_eq!(question, json!({"tool": "sign", "input": {"say": "this"}}));
        assert_eq!(desk.notes(spec.session_id.as_str()), 1, "nobody has approved it");
        api.post(&path(spec), &json!({"call_id": call_of(&view), "approve": true})).await.is(200);
        let view = asks(&desk, spec, &call_of(&view)).await;
        assert_eq!(desk.notes(spec.session_id.as_str()), 2);
        answer(&desk, spec, &call_of(&view), &["--deny"]).await;
    }
    for spec in &jobs {
        let view = desk.fleet.ended(spec.job_id).await;
        let ended = (view.state, view.attempts, view.iterations, output(&view));
        assert_eq!(ended, (JobState::Succeeded, 1, 5, "\"Done.\""), "{view:?}");
        assert_eq!(desk.notes(spec.session_id.as_str()), 2, "what was denied was not made");
        let said = desk.said(spec).await;
        for words in ["blue", "does not fit", "A person has not approved this call, so it was not made."] {
            assert!(said.contains(words), "{}: the model is not told: {words}: {said}", spec.agent_id);
        }
    }
    let all = AGENTS.len() as f64;
    for (tool, outcome, count) in [
        ("ask_human", "answered", all),
        ("sign", "bad_input", all),
        ("sign", "done", all),
        ("sign", "answered", all),
    ] {
        let name = format!("harness_tool_calls_total{{outcome=\"{outcome}\",tool=\"{tool}\"}}");
        second.counted(&name, count).await;
    }
    assert_eq!(desk.provider.charged().len(), 5 * AGENTS.len());
    desk.nothing_is_wrong().await;
}

#[tokio::test]
async fn where_nobody_answers_in_time_the_model_is_told_and_nothing_is_made() {
    let turns = [turn(&[QUESTION]), turn(&[("sign", r#"{"say": "this"}"#)])];
    let desk = Desk::new(&format!("\"asks\": [{}, {{\"text\": \"Done.\"}}]", turns.join(","))).await;
    let own = "ask_human = true\nanswer_timeout_ms = 1000";
    let _worker = desk.worker_with("worker", own, &sign(&desk)).start().await;
    let jobs = jobs("asks");
    desk.fleet.enqueue(&jobs).await;
    for spec in &jobs {
        desk.done(spec, 1).await;
        let said = desk.said(spec).await;
        for words in ["Nobody has answered in time.", "Nobody has approved this call in time"] {
            assert!(said.contains(words), "{}: the model is not told: {words}: {said}", spec.agent_id);
        }
        assert_eq!(desk.notes(spec.session_id.as_str()), 0);
    }
    assert_eq!(desk.provider.charged().len(), 3 * AGENTS.len());
    desk.nothing_is_wrong().await;
}

#[tokio::test]
async fn a_call_that_was_approved_is_made_once_though_its_worker_is_killed_in_it() {
    let turns = turn(&[("sign", r#"{"say": "halt"}"#)]);
    let desk = Desk::new(&format!("\"asks\": [{turns}, {{\"text\": \"Done.\"}}]")).await;
    let launch = |name: &str| desk.worker_with(name, "", &sign(&desk));
    let mut first = launch("first").short_lease().start().await;
    let jobs = jobs("asks");
    desk.fleet.enqueue(&jobs).await;
    for spec in &jobs {
        let view = asks(&desk, spec, "").await;
        answer(&desk, spec, &call_of(&view), &["--approve"]).await;
    }
    desk.halted(&jobs).await;
    first.kill();
    desk.go();
    let _second = launch("second").start().await;
    for spec in &jobs {
        desk.done(spec, 2).await;
        assert!(desk.said(spec).await.contains("It may have taken effect"));
        assert_eq!(desk.notes(spec.session_id.as_str()), 1);
    }
    assert_eq!(desk.provider.charged().len(), 2 * AGENTS.len());
    desk.nothing_is_wrong().await;
}
