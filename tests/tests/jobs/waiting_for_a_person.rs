//! A job that asks a person waits without a worker, and goes on when the answer is there: each call is answered once.

use std::time::Duration;

use job::{FailureCode, Input, JobId, JobSpec, JobState, OnBusy};
use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use serde_json::{Value, json};
use store::Accepted;
use tests::{Api, Fleet, Ran, job, until, until_ok};

/// A job that pays an iteration, asks, and pays another one.
fn asking(session: &str, ask: Value) -> JobSpec {
    let iterations = json!([{"say": "before", "cost_usd": 0.5}, {"ask": ask, "cost_usd": 0.25}]);
    job(session, "scripted", json!({"iterations": iterations}))
}

async fn awaits(fleet: &Fleet, job_id: JobId) {
    let look = async || match fleet.view(job_id).await {
        Some(view) if view.state == JobState::AwaitingInput => Ok(()),
        other => Err(other),
    };
    until_ok("the job waits for a person", look).await;
}

async fn answer(fleet: &Fleet, job_id: JobId, call: &str, given: &[&str]) -> Ran {
    let id = job_id.to_string();
    fleet.producer(&[&["answer", &id, "--call", call], given].concat()).await
}

/// The last entry of a session's context.
async fn last_said(fleet: &Fleet, session: &str) -> String {
    let session = fleet.session(session).await;
    let last = session.context_window.last().expect("an entry");
    let last: Value = serde_json::from_str(last.as_str()).expect("an entry");
    last["content"].as_str().expect("a text").to_owned()
}

/// The message of an answer as any AMQP client sends it.
async fn publish(fleet: &Fleet, members: Value) {
    let mut body = json!({"schema": "harness.input.v1"});
    let members = members.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(members);
    fleet.vhost.publish(vec![(body.to_string().into_bytes(), BasicProperties::default())]).await;
}

#[tokio::test]
async fn a_job_waits_without_a_slot_and_goes_on_with_the_answer() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").set("WORKER_SLOTS", 1).start().await;
    let spec = asking("s", json!({"call_id": "c1", "question": {"n": 1}, "timeout_s": 3600}));
    let behind = job("s", "echo", json!(2));
    fleet.enqueue(&[spec.clone(), behind.clone()]).await;
    awaits(&fleet, spec.job_id).await;
    let view = fleet.view(spec.job_id).await.unwrap();
    assert_eq!((view.attempts, view.iterations, view.worker_id), (0, 1, None), "{view:?}");
    let question = &view.questions[0];
    assert_eq!((question.call_id.as_str(), question.question.as_str()), ("c1", "{\"n\":1}"));
    assert!(question.expires_at.as_ref().unwrap() > &question.asked_at);
    let why = fleet.producer(&["why", &spec.job_id.to_string()]).await;
    assert!(why.out.starts_with("awaiting_input: waits for an answer to call c1 for "), "{why:?}");
    let listed = fleet.producer(&["jobs", "--state", "awaiting_input", "--json"]).await;
    assert!(listed.out.contains(&spec.job_id.to_string()), "{listed:?}");

    // The only slot serves another session meanwhile, and the job behind it waits for its turn.
    let other = job("other", "echo", json!(1));
    fleet.enqueue(std::slice::from_ref(&other)).await;
    assert_eq!(fleet.ended(other.job_id).await.state, JobState::Succeeded);
    worker.counted("harness_jobs_running", 0.0).await;
    assert_eq!(fleet.view(behind.job_id).await.unwrap().state, JobState::Blocked);
    let pool = "default".parse().unwrap();
    let demand = fleet.store.demand(&[pool], Duration::from_secs(60)).await.unwrap().remove(0);
    assert_eq!((demand.running, demand.due_soon, demand.oldest_waiting_ms), (0, 0, None), "{demand:?}");

    let ran =
        answer(&fleet, spec.job_id, "c1", &["--json", "{\"big\":12345678901234567890123}", "--by", "Ada"])
            .await;
    assert_eq!((ran.code, ran.out.as_str()), (0, &*format!("{} goes on\n", spec.job_id)), "{ran:?}");
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts, view.iterations), (JobState::Succeeded, 1, 2), "{view:?}");
    assert_eq!(view.cost_usd.micros(), 750_000, "nothing was paid twice");
    assert_eq!(fleet.ended(behind.job_id).await.state, JobState::Succeeded);
    assert_eq!(last_said(&fleet, "s").await, "answered: {\"big\":12345678901234567890123}");
    let audit = fleet.producer(&["audit"]).await;
    assert_eq!(audit.code, 0, "{audit:?}");
}

#[tokio::test]
async fn an_answer_that_comes_first_is_not_waited_for() {
    let fleet = Fleet::new().await;
    let spec = asking("s", json!({"call_id": "c1", "kind": "approval", "question": "May I?"}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let ran = answer(&fleet, spec.job_id, "c1", &["--approve"]).await;
    assert!(ran.code == 0 && ran.out.contains("has not asked yet"), "{ran:?}");
    let _worker = fleet.worker("worker").start().await;
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    assert_eq!(last_said(&fleet, "s").await, "approved");
    // Of another kind than was asked for, it is none: nobody has approved anything.
    let spec = asking("t", json!({"call_id": "c1", "kind": "approval", "question": "May I?"}));
    let later = JobSpec { deadline_ms: Some(600_000), ..spec };
    let accepted = fleet.store.accept(std::slice::from_ref(&later)).await.unwrap();
    assert_eq!(accepted, [Accepted::New(JobState::Publishing)]);
    assert_eq!(answer(&fleet, later.job_id, "c1", &["--json", "true"]).await.code, 0);
    fleet.vhost.publish(vec![(job::encode(&later).into_bytes(), BasicProperties::default())]).await;
    awaits(&fleet, later.job_id).await;
    assert_eq!(answer(&fleet, later.job_id, "c1", &["--deny"]).await.code, 0);
    assert_eq!(fleet.ended(later.job_id).await.state, JobState::Succeeded);
    assert_eq!(last_said(&fleet, "t").await, "denied");
}

#[tokio::test]
async fn of_two_answers_one_counts_and_the_other_is_refused_by_name() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let jobs: Vec<JobSpec> =
        (0..8).map(|n| asking(&format!("s-{n}"), json!({"call_id": "c1", "question": n}))).collect();
    fleet.enqueue(&jobs).await;
    for spec in &jobs {
        awaits(&fleet, spec.job_id).await;
        let input = |text: &str| {
            let answer = job::Json::parse(text).unwrap();
            Input::of(spec.job_id, "c1".parse().unwrap(), (Some(answer), None), None).unwrap()
        };
        let (one, two) = (input("1"), input("2"));
        let (first, second) = tokio::join!(
            fleet.store.answer(Some("a test"), &one, None),
            fleet.store.answer(Some("a test"), &two, None)
        );
        let both = [first.unwrap(), second.unwrap()];
        assert_eq!(both.iter().filter(|answered| answered.counts()).count(), 1, "{both:?}");
        let refused = both.iter().find_map(|answered| answered.refused(&one.call_id)).unwrap();
        assert!(refused.1.contains("is already answered"), "{refused:?}");
        assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }
}

#[tokio::test]
async fn wrong_answers_are_refused_by_the_name_of_the_field_and_change_nothing() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let spec = asking("s", json!({"call_id": "c1", "kind": "approval", "question": "May I?"}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    awaits(&fleet, spec.job_id).await;
    let id = spec.job_id;
    for (call, given, code, words) in [
        ("c1", vec!["--json", "true"], 3, "answer: call c1 is of kind approval, expected approve"),
        ("c2", vec!["--approve"], 3, "call_id: got c2, which the job has not asked, expected one of c1"),
        ("a b", vec!["--approve"], 2, "got \"a b\", expected 1 to 128 visible ASCII characters"),
        ("c1", vec!["--json", "\"\\u0000\""], 2, "--json: a string contains \\u0000"),
        ("c1", vec!["--json", "1e400000"], 2, "--json: a number is longer than"),
        ("c1", vec!["--json", "{"], 2, "--json: not JSON"),
        ("c1", vec![], 2, "required"),
        ("c1", vec!["--approve", "--deny"], 2, "cannot be used with"),
        ("c1", vec!["--approve", "--by", ""], 2, "by: got 0 bytes"),
    ] {
        let ran = answer(&fleet, id, call, &given).await;
        assert!(ran.code == code && ran.err.contains(words), "{call} {given:?}: {ran:?}");
    }
    let large = format!("\"{}\"", "x".repeat(job::MAX_ANSWER_BYTES));
    let ran = answer(&fleet, id, "c1", &["--json", &large]).await;
    assert!(
        ran.code == 2 && ran.err.contains("answer: got 65538 bytes, expected at most 65536"),
        "{}",
        ran.err
    );
    let ran = answer(&fleet, JobId::now(), "c1", &["--approve"]).await;
    assert!(ran.code == 3 && ran.err.contains("job_id: the ledger does not know the job"), "{ran:?}");

    assert_eq!(answer(&fleet, id, "c1", &["--deny", "--by", "Ada"]).await.code, 0);
    let again = answer(&fleet, id, "c1", &["--deny", "--by", "Ada"]).await;
    let ended = fleet.ended(id).await;
    assert!(again.code == 0 || again.err.contains("the job has ended"), "{again:?}");
    assert_eq!(ended.state, JobState::Succeeded);
    let late = answer(&fleet, id, "c1", &["--approve"]).await;
    assert!(late.code == 3 && late.err.contains("job_id: the job has ended: succeeded"), "{late:?}");
}

#[tokio::test]
async fn nobody_answers_in_time_and_the_job_is_told_so() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let ask =
        |call: &str, timeout: Option<u64>| json!({"call_id": call, "question": 1, "timeout_s": timeout});
    let iterations = json!([{"ask": ask("c1", Some(1))}, {"ask": ask("c2", None)}]);
    let spec = job("s", "scripted", json!({"iterations": iterations}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let open = async || {
        let view = fleet.view(spec.job_id).await?;
        (view.questions.first()?.call_id.as_str() == "c2").then_some(view)
    };
    until("the second question", open).await;
    assert_eq!(last_said_of_checkpoint(&fleet).await, "nobody answered in time");
    let late = answer(&fleet, spec.job_id, "c1", &["--json", "1"]).await;
    assert!(late.code == 3 && late.err.contains("call_id: too late"), "{late:?}");
    assert_eq!(answer(&fleet, spec.job_id, "c2", &["--json", "1"]).await.code, 0);
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
}

async fn last_said_of_checkpoint(fleet: &Fleet) -> String {
    let session = fleet.session("s").await;
    let entry = &session.checkpoints.last().expect("a checkpoint").delta.context_window[0];
    let entry: Value = serde_json::from_str(entry.as_str()).expect("JSON");
    entry["content"].as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn a_cancel_and_a_deadline_end_it_like_any_job_that_waits() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let ask = json!({"call_id": "c1", "question": 1});
    let cancelled = asking("a", ask.clone());
    let overdue = JobSpec { deadline_ms: Some(3_000), ..asking("b", ask) };
    fleet.enqueue(&[cancelled.clone(), overdue.clone()]).await;
    awaits(&fleet, cancelled.job_id).await;
    let ran = fleet.producer(&["cancel", &cancelled.job_id.to_string()]).await;
    assert!(ran.code == 0 && ran.out.contains("cancelled"), "{ran:?}");
    let view = fleet.ended(overdue.job_id).await;
    assert_eq!((view.state, view.failure.unwrap().code), (JobState::Failed, FailureCode::DeadlineExceeded));
    let open = "SELECT count(*) FROM harness_inputs WHERE outcome IS DISTINCT FROM 'job_ended'";
    assert_eq!(fleet.database.count(open).await, 0);
    let late = answer(&fleet, cancelled.job_id, "c1", &["--json", "1"]).await;
    assert!(late.code == 3 && late.err.contains("the job has ended: cancelled"), "{late:?}");
    assert_eq!(fleet.producer(&["audit"]).await.code, 0);
}

#[tokio::test]
async fn a_later_job_takes_the_place_of_one_that_waits() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    for (session, on_busy, kept) in [("a", OnBusy::Interrupt, 2), ("b", OnBusy::Rollback, 1)] {
        let spec = asking(session, json!({"call_id": "c1", "question": 1}));
        fleet.enqueue(std::slice::from_ref(&spec)).await;
        awaits(&fleet, spec.job_id).await;
        let later = JobSpec { on_busy, ..job(session, "scripted", json!({"count": 1})) };
        fleet.enqueue(std::slice::from_ref(&later)).await;
        let view = fleet.ended(spec.job_id).await;
        let code = view.failure.as_ref().map(|failure| failure.code);
        assert_eq!(
            (view.state, code, view.iterations),
            (JobState::Cancelled, Some(FailureCode::Interrupted), 1)
        );
        assert_eq!(fleet.ended(later.job_id).await.state, JobState::Succeeded);
        let session = fleet.session(session).await;
        assert_eq!(session.context_window.len(), kept, "{session:?}");
        // What was used counts in either case.
        assert_eq!((session.iteration_count, session.cost_usd.micros()), (2, 500_000), "{session:?}");
    }
    assert_eq!(fleet.producer(&["audit"]).await.code, 0);
}

#[tokio::test]
async fn an_answer_comes_as_a_message_and_a_bad_one_is_a_dead_letter() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let spec = asking("s", json!({"call_id": "c1", "question": 1}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    awaits(&fleet, spec.job_id).await;
    let id = spec.job_id;
    let bad = [
        (json!({"job_id": id, "call_id": "c1"}), "answer: missing"),
        (json!({"job_id": id, "call_id": "c1", "approve": true}), "approve: call c1 is of kind question"),
        (json!({"job_id": id, "call_id": "c9", "answer": 1}), "call_id: got c9, which the job has not asked"),
        (
            json!({"job_id": JobId::now(), "call_id": "c1", "answer": 1}),
            "job_id: the ledger does not know the job",
        ),
        (json!({"job_id": "x", "call_id": "c1", "answer": 1}), "job_id: "),
    ];
    for (members, _) in &bad {
        publish(&fleet, members.clone()).await;
    }
    let buried = async || {
        let letters = fleet.vhost.dead_letters().await;
        if letters.len() == bad.len() { Ok(letters) } else { Err(letters.len()) }
    };
    let letters = until_ok("dead letters", buried).await;
    for (_, reason) in &bad {
        assert!(letters.iter().any(|letter| letter.reason.contains(reason)), "{reason}");
    }
    publish(
        &fleet,
        json!({"job_id": id, "call_id": "c1", "answer": {"ok": [1, null]}, "by": "Ada", "other": 1}),
    )
    .await;
    assert_eq!(fleet.ended(id).await.state, JobState::Succeeded);
    assert_eq!(last_said(&fleet, "s").await, "answered: {\"ok\":[1,null]}");
}

#[tokio::test]
async fn a_caller_gets_the_question_and_then_the_result() {
    let fleet = Fleet::new().await;
    let connection = fleet.vhost.lapin().await;
    let channel = connection.create_channel().await.unwrap();
    let declaring = QueueDeclareOptions::default();
    channel.queue_declare("replies".into(), declaring, Default::default()).await.unwrap();
    let _worker = fleet.worker("worker").start().await;
    let ask = json!({"call_id": "c1", "kind": "approval", "question": "May I?"});
    let spec = JobSpec { reply_to: Some("replies".to_owned()), ..asking("s", ask) };
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let next = async || {
        let reply = channel.basic_get("replies".into(), BasicGetOptions { no_ack: true }).await.unwrap()?;
        Some(serde_json::from_slice::<Value>(&reply.delivery.data).unwrap())
    };
    let question = until("a question", next).await;
    assert_eq!(question["schema"], "harness.question.v1", "{question}");
    assert_eq!((&question["state"], &question["job_id"]), (&json!("awaiting_input"), &json!(spec.job_id)));
    assert_eq!(question["questions"][0]["call_id"], "c1");
    assert_eq!(question["questions"][0]["question"], "May I?");
    publish(&fleet, json!({"job_id": spec.job_id, "call_id": "c1", "approve": true})).await;
    let result = until("a result", next).await;
    assert_eq!((&result["schema"], &result["state"]), (&json!("harness.result.v1"), &json!("succeeded")));
}

#[tokio::test]
async fn a_kill_around_the_question_loses_neither_question_nor_answer() {
    let fleet = Fleet::new().await;
    let mut worker = fleet.worker("first").short_lease().start().await;
    // One is killed before it asks, the others while they wait.
    let slow = json!({"iterations": [{"say": "before"}, {"delay_ms": 6000, "ask": {"call_id": "c1", "question": 1}}]});
    let before = job("a", "scripted", slow);
    let waiting = asking("b", json!({"call_id": "c1", "question": 1}));
    fleet.enqueue(&[before.clone(), waiting.clone()]).await;
    awaits(&fleet, waiting.job_id).await;
    fleet.iterated(before.job_id, 1).await;
    worker.kill();
    // The answer to what is not asked yet, and to what waits, while no worker is there.
    for spec in [&before, &waiting] {
        assert_eq!(answer(&fleet, spec.job_id, "c1", &["--json", "1"]).await.code, 0);
    }
    let second = fleet.worker("second").start().await;
    for (spec, attempts) in [(&before, 2), (&waiting, 1)] {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!(
            (view.state, view.attempts, view.iterations),
            (JobState::Succeeded, attempts, 2),
            "{view:?}"
        );
    }
    assert_eq!(second.metric("harness_requests_total{outcome=\"asked\"}").await, 1.0);
    assert_eq!(fleet.producer(&["audit"]).await.code, 0);
}

#[tokio::test]
async fn a_worker_that_drains_leaves_the_question_to_the_ledger() {
    let fleet = Fleet::new().await;
    let mut worker = fleet.worker("first").start().await;
    let delayed =
        json!({"iterations": [{"say": "x"}, {"delay_ms": 1000, "ask": {"call_id": "c1", "question": 1}}]});
    let spec = job("s", "scripted", delayed);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.iterated(spec.job_id, 1).await;
    worker.terminate();
    worker.exit().await;
    assert_eq!(fleet.view(spec.job_id).await.unwrap().state, JobState::AwaitingInput);
    // Nothing but a restart and an answer is needed.
    let _worker = fleet.worker("second").start().await;
    assert_eq!(answer(&fleet, spec.job_id, "c1", &["--json", "null"]).await.code, 0);
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    assert_eq!(last_said(&fleet, "s").await, "answered: null");
}

#[tokio::test]
async fn a_revived_ledger_keeps_its_questions() {
    let fleet = Fleet::new().await;
    let mut worker = fleet.worker("first").start().await;
    let spec = asking("s", json!({"call_id": "c1", "question": 1}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    awaits(&fleet, spec.job_id).await;
    worker.terminate();
    worker.exit().await;
    let revived = fleet.producer(&["revive"]).await;
    assert_eq!(revived.code, 0, "{revived:?}");
    assert_eq!(fleet.view(spec.job_id).await.unwrap().questions.len(), 1);
    let doctor = fleet.producer(&["doctor"]).await;
    assert!(doctor.out.contains("1 jobs wait for a person"), "{doctor:?}");
    let _worker = fleet.worker("second").start().await;
    assert_eq!(answer(&fleet, spec.job_id, "c1", &["--json", "1"]).await.code, 0);
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
}

#[tokio::test]
async fn a_program_asks_by_a_line_and_reads_the_answer_in_its_next_order() {
    let fleet = Fleet::new().await;
    let program = fleet.program(
        "asker",
        r#"#!/usr/bin/env python3
import json, sys
order = json.loads(sys.stdin.readline())
answers = order.get("answers", {})
say = lambda line: print(json.dumps(line), flush=True)
if "c1" not in answers or order["job"]["input"] == "again":
    say({"type": "checkpoint", "memory": {"asked": True}})
    say({"type": "ask", "call_id": "c1", "kind": "approval", "question": {"tool": "rm"}, "timeout_s": 3600})
    say({"type": "ask", "call_id": "c2", "question": "Why?"})
else:
    say({"type": "result", "output": answers})
"#,
    );
    let agents = fleet.agents(&[("asker", &program)]);
    let _worker = fleet.worker("worker").set("AGENTS_FILE", &agents).start().await;
    let [spec, again] = [job("s", "asker", json!(null)), job("t", "asker", json!("again"))];
    fleet.enqueue(&[spec.clone(), again.clone()]).await;
    for spec in [&spec, &again] {
        awaits(&fleet, spec.job_id).await;
        let first = answer(&fleet, spec.job_id, "c2", &["--json", "\"because\"", "--by", "Ada"]).await;
        assert!(first.out.contains("waits for other answers"), "{first:?}");
        assert_eq!(fleet.view(spec.job_id).await.unwrap().state, JobState::AwaitingInput);
        assert_eq!(answer(&fleet, spec.job_id, "c1", &["--deny"]).await.code, 0);
    }
    let output = fleet.ended(spec.job_id).await.output.unwrap();
    let output: Value = serde_json::from_str(output.as_str()).unwrap();
    assert_eq!(output, json!({"c1": {"approve": false}, "c2": {"answer": "because", "by": "Ada"}}));
    // Who asks what was answered would ask for ever.
    let failure = fleet.ended(again.job_id).await.failure.unwrap();
    assert_eq!(failure.code, FailureCode::Protocol, "{failure:?}");
    assert!(failure.message.contains("call_id: got \"c1\", whose answer the run was given"), "{failure:?}");
}

#[tokio::test]
async fn an_answer_over_http_is_of_its_tenant_alone() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let key = async |arguments: &[&str]| {
        let ran = fleet.producer(&[&["keys", "create"], arguments].concat()).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out.trim().to_owned()
    };
    let tenant = fleet.producer(&["tenants", "create", "acme"]).await;
    assert_eq!(tenant.code, 0, "{tenant:?}");
    let ours = api.with_key(&key(&["--tenant", "default", "--scope", "submit,read,content"]).await);
    let theirs = api.with_key(&key(&["--tenant", "acme", "--scope", "submit,read"]).await);
    let ask = json!({"call_id": "c1", "kind": "approval", "question": "May I?"});
    let job = json!({"agent_id": "scripted", "input": {"iterations": [{"ask": ask}]}});
    let id = ours.submit(&job).await.is(202).text("job_id");
    awaits(&fleet, id.parse().unwrap()).await;
    let path = format!("/v1/jobs/{id}/answers");
    let yes = json!({"call_id": "c1", "approve": true});
    theirs.post(&path, &yes).await.problem(404, None);
    let shown = ours.get(&format!("/v1/jobs/{id}")).await.is(200).json();
    assert_eq!(shown["questions"][0]["question"], "May I?", "{shown}");
    for (body, status, field) in [
        (json!({"call_id": "c1", "approve": true, "why": 1}), 422, "why"),
        (json!({"call_id": "c1", "answer": 1}), 422, "answer"),
        (json!({"call_id": "c1"}), 422, "answer"),
        (json!({"call_id": "c2", "approve": true}), 409, "call_id"),
    ] {
        ours.post(&path, &body).await.problem(status, Some(field));
    }
    let counted = ours.post(&path, &yes).await.is(200).json();
    assert_eq!(counted["job_id"], json!(id));
    assert_eq!(ours.wait(&id).await.is(200).text("state"), "succeeded");
    ours.post(&path, &json!({"call_id": "c1", "approve": false})).await.problem(409, Some("job_id"));
}
