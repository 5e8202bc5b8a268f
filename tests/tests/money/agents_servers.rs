//! MCP servers of agents on real workers, on each wire: one with faults, and those of a killed worker.

use job::JobState;
use tests::until;

use super::desk::{AGENTS, Desk, jobs, nothing_runs_for, output};

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
        let view = desk.fleet.ended(spec.job_id).await;
        assert_eq!(
            (view.state, view.attempts, output(&view)),
            (JobState::Succeeded, 1, "\"Done.\""),
            "{view:?}"
        );
        let session = desk.fleet.session(spec.session_id.as_str()).await;
        let text: String = session.context_window.iter().map(job::Json::as_str).collect();
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
    let mut first = desk.worker("first", &more).short_lease().start().await;
    let jobs = jobs("two");
    desk.fleet.enqueue(&jobs).await;
    // The calls of the second answers hang, and no checkpoint follows.
    let hang = async || (desk.provider.charged().len() == 2 * AGENTS.len()).then_some(());
    until("two answers are on the bill", hang).await;
    for spec in &jobs {
        desk.fleet.iterated(spec.job_id, 2).await;
    }
    first.kill();
    for spec in &jobs {
        nothing_runs_for(spec.job_id).await;
    }
    let _second = desk.worker("second", &more).short_lease().start().await;
    for spec in &jobs {
        let view = desk.fleet.ended(spec.job_id).await;
        assert_eq!(
            (view.state, view.attempts, output(&view)),
            (JobState::Succeeded, 2, "\"Done.\""),
            "{view:?}"
        );
        let session = desk.fleet.session(spec.session_id.as_str()).await;
        let text: String = session.context_window.iter().map(job::Json::as_str).collect();
        assert!(text.contains("may have taken effect"), "{text}");
    }
    assert_eq!(desk.provider.charged().len(), 4 * AGENTS.len());
    desk.nothing_is_wrong().await;
}
