//! The protocol's own example server, `@modelcontextprotocol/server-everything`, over stdio and over HTTP. `install`
//! installs it.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, like the test itself")]

mod install;
#[path = "../toolbox/support.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Bench, build, processes_of};
use tokio::sync::OnceCell;
use tools::{Content, Ended, Toolbox};

/// Returns the server's program, installed once.
async fn program() -> &'static Path {
    static PROGRAM: OnceCell<PathBuf> = OnceCell::const_new();
    PROGRAM.get_or_init(|| async { tokio::task::spawn_blocking(install::installed).await.unwrap() }).await
}

/// Calls tools of the server in every way that it has.
async fn everything(bench: &Bench, toolbox: &Toolbox) {
    assert!(toolbox.tools().len() >= 10, "{:?}", toolbox.tools());
    let text = async |tool: &str, input: &str| {
        let output = bench.call(toolbox, tool, input).await;
        assert!(!output.is_error, "{tool}: {output:?}");
        output.text()
    };
    assert_eq!(text("e__echo", r#"{"message": "é\ud83d\ude00"}"#).await, "Echo: é😀");
    assert!(text("e__get-sum", r#"{"a": 2, "b": 40}"#).await.contains("42"));
    let output = bench.call(toolbox, "e__get-sum", r#"{"a": 2, "b": "40"}"#).await;
    assert!(output.ended == Ended::BadInput && output.text().contains("b: \"40\""), "{output:?}");
    let output = bench.call(toolbox, "e__get-tiny-image", "{}").await;
    let picture =
        |content: &Content| matches!(content, Content::Image { media_type, .. } if media_type == "image/png");
    assert!(output.content.iter().any(picture), "{output:?}");
    text("e__get-structured-content", r#"{"location": "Chicago"}"#).await;
    text("e__get-resource-links", r#"{"count": 2}"#).await;
    // It would take a minute, and is cancelled.
    let long = r#"{"duration": 60, "steps": 60}"#;
    let begun = Instant::now();
    let output = bench.call(toolbox, "e__trigger-long-running-operation", long).await;
    assert!(output.ended == Ended::TimedOut && begun.elapsed() < Duration::from_secs(30), "{output:?}");
    assert_eq!(text("e__echo", r#"{"message": "on"}"#).await, "Echo: on");
}

#[tokio::test]
async fn over_its_pipes() {
    let bench = Bench::new();
    let table = format!(
        "[mcp.e]\ncommand = ['node', '{}', 'stdio']\ntimeout_ms = 3000\nenv_allow = ['CARGO_PKG_NAME']",
        program().await.display()
    );
    let toolbox = bench.open(&table).await;
    everything(&bench, &toolbox).await;
    let output = bench.call(&toolbox, "e__get-env", "{}").await;
    let env: Value = serde_json::from_str(&output.text()).unwrap();
    assert_eq!(env["CARGO_PKG_NAME"], "tools");
    assert!(env.get("CARGO_MANIFEST_DIR").is_none(), "{env}");
    assert_eq!(processes_of(bench.job).len(), 1);
    toolbox.close().await;
    bench.nothing_is_left().await;
    let toolset = build(toml::from_str(&table).unwrap()).unwrap();
    let mut checked = toolset.check(&bench.place()).await;
    let (tools, left_out) = checked.remove(0).found.unwrap();
    assert!(tools.len() >= 10 && left_out.is_empty(), "{left_out:?}");
}

#[tokio::test]
async fn over_http() {
    let bench = Bench::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("node");
    server.arg(program().await).arg("streamableHttp").env("PORT", port.to_string());
    let _server = Killed(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    support::within("it listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
    let table = format!("[mcp.e]\nurl = 'http://127.0.0.1:{port}/mcp'\ntimeout_ms = 3000");
    let toolbox = bench.open(&table).await;
    everything(&bench, &toolbox).await;
    toolbox.close().await;
}

/// A process that is killed with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
