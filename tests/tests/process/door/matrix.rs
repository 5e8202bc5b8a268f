//! Every route that the document lists answers a tenant as if the others were not there, and refuses a key without its
//! scope. A route that is new must be named here.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use http::Method;
use job::JobId;
use serde_json::{Value, json};
use tests::{Api, Fleet, Reply, until};

use super::tenants::caller;

const ALL: &str = "submit,read,content,operate,admin";
const KEY: (&str, &str) = ("idempotency-key", "the same");

/// What another tenant has.
struct Others {
    job: String,
    failed: String,
    /// One that waits for a person, and one that is not due yet.
    live: [String; 2],
    webhook: String,
}

impl Others {
    async fn new(fleet: &Fleet, other: &Api) -> Others {
        let made = other.post("/v1/webhooks", &webhook()).await.is(201).text("id");
        other.post("/v1/schedules", &schedule()).await.is(201);
        other.post("/v1/limits", &limit(3)).await.is(204);
        let job = submitted(other, &spec()).await.is(202).text("job_id");
        let failed =
            other.submit(&json!({"session_id": "same", "agent_id": "nobody"})).await.is(202).text("job_id");
        for id in [&job, &failed] {
            other.wait(id).await.is(200);
        }
        let asks =
            json!({"iterations": [{"ask": {"call_id": "c", "kind": "question", "question": "which"}}]});
        let asks = json!({"session_id": "asks", "agent_id": "scripted", "input": asks});
        let later = json!({"session_id": "later", "agent_id": "echo", "delay_ms": 3_600_000});
        let live = [other.submit(&asks).await.is(202), other.submit(&later).await.is(202)];
        let live = live.map(|accepted| accepted.text("job_id"));
        let waits = async || {
            let state = other.get(&format!("/v1/jobs/{}", live[0])).await.is(200).text("state");
            (state == "awaiting_input").then_some(())
        };
        until("it waits for an answer", waits).await;
        let call = format!(
            "INSERT INTO harness_calls (call_id, state, tenant, session_id, job_id, epoch, worker_id, agent_id, provider, model,
                                        reserved_microusd, cost_microusd, request_hash, request_nth, day, on_session, on_job,
                                        settled_at)
             VALUES ('{}', 'settled', 'other', '~other/same', '{job}', 1, gen_random_uuid(), 'echo', 'anthropic', 'large', 7, 7,
                     sha256(''), 0, (now() AT TIME ZONE 'UTC')::date, false, false, now())",
            JobId::now()
        );
        fleet.database.execute(&call).await;
        Others { job, failed, live, webhook: made }
    }

    /// All that the tenant itself is shown of it.
    async fn shown(&self, other: &Api) -> Vec<Value> {
        let Others { job, failed, live: [asks, later], webhook } = self;
        let mut shown = Vec::new();
        for path in [
            format!("/v1/jobs/{job}"),
            format!("/v1/jobs/{failed}"),
            format!("/v1/jobs/{asks}"),
            format!("/v1/jobs/{later}"),
            "/v1/sessions/asks".to_owned(),
            "/v1/sessions/later".to_owned(),
            "/v1/sessions/same".to_owned(),
            format!("/v1/webhooks/{webhook}"),
            "/v1/schedules/same".to_owned(),
            "/v1/dead".to_owned(),
            "/v1/limits".to_owned(),
        ] {
            shown.push(other.get(&path).await.is(200).json());
        }
        shown
    }
}

fn spec() -> Value {
    json!({"session_id": "same", "agent_id": "echo", "input": "said", "labels": {"team": "red"},
           "unique": {"key": "one", "for_ms": 3_600_000}})
}

fn limit(max: u32) -> Value {
    json!({"key": "same", "max": max})
}

fn webhook() -> Value {
    // No job is cancelled here, so nothing is sent.
    json!({"url": "http://127.0.0.1:9/ends", "states": ["cancelled"]})
}

async fn submitted(api: &Api, spec: &Value) -> Reply {
    let headers = [("content-type", "application/json"), KEY];
    api.send(Method::POST, "/v1/jobs", &headers, spec.to_string().into_bytes()).await
}

fn schedule() -> Value {
    json!({"name": "same", "cron": "0 0 29 2 *", "job": {"session_id": "same", "agent_id": "echo"}})
}

/// Sends the same request about what another tenant has and about what nobody has: both answers are the same 404, also
/// for a caller that would wait for an end.
async fn not_there(api: &Api, method: &Method, paths: [&str; 2], bodies: [&Value; 2]) {
    let waiting = ("prefer", "wait=30");
    for also in [None, Some(waiting)] {
        let mut answers = Vec::new();
        let asked = Instant::now();
        for (path, body) in paths.into_iter().zip(bodies) {
            let (kind, body) = match body {
                Value::Null => (None, Vec::new()),
                body => (Some(("content-type", "application/json")), body.to_string().into_bytes()),
            };
            let headers: Vec<(&str, &str)> = kind.into_iter().chain(also).collect();
            answers.push(api.send(method.clone(), path, &headers, body).await.problem(404, None).body);
        }
        assert_eq!(answers[0], answers[1], "{method} {}", paths[0]);
        assert!(asked.elapsed() < Duration::from_secs(30), "{method} {}", paths[0]);
    }
}

/// The ids of jobs are the only names that tenants share. One that is taken is answered in the same words, whichever tenant has it,
/// whatever was submitted under it, and whatever became of that.
async fn ids_are_shared(acme: &Api, others: &Others) {
    let own = acme.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let mut answers = BTreeSet::new();
    for id in [&others.job, &others.failed, &others.live[0], &others.live[1], &own] {
        for content in [
            json!({"session_id": "same", "agent_id": "echo", "input": "said", "labels": {"team": "red"}}),
            json!({"session_id": "same", "agent_id": "nobody"}),
            // Of a job that has succeeded, its content is kept no longer; its user is.
            json!({"agent_id": "echo", "user_id": "somebody else"}),
        ] {
            let mut job = content;
            job["job_id"] = json!(id);
            let alone = acme.submit(&job).await.problem(409, Some("job_id")).body;
            let keyed = [("content-type", "application/json"), ("idempotency-key", "another")];
            let keyed = acme.send(Method::POST, "/v1/jobs", &keyed, job.to_string().into_bytes()).await;
            assert_eq!(keyed.problem(409, Some("job_id")).body, alone);
            let batch = acme.post("/v1/jobs/batch", &json!([job])).await.is(200).json();
            assert_eq!(batch["items"][0]["status"], json!(409), "{batch}");
            answers.insert((alone.replace(id.as_str(), "ID"), batch.to_string().replace(id.as_str(), "ID")));
        }
    }
    assert_eq!(answers.len(), 1, "{answers:#?}");
}

/// The scope without which a route refuses a key. Each is named here, so that a new one is thought about.
fn scope_of(method: &Method, path: &str) -> &'static str {
    match (method.as_str(), path) {
        ("POST", "/v1/jobs" | "/v1/jobs/batch" | "/v1/jobs/{id}/answers")
        | ("POST", "/v1/schedules" | "/v1/schedules/{id}/pause" | "/v1/schedules/{id}/resume")
        | ("DELETE", "/v1/schedules/{id}") => "submit",
        ("GET", "/v1/jobs" | "/v1/jobs/{id}" | "/v1/jobs/{id}/why" | "/v1/jobs/{id}/events" | "/v1/dead")
        | ("GET", "/v1/sessions" | "/v1/sessions/{id}" | "/v1/sessions/{id}/events")
        | ("GET", "/v1/schedules" | "/v1/schedules/{id}" | "/v1/schedules/{id}/next")
        | ("GET", "/v1/webhooks" | "/v1/webhooks/{id}" | "/v1/webhooks/{id}/deliveries")
        | ("GET", "/v1/limits" | "/v1/spend")
        | ("POST", "/v1/tickets") => "read",
        ("POST", "/v1/jobs/{id}/cancel" | "/v1/jobs/{id}/redrive" | "/v1/limits")
        | ("DELETE", "/v1/dead/{id}" | "/v1/sessions/{id}" | "/v1/limits/{id}" | "/v1/webhooks/{id}")
        | ("POST", "/v1/webhooks" | "/v1/webhooks/{id}/enable" | "/v1/webhooks/{id}/disable")
        | ("POST", "/v1/webhooks/{id}/rotate" | "/v1/webhooks/{id}/test" | "/v1/webhooks/{id}/resend") => {
            "operate"
        }
        ("GET", "/v1/pools" | "/v1/workers") => "admin",
        _ => panic!("{method} {path}: name here the scope that it needs"),
    }
}

#[tokio::test]
async fn every_route_refuses_a_key_without_its_scope_and_takes_one_that_has_no_other() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let (mut without, mut alone) = (HashMap::new(), HashMap::new());
    for scope in ["submit", "read", "operate", "admin"] {
        let others: Vec<&str> = ALL.split(',').filter(|other| *other != scope).collect();
        without.insert(scope, caller(&fleet, &api, "acme", &others.join(",")).await);
        alone.insert(scope, caller(&fleet, &api, "acme", scope).await);
    }
    let document = api.get("/v1/openapi.json").await.is(200).json();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            let method: Method = method.to_uppercase().parse().expect("a method");
            let scope = scope_of(&method, path);
            let about = path.replace("{id}", &JobId::now().to_string());
            let json = [("content-type", "application/json")];
            let ask = async |caller: &Api| caller.send(method.clone(), &about, &json, b"{}".to_vec()).await;
            let refused = ask(&without[scope]).await;
            println!("{method} {path}: {}", refused.body);
            let said = refused.problem(403, None).text("detail");
            assert_eq!(said, format!("the key lacks the scope \"{scope}\""), "{method} {path}");
            let taken = ask(&alone[scope]).await.status;
            assert!([200, 404, 422].contains(&taken), "{method} {path}: {taken}");
        }
    }
}

#[tokio::test]
async fn every_route_answers_a_tenant_as_if_the_others_were_not_there() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").set("WEBHOOK_ALLOW", "127.0.0.0/8").start().await;
    let api = Api::of(&door).await;
    let (acme, other) = (caller(&fleet, &api, "acme", ALL).await, caller(&fleet, &api, "other", ALL).await);
    let others = Others::new(&fleet, &other).await;
    let before = others.shown(&other).await;
    let (unknown, nothing, empty) = (JobId::now().to_string(), Value::Null, json!({}));

    let document = api.get("/v1/openapi.json").await.is(200).json();
    let mut creates = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            let method: Method = method.to_uppercase().parse().expect("a method");
            let about = |id: &str| path.replace("{id}", id);
            match (method.as_str(), path.as_str()) {
                (
                    "GET",
                    "/v1/jobs" | "/v1/dead" | "/v1/sessions" | "/v1/schedules" | "/v1/webhooks" | "/v1/spend"
                    | "/v1/limits",
                ) => {
                    let items = async |api: &Api, query| {
                        api.get(&format!("{path}{query}")).await.is(200).json()["items"].clone()
                    };
                    assert_ne!(items(&other, "").await, json!([]), "{path}");
                    for query in match path.as_str() {
                        "/v1/jobs" => {
                            &["", "?label=team%3Dred", "?session=same", "?state=succeeded", "?session=asks"][..]
                        }
                        "/v1/spend" => &["?by=agent"],
                        _ => &[""],
                    } {
                        assert_eq!(items(&acme, query).await, json!([]), "{path}{query}");
                    }
                }
                // What the fleet is, for operators: nothing of it is a tenant's.
                ("GET", "/v1/pools" | "/v1/workers") => {
                    let shown = acme.get(path).await.is(200).body;
                    for of_other in ["other", "same", "asks", &others.job, &others.failed, &others.live[0]] {
                        assert!(!shown.contains(of_other), "{path}: {shown}");
                    }
                }
                ("POST", "/v1/tickets") => {
                    for job in [&others.job, &others.live[0]] {
                        let ask = [json!({"job_id": job}), json!({"job_id": unknown})];
                        not_there(&acme, &method, [path, path], [&ask[0], &ask[1]]).await;
                    }
                    for session in ["same", "asks", "later"] {
                        let ask = [json!({"session_id": session}), json!({"session_id": "none"})];
                        not_there(&acme, &method, [path, path], [&ask[0], &ask[1]]).await;
                    }
                }
                (_, path) if path.contains("{id}") => {
                    let (there, none): (&[&str], &str) = match path.split('/').nth(2) {
                        Some("jobs" | "dead") => {
                            (&[&others.job, &others.failed, &others.live[0], &others.live[1]], &unknown)
                        }
                        Some("sessions") => (&["same", "asks", "later"], "none"),
                        Some("webhooks") => (&[&others.webhook], "none"),
                        Some("schedules" | "limits") => (&["same"], "none"),
                        _ => panic!("{method} {path}: name here what its id is of"),
                    };
                    let resend = json!({"job_id": others.job});
                    let answer = json!({"call_id": "c", "answer": 1});
                    let body = match path.rsplit('/').next() {
                        Some("resend") => &resend,
                        Some("rotate") => &empty,
                        Some("answers") => &answer,
                        _ => &nothing,
                    };
                    for there in there {
                        not_there(&acme, &method, [&about(there), &about(none)], [body, body]).await;
                    }
                }
                ("POST", "/v1/jobs" | "/v1/jobs/batch" | "/v1/schedules" | "/v1/webhooks" | "/v1/limits") => {
                    creates += 1
                }
                _ => panic!("{method} {path}: name here how it keeps tenants apart"),
            }
        }
    }
    assert_eq!(creates, 5);
    ids_are_shared(&acme, &others).await;
    assert_eq!(others.shown(&other).await, before, "nothing of it was changed");

    // Equal names and keys are each tenant's own.
    let own = submitted(&acme, &spec()).await.is(202).text("job_id");
    assert_eq!(acme.wait(&own).await.is(200).json()["output"], json!("said"));
    assert_eq!(submitted(&acme, &spec()).await.is(200).text("job_id"), own);
    let unique =
        json!({"agent_id": "echo", "unique": {"key": "two", "for_ms": 3_600_000}, "idempotency_key": "two"});
    for caller in [&other, &acme] {
        let batch = caller.post("/v1/jobs/batch", &json!([unique])).await.is(200).json();
        assert_eq!(batch["accepted"], json!(1), "{batch}");
        assert_eq!(batch["items"][0]["status"], json!(202), "{batch}");
    }
    acme.post("/v1/webhooks", &webhook()).await.is(201);
    acme.post("/v1/schedules", &schedule()).await.is(201);
    acme.delete("/v1/schedules/same").await.is(204);
    acme.post("/v1/limits", &limit(1)).await.is(204);
    acme.delete("/v1/limits/same").await.is(204);
    acme.post("/v1/limits", &limit(1_000_001)).await.problem(422, Some("max"));
    acme.post("/v1/limits", &json!({"key": "a b", "max": 1})).await.problem(422, Some("key"));
    let session = acme.get("/v1/sessions/same").await.is(200).json();
    acme.delete("/v1/sessions/same").await.is(204);
    assert_eq!(session["session_id"], json!("same"));
    assert_eq!(others.shown(&other).await, before, "the other's session is another one");
    // The call was written by hand, without its accounts.
    fleet.database.execute("DELETE FROM harness_calls").await;
    fleet.database.audited().await;
}
