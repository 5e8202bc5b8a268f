//! A service that answers with the lines of the contract is a harness like any other, and each way to go wrong is named.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{delete, post};
use futures::{StreamExt, stream};
use harness::testing::{MemoryJournal, assert_failure, failure, run, task};
use harness::{Harness, Run, RunError, Session, Stop, Stopper, Task};
use job::{FailureCode, Json};
use remote::{Remote, RemoteConfig};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

fn tls() -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

/// What a service was asked, and what lets its answer go on.
#[derive(Default)]
struct Seen {
    orders: Mutex<Vec<(HeaderMap, Value)>>,
    stops: Mutex<Vec<(String, HeaderMap)>>,
    stopped: Notify,
    /// A request is there that is not answered yet.
    begun: Notify,
}

/// A service. A job's input says how it answers: `status`, the lines in `say`, and `then`: `end`, `cut`, `hang`, or `stops`
/// (a checkpoint and a result, once it was asked to stop). With `waits` nothing is answered before that; then it may also be
/// that the connection is closed (`then` is `closes`).
struct Service {
    seen: Arc<Seen>,
    url: String,
    serving: AbortHandle,
}

impl Service {
    async fn start() -> Service {
        let seen = Arc::new(Seen::default());
        let routes = Router::new()
            .route("/run", post(answer))
            .route("/run/{job}", delete(stop))
            .layer(DefaultBodyLimit::disable())
            .with_state(seen.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a server");
        let url = format!("http://{}/run", listener.local_addr().expect("an address"));
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.expect("a server") });
        Service { seen, url, serving: serving.abort_handle() }
    }

    fn config(&self) -> RemoteConfig {
        RemoteConfig { url: self.url.clone(), stop_grace_ms: 2_000, ..RemoteConfig::default() }
    }

    fn harness(&self) -> Remote {
        self.config().build(&tls()).expect("settings")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) -> Response {
    let order: Value = serde_json::from_slice(&body).expect("an order");
    let input = order["job"]["input"].clone();
    seen.orders.lock().expect("not poisoned").push((headers, order));
    if input["waits"] == true {
        seen.begun.notify_one();
        seen.stopped.notified().await;
    }
    let said: Vec<String> =
        input["say"].as_array().into_iter().flatten().map(|line| format!("{line}\n")).collect();
    let said = stream::iter(said).map(|line| Ok::<_, io::Error>(Bytes::from(line)));
    let body = match input["then"].as_str().unwrap_or("end") {
        "end" => Body::from_stream(said),
        "cut" => {
            let cut = stream::once(async {
                // After what was written before has left.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(io::Error::other("cut"))
            });
            Body::from_stream(said.chain(cut))
        }
        "closes" => panic!("the connection is closed before its answer has a head"),
        "hang" => Body::from_stream(said.chain(stream::pending())),
        "stops" => {
            let last = stream::once(async move {
                seen.stopped.notified().await;
                let last =
                    [json!({"type": "checkpoint", "memory": {"asked": true}}), json!({"type": "result"})];
                Ok(Bytes::from(format!("{}\n{}\n", last[0], last[1])))
            });
            Body::from_stream(said.chain(last))
        }
        other => panic!("{other}"),
    };
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(input["status"].as_u64().unwrap_or(200) as u16).expect("a status");
    response
}

async fn stop(
    State(seen): State<Arc<Seen>>,
    Path(job): Path<String>,
    headers: HeaderMap,
) -> Result<(), Infallible> {
    seen.stops.lock().expect("not poisoned").push((job, headers));
    seen.stopped.notify_one();
    Ok(())
}

async fn end(harness: &Remote, task: &Task, journal: &Arc<MemoryJournal>) -> Result<Json, RunError> {
    harness.run(&mut run(task, journal)).await
}

#[tokio::test]
async fn a_service_is_given_the_job_and_its_lines_count() {
    let service = Service::start().await;
    let config = RemoteConfig {
        headers: [("Authorization".to_owned(), "Bearer secret".to_owned())].into(),
        ..service.config()
    };
    let task = task(json!({"say": [
        {"type": "text", "text": "I look. "},
        {"type": "checkpoint", "memory": {"done": 1}, "cost_usd": 0.5},
        {"type": "cost", "cost_usd": 0.25},
        {"type": "event", "name": "looked"},
        {"type": "result", "output": {"files": 2}},
    ]}));
    let journal = MemoryJournal::new();
    let output = end(&config.build(&tls()).unwrap(), &task, &journal).await.unwrap();
    assert_eq!(output.as_str(), r#"{"files":2}"#);
    let deltas = journal.deltas();
    assert_eq!(deltas[0].memory, json!({"done": 1}).as_object().cloned());
    let spent: u64 = deltas.iter().map(|delta| delta.usage.cost.micros()).sum();
    assert_eq!((spent, journal.events().len(), journal.text().as_str()), (750_000, 1, "I look. "));
    let orders = service.seen.orders.lock().unwrap();
    let (headers, order) = &orders[0];
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert_eq!(header("harness-job-id"), task.job_id.to_string());
    assert_eq!(
        (header("harness-epoch"), header("harness-attempt"), header("authorization")),
        ("7", "1", "Bearer secret")
    );
    assert_eq!((&order["protocol"], &order["job"]["epoch"]), (&json!("harness.command.v1"), &json!(7)));
    assert!(order.get("workspace").is_none() && order["session"]["memory"].is_object(), "{order}");
}

#[tokio::test]
async fn every_way_to_go_wrong_is_named_and_says_whether_another_attempt_could_help() {
    let service = Service::start().await;
    let harness = service.harness();
    let checkpoint = json!({"type": "checkpoint"});
    for (input, code, retryable, said) in [
        (json!({"status": 503}), FailureCode::StartFailed, true, "answered 503"),
        (json!({"status": 429}), FailureCode::StartFailed, true, "answered 429"),
        (json!({"status": 404}), FailureCode::Protocol, false, "answered 404"),
        (json!({"status": 302}), FailureCode::Protocol, false, "answered 302"),
        (
            json!({"say": [checkpoint]}),
            FailureCode::Protocol,
            false,
            "without a line of type result or error",
        ),
        (
            json!({"say": [checkpoint], "then": "cut"}),
            FailureCode::Crashed,
            true,
            "answer cannot be read after line 1",
        ),
        (
            json!({"say": [{"type": "chekpoint"}]}),
            FailureCode::Protocol,
            false,
            "answer line 1: type: got \"chekpoint\"",
        ),
        (json!({"say": ["x".repeat(2 << 20)]}), FailureCode::OutputLimit, false, "max_line_bytes"),
        (
            json!({"say": [{"type": "error", "message": "no", "retryable": true}]}),
            FailureCode::HarnessError,
            true,
            "no",
        ),
    ] {
        let ended = failure(end(&harness, &task(input), &MemoryJournal::new()).await);
        assert_failure(&ended, code, retryable, said);
    }
    let impatient =
        RemoteConfig { idle_timeout_ms: 200, stop_grace_ms: 100, ..service.config() }.build(&tls()).unwrap();
    let journal = MemoryJournal::new();
    let hanging = task(json!({"say": [{"type": "cost", "cost_usd": 1}], "then": "hang"}));
    let ended = failure(end(&impatient, &hanging, &journal).await);
    assert_failure(&ended, FailureCode::IdleTimeout, true, "idle_timeout_ms = 200");
    assert_eq!(journal.deltas()[0].usage.cost.micros(), 1_000_000, "what it spent is recorded");
    let url = service.url.clone();
    drop(service);
    let nobody =
        RemoteConfig { url: url.replace("/run", "/"), ..RemoteConfig::default() }.build(&tls()).unwrap();
    let reached = async || failure(end(&nobody, &task(json!(null)), &MemoryJournal::new()).await);
    let mut ended = reached().await;
    // The port may take one more connection while it closes.
    for _ in 0..50 {
        if ended.message.contains("cannot be reached") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        ended = reached().await;
    }
    assert_failure(&ended, FailureCode::StartFailed, true, "cannot be reached");
}

fn stoppable(task: &Task, journal: &Arc<MemoryJournal>) -> (Run, Stopper) {
    let stopper = Stopper::default();
    (Run::new(task.clone(), Session::default(), journal.clone(), stopper.signal()), stopper)
}

#[tokio::test]
async fn a_service_is_asked_to_stop_and_its_last_checkpoint_counts() {
    for (stop, succeeds) in [(Stop::Drain, true), (Stop::Cancelled, false)] {
        let service = Service::start().await;
        let (task, journal) =
            (task(json!({"say": [{"type": "checkpoint"}], "then": "stops"})), MemoryJournal::new());
        let (mut run, stopper) = stoppable(&task, &journal);
        let harness = service.harness();
        let asked = async {
            journal.reached(1).await;
            stopper.ask(stop.clone());
        };
        let (ended, ()) = tokio::join!(harness.run(&mut run), asked);
        match ended {
            Ok(output) => assert!(succeeds, "{output:?}"),
            Err(error) => assert_eq!((succeeds, error), (false, RunError::Stopped(stop))),
        }
        assert_eq!(journal.deltas().last().unwrap().memory, json!({"asked": true}).as_object().cloned());
        let stops = service.seen.stops.lock().unwrap();
        assert_eq!(
            (stops[0].0.clone(), stops[0].1["harness-epoch"].to_str().unwrap()),
            (task.job_id.to_string(), "7")
        );
    }
}

#[tokio::test]
async fn how_a_service_that_has_not_answered_ends_its_request_says_nothing_once_it_was_asked_to_stop() {
    for answer in [json!({"status": 503}), json!({"status": 409}), json!({"then": "closes"})] {
        let mut input = answer.clone();
        input["waits"] = json!(true);
        for stop in [Stop::Drain, Stop::Cancelled, Stop::RolledBack] {
            let service = Service::start().await;
            let task = task(input.clone());
            let (mut run, stopper) = stoppable(&task, &MemoryJournal::new());
            let harness = service.harness();
            let asked = async {
                service.seen.begun.notified().await;
                stopper.ask(stop.clone());
            };
            let (ended, ()) = tokio::join!(harness.run(&mut run), asked);
            assert_eq!(ended, Err(RunError::Stopped(stop)), "{answer}");
        }
        for (limit, code) in
            [("idle_timeout_ms", FailureCode::IdleTimeout), ("timeout_ms", FailureCode::Timeout)]
        {
            let service = Service::start().await;
            let mut config = service.config();
            match code {
                FailureCode::Timeout => config.timeout_ms = 100,
                _ => config.idle_timeout_ms = 100,
            }
            let harness = config.build(&tls()).unwrap();
            let ended = failure(end(&harness, &task(input.clone()), &MemoryJournal::new()).await);
            assert_failure(&ended, code, true, limit);
        }
    }
}

/// Where the log goes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_part_of_the_address_is_logged_when_a_service_cannot_be_asked_to_stop() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    let service = Service::start().await;
    let url = format!("{}?key=hunter2", service.url);
    let config = RemoteConfig { url, stop_grace_ms: 300, ..RemoteConfig::default() };
    let (task, journal) =
        (task(json!({"say": [{"type": "checkpoint"}], "then": "hang"})), MemoryJournal::new());
    let (mut run, stopper) = stoppable(&task, &journal);
    let harness = config.build(&tls()).unwrap();
    let asked = async {
        journal.reached(1).await;
        // It takes no other connection.
        service.serving.abort();
        while !service.serving.is_finished() {
            tokio::task::yield_now().await;
        }
        stopper.ask(Stop::Drain);
    };
    let (ended, ()) = tokio::join!(harness.run(&mut run), asked);
    assert_eq!(ended, Err(RunError::Stopped(Stop::Drain)));
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("could not be asked to stop"), "{logged}");
    assert!(!logged.contains("hunter2") && !logged.contains("127.0.0.1"), "{logged}");
}

#[tokio::test]
async fn a_service_that_does_not_stop_is_left_after_its_grace_and_at_once_when_the_lease_is_lost() {
    let service = Service::start().await;
    let config = RemoteConfig { stop_grace_ms: 100, ..service.config() };
    for (config, stop, asks) in [(config, Stop::Drain, 1), (service.config(), Stop::LeaseLost, 1)] {
        let (task, journal) =
            (task(json!({"say": [{"type": "checkpoint"}], "then": "hang"})), MemoryJournal::new());
        let (mut run, stopper) = stoppable(&task, &journal);
        let harness = config.build(&tls()).unwrap();
        let asked = async {
            journal.reached(1).await;
            stopper.ask(stop.clone());
        };
        let ended = async { tokio::join!(harness.run(&mut run), asked).0 };
        let ended = timeout(Duration::from_secs(20), ended).await.expect("it ends");
        assert_eq!(ended, Err(RunError::Stopped(stop)));
        assert_eq!(service.seen.stops.lock().unwrap().len(), asks, "a lost lease asks for nothing");
    }
}
