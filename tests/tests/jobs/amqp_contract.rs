//! Any language can publish jobs and get results: a client needs to know only the AMQP contract.
//!
//! The client is Python with pika, as any user would write it (`tests/clients/publish.py`).

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use job::{JobId, JobState};
use serde_json::{Value, json};
use tests::{Fleet, python_with_pika};

/// Publishes, waits for this many replies, and returns the published ids and the replies.
async fn client(fleet: &Fleet, orders: &[Value], replies: usize) -> (Vec<Option<JobId>>, Vec<Value>) {
    let lines: String = orders.iter().map(|order| format!("{order}\n")).collect();
    let url = fleet.vhost.url.clone();
    let running = tokio::task::spawn_blocking(move || {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/publish.py");
        let mut command = Command::new(python_with_pika(Path::new(env!("CARGO_TARGET_TMPDIR"))));
        command.arg(program).args([&url, &replies.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a client");
        let mut stdin = child.stdin.take().expect("its stdin");
        stdin.write_all(lines.as_bytes()).expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("its end")
    });
    let output = running.await.expect("a thread");
    assert!(output.status.success(), "the client failed, see above");
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let lines: Vec<Value> = lines.map(|line| serde_json::from_slice(line).expect("JSON")).collect();
    let (ids, replies) = lines.split_at(orders.len());
    let ids = ids.iter().map(|line| line["published"].as_str().map(|id| id.parse().expect("a job id")));
    (ids.collect(), replies.to_vec())
}

fn reply_to<'a>(replies: &'a [Value], id: &Option<JobId>) -> &'a Value {
    let id = json!(id.expect("an id"));
    replies.iter().find(|reply| reply["message_id"] == id).unwrap_or_else(|| panic!("no reply to {id}"))
}

#[tokio::test]
async fn a_stranger_publishes_jobs_and_gets_their_results() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let orders = [
        json!({"via": "exchange", "reply": true, "body": {
            "session_id": "s-1", "agent_id": "echo", "input": {"n": 1}, "novel": "ignored"}}),
        json!({"via": "queue", "reply": true, "properties": {"correlation_id": "mine", "headers": {"traceparent": trace}},
            "body": {"session_id": "s-2", "agent_id": "scripted", "user_id": "u",
            "input": {"iterations": [{"cost_usd": 0.5, "input_tokens": 3, "output_tokens": 4}], "output": "done"}}}),
        json!({"via": "queue", "reply": true, "body": {"session_id": "s-3", "agent_id": "scripted", "correlation_id": "in the body",
            "input": {"iterations": [{"fail": {"message": "no"}}]}, "retry": {"max_attempts": 1}}}),
        json!({"via": "exchange", "reply": true, "body": {"session_id": "s-4", "agent_id": "nobody"}}),
        json!({"via": "exchange", "body": {"session_id": "s-5", "agent_id": "echo"}}),
    ];
    let (ids, replies) = client(&fleet, &orders, 4).await;
    assert_eq!(replies.len(), 4);
    for reply in &replies {
        assert_eq!(
            (&reply["type"], &reply["content_type"]),
            (&json!("harness.result.v1"), &json!("application/json"))
        );
        assert_eq!(
            (&reply["reply"]["schema"], &reply["reply"]["job_id"]),
            (&json!("harness.result.v1"), &reply["message_id"])
        );
    }
    let echo = reply_to(&replies, &ids[0]);
    assert_eq!(echo["correlation_id"], json!(ids[0].unwrap()));
    let result = &echo["reply"];
    assert_eq!(
        (&result["state"], &result["output"], &result["attempts"]),
        (&json!("succeeded"), &json!({"n": 1}), &json!(1))
    );
    assert_eq!(
        (&result["session_id"], &result["agent_id"], &result["pool"]),
        (&json!("s-1"), &json!("echo"), &json!("default"))
    );
    assert!(result["failure"].is_null() && result["finished_at"].is_string(), "{result}");

    let scripted = reply_to(&replies, &ids[1]);
    assert_eq!((&scripted["correlation_id"], &scripted["traceparent"]), (&json!("mine"), &json!(trace)));
    let result = &scripted["reply"];
    assert_eq!(
        (&result["output"], &result["cost_usd"], &result["iterations"]),
        (&json!("done"), &json!(0.5), &json!(1))
    );
    assert_eq!((&result["input_tokens"], &result["output_tokens"]), (&json!(3), &json!(4)));

    let failed = reply_to(&replies, &ids[2]);
    assert_eq!(failed["correlation_id"], json!("in the body"));
    assert_eq!(failed["reply"]["state"], json!("failed"));
    assert_eq!(
        failed["reply"]["failure"],
        json!({"code": "harness_error", "message": "no", "retryable": false})
    );
    assert_eq!(reply_to(&replies, &ids[3])["reply"]["failure"]["code"], json!("unknown_agent"));
    // A caller that wants no reply reads the ledger.
    assert_eq!(fleet.ended(ids[4].unwrap()).await.state, JobState::Succeeded);
}

#[tokio::test]
async fn the_same_message_twice_is_one_job_and_is_answered_again() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let body =
        json!({"job_id": JobId::now(), "session_id": "s", "agent_id": "scripted", "input": {"count": 1}});
    let order = json!({"via": "exchange", "reply": true, "body": body});
    let (_, first) = client(&fleet, std::slice::from_ref(&order), 1).await;
    let (_, second) = client(&fleet, std::slice::from_ref(&order), 1).await;
    assert_eq!(first, second);
    assert_eq!(fleet.session("s").await.iteration_count, 1);
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, 1);
}

#[tokio::test]
async fn the_mistakes_of_a_foreign_client_end_in_harness_dead() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let good = json!({"session_id": "s", "agent_id": "echo"});
    let orders = [
        json!({"via": "queue", "raw": "hello"}),
        json!({"via": "exchange", "body": {"session_id": "s"}}),
        // Accepted by the exchange, because its alternate exchange takes what cannot be routed.
        json!({"via": "exchange", "pool": "nobodys", "body": good}),
        json!({"via": "queue", "properties": {"correlation_id": ""}, "body": good}),
    ];
    let (ids, _) = client(&fleet, &orders[..3], 0).await;
    worker.said("agent_id: missing").await;
    worker.said("body: ").await;
    let (more, _) = client(&fleet, &orders[3..], 0).await;
    worker.said("correlation_id: ").await;
    let letters = fleet.vhost.dead_letters().await;
    let found: Vec<_> =
        letters.iter().map(|letter| (letter.code.as_str(), letter.message_id.clone())).collect();
    let id = |id: Option<JobId>| id.map(|id| id.to_string());
    for wanted in [
        ("undecodable", None),
        ("undecodable", id(ids[1])),
        ("unroutable", id(ids[2])),
        ("undecodable", id(more[0])),
    ] {
        assert!(found.contains(&wanted), "{wanted:?} is not in {found:?}");
    }
    assert_eq!(found.len(), 4, "{found:?}");
}
