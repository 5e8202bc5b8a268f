//! A key that is revoked is refused within seconds, whatever its caller has begun.

use std::io::{Read, Write};
use std::net::TcpStream;

use http::Method;
use serde_json::json;
use tests::{Api, Fleet, until};

use super::upload::Upload;

const LINE: &str = "{\"agent_id\":\"echo\"}\n";

/// A key of a new tenant, and its id.
async fn key(fleet: &Fleet, tenant: &str) -> (String, String) {
    let _ = fleet.producer(&["tenants", "create", tenant]).await;
    let create = ["keys", "create", "--json", "--tenant", tenant, "--scope", "submit,read,content,operate"];
    let created = fleet.producer(&create).await.json().remove(0);
    let text = |field: &str| created[field].as_str().expect("a text").to_owned();
    (text("key"), text("id"))
}

/// Revokes a key, and waits until the door refuses it.
async fn revoke(fleet: &Fleet, api: &Api, id: &str) {
    assert_eq!(fleet.producer(&["keys", "revoke", id]).await.code, 0);
    let refused = async || (api.get("/v1/jobs").await.status == 401).then_some(());
    until("the key is refused", refused).await;
}

#[tokio::test]
async fn a_caller_that_waits_for_an_end_does_not_get_it_once_its_key_is_revoked() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let (key, id) = key(&fleet, "acme").await;
    let acme = Api::of(&door).await.with_key(&key);
    let spec = json!({"agent_id": "echo", "session_id": "s", "input": "said"});
    let job_id = acme.submit(&spec).await.is(202).text("job_id");
    let waiting = ["GET", "POST"].map(|method| {
        let (acme, job_id, mut spec) = (acme.clone(), job_id.clone(), spec.clone());
        spec["job_id"] = json!(job_id);
        tokio::spawn(async move {
            let headers = [("prefer", "wait=60"), ("content-type", "application/json")];
            match method {
                "GET" => acme.send(Method::GET, &format!("/v1/jobs/{job_id}"), &headers, Vec::new()).await,
                _ => acme.send(Method::POST, "/v1/jobs", &headers, spec.to_string().into_bytes()).await,
            }
        })
    });
    let asked =
        "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'j.epoch > 0, j.failure|CASE WHEN r.fits'
                  AND datname = current_database() AND pid <> pg_backend_pid()";
    until("the door asks for the end", async || (fleet.database.count(asked).await > 0).then_some(())).await;
    revoke(&fleet, &acme, &id).await;
    let _worker = fleet.worker("worker").start().await;
    for waiting in waiting {
        let answer = waiting.await.unwrap().problem(401, Some("authorization"));
        assert!(!answer.body.contains("said"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_batch_under_way_ends_where_its_key_is_revoked() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let (key, id) = key(&fleet, "acme").await;
    let acme = Api::of(&door).await.with_key(&key);
    let mut batch = Upload::begin(&acme, Some(&key));
    batch.send(&LINE.repeat(256));
    let jobs = "SELECT count(*) FROM harness_jobs";
    until("a part is accepted", async || (fleet.database.count(jobs).await == 256).then_some(())).await;
    revoke(&fleet, &acme, &id).await;
    batch.send(&LINE.repeat(10));
    let (status, _, answer) = tokio::task::spawn_blocking(move || batch.end()).await.unwrap();
    assert_eq!(
        (status, &answer["complete"], &answer["accepted"]),
        (200, &json!(false), &json!(256)),
        "{answer}"
    );
    assert_eq!(
        answer["items"].as_array().and_then(|items| items.last()).map(|last| &last["status"]),
        Some(&json!(401))
    );
    assert_eq!(fleet.database.count(jobs).await, 256);
}

/// A request whose body has begun, and is waited for.
struct Slow(TcpStream);

impl Slow {
    /// Returns once the route has looked at the key and waits for the body.
    fn begin(api: &Api, key: &str, path: &str) -> Slow {
        let to = api.base().strip_prefix("http://").expect("an address");
        let mut stream = TcpStream::connect(to).expect("a connection");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Authorization: Bearer {key}\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let mut answer = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
        stream.read_exact(&mut answer).expect("an answer");
        assert!(answer.starts_with(b"HTTP/1.1 100"), "{path}: the body is waited for");
        Slow(stream)
    }

    /// Sends the body, and returns the answer.
    fn end(mut self, body: &str) -> String {
        write!(self.0, "{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).expect("sent");
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

#[tokio::test]
async fn a_body_that_arrives_after_its_key_was_revoked_does_nothing() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("WEBHOOK_ALLOW", "127.0.0.0/8").start().await;
    let (key, id) = key(&fleet, "acme").await;
    let acme = Api::of(&door).await.with_key(&key);
    let job_id = acme.submit(&json!({"agent_id": "echo", "session_id": "s"})).await.is(202).text("job_id");
    let requests = [
        ("/v1/jobs".to_owned(), json!({"agent_id": "echo"})),
        ("/v1/tickets".to_owned(), json!({"job_id": job_id})),
        ("/v1/schedules".to_owned(), json!({"name": "n", "cron": "0 0 29 2 *", "job": {"agent_id": "echo"}})),
        (format!("/v1/jobs/{job_id}/answers"), json!({"call_id": "c", "answer": 1})),
        ("/v1/limits".to_owned(), json!({"key": "k", "max": 1})),
        ("/v1/webhooks".to_owned(), json!({"url": "http://127.0.0.1:9/ends", "states": ["cancelled"]})),
    ];
    let slow: Vec<(Slow, String)> =
        requests.iter().map(|(path, body)| (Slow::begin(&acme, &key, path), body.to_string())).collect();
    let made = "SELECT (SELECT count(*) FROM harness_jobs) + (SELECT count(*) FROM harness_api_keys)
                     + (SELECT count(*) FROM harness_schedules) + (SELECT count(*) FROM harness_inputs)
                     + (SELECT count(*) FROM harness_limits) + (SELECT count(*) FROM harness_webhooks)";
    let before = fleet.database.count(made).await;
    revoke(&fleet, &acme, &id).await;
    for ((slow, body), (path, _)) in slow.into_iter().zip(&requests) {
        let answer = tokio::task::spawn_blocking(move || slow.end(&body)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401"), "{path}: {answer}");
    }
    assert_eq!(fleet.database.count(made).await, before);
}
