//! Answers that a client does not take are bounded in bytes, and one caller leaves room for others.

use http::{Method, Request};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tests::{Api, Fleet, until};
use tokio::net::TcpStream;

use super::tenants::caller;

pub type Slow = SendRequest<Full<Bytes>>;

/// A connection over HTTP/2 whose client takes one byte of each answer.
pub async fn slow(api: &Api) -> Slow {
    let address = api.base().strip_prefix("http://").expect("no TLS");
    let stream = TcpStream::connect(address).await.expect("a connection");
    let mut builder = Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

pub async fn send(
    sender: &mut Slow,
    api: &Api,
    method: Method,
    path: &str,
    lines: &str,
) -> http::Response<Incoming> {
    let key = format!("Bearer {}", api.shown_key().expect("a key"));
    let request = Request::builder().method(method).uri(format!("{}{path}", api.base()));
    let request = request.header("authorization", key).header("content-type", "application/x-ndjson");
    let body = Full::new(Bytes::copy_from_slice(lines.as_bytes()));
    sender.send_request(request.body(body).expect("a request")).await.expect("an answer")
}

#[tokio::test]
async fn answers_that_are_not_taken_have_a_bound_in_bytes_and_one_caller_leaves_room_for_others() {
    const KEPT: usize = 3;
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").set("API_MAX_BODY_BYTES", 4 << 20).start().await;
    let api = Api::of(&door).await;
    let scopes = "submit,read,content,operate";
    let (acme, other) =
        (caller(&fleet, &api, "acme", scopes).await, caller(&fleet, &api, "other", scopes).await);
    let mut paths = Vec::new();
    for api in [&acme, &other] {
        let spec = json!({"agent_id": "echo", "input": "x".repeat(300_000)});
        let job_id = api.submit(&spec).await.is(202).text("job_id");
        api.wait(&job_id).await.is(200);
        paths.push(format!("/v1/jobs/{job_id}"));
    }
    let mut sender = slow(&acme).await;
    let mut kept = Vec::new();
    for _ in 0..KEPT {
        let answer = send(&mut sender, &acme, Method::GET, &paths[0], "").await;
        assert_eq!(answer.status(), 200);
        kept.push(answer);
    }
    // A quarter of all is its own, and three of them fit in.
    acme.get(&paths[0]).await.problem(429, None);
    other.get(&paths[1]).await.is(200);
    acme.get(&format!("{}/why", paths[0])).await.is(200);
    acme.submit(&json!({"agent_id": "echo"})).await.is(202);

    // What changes something is answered once it was begun, and refused before that when there is no room at all.
    let batch = "1\n".repeat(2_000);
    kept.push(send(&mut sender, &acme, Method::POST, "/v1/jobs/batch", &batch).await);
    assert_eq!(kept[KEPT].status(), 200);
    let spec = json!({"agent_id": "echo"});
    let refused = acme.submit(&spec).await.problem(429, None);
    assert_eq!(refused.text("type"), "urn:harness:too_many_answers");
    other.submit(&spec).await.is(202);
    assert_eq!(acme.get("/v1/jobs").await.is(200).json()["items"].as_array().map(Vec::len), Some(2));
    drop((kept, sender));
    let room = async || (acme.get(&paths[0]).await.status == 200).then_some(());
    until("there is room again", room).await;
    let whole = acme.get(&paths[0]).await.is(200).json();
    assert_eq!(whole["output"].as_str().map(str::len), Some(300_000));
    acme.submit(&spec).await.is(202);
}

#[tokio::test]
async fn answers_that_callers_without_a_key_do_not_take_leave_their_room_to_the_tenants() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").set("API_MAX_BODY_BYTES", 4 << 20).set("API_TRUSTED_PROXIES", "127.0.0.1");
    let door = door.start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "submit,read,content").await;
    let job_id = acme.submit(&json!({"agent_id": "echo", "input": "x".repeat(300_000)})).await.is(202);
    let path = format!("/v1/jobs/{}", job_id.text("job_id"));
    acme.wait(&job_id.text("job_id")).await.is(200);
    // Each address has a whole part of its own, which it leaves where it is.
    let mut kept = Vec::new();
    for n in 0..4 {
        let mut sender = slow(&api).await;
        for _ in 0..4 {
            let request = Request::get(format!("{}/docs/swagger-ui-bundle.js", api.base()));
            let request = request.header("x-forwarded-for", format!("192.0.2.{n}"));
            let request = request.body(Full::default()).expect("a request");
            kept.push(sender.send_request(request).await.expect("an answer"));
        }
    }
    let statuses: Vec<u16> = kept.iter().map(|answer| answer.status().as_u16()).collect();
    assert!(statuses.iter().filter(|status| **status == 200).count() >= 4, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429 | 503)), "{statuses:?}");
    let whole = acme.get(&path).await.is(200).json();
    assert_eq!(whole["output"].as_str().map(str::len), Some(300_000));
}
