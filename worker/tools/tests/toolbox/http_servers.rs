//! MCP servers over HTTP: they are asked at their own address, are given the key and the secrets that are theirs, and
//! their faults are answers.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tools::{CallError, Ended, Toolbox};

use crate::support::{Bench, within};

/// A server that is killed with the test.
struct Served {
    process: Child,
    port: u16,
    seen: std::path::PathBuf,
}

impl Served {
    fn start(bench: &Bench, name: &str, elsewhere: &str) -> Served {
        let seen = bench.dir.path().join(name);
        let mut process = Command::new("/usr/bin/python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/toolbox/http_server.py"))
            .arg(&seen)
            .arg(elsewhere)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Served { process, port: port.trim().parse().unwrap(), seen }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }

    /// What it was asked.
    fn seen(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.seen).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn open(bench: &Bench, served: &Served, more: &str) -> Toolbox {
    bench.open(&format!("[mcp.s]\nurl = '{}'\n{more}", served.url())).await
}

#[tokio::test]
async fn a_call_has_its_key_and_the_headers_that_the_table_names() {
    let bench = Bench::new();
    let served = Served::start(&bench, "seen", "");
    // Cargo sets these for a test, as an operator sets a token for a worker.
    let toolbox =
        open(&bench, &served, "bearer_env = 'CARGO_PKG_NAME'\nheaders_env = { X-Key = 'CARGO_PKG_VERSION' }")
            .await;
    assert_eq!(bench.ask(&toolbox, "echo").await, "well");
    assert_eq!(bench.ask(&toolbox, "sse").await, "well");
    toolbox.close().await;
    within("the session is deleted", || served.seen().iter().any(|seen| seen["method"] == "DELETE")).await;
    let seen = served.seen();
    let posts: Vec<&Value> = seen.iter().filter(|seen| seen["method"] != "DELETE").collect();
    for post in &posts {
        assert_eq!(
            (&post["headers"]["authorization"], &post["headers"]["x-key"]),
            (&"Bearer tools".into(), &env!("CARGO_PKG_VERSION").into())
        );
        let key = post["headers"].get("idempotency-key");
        let is_call = post["method"] == "tools/call";
        assert_eq!(key.is_some(), is_call, "{post}");
        assert!(key.is_none_or(|key| *key == bench.key("call_1").as_str()), "{post}");
    }
    assert_eq!(posts.iter().filter(|post| post["method"] == "tools/call").count(), 2);
}

#[tokio::test]
async fn no_redirect_is_followed_and_no_fault_makes_a_second_call() {
    let bench = Bench::new();
    let other = Served::start(&bench, "other", "");
    let served = Served::start(&bench, "seen", &other.url());
    let toolbox = open(&bench, &served, "timeout_ms = 30000").await;
    for (tool, said) in [
        ("elsewhere", "307"),
        ("huge", "16777216"),
        ("garbage", "could not parse"),
        ("busy", "503"),
        ("html", "content type"),
        ("gone", ""),
        ("cut", ""),
    ] {
        let output = bench.call(&toolbox, &format!("s__{tool}"), "{}").await;
        assert!(output.is_error && output.text().contains(said), "{tool}: {output:?}");
        assert!(output.text().len() < 4_000);
        // The next call finds a server that works.
        assert_eq!(bench.ask(&toolbox, "echo").await, "well", "after {tool}");
        let calls = served.seen().iter().filter(|seen| seen["name"] == tool).count();
        assert_eq!(calls, 1, "{tool}");
    }
    assert_eq!(std::fs::read_to_string(&other.seen).unwrap_or_default(), "");
    toolbox.close().await;
}

#[tokio::test]
async fn one_that_answers_late_is_not_waited_for() {
    let bench = Bench::new();
    let served = Served::start(&bench, "seen", "");
    let toolbox = open(&bench, &served, "timeout_ms = 500").await;
    let begun = Instant::now();
    let output = bench.call(&toolbox, "s__slow", "{}").await;
    assert!(output.ended == Ended::TimedOut && output.text().contains("within 500 ms"), "{output:?}");
    let stop = tokio::time::sleep(Duration::from_millis(100));
    let stopped = bench.call_until(&toolbox, "s__slow", "{}", stop).await;
    assert_eq!(stopped, Err(CallError::Stopped));
    assert!(begun.elapsed() < Duration::from_secs(20));
    within("both are cancelled", || {
        served.seen().iter().filter(|seen| seen["method"] == "notifications/cancelled").count() == 2
    })
    .await;
    assert_eq!(bench.ask(&toolbox, "echo").await, "well");
    toolbox.close().await;
}

#[tokio::test]
async fn one_that_is_away_says_so_and_is_found_when_it_is_back() {
    let bench = Bench::new();
    let said = bench.refusal("[mcp.s]\nurl = 'http://127.0.0.1:9/mcp?key=hunter2'").await;
    assert!(said.starts_with("s: ") && said.contains("refused") && !said.contains("hunter2"), "{said}");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/mcp", silent.local_addr().unwrap());
    let said = bench.refusal(&format!("[mcp.s]\nurl = '{url}'\nstart_timeout_ms = 500")).await;
    assert!(said.contains("not ready within 500 ms"), "{said}");
}

#[tokio::test]
async fn a_number_that_the_request_would_round_is_named_and_not_sent() {
    let bench = Bench::new();
    let served = Served::start(&bench, "seen", "");
    let toolbox = open(&bench, &served, "").await;
    let output = bench.call(&toolbox, "s__echo", r#"{"n": [1, 12345678901234567890123]}"#).await;
    assert_eq!(output.ended, Ended::BadInput, "{output:?}");
    assert!(output.text().contains("the number 12345678901234567890123 would reach"), "{output:?}");
    assert!(!served.seen().iter().any(|asked| asked["method"] == "tools/call"), "it was not sent");
    let output = bench.call(&toolbox, "s__echo", r#"{"n": 1e5}"#).await;
    assert_eq!(output.text(), "well");
    toolbox.close().await;
}
