//! What the loop itself takes for an iteration with one tool, and how often it checkpoints: `cargo bench -p agent`.
//!
//! The provider, the tool and the ledger here take no time, so what lies between a request and the next one is the loop's:
//! reading the answer, the tool's result, what comes next, and the next request with the whole conversation. The way through
//! the loopback is part of it; the gateway is not.

#![expect(clippy::disallowed_macros, reason = "a measurement may end when its output is closed")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent::{AgentConfig, OfWorker, OpenTools, Opening, Toolkit};
use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use harness::{
    Delta, Event, Harness, IsDurable, Journal, Meter, Run, RunError, Session, Stop, Stopper, Usage,
};
use job::Json;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tools::{Call, CallError, Content, Ended, Output, Repeat, Tool};

/// Iterations that are measured: enough for a p99 that is not the one that took longest.
const ITERATIONS: usize = 400;
/// Iterations before them, whose results make the context as large as it is to be.
const BEFORE: usize = 100;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    println!(
        "{:<10} {:>8} {:>9} {:>9} {:>9} {:>12}",
        "wire", "context", "p50 ms", "p99 ms", "most ms", "checkpoints"
    );
    for wire in ["messages", "chat", "responses"] {
        for context_kb in [0, 200, 1_000] {
            let (mut took, checkpoints) = runtime.block_on(measured(wire, context_kb * 1_000));
            took.sort_unstable();
            let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)].as_secs_f64() * 1e3;
            println!(
                "{wire:<10} {:>8} {:>9.2} {:>9.2} {:>9.2} {:>12.2}",
                format!("{context_kb} kB"),
                at(50),
                at(99),
                at(100),
                checkpoints as f64 / (BEFORE + ITERATIONS) as f64
            );
        }
    }
}

/// Runs one job. Returns the time from each request to the next, and how many checkpoints there were.
async fn measured(wire: &'static str, context: usize) -> (Vec<Duration>, usize) {
    let arrivals: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let addr = serve(wire, arrivals.clone()).await;
    let (model, api) = if wire == "messages" { ("claude-opus-5-5", "chat") } else { ("gpt-6-sol", wire) };
    let config = json!({"openai_api": api, "context_tokens": 10_000_000, "max_iterations": 10_000});
    let config: AgentConfig = serde_json::from_value(config).expect("settings");
    let worker = OfWorker { models: &[model.to_owned()], ..OfWorker::default() };
    let agent = config.build(worker, Arc::new(NoTime::with(context)), &tls()).expect("an agent");
    let checkpoints = Arc::new(AtomicUsize::new(0));
    let (journal, task) =
        (Arc::new(Counts(checkpoints.clone())), harness::testing::task(Value::from("Do it.")));
    let mut run = Run::new(task, Session::default(), journal, Stopper::default().signal())
        .metered_by(Some(Arc::new(Gateway(addr)) as Arc<dyn Meter>));
    agent.run(&mut run).await.expect("an output");
    let arrivals = arrivals.lock().expect("not poisoned");
    let took = arrivals[BEFORE..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    (took, checkpoints.load(Ordering::Relaxed))
}

/// Serves a gateway whose model calls the tool, and ends after so many answers.
async fn serve(wire: &'static str, arrivals: Arc<Mutex<Vec<Instant>>>) -> SocketAddr {
    let answer = move |body: Bytes| {
        let mut arrivals = arrivals.lock().expect("not poisoned");
        arrivals.push(Instant::now());
        assert!(body.ends_with(b"]}"));
        let events = events(wire, arrivals.len());
        async move { ([("content-type", "text/event-stream")], events) }
    };
    let routes = Router::new()
        .route("/v1/messages", post(answer.clone()))
        .route("/v1/chat/completions", post(answer.clone()))
        .route("/v1/responses", post(answer))
        .layer(axum::extract::DefaultBodyLimit::disable());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, routes).await.expect("served") });
    addr
}

fn events(wire: &str, number: usize) -> String {
    let ends = number > BEFORE + ITERATIONS;
    let id = format!("call_{number}");
    let events = match wire {
        "messages" => {
            let block = if ends {
                json!({"type": "text", "text": "Done."})
            } else {
                json!({"type": "tool_use", "id": id, "name": "look", "input": {}})
            };
            let stop = if ends { "end_turn" } else { "tool_use" };
            vec![
                json!({"type": "message_start", "message": {"model": "claude-opus-5-5", "usage": {"input_tokens": 9}}}),
                json!({"type": "content_block_start", "index": 0, "content_block": block}),
                json!({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 9}}),
                json!({"type": "message_stop"}),
            ]
        }
        "chat" => {
            let delta = if ends {
                json!({"content": "Done."})
            } else {
                json!({"tool_calls": [{"index": 0, "id": id, "function": {"name": "look", "arguments": "{}"}}]})
            };
            let stop = if ends { "stop" } else { "tool_calls" };
            let usage = json!({"prompt_tokens": 9, "completion_tokens": 9});
            vec![
                json!({"model": "gpt-6-sol", "choices": [{"delta": delta, "finish_reason": stop}]}),
                json!({"choices": [], "usage": usage}),
            ]
        }
        _ => {
            let item = if ends {
                let content = json!([{"type": "output_text", "text": "Done."}]);
                json!({"type": "message", "role": "assistant", "content": content})
            } else {
                json!({"type": "function_call", "call_id": id, "name": "look", "arguments": "{}"})
            };
            let usage = json!({"input_tokens": 9, "output_tokens": 9});
            let response =
                json!({"model": "gpt-6-sol", "status": "completed", "output": [item], "usage": usage});
            vec![json!({"type": "response.completed", "response": response})]
        }
    };
    let mut text: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    if wire == "chat" {
        text += "data: [DONE]\n\n";
    }
    text
}

fn tls() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    tls.expect("versions").with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
}

struct Gateway(SocketAddr);

impl Meter for Gateway {
    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("HARNESS_GATEWAY_URL", format!("http://{}", self.0)),
            ("HARNESS_GATEWAY_TOKEN", "token".to_owned()),
        ]
    }

    fn port(&self) -> u16 {
        self.0.port()
    }

    fn most_output(&self, _: &str) -> Option<u64> {
        None
    }

    fn used(&self) -> Usage {
        Usage::default()
    }

    fn idle(&self) -> Duration {
        Duration::ZERO
    }

    fn follow(&self, _: IsDurable) {}

    fn close(&self) {}
}

struct Counts(Arc<AtomicUsize>);

#[async_trait]
impl Journal for Counts {
    async fn checkpoint(&self, _: &Delta) -> Result<(), Stop> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn event(&self, _: Event) {}

    fn text(&self, _: &str) {}
}

fn tools() -> Vec<Tool> {
    vec![Tool {
        name: "look".to_owned(),
        description: "Looks.".to_owned(),
        input_schema: Json::parse(r#"{"type":"object"}"#).expect("a schema"),
        repeat: Repeat::Safe,
        side_by_side: true,
        approve: false,
    }]
}

/// A tool that takes no time.
struct NoTime {
    tools: Vec<Tool>,
    /// The text of each result before what is measured.
    before: String,
    calls: AtomicUsize,
}

impl NoTime {
    fn with(context: usize) -> NoTime {
        let text = "So it was seen here. ";
        NoTime {
            tools: tools(),
            before: text.repeat(context / BEFORE / text.len()),
            calls: AtomicUsize::new(0),
        }
    }
}

#[async_trait]
impl OpenTools for NoTime {
    async fn open(&self, _: &Opening<'_>) -> Result<Arc<dyn Toolkit>, RunError> {
        let NoTime { tools, before, .. } = self;
        Ok(Arc::new(NoTime { tools: tools.clone(), before: before.clone(), calls: AtomicUsize::new(0) }))
    }
}

#[async_trait]
impl Toolkit for NoTime {
    fn tools(&self) -> &[Tool] {
        &self.tools
    }

    async fn call(&self, call: &Call<'_>) -> Result<Output, CallError> {
        let is_before = self.calls.fetch_add(1, Ordering::Relaxed) < BEFORE;
        let more = if is_before { self.before.as_str() } else { "" };
        let content = vec![Content::Text(format!("seen by {}. {more}", call.key.as_str()))];
        Ok(Output { content, is_error: false, ended: Ended::Done })
    }

    fn notices(&self) -> Vec<String> {
        Vec::new()
    }

    async fn close(self: Arc<Self>) {}
}
