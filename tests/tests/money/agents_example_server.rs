//! The protocol's own example server, `@modelcontextprotocol/server-everything`, used by agents on real workers, on each
//! wire: over its pipes and over HTTP. A worker is killed while the server works for it.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use job::JobSpec;
use nix::unistd::Pid;
use tests::{Worker, until};

#[path = "../../../worker/tools/tests/everything/install.rs"]
mod install;

use super::desk::{AGENTS, Desk, groups_are_gone, groups_of, jobs, nothing_runs_for, processes_with};

/// Calls of the server's tools, each in an answer of its own. The last but one takes ten minutes.
const CALLS: [(&str, &str); 6] = [
    ("echo", r#"{"message": "é\ud83d\ude00"}"#),
    ("get-sum", r#"{"a": 2, "b": 40}"#),
    ("get-tiny-image", "{}"),
    ("get-structured-content", r#"{"location": "Chicago"}"#),
    ("trigger-long-running-operation", r#"{"duration": 600, "steps": 600}"#),
    ("echo", r#"{"message": "on"}"#),
];
/// The answer whose tool takes long.
const LONG: usize = 5;

async fn desk() -> Desk {
    let turn = |(tool, input): (&str, &str)| {
        format!(r#"{{"thinking": "So.", "tools": [{{"name": "e__{tool}", "input": {input}}}]}},"#)
    };
    Desk::new(&format!("\"all\": [{}{{\"text\": \"Done.\"}}]", CALLS.map(turn).concat())).await
}

/// Runs the jobs on a worker until the tool that takes long is at work, and their answers are in the ledger.
async fn in_the_long_call(desk: &Desk, server: &str) -> (Worker, Vec<JobSpec>) {
    let worker = desk.worker("first", server).set("LEASE_S", 6).start().await;
    let jobs = jobs("all");
    desk.fleet.enqueue(&jobs).await;
    for spec in &jobs {
        desk.answered(spec.job_id, LONG).await;
    }
    (worker, jobs)
}

/// Runs the jobs to their ends on another worker, and checks what their models were told.
async fn gone_on(desk: &Desk, server: &str, jobs: &[JobSpec]) {
    let _second = desk.worker("second", server).start().await;
    for spec in jobs {
        desk.done(spec, 2).await;
        let text = desk.said(spec).await;
        for said in [
            "Echo: é😀",
            "42",
            "Chicago",
            "may have taken effect",
            "MCP server e has started anew",
            "Echo: on",
        ] {
            assert!(text.contains(said), "{}: the model is not told: {said}: {text}", spec.agent_id);
        }
        let is_shown = text.contains("image/png");
        assert_eq!(is_shown, spec.agent_id.as_str() != "chat", "the image of {}: {text}", spec.agent_id);
        nothing_runs_for(spec.job_id).await;
    }
    assert_eq!(desk.provider.charged().len(), (CALLS.len() + 1) * AGENTS.len());
    desk.nothing_is_wrong().await;
}

#[tokio::test]
async fn a_killed_worker_leaves_no_process_of_it_and_another_goes_on_with_a_new_one() {
    let (desk, program) =
        (desk().await, tokio::task::spawn_blocking(install::installed).await.expect("installed"));
    let server =
        format!("[agents.AGENT.mcp.e]\ncommand = [\"node\", {program:?}, \"stdio\"]\ntimeout_ms = 600000");
    let (mut first, jobs) = in_the_long_call(&desk, &server).await;
    let mut groups: Vec<Pid> = Vec::new();
    for spec in &jobs {
        let processes = processes_with("HARNESS_JOB_ID", &spec.job_id.to_string());
        assert!(!processes.is_empty(), "{} has no server", spec.agent_id);
        groups.extend(groups_of(&processes));
    }
    first.kill();
    for spec in &jobs {
        nothing_runs_for(spec.job_id).await;
    }
    groups_are_gone(&groups).await;
    gone_on(&desk, &server, &jobs).await;
}

#[tokio::test]
async fn over_http_the_next_worker_asks_it_again_and_does_not_repeat_the_call() {
    let (desk, program) =
        (desk().await, tokio::task::spawn_blocking(install::installed).await.expect("installed"));
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let mut node = Command::new("node");
    node.arg(program).arg("streamableHttp").env("PORT", port.to_string());
    let _server = Killed(node.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("node"));
    until("the server listens", async || TcpStream::connect(("127.0.0.1", port)).ok()).await;
    let server = format!("[agents.AGENT.mcp.e]\nurl = \"http://127.0.0.1:{port}/mcp\"\ntimeout_ms = 600000");
    let (mut first, jobs) = in_the_long_call(&desk, &server).await;
    first.kill();
    gone_on(&desk, &server, &jobs).await;
}

/// A process that is killed with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
