//! A client follows a job to its end over connections that break: on a server that cuts them off.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::future::ready;
use futures::{StreamExt, stream};
use harness_fleet::{Client, Error, Event, Followed, JobId};
use serde_json::{Value, json};
use tests::{Api, Ran};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::python;

/// What the server was asked for: the id to go on from, and when.
type Seen = Arc<Mutex<Vec<(String, Instant)>>>;

/// Sends a text and cuts the connection, as a process that is killed does.
fn cut(text: &str) -> Response {
    let text = Bytes::copy_from_slice(text.as_bytes());
    let cut = async {
        // The text goes out once there is nothing to be read of the body for a moment.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("cut"))
    };
    let pieces = stream::once(ready(Ok(text))).chain(stream::once(cut));
    ([("content-type", "text/event-stream")], Body::from_stream(pieces)).into_response()
}

/// The job at its end, as the API shows it.
fn ended(job_id: &str) -> Value {
    json!({
        "job_id": job_id, "trace_id": "0af7651916cd43dd8448eb211c80319c", "session_id": "s", "agent_id": "echo",
        "pool": "default", "state": "succeeded", "attempts": 1, "iterations": 2, "cost_usd": 0, "input_tokens": 0,
        "output_tokens": 0, "worker_id": null, "accepted_at": "2026-01-01T00:00:00Z", "started_at": null,
        "finished_at": null, "output": null,
    })
}

/// For how long a client tries again, and how much longer a stream is quiet.
const RETRY_FOR: Duration = Duration::from_millis(700);
const QUIET_FOR: Duration = Duration::from_millis(1_500);

/// The nth connection of a job that takes its time: an event, comments and a cut, as an update of the API makes it; the end.
fn quiet(n: usize, job_id: &str) -> Response {
    if n > 0 {
        return format!("event: end\ndata: {}\nid: 3.0\n\n", ended(job_id)).into_response();
    }
    let state = json!({"job_id": job_id, "state": "running", "attempts": 0});
    let first = Bytes::from(format!("event: state\ndata: {state}\nid: 1.0\n\n"));
    let pause = QUIET_FOR / 10;
    let comment = move |_| async move {
        tokio::time::sleep(pause).await;
        Ok(Bytes::from_static(b":\n\n"))
    };
    let comments = stream::iter(0..10).then(comment);
    let cut = stream::once(ready(Err(std::io::Error::other("cut"))));
    let pieces = stream::once(ready(Ok(first))).chain(comments).chain(cut);
    ([("content-type", "text/event-stream")], Body::from_stream(pieces)).into_response()
}

/// The nth connection: a few events and half of one; an API that is away; one that is asked to stop; the rest.
fn answer(n: usize, job_id: &str) -> Response {
    let state = json!({"job_id": job_id, "state": "running", "attempts": 0});
    let text = json!({"job_id": job_id, "text": "ä"});
    let gap = json!({"job_id": job_id, "iterations": 2});
    let end = ended(job_id);
    match n {
        0 => cut(&format!(
            ": hello\n\nevent: state\ndata: {state}\nid: 1.0\n\nevent: text\ndata: {text}\n\nevent: state\ndata: {{"
        )),
        1 => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")]).into_response(),
        2 => "retry: 700\n\n".into_response(),
        _ => format!(
            "event: novel\ndata: 1\n\nevent: gap\ndata: {gap}\nid: 2.0\n\nevent: end\ndata: {end}\nid: 3.0\n\n"
        )
        .into_response(),
    }
}

async fn server(job_id: JobId, answer: fn(usize, &str) -> Response) -> (String, Seen) {
    let (seen, listener) = (Seen::default(), TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    let address = listener.local_addr().expect("an address");
    let (shared, known) = (seen.clone(), format!("/v1/jobs/{job_id}/events"));
    let routes = Router::new().fallback(move |uri: Uri, headers: HeaderMap| async move {
        if uri.path() != known {
            return StatusCode::NOT_FOUND.into_response();
        }
        let from = headers.get("last-event-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
        let mut seen = shared.lock().expect("no panic");
        seen.push((from.to_owned(), Instant::now()));
        answer(seen.len() - 1, &job_id.to_string())
    });
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (format!("http://{address}"), seen)
}

/// Each connection went on behind the last whole event, and not before it was asked to.
fn checked(seen: &Seen) {
    let seen = seen.lock().expect("no panic");
    let from: Vec<&str> = seen.iter().map(|(from, _)| from.as_str()).collect();
    assert_eq!(from, ["", "1.0", "1.0", "1.0"]);
    assert!(seen[2].1 - seen[1].1 >= Duration::from_secs(1), "{seen:?}");
    assert!(seen[3].1 - seen[2].1 >= Duration::from_millis(700), "{seen:?}");
}

#[tokio::test]
async fn the_rust_client_follows_a_job_to_its_end_over_connections_that_break() {
    let job_id = JobId::now();
    let (url, seen) = server(job_id, answer).await;
    let client = Client::new(&url, None).expect("an address");
    let events: Vec<Result<Followed, Error>> = client.follow(job_id).collect().await;
    let events: Vec<Followed> = events.into_iter().map(|event| event.expect("an event")).collect();
    let ids: Vec<&str> = events.iter().map(|followed| followed.id.as_str()).collect();
    assert_eq!(ids, ["1.0", "1.0", "2.0", "3.0"]);
    assert!(matches!(&events[0].event, Event::State(state) if state.state.as_str() == "running"));
    assert!(matches!(&events[1].event, Event::Text(text) if text == "ä"));
    assert!(matches!(&events[2].event, Event::Gap(2)));
    assert!(matches!(&events[3].event, Event::End(job) if job.state.is_end()));
    checked(&seen);
    let unknown: Vec<Result<Followed, Error>> = client.follow(JobId::now()).collect().await;
    assert!(matches!(&unknown[..], [Err(error)] if error.is_not_found()), "{unknown:?}");
}

#[tokio::test]
async fn the_rust_client_follows_on_after_a_stream_that_was_quiet_for_longer_than_it_tries_again() {
    let job_id = JobId::now();
    let (url, seen) = server(job_id, quiet).await;
    let client = Client::new(&url, None).expect("an address").retrying_for(RETRY_FOR);
    let events: Vec<Result<Followed, Error>> = client.follow(job_id).collect().await;
    let ids: Vec<&str> = events.iter().flatten().map(|followed| followed.id.as_str()).collect();
    assert_eq!(
        (ids, events.len(), seen.lock().expect("no panic").len()),
        (vec!["1.0", "3.0"], 2, 2),
        "{events:?}"
    );
}

/// Follows a job by a program in Python, with its further arguments.
async fn follow(url: &str, job_id: JobId, more: &[String]) -> Ran {
    let mut command = python("follow.py", &Api::at(url), "");
    command.arg(job_id.to_string()).args(more);
    Ran::of(command, "").await
}

#[tokio::test]
async fn the_python_client_follows_on_after_a_stream_that_was_quiet_for_longer_than_it_tries_again() {
    let job_id = JobId::now();
    let (url, seen) = server(job_id, quiet).await;
    let ran = follow(&url, job_id, &[RETRY_FOR.as_secs_f64().to_string()]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "state 1.0\nend 3.0\n"), "{ran:?}");
    assert_eq!(seen.lock().expect("no panic").len(), 2);
}

#[tokio::test]
async fn the_python_client_follows_a_job_to_its_end_over_connections_that_break() {
    let job_id = JobId::now();
    let (url, seen) = server(job_id, answer).await;
    let ran = follow(&url, job_id, &[]).await;
    // A client in Python shows events of a kind that it does not know as they are.
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "state 1.0\ntext 1.0\nnovel 1.0\ngap 2.0\nend 3.0\n"),
        "{ran:?}"
    );
    checked(&seen);
    let ran = follow(&url, JobId::now(), &[]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "refused 404\n"), "{ran:?}");
}
