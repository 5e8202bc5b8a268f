//! What a key without `content` or without `read` is shown: nothing that was said, and nothing of the end.

use std::collections::BTreeMap;

use http::Method;
use job::JobId;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::{Api, Fleet, ServerEvent, until};

/// A caller with a new key of the tenant `acme`.
async fn caller(fleet: &Fleet, api: &Api, scopes: &str) -> Api {
    let _ = fleet.producer(&["tenants", "create", "acme"]).await;
    let created = fleet.producer(&["keys", "create", "--tenant", "acme", "--scope", scopes]).await;
    assert_eq!(created.code, 0, "{created:?}");
    api.with_key(created.out.trim())
}

fn fields(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn what_a_failure_says_is_shown_with_the_scope_content_alone() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let reads = caller(&fleet, &api, "submit,read").await;
    let sees = caller(&fleet, &api, "read,content").await;
    let input = json!({"iterations": [{"fail": {"message": "it broke: the secret", "retryable": false}}]});
    let spec = json!({"agent_id": "scripted", "input": input});
    let job_id = reads.submit(&spec).await.is(202).text("job_id");
    let ended = reads.wait(&job_id).await.is(200);
    let read = reads.get(&format!("/v1/jobs/{job_id}")).await.is(200);
    let why = reads.get(&format!("/v1/jobs/{job_id}/why")).await.is(200);
    for answer in [&ended, &read, &why] {
        assert!(!answer.body.contains("secret"), "{answer:?}");
    }
    let failure = read.json()["failure"].clone();
    assert_eq!(fields(&failure), ["code", "message_bytes", "message_sha256", "retryable"], "{failure}");
    let shown = sees.get(&format!("/v1/jobs/{job_id}")).await.is(200).json()["failure"].clone();
    let message = shown["message"].as_str().expect("a message");
    assert!(message.contains("the secret"), "{shown}");
    assert_eq!((&shown["message_sha256"], &failure["code"]), (&failure["message_sha256"], &shown["code"]));
    assert_eq!(failure["message_bytes"], message.len());
    let why = sees.get(&format!("/v1/jobs/{job_id}/why")).await.is(200).text("why");
    assert!(why.contains("the secret"), "{why}");
    let document = api.get("/v1/openapi.json").await.is(200).json();
    let described = &document["components"]["schemas"]["Failure"]["properties"];
    assert!(described["message_sha256"].is_object(), "{described}");
}

/// Checks that one caller is shown the letters of a field, and both are shown their number and SHA-256.
fn measured(without: &str, with: &str, field: &str) {
    let read = |body: &str| -> BTreeMap<String, job::Json> { serde_json::from_str(body).expect("an object") };
    let (without, with) = (read(without), read(with));
    let letters = with[field].as_str();
    assert!(!without.contains_key(field), "{field}: {without:?}");
    let sha256 = Sha256::digest(letters).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for shown in [&without, &with] {
        let of = |what: &str| shown.get(&format!("{field}_{what}")).map(job::Json::as_str);
        assert_eq!(of("bytes"), Some(letters.len().to_string().as_str()), "{field}: {shown:?}");
        assert_eq!(of("sha256"), Some(format!("\"{sha256}\"").as_str()), "{field}: {shown:?}");
    }
}

#[tokio::test]
async fn a_session_a_question_and_a_schedule_have_sizes_and_digests_without_the_scope_content() {
    let fleet = Fleet::new().await;
    let asking = r#"#!/bin/sh
read line
echo '{"type": "ask", "call_id": "c", "kind": "question", "question": {"which" : "of these"}}'
"#;
    let agents = fleet.agents(&[("asking", &fleet.program("asking", asking)), ("scripted", "")]);
    let _worker = fleet.worker("worker").set("AGENTS_FILE", agents).start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let (reads, sees) =
        (caller(&fleet, &api, "submit,read").await, caller(&fleet, &api, "read,content").await);
    let both = async |path: &str| {
        (reads.get(path).await.is(200).body.clone(), sees.get(path).await.is(200).body.clone())
    };
    let spec = json!({"agent_id": "scripted", "session_id": "s", "input": {"count": 3, "delay_ms": 1}});
    let job_id = reads.submit(&spec).await.is(202).text("job_id");
    reads.wait(&job_id).await.is(200);
    let (without, with) = both("/v1/sessions/s").await;
    for field in ["memory", "context_window", "feature_progress"] {
        measured(&without, &with, field);
    }

    let job_id = reads.submit(&json!({"agent_id": "asking"})).await.is(202).text("job_id");
    let path = format!("/v1/jobs/{job_id}");
    let waits = async || (reads.get(&path).await.text("state") == "awaiting_input").then_some(());
    until("it waits", waits).await;
    let (without, with) = both(&path).await;
    let question = |job: &str| -> String {
        let job: BTreeMap<String, job::Json> = serde_json::from_str(job).expect("a job");
        let questions: Vec<job::Json> = serde_json::from_str(job["questions"].as_str()).expect("questions");
        questions[0].as_str().to_owned()
    };
    measured(&question(&without), &question(&with), "question");

    let job = json!({"agent_id": "scripted", "input": "said"});
    let schedule = json!({"name": "s", "cron": "0 0 29 2 *", "job": job});
    reads.post("/v1/schedules", &schedule).await.is(201);
    let (without, with) = both("/v1/schedules/s").await;
    measured(&without, &with, "job");
}

#[tokio::test]
async fn what_an_iteration_changed_has_its_size_and_digest_without_the_scope_content() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let (reads, sees) =
        (caller(&fleet, &api, "submit,read").await, caller(&fleet, &api, "read,content").await);
    let spec = json!({"agent_id": "scripted", "session_id": "s", "input": {"count": 9, "delay_ms": 200}});
    let job_id = reads.submit(&spec).await.is(202).text("job_id");
    let path = format!("/v1/jobs/{job_id}/events");
    let (mut without, mut with) = (reads.events(&path, &[]).await, sees.events(&path, &[]).await);
    let iterations = |events: Vec<ServerEvent>| -> BTreeMap<String, Value> {
        let iterations = events.into_iter().filter(|event| event.name == "iteration");
        iterations.map(|event| (event.id, event.data)).collect()
    };
    let (without, with) = tokio::join!(without.rest(), with.rest());
    let (without, with) = (iterations(without), iterations(with));
    let mut compared = 0;
    for (id, data) in without {
        assert!(data["progress"].is_null(), "{data}");
        let Some(shown) = with.get(&id) else { continue };
        assert!(shown["progress"].is_object(), "{shown}");
        for field in ["progress_bytes", "progress_sha256"] {
            assert!(!data[field].is_null() && data[field] == shown[field], "{data} {shown}");
        }
        compared += 1;
    }
    assert!(compared > 0);
}

#[tokio::test]
async fn a_key_that_only_submits_gets_a_jobs_id_and_state_and_nothing_of_its_end() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let submits = caller(&fleet, &api, "submit").await;
    let spec = json!({"agent_id": "echo", "input": "said", "job_id": JobId::now().to_string()});
    let headers = [("content-type", "application/json"), ("prefer", "wait=30")];
    let ended = submits.send(Method::POST, "/v1/jobs", &headers, spec.to_string().into_bytes()).await.is(200);
    assert_eq!(ended.json(), json!({"job_id": spec["job_id"], "state": "succeeded"}));
    let again = submits.submit(&spec).await.is(200);
    assert_eq!(again.json(), json!({"job_id": spec["job_id"], "state": "succeeded"}));
    let batch = submits.post("/v1/jobs/batch", &json!([spec])).await.is(200).json();
    assert_eq!(fields(&batch["items"][0]), ["found_by", "job_id", "state", "status"], "{batch}");
    let new = submits.submit(&json!({"agent_id": "echo"})).await.is(202).json();
    assert_eq!(fields(&new), ["job_id", "state"], "{new}");
}

#[tokio::test]
async fn why_a_job_waits_shows_no_number_of_a_fleet_that_other_tenants_share() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let (acme, operator) =
        (caller(&fleet, &api, "submit,read").await, caller(&fleet, &api, "read,admin").await);
    for n in 0..4 {
        let long = json!({"agent_id": "scripted", "session_id": format!("s-{n}"), "input": {"count": 100_000, "delay_ms": 20}});
        let job_id = api.submit(&long).await.is(202).text("job_id");
        fleet.iterated(job_id.parse().expect("an id"), 1).await;
    }
    let job_id = acme.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let path = format!("/v1/jobs/{job_id}/why");
    let queued = async |caller: &Api| {
        Some(caller.get(&path).await.is(200).text("why")).filter(|why| why.starts_with("queued"))
    };
    let why = until("it is queued", async || queued(&acme).await).await;
    assert!(why.ends_with(": all slots of pool default are taken"), "{why}");
    let why = until("it is queued", async || queued(&operator).await).await;
    assert!(why.ends_with(": all 4 slots of pool default are taken"), "{why}");
}
