//! MCP servers of agents on real workers, on each wire: one with faults, those of a killed worker, and one that serves all
//! jobs of its worker.

use job::JobSpec;
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tests::{job, until};

use super::desk::{
    AGENTS, Desk, groups_are_gone, groups_of, jobs, nothing_runs_for, nothing_runs_with, processes_with,
};

/// The table of an MCP server with faults, whose tools are named `faults__…`.
fn server() -> String {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/tools/tests/toolbox/server.py");
    format!("[agents.AGENT.mcp.faults]\ncommand = [\"/usr/bin/python3\", {program:?}, \"well\"]")
}

fn plays(name: &str, tools: &[&str]) -> String {
    let turn = |tool: &&str| {
        format!(r#"{{"thinking": "So.", "tools": [{{"name": "faults__{tool}", "input": {{}}}}]}}"#)
    };
    let turns: Vec<String> = tools.iter().map(turn).collect();
    format!("\"{name}\": [{},{{\"text\": \"Done.\"}}]", turns.join(","))
}

#[tokio::test]
async fn a_server_that_dies_floods_and_changes_its_list_costs_its_agent_no_attempt() {
    let desk = Desk::new(&plays("two", &["count", "die", "count", "stream", "change", "late"])).await;
    let _worker = desk.worker("worker", &server()).start().await;
    let jobs = jobs("two");
    desk.fleet.enqueue(&jobs).await;
    for spec in &jobs {
        desk.done(spec, 1).await;
        let text = desk.said(spec).await;
        for said in ["may have taken effect", "has started anew", "has other tools now"] {
            assert!(text.contains(said), "{}: the model is not told: {said}: {text}", spec.agent_id);
        }
        nothing_runs_for(spec.job_id).await;
    }
    assert_eq!(desk.provider.charged().len(), 7 * AGENTS.len());
    desk.nothing_is_wrong().await;
}

#[tokio::test]
async fn a_killed_worker_leaves_no_server_and_the_next_one_tells_the_model() {
    let desk = Desk::new(&plays("two", &["child", "hang", "count"])).await;
    let more = format!("{}\nsafe = [\"child\"]", server());
    let mut first = desk.worker("first", &more).set("LEASE_S", 6).start().await;
    let jobs = jobs("two");
    desk.fleet.enqueue(&jobs).await;
    // The calls of the second answers hang, and no checkpoint follows.
    let hang = async || (desk.provider.charged().len() == 2 * AGENTS.len()).then_some(());
    until("two answers are on the bill", hang).await;
    for spec in &jobs {
        desk.answered(spec.job_id, 2).await;
    }
    first.kill();
    for spec in &jobs {
        nothing_runs_for(spec.job_id).await;
    }
    let _second = desk.worker("second", &more).start().await;
    for spec in &jobs {
        desk.done(spec, 2).await;
        let text = desk.said(spec).await;
        assert!(text.contains("may have taken effect"), "{text}");
    }
    assert_eq!(desk.provider.charged().len(), 4 * AGENTS.len());
    desk.nothing_is_wrong().await;
}

/// The variable by which a server of a worker is found.
const MARK: &str = "SERVED_FOR";

/// Waits for the jobs' ends, and returns all that the model of each has read and said.
async fn read(desk: &Desk, jobs: &[JobSpec]) -> Vec<String> {
    let mut all = Vec::new();
    for spec in jobs {
        desk.done(spec, 1).await;
        all.push(desk.said(spec).await);
    }
    all
}

fn later_jobs(name: &str, play: &str) -> Vec<JobSpec> {
    let said = |agent: &&str| json!(format!("Go on with {name} for {agent}. play:{play}"));
    AGENTS.iter().map(|agent| job(&format!("{name}-{agent}"), agent, said(agent))).collect()
}

#[tokio::test]
async fn a_server_of_a_worker_serves_its_jobs_is_started_anew_and_ends_with_the_worker() {
    let call = r#"{"thinking": "So.", "tools": [{"name": "faults__count", "input": {}}]}"#;
    let halt = r#"{"tools": [{"name": "note", "input": {"say": "halt"}}]}"#;
    let later = format!("\"later\": [{call},{halt},{call},{call},{{\"text\": \"Done.\"}}]");
    let desk = Desk::new(&format!("{},{later}", plays("once", &["count"]))).await;
    let mark = desk.fleet.folder.path().display().to_string();
    let more = format!("{}\nscope = \"worker\"\nenv = {{ {MARK} = {mark:?} }}", server());
    let mut first = desk.worker("first", &more).start().await;

    // Each agent has a server of its own, and each job of the agent counts on.
    for (name, count) in [("one", "\"1\""), ("two", "\"2\"")] {
        let jobs = later_jobs(name, "once");
        desk.fleet.enqueue(&jobs).await;
        for text in read(&desk, &jobs).await {
            assert!(text.contains(count), "{name}: {text}");
        }
        assert_eq!(processes_with(MARK, &mark).len(), AGENTS.len(), "they outlive the jobs");
    }

    // They die while a job uses them.
    let jobs = later_jobs("three", "later");
    desk.fleet.enqueue(&jobs).await;
    desk.halted(&jobs).await;
    for pid in processes_with(MARK, &mark) {
        kill(pid, Signal::SIGKILL).expect("a server");
    }
    nothing_runs_with(MARK, &mark).await;
    desk.go();
    for text in read(&desk, &jobs).await {
        assert!(text.contains("\"3\"") && text.contains("\"1\""), "{text}");
        assert!(text.contains("The MCP server faults has started anew"), "the model is not told: {text}");
    }

    let groups = groups_of(&processes_with(MARK, &mark));
    assert_eq!(groups.len(), AGENTS.len());
    first.terminate();
    assert_eq!(first.exit().await, 0);
    assert!(processes_with(MARK, &mark).is_empty(), "the worker has ended before its servers");
    groups_are_gone(&groups).await;

    let mut second = desk.worker("second", &more).start().await;
    let jobs = later_jobs("four", "once");
    desk.fleet.enqueue(&jobs).await;
    for text in read(&desk, &jobs).await {
        assert!(text.contains("\"1\""), "{text}");
        assert!(!text.contains("has started anew"), "the job knows no other server: {text}");
    }
    assert_eq!(processes_with(MARK, &mark).len(), AGENTS.len());
    second.kill();
    nothing_runs_with(MARK, &mark).await;
    desk.nothing_is_wrong().await;
}
