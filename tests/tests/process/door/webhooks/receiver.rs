//! The receiver of webhooks: an HTTP server that keeps what comes, and answers as it is asked to.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::serve::ListenerExt;
use job::JobId;
use serde_json::{Value, json};
use tests::until_ok;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What came.
#[derive(Clone, Debug)]
pub struct Message {
    headers: HeaderMap,
    body: Bytes,
}

impl Message {
    pub fn header(&self, name: &str) -> String {
        self.headers[name].to_str().expect("a text").to_owned()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn job_id(&self) -> JobId {
        self.json()["data"]["job_id"].as_str().expect("an id").parse().expect("an id")
    }
}

/// What the server shares with the test.
#[derive(Clone)]
struct Shared {
    received: Arc<Mutex<Vec<Message>>>,
    connections: Arc<AtomicUsize>,
    /// The status to answer with; none holds the answer back.
    answer: watch::Sender<Option<u16>>,
}

/// A receiver on a port of its own.
pub struct Receiver {
    address: SocketAddr,
    shared: Shared,
    serving: Option<JoinHandle<()>>,
}

async fn take(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> StatusCode {
    shared.received.lock().expect("no panic").push(Message { headers, body });
    let mut answer = shared.answer.subscribe();
    let answer = answer.wait_for(Option::is_some).await.expect("a test that goes on");
    StatusCode::from_u16(answer.expect("a status")).expect("a status")
}

impl Receiver {
    /// Answers with 204.
    pub async fn start() -> Receiver {
        let shared = Shared {
            received: Arc::default(),
            connections: Arc::default(),
            answer: watch::Sender::new(Some(204)),
        };
        let mut receiver = Receiver { address: ([127, 0, 0, 1], 0).into(), shared, serving: None };
        receiver.resume().await;
        receiver
    }

    /// Listens, on the same port as before.
    pub async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("its port");
        self.address = listener.local_addr().expect("an address");
        let connections = self.shared.connections.clone();
        let listener = listener.tap_io(move |_| {
            connections.fetch_add(1, Ordering::Relaxed);
        });
        let router = Router::new().route("/hook", post(take)).with_state(self.shared.clone());
        self.serving =
            Some(tokio::spawn(async move { axum::serve(listener, router).await.expect("served") }));
    }

    /// Refuses connections.
    pub async fn stop(&mut self) {
        let serving = self.serving.take().expect("it serves");
        serving.abort();
        let _ = serving.await;
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Holds every answer back.
    pub fn hold(&self) {
        self.shared.answer.send_replace(None);
    }

    /// Answers with this status.
    pub fn answer(&self, status: u16) {
        self.shared.answer.send_replace(Some(status));
    }

    pub fn received(&self) -> Vec<Message> {
        self.shared.received.lock().expect("no panic").clone()
    }

    /// How many connections were made, with a message or without.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Waits until this many messages have come.
    pub async fn has(&self, count: usize) {
        let look = async || match self.received().len() {
            there if there >= count => Ok(()),
            there => Err(there),
        };
        until_ok(&format!("{count} messages came"), look).await;
    }
}

/// Whether a message verifies by the code of docs/guides/webhooks.md; its body may be changed before.
pub fn verified(secret: &str, message: &Message, changed: bool) -> bool {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides/webhooks.md");
    let page = std::fs::read_to_string(page).expect("the guide");
    let code = page.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the code");
    let headers: Value = ["webhook-id", "webhook-timestamp", "webhook-signature"]
        .into_iter()
        .map(|name| (name.to_owned(), Value::from(message.header(name))))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let body = message.text() + if changed { " " } else { "" };
    let given = json!({"secret": secret, "headers": headers, "body": body}).to_string();
    let asks = "import json, sys\n\
                given = json.load(sys.stdin)\n\
                print(verify(given['secret'], given['headers'], given['body'].encode()))\n";
    let mut python = Command::new("python3")
        .args(["-c", &format!("{code}\n{asks}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    python.stdin.take().expect("its stdin").write_all(given.as_bytes()).expect("written");
    let output = python.wait_with_output().expect("its output");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim() == "True"
}
