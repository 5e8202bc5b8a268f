//! What operators see of agents on a real worker: the parts of a run as spans, without content, and metrics.

use job::{JobSpec, JobState};
use serde_json::json;
use tests::provider::PROVIDER_KEY;
use tests::{Collector, SeenSpan, job};

use super::desk::{AGENTS, Desk, jobs, output};

/// The model of an agent of the desk.
fn model(agent: &str) -> &'static str {
    if agent == "messages" { "claude-opus-5-5" } else { "gpt-6-sol" }
}

#[tokio::test]
async fn each_call_of_a_model_and_of_a_tool_is_a_span_of_its_run_without_content() {
    let play = r#""two": [{"thinking": "A thought.", "text": "A word.", "tools": [{"name": "note", "input": {"say": "A secret."}}]},
        {"tools": [{"name": "no-such", "input": {}}]}, {"text": "At the end."}]"#;
    let (desk, collector) = (Desk::new(play).await, Collector::start().await);
    let worker = desk.worker("worker", "").traced(&collector.url).start().await;
    let jobs = jobs("two");
    desk.fleet.enqueue(&jobs).await;
    for spec in &jobs {
        let view = desk.fleet.ended(spec.job_id).await;
        assert_eq!((view.state, output(&view)), (JobState::Succeeded, "\"At the end.\""), "{view:?}");
        let (agent, trace) = (spec.agent_id.as_str(), spec.job_id.to_string().replace('-', ""));
        let run = collector.span(&format!("invoke_agent {agent}"), |span| span.trace_id == trace).await;
        let of_run = |span: &SeenSpan| span.parent == run.span_id && span.trace_id == trace;
        let chats = collector.spans(3, &format!("chat {}", model(agent)), of_run).await;
        assert_eq!(chats.len(), 3, "{chats:#?}");
        for chat in &chats {
            let said = |name: &str| chat.attributes[name].clone();
            let provider = if agent == "messages" { "anthropic" } else { "openai" };
            assert_eq!(said("gen_ai.operation.name"), json!("chat"));
            assert_eq!(said("gen_ai.provider.name"), json!(provider));
            assert_eq!(said("gen_ai.request.model"), json!(model(agent)));
            assert!(said("gen_ai.usage.input_tokens").as_i64() > Some(0), "{chat:#?}");
            assert!(said("gen_ai.usage.output_tokens").as_i64() > Some(0), "{chat:#?}");
            assert!(chat.is_within(&run) && chat.error.is_none(), "{chat:#?} in {run:#?}");
        }
        for (tool, outcome, error) in [("note", "done", None), ("unknown", "unknown", Some("tool_error"))] {
            let span = collector.span(&format!("execute_tool {tool}"), of_run).await;
            assert_eq!(span.attributes["gen_ai.operation.name"], json!("execute_tool"));
            assert_eq!(span.attributes["gen_ai.tool.name"], json!(tool));
            assert!(span.attributes["gen_ai.tool.call.id"].as_str().is_some_and(|id| !id.is_empty()));
            assert_eq!(span.attributes["harness.tool.outcome"], json!(outcome));
            assert!(span.is_within(&run) && span.error.as_deref() == error, "{span:#?} in {run:#?}");
        }
    }
    let all = format!("{:?}", collector.all());
    for content in
        ["thought", "A word", "secret", "no-such", "At the end", "Do it for", "noted", PROVIDER_KEY]
    {
        assert!(!all.contains(content), "a span says: {content}");
    }
    let all = AGENTS.len() as f64;
    worker.counted("harness_tool_calls_total{outcome=\"done\",tool=\"note\"}", all).await;
    worker.counted("harness_tool_calls_total{outcome=\"unknown\",tool=\"unknown\"}", all).await;
    // An answer without words has none to wait for.
    for (model, count) in [("claude-opus-5-5", 2.0), ("gpt-6-sol", 4.0)] {
        worker.counted(&format!("harness_first_token_seconds_count{{model=\"{model}\"}}"), count).await;
    }
    desk.nothing_is_wrong().await;
}

#[tokio::test]
async fn compactions_and_what_the_provider_read_from_its_cache_are_counted() {
    let reads =
        r#"{"times": 40, "thinking": "On.", "text": "I read on.", "tools": [{"name": "page", "input": {}}]}"#;
    let (desk, collector) = (Desk::new(&format!("\"reads\": [{reads}]")).await, Collector::start().await);
    let page =
        desk.fleet.program("page", "#!/bin/sh\ncat > /dev/null\nhead -c 4000 /dev/zero | tr '\\0' x\n");
    let more = format!("[agents.AGENT.tools.page]\ncommand = [{page:?}]\ndescription = \"The next page.\"");
    let worker =
        desk.worker_with("worker", "context_tokens = 6000", &more).traced(&collector.url).start().await;
    let jobs = jobs("reads");
    desk.fleet.enqueue(&jobs).await;
    for spec in &jobs {
        let view = desk.fleet.ended(spec.job_id).await;
        assert_eq!(view.state, JobState::Succeeded, "{view:?}");
        let agent = spec.agent_id.as_str();
        let run = collector.span(&format!("invoke_agent {agent}"), |_| true).await;
        collector.span("compact", |span| span.parent == run.span_id && span.is_within(&run)).await;
        let tokens = async |class: &str| {
            let labels = format!("agent=\"{agent}\",class=\"{class}\",model=\"{}\"", model(agent));
            worker.metric(&format!("harness_model_tokens_total{{{labels}}}")).await
        };
        let (read, input, written) =
            (tokens("cache_read").await, tokens("input").await, tokens("cache_write").await);
        let share = read / (read + input + written);
        assert!((0.1..1.0).contains(&share), "{agent}: {read} of {input} and {written} more");
    }
    assert!(worker.metric("harness_compactions_total").await >= AGENTS.len() as f64);
    desk.nothing_is_wrong().await;
}

const REFUSED: &str = "harness_model_calls_refused_total{reason=\"spent\",scope=\"job\"}";

#[tokio::test]
async fn a_limit_has_refused_a_call_only_if_no_model_of_the_agent_had_room() {
    let play = r#""notes": [{"thinking": "On.", "text": "I note.", "tools": [{"name": "note", "input": {"say": "it"}}]},
        {"text": "Noted."}]"#;
    let desk = Desk::new(play).await;
    let launch = desk.worker_with("worker", "on_exhausted = \"degrade\"", "");
    let agents = desk.fleet.folder.path().join("agents.toml");
    let table = std::fs::read_to_string(&agents).expect("the agents");
    let both = table.replacen("[\"claude-opus-5-5\"]", "[\"claude-opus-5-5\", \"claude-haiku-4-5\"]", 1);
    assert_ne!(both, table);
    std::fs::write(&agents, both).expect("written");
    let worker = launch.start().await;
    let costs = |session: &str, most: &str| JobSpec {
        max_cost_usd: Some(most.parse().expect("dollars")),
        ..job(session, "messages", json!(format!("Do it in {session}. play:notes")))
    };

    // The first model's answer could cost as much by its limit of output alone; both answers of the second do not.
    let fits = costs("s", "0.004");
    desk.fleet.enqueue(std::slice::from_ref(&fits)).await;
    let view = desk.fleet.ended(fits.job_id).await;
    assert_eq!((view.state, output(&view)), (JobState::Succeeded, "\"Noted.\""), "{view:?}");
    let by = "SELECT count(*) FROM harness_calls WHERE state = 'settled' AND model = 'claude-haiku-4-5'";
    assert_eq!((desk.fleet.database.count(by).await, desk.calls_of(fits.job_id, "settled").await), (2, 2));
    assert_eq!(worker.metric(REFUSED).await, 0.0, "each call was made, with the next model");

    let spends = costs("t", "0.0001");
    desk.fleet.enqueue(std::slice::from_ref(&spends)).await;
    let failure = desk.fleet.ended(spends.job_id).await.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "budget_exhausted", "{failure:?}");
    worker.counted(REFUSED, 1.0).await;
    desk.nothing_is_wrong().await;
}
