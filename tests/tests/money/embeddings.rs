//! Embeddings through the worker's gateway: they are metered and paid like every other call, and a model without a price
//! is refused by its name.

use job::JobState;
use serde_json::{Value, json};
use tests::provider::{PROVIDER_KEY, Provider};
use tests::{Fleet, Launch, job};

use crate::programs::fleet_and_provider;

/// Asks for embeddings of the texts that its input has, and says how many came.
const EMBEDS: &str = r#"#!/usr/bin/env python3
import json, os, sys, urllib.error, urllib.request

asked = json.load(sys.stdin)["job"]["input"]
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/embeddings",
    json.dumps({"model": asked["model"], "input": asked["texts"]}).encode(),
    {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "content-type": "application/json"},
)
try:
    answer = json.load(urllib.request.urlopen(request))
    print(json.dumps({"type": "result", "output": len(answer["data"])}), flush=True)
except urllib.error.HTTPError as refused:
    print(json.dumps({"type": "error", "message": f"{refused.code} {refused.read().decode()}"}), flush=True)
"#;

fn worker(fleet: &Fleet, provider: &Provider, models: &[&str]) -> Launch {
    let program = fleet.program("embeds", EMBEDS);
    let agents = fleet.folder.path().join("agents.toml");
    let toml =
        format!("[agents.embeds]\nharness = \"command\"\ncommand = [{program:?}]\nmodels = {models:?}\n");
    std::fs::write(&agents, toml).expect("written");
    let launch = fleet.worker("worker").set("AGENTS_FILE", agents.display());
    launch.set("OPENAI_API_KEY", PROVIDER_KEY).set("OPENAI_BASE_URL", provider.base_url())
}

fn texts(model: &str, count: usize, bytes: usize) -> Value {
    json!({"model": model, "texts": vec!["x".repeat(bytes); count]})
}

#[tokio::test]
async fn embeddings_cost_what_the_provider_bills_for_all_their_texts() {
    let (fleet, provider) = fleet_and_provider().await;
    let _worker = worker(&fleet, &provider, &["text-embedding-3-small"]).start().await;
    // Together they are longer than the model's window, which is that of each.
    let spec = job("s", "embeds", texts("text-embedding-3-small", 5, 20_000));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    assert_eq!(view.output.as_ref().map(job::Json::as_str), Some("5"));
    // 25,000 tokens at 0.02 dollars a million.
    assert_eq!((provider.bill_micros(), view.cost_usd.micros()), (500, 500));
    let settled = "SELECT count(*) FROM harness_calls WHERE state = 'settled' AND provider = 'openai' AND input_tokens = 25000
                   AND output_tokens = 0 AND answered_by = model AND reserved_microusd >= cost_microusd";
    assert_eq!(fleet.database.count(settled).await, 1);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_model_without_a_price_for_embeddings_is_refused_by_its_name() {
    let (fleet, provider) = fleet_and_provider().await;
    let unpriced = "text-embedding-ada-002";
    let mut refused = worker(&fleet, &provider, &["text-embedding-3-small", unpriced]).launch();
    assert_eq!(refused.exit().await, 2);
    let said = format!("AGENTS_FILE: the model `{unpriced}` has no price: add it to PRICES_FILE");
    assert!(refused.log().contains(&said), "{said} is not in {}", refused.log());

    let _worker = worker(&fleet, &provider, &["text-embedding-3-small", "gpt-6-sol"]).start().await;
    let failure = async |session: &str, model: &str| {
        let spec = job(session, "embeds", texts(model, 1, 100));
        fleet.enqueue(std::slice::from_ref(&spec)).await;
        fleet.ended(spec.job_id).await.failure.expect("a failure").message
    };
    let message = failure("s-1", unpriced).await;
    assert!(message.contains("403") && message.contains(unpriced), "{message}");
    assert_eq!(provider.asked().len(), 0, "it was not sent");
    // Another model has a price, and its provider does no work for it.
    let message = failure("s-2", "gpt-6-sol").await;
    assert!(message.contains("not allowed to generate embeddings"), "{message}");
    assert_eq!((provider.asked().len(), provider.bill_micros()), (1, 0));
    let free = "SELECT count(*) FROM harness_calls WHERE state = 'free' AND model = 'gpt-6-sol'";
    assert_eq!(fleet.database.count(free).await, 1);
    fleet.database.audited().await;
}
