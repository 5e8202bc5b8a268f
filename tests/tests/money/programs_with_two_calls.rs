//! A program with several calls ends by the one for which there was no room, whatever smaller calls are granted beside it.

use job::JobState;
use serde_json::json;
use tests::provider::{PROVIDER_KEY, Provider};
use tests::{Fleet, Launch, job, until};

use crate::programs::{asks, fleet_and_provider};

/// Makes a large call, and then a small one, as if both were under way. Then it fails by the large one.
const TWO_CALLS: &str = r#"#!/usr/bin/env python3
import json, os, sys, urllib.error, urllib.request

json.load(sys.stdin)
gateway, token = os.environ["HARNESS_GATEWAY_URL"], os.environ["HARNESS_GATEWAY_TOKEN"]
headers = {"x-api-key": token, "anthropic-version": "2023-06-01", "content-type": "application/json"}

def ask(max_tokens):
    body = {"model": "claude-opus-5-5", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "Hello"}]}
    try:
        request = urllib.request.Request(gateway + "/v1/messages", json.dumps(body).encode(), headers)
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as refused:
        return refused.code

large, small = ask(60_000), ask(10)
print(json.dumps({"type": "error", "message": f"{large}, {small}"}), flush=True)
"#;

fn worker(fleet: &Fleet, provider: &Provider, more: &str) -> Launch {
    let program = fleet.program("two_calls", TWO_CALLS);
    let agents = fleet.folder.path().join("agents.toml");
    let toml = format!(
        "[agents.two]\nharness = \"command\"\ncommand = [{program:?}]\nmodels = [\"claude-opus-5-5\"]\n{more}"
    );
    std::fs::write(&agents, toml).expect("written");
    let launch = fleet.worker("worker").set("AGENTS_FILE", agents.display());
    launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url())
}

#[tokio::test]
async fn a_small_call_that_is_granted_does_not_hide_that_a_large_one_had_no_room() {
    let (fleet, provider) = fleet_and_provider().await;
    let _worker = worker(&fleet, &provider, "").set("BUDGET_DAILY", "0.10").start().await;
    let spec = job("s", "two", json!(null));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    let failure = view.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "budget_exhausted", "{failure:?}");
    assert_eq!(view.state, JobState::Failed);
    let settled = "SELECT count(*) FROM harness_calls WHERE state = 'settled'";
    assert_eq!(fleet.database.count(settled).await, 1, "the small one was granted");
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_call_whose_least_form_fits_no_window_fails_at_once_and_one_that_fits_a_later_one_waits() {
    let (fleet, provider) = fleet_and_provider().await;
    // The large call needs 1.2 dollars as it is, and 0.4 with 20,000 tokens of output.
    let more = |budget| {
        format!(
            "on_exhausted = \"wait\"\nfit = true\nmin_output_tokens = 20000\nbudget_daily = \"{budget}\"\n"
        )
    };
    let hopeless = worker(&fleet, &provider, &more("0.10")).start().await;
    let spec = job("s-1", "two", json!(null));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let failure = fleet.ended(spec.job_id).await.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "budget_exhausted", "{failure:?}");
    assert!(failure.message.contains("a call needs $0.4"), "{failure:?}");
    drop(hopeless);

    // Others have spent so much of this day that it fits only the next one.
    let key = "'agent:day:' || to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD') || ':two'";
    let moves = "INSERT INTO harness_account_moves (key, spent_microusd)";
    fleet.database.execute(&format!("{moves} SELECT {key}, 300000")).await;
    let _worker = worker(&fleet, &provider, &more("0.60")).start().await;
    let spec = job("s-2", "two", json!(null));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let due = "SELECT count(*) FROM harness_jobs WHERE state = 'scheduled' AND attempts = 0 AND due_at > now() + interval '1 minute'
                  OR state = 'scheduled' AND due_at::date > started_at::date";
    until("it waits for the turn", async || (fleet.database.count(due).await == 1).then_some(())).await;
}

#[tokio::test]
async fn a_call_that_cannot_be_made_smaller_is_hopeless_also_where_its_agent_fits() {
    let (fleet, provider) = fleet_and_provider().await;
    let more = "on_exhausted = \"wait\"\nfit = true\nbudget_daily = \"0.001\"\n";
    let _worker = crate::programs::worker(&fleet, &provider, "worker", more).start().await;
    let spec = asks("s", json!({"questions": 1}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let failure = fleet.ended(spec.job_id).await.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "budget_exhausted", "{failure:?}");
    assert!(failure.message.contains("the limit is $0.001000"), "{failure:?}");
}
