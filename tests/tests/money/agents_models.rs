//! An agent in the middle of its tools whose conversation is written anew: because it is too long, because its model has no
//! answer, or because a budget has no room for it. The provider takes back signed thinking only where it stood, and the calls of
//! an open turn only behind theirs.

use job::JobState;
use serde_json::json;
use store::JobView;
use tests::provider::{Asked, PROVIDER_KEY, Provider, Script};
use tests::{Fleet, job};

/// Rounds in which the model thinks, says something and reads a page of 4,000 characters.
const READS: &str =
    r#"{"times": 40, "thinking": "On.", "text": "I read on.", "tools": [{"name": "page", "input": {}}]}"#;

/// Runs one job of an agent with these settings, which reads page by page, to its end.
async fn ended(settings: &str, script: &str) -> (Fleet, Provider, JobView) {
    let script = Script::parse(script).expect("a script");
    let (fleet, provider) = (Fleet::new().await, Provider::playing(script).await);
    let page = fleet.program("page", "#!/bin/sh\ncat > /dev/null\nhead -c 4000 /dev/zero | tr '\\0' x\n");
    let table = format!(
        "[agents.reader]\nharness = \"agent\"\nmax_output_tokens = 200\nsandbox = {{ level = \"off\" }}\n{settings}\n\
         [agents.reader.tools.page]\ncommand = [{page:?}]\ndescription = \"The next page.\"\n"
    );
    let file = fleet.folder.path().join("agents.toml");
    std::fs::write(&file, table).expect("written");
    let launch = fleet.worker("worker").set("AGENTS_FILE", file.display());
    let launch = launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url());
    let _worker = launch.start().await;
    let spec = job("s", "reader", json!("Read it. play:reads"));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert!(provider.findings().is_empty(), "{:#?}", provider.findings());
    fleet.database.audited().await;
    (fleet, provider, view)
}

fn text(asked: &Asked) -> String {
    String::from_utf8_lossy(&asked.body).into_owned()
}

/// Returns the first request to a model.
fn first_to(provider: &Provider, model: &str) -> String {
    let named = format!("\"model\":\"{model}\"");
    let all: Vec<String> = provider.asked().iter().map(text).collect();
    all.into_iter().find(|body| body.contains(&named)).unwrap_or_else(|| panic!("{model} was not asked"))
}

const RECORD: &str = "This is the record of what you have done about it so far.";

#[tokio::test]
async fn a_turn_that_is_too_long_is_compacted_between_its_tools() {
    let settings = "models = [\"claude-opus-5-5\"]\ncontext_tokens = 6000";
    // A request whose oldest part is gone names no play any more, and is answered with the usual words.
    let (_fleet, provider, view) = ended(settings, &format!("{{\"plays\": {{\"reads\": [{READS}]}}}}")).await;
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    let last = provider.asked().last().map(text).expect("a request");
    assert!(last.contains("is replaced by this summary") && last.contains(RECORD), "{last}");
    assert!(!last.contains("\"tool_use\"") && last.contains("Agent calls page: {}"), "{last}");
}

#[tokio::test]
async fn the_next_model_goes_on_in_the_middle_of_a_turn() {
    let settings = "models = [\"claude-opus-5-5\", \"claude-sonnet-5-5\"]";
    let script = r#"{"plays": {"reads": [
        {"times": 2, "thinking": "On.", "tools": [{"name": "page", "input": {}}]}, {"thinking": "So.", "text": "Read."}]},
        "faults": [{"fault": {"refuses": 404}, "every": 1, "first": 1, "times": 1}]}"#;
    let (_fleet, provider, view) = ended(settings, script).await;
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    assert_eq!(view.output.as_ref().map(job::Json::as_str), Some("\"Read.\""));
    let first = first_to(&provider, "claude-sonnet-5-5");
    assert!(first.contains(RECORD) && !first.contains("\"type\":\"thinking\""), "{first}");
}

#[tokio::test]
async fn a_budget_without_room_leads_to_the_next_model_without_the_thinking_of_the_first() {
    let settings = "models = [\"claude-opus-5-5\", \"claude-haiku-4-5\"]\non_exhausted = \"degrade\"\nmax_cost_usd = \"0.1\"";
    let (fleet, provider, view) = ended(settings, &format!("{{\"plays\": {{\"reads\": [{READS}]}}}}")).await;
    let failure = view.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "budget_exhausted", "{failure:?}");
    for model in ["claude-opus-5-5", "claude-haiku-4-5"] {
        let settled =
            format!("SELECT count(*) FROM harness_calls WHERE state = 'settled' AND model = '{model}'");
        assert!(fleet.database.count(&settled).await > 1, "{model}");
    }
    let first = first_to(&provider, "claude-haiku-4-5");
    assert!(first.contains(RECORD) && !first.contains("\"type\":\"thinking\""), "{first}");
    assert!(provider.bill_micros() <= 100_000, "{}", provider.bill_micros());
}
