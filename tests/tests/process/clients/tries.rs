//! What a client tries again, and when: on a server that answers badly before it answers well.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::header::RETRY_AFTER;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use harness_fleet::Client;
use serde_json::{Value, json};
use tests::{Api, Ran, job};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::python;

/// What the server was sent, and when.
type Seen = Arc<Mutex<Vec<(String, Value, Instant)>>>;

/// How a server answers the nth request, which has this body.
type Answers = fn(usize, &Value) -> Response;

/// The nth answer: a cut connection, two that ask to come back, and a job.
fn answer(n: usize, body: &Value) -> Response {
    match n {
        // A body that is shorter than announced.
        0 => (StatusCode::OK, [("content-length", "100")], axum::body::Body::from_stream(cut()))
            .into_response(),
        1 => (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], "{}").into_response(),
        2 => (StatusCode::BAD_GATEWAY, "<html>").into_response(),
        _ => (StatusCode::ACCEPTED, known(body).to_string()).into_response(),
    }
}

/// The nth answer to a batch, of which the first jobs are not accepted at once.
fn answer_to_batch(n: usize, _: &Value) -> Response {
    let later = json!({"status": 503, "problem": {"status": 503, "title": "Unavailable"}});
    let (accepted, known) = (json!({"status": 202}), json!({"status": 200}));
    let items = match n {
        0 => json!([later, later]),
        1 => json!([accepted, later]),
        _ => json!([known]),
    };
    json!({"complete": true, "items": items}).to_string().into_response()
}

fn cut() -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> {
    futures::stream::iter([Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("cut"))])
}

/// The job as the API shows it.
fn known(body: &Value) -> Value {
    json!({
        "job_id": body["job_id"], "trace_id": "0af7651916cd43dd8448eb211c80319c", "session_id": "s", "agent_id": "echo",
        "pool": "default", "state": "publishing", "attempts": 0, "iterations": 0, "cost_usd": 0, "input_tokens": 0,
        "output_tokens": 0, "worker_id": null, "accepted_at": "2026-01-01T00:00:00Z", "started_at": null,
        "finished_at": null,
    })
}

async fn server(answer: Answers) -> (String, Seen) {
    let (seen, listener) = (Seen::default(), TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    let address = listener.local_addr().expect("an address");
    let shared = seen.clone();
    let routes = Router::new().fallback(move |uri: Uri, body: Bytes| async move {
        let body = serde_json::from_slice(&body).unwrap_or_default();
        let mut seen = shared.lock().expect("no panic");
        seen.push((uri.to_string(), body, Instant::now()));
        let (_, body, _) = &seen[seen.len() - 1];
        answer(seen.len() - 1, body)
    });
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (format!("http://{address}"), seen)
}

/// Four tries of the same job, and the third not before the second's answer had asked for.
fn checked(seen: &Seen) {
    let seen = seen.lock().expect("no panic");
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert!(seen[0].1["job_id"].is_string(), "{seen:?}");
    for (path, body, _) in &*seen {
        assert_eq!((path.as_str(), body), ("/v1/jobs", &seen[0].1));
    }
    assert!(seen[2].2 - seen[1].2 >= Duration::from_secs(1), "{seen:?}");
}

#[tokio::test]
async fn the_rust_client_sends_the_same_job_again_and_honours_retry_after() {
    let (url, seen) = server(answer).await;
    let spec = job("s", "echo", json!(1));
    let answered = Client::new(&url, None).expect("an address").submit(&spec).await.expect("a job");
    assert_eq!(answered.job_id, spec.job_id);
    checked(&seen);
}

#[tokio::test]
async fn the_python_client_sends_the_same_job_again_and_honours_retry_after() {
    let (url, seen) = server(answer).await;
    let mut command = python("submit.py", &Api::at(&url), "");
    command.arg("echo");
    let ran = Ran::of(command, "").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    checked(&seen);
    assert_eq!(seen.lock().expect("no panic")[0].1["job_id"], ran.out.trim());
}

#[tokio::test]
async fn the_time_in_which_the_python_client_reads_the_jobs_of_a_batch_is_no_time_of_a_try() {
    let (url, seen) = server(answer_to_batch).await;
    let mut command = python("slow_batch.py", &Api::at(&url), "");
    command.args(["1.6", "2"]);
    let ran = Ran::of(command, "").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "202\n200\n200\n"), "{ran:?}");
    assert_eq!(seen.lock().expect("no panic").len(), 4);
}
