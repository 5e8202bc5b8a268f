//! No tenant sees another one's work, and a key allows what its scopes say.

use http::Method;
use job::JobId;
use serde_json::{Value, json};
use tests::{Api, Fleet, until};

/// A caller with a new key of this tenant; the tenant is created if it is not there.
pub async fn caller(fleet: &Fleet, api: &Api, tenant: &str, scopes: &str) -> Api {
    let _ = fleet.producer(&["tenants", "create", tenant]).await;
    let created = fleet.producer(&["keys", "create", "--tenant", tenant, "--scope", scopes]).await;
    assert_eq!(created.code, 0, "{created:?}");
    api.with_key(created.out.trim())
}

const ALL: &str = "submit,read,content,operate,admin";

/// The ids of the jobs in a list.
fn ids(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|item| item["job_id"].as_str().expect("an id").to_owned()).collect()
}

#[tokio::test]
async fn each_tenant_is_answered_as_if_the_others_were_not_there() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let (acme, other) = (caller(&fleet, &api, "acme", ALL).await, caller(&fleet, &api, "other", ALL).await);

    // Equal session names, which never meet: neither state nor turns.
    let input = json!({"count": 2, "delay_ms": 1});
    let mut jobs = Vec::new();
    for caller in [&acme, &other, &api] {
        let spec = json!({"session_id": "same", "agent_id": "scripted", "input": input});
        let accepted = caller.submit(&spec).await.is(202);
        assert_eq!(accepted.text("session_id"), "same");
        let job_id = accepted.text("job_id");
        assert_eq!(caller.wait(&job_id).await.is(200).text("state"), "succeeded");
        jobs.push(job_id);
    }
    for (caller, own) in [&acme, &other, &api].into_iter().zip(&jobs) {
        let session = caller.get("/v1/sessions/same").await.is(200).json();
        assert_eq!(
            (&session["session_id"], &session["iterations"]),
            (&json!("same"), &json!(2)),
            "{session}"
        );
        let sessions = caller.get("/v1/sessions").await.is(200).json();
        assert_eq!(sessions["items"].as_array().map(Vec::len), Some(1), "{sessions}");
        assert_eq!(ids(&caller.get("/v1/jobs").await.is(200).json()), std::slice::from_ref(own));
        assert_eq!(ids(&caller.get("/v1/jobs?session=same").await.is(200).json()), std::slice::from_ref(own));
    }

    // What is another's is answered like what is not there, to the letter.
    let unknown = JobId::now().to_string();
    let failed = other.submit(&json!({"session_id": "f", "agent_id": "nobody"})).await.is(202).text("job_id");
    other.wait(&failed).await.is(200);
    for caller in [&acme, &api] {
        for job_id in [&jobs[1], &failed] {
            for (method, list, route) in [
                (Method::GET, "jobs", ""),
                (Method::GET, "jobs", "/why"),
                (Method::POST, "jobs", "/cancel"),
                (Method::POST, "jobs", "/redrive"),
                (Method::DELETE, "dead", ""),
            ] {
                let ask = async |id: &str| {
                    let path = format!("/v1/{list}/{id}{route}");
                    caller.send(method.clone(), &path, &[], Vec::new()).await
                };
                let (there, not_there) = (ask(job_id).await.problem(404, None), ask(&unknown).await);
                assert_eq!((there.status, &there.body), (not_there.status, &not_there.body), "{route}");
            }
        }
        for method in [Method::GET, Method::DELETE] {
            let ask = async |path: &str| caller.send(method.clone(), path, &[], Vec::new()).await;
            let (there, not_there) =
                (ask("/v1/sessions/f").await.problem(404, None), ask("/v1/sessions/g").await);
            assert_eq!((there.status, &there.body), (not_there.status, &not_there.body), "{method}");
        }
        assert_eq!(ids(&caller.get("/v1/dead").await.is(200).json()), Vec::<String>::new());
        assert_eq!(ids(&caller.get("/v1/jobs?state=failed").await.is(200).json()), Vec::<String>::new());
    }
    assert_eq!(ids(&other.get("/v1/dead").await.is(200).json()), std::slice::from_ref(&failed));
    let again =
        other.send(Method::POST, &format!("/v1/jobs/{failed}/redrive"), &[], Vec::new()).await.is(202);
    assert_eq!(other.wait(&again.text("job_id")).await.is(200).text("state"), "failed");

    // Another tenant's id is taken, whatever the content.
    let spec = json!({"job_id": jobs[0], "session_id": "same", "agent_id": "scripted", "input": input});
    acme.submit(&spec).await.is(200);
    other.submit(&spec).await.problem(409, Some("job_id"));
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_batch_is_the_key_s_tenant_s_and_a_tenant_in_the_body_is_refused() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "submit,read").await;
    let batch = json!([{"agent_id": "echo"}, {"agent_id": "echo", "tenant": "default"}]);
    let answered = acme.post("/v1/jobs/batch", &batch).await.is(200).json();
    assert_eq!((&answered["accepted"], &answered["refused"]), (&json!(1), &json!(1)), "{answered}");
    acme.submit(&json!({"agent_id": "echo", "tenant": "other"})).await.problem(422, Some("tenant"));
    let whose = "SELECT DISTINCT tenant FROM harness_jobs";
    assert_eq!(fleet.database.texts(whose).await, ["acme"]);
    assert_eq!(ids(&acme.get("/v1/jobs").await.is(200).json()).len(), 1);
    assert_eq!(ids(&api.get("/v1/jobs").await.is(200).json()).len(), 0);
}

#[tokio::test]
async fn a_key_allows_what_its_scopes_say() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let (submits, reads) =
        (caller(&fleet, &api, "acme", "submit").await, caller(&fleet, &api, "acme", "read").await);
    let spec = json!({"session_id": "s", "agent_id": "echo", "input": "what was said"});
    reads.submit(&spec).await.problem(403, None);
    let job_id = submits.submit(&spec).await.is(202).text("job_id");
    submits.get(&format!("/v1/jobs/{job_id}")).await.problem(403, None);
    let seen = reads.wait(&job_id).await.is(200);
    assert!(!seen.body.contains("what was said") && seen.json()["output_bytes"] == 15, "{seen:?}");
    let session = reads.get("/v1/sessions/s").await.is(200).json();
    assert_eq!(session.get("memory"), None, "{session}");
    for route in ["cancel", "redrive"] {
        reads.post(&format!("/v1/jobs/{job_id}/{route}"), &json!(null)).await.problem(403, None);
    }
    for path in ["/v1/sessions/s", &format!("/v1/dead/{job_id}")] {
        reads.delete(path).await.problem(403, None);
    }
    submits.submit(&json!({"agent_id": "echo", "reply_to": "q"})).await.problem(403, Some("reply_to"));
    for route in ["/v1/pools", "/v1/workers"] {
        reads.get(route).await.problem(403, None);
    }
    reads.get("/v1/spend").await.is(200);
    submits.get("/v1/spend").await.problem(403, None);
}

#[tokio::test]
async fn a_key_that_is_wrong_or_revoked_is_refused_and_its_uses_are_counted() {
    let fleet = Fleet::new().await;
    let mut door = fleet.door("door").set("ENVIRONMENT", "production").start().await;
    let api = Api::of(&door).await;
    let none = api.get("/v1/jobs").await.problem(401, Some("authorization"));
    assert_eq!(none.header("www-authenticate"), "Bearer");
    let acme = caller(&fleet, &api, "acme", "read").await;
    acme.get("/v1/jobs").await.is(200);
    for wrong in ["", "hfk_x", "hfk_0123456789abcdef"] {
        let refused = api.with_key(wrong).get("/v1/jobs").await.problem(401, Some("authorization"));
        assert_eq!(refused.header("www-authenticate"), "Bearer");
    }
    let basic = [("authorization", "Basic YWxhZGRpbjpvcGVuc2VzYW1l")];
    api.send(Method::GET, "/v1/jobs", &basic, Vec::new()).await.problem(401, Some("authorization"));

    let listed = fleet.producer(&["keys", "list", "--json"]).await.json();
    let id = listed[0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(fleet.producer(&["keys", "revoke", &id]).await.code, 0);
    let revoked = async || (acme.get("/v1/jobs").await.status == 401).then_some(());
    until("the key is refused", revoked).await;

    door.terminate();
    assert_eq!(door.exit().await, 0);
    let log = fleet.producer(&["log", "--json"]).await;
    assert!(log.out.contains(&id) && log.out.contains("\"uses\""), "{log:?}");
    fleet.database.audited().await;
}
