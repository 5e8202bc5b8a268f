//! Equal requests on both sides of a checkpoint: the next attempt begins behind it, and is given what was answered behind it.

use job::JobState;
use serde_json::json;
use tests::provider::{PROVIDER_KEY, Provider};
use tests::{Fleet, Launch, job, until};

use crate::programs::fleet_and_provider;

/// Asks the same twice, with a checkpoint between the answers, and stops before its end until a file is there.
const REPEATS: &str = r#"#!/usr/bin/env python3
import json, os, sys, time, urllib.request

order = json.load(sys.stdin)
go = order["job"]["input"]["go"]
answered = order["session"]["memory"].get("answered", 0)
while answered < 2:
    body = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "What time is it?"}]}
    request = urllib.request.Request(
        os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages",
        json.dumps(body).encode(),
        {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01", "content-type": "application/json"},
    )
    json.load(urllib.request.urlopen(request))
    answered += 1
    if answered == 1:
        print(json.dumps({"type": "checkpoint", "iterations": 1, "memory": {"answered": 1}}), flush=True)
while not os.path.exists(go):
    open(go + ".halted", "w").close()
    time.sleep(0.02)
print(json.dumps({"type": "result", "output": answered}), flush=True)
"#;

fn worker(fleet: &Fleet, provider: &Provider, name: &str) -> Launch {
    let program = fleet.program("repeats", REPEATS);
    let agents = fleet.folder.path().join("agents.toml");
    let toml = format!(
        "[agents.repeats]\nharness = \"command\"\ncommand = [{program:?}]\nmodels = [\"claude-opus-5-5\"]\n"
    );
    std::fs::write(&agents, toml).expect("written");
    let launch = fleet.worker(name).set("AGENTS_FILE", agents.display());
    launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url())
}

#[tokio::test]
async fn what_was_answered_behind_a_checkpoint_is_not_paid_again_where_the_same_was_asked_before_it() {
    let (fleet, provider) = fleet_and_provider().await;
    let go = fleet.folder.path().join("go");
    let mut first = worker(&fleet, &provider, "first").short_lease().start().await;
    let spec = job("s", "repeats", json!({"go": go}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let halted = fleet.folder.path().join("go.halted");
    until("two questions are answered", async || halted.exists().then_some(())).await;
    first.kill();
    std::fs::write(&go, "").expect("written");
    let _second = worker(&fleet, &provider, "second").start().await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 2), "{view:?}");
    assert_eq!(provider.asked().len(), 2, "the second run paid for nothing");
    let calls = "SELECT sum(cost_microusd)::bigint FROM harness_calls";
    assert_eq!(fleet.database.count(calls).await, provider.bill_micros() as i64);
    assert_eq!(view.cost_usd.micros(), provider.bill_micros());
    let numbers = "SELECT string_agg(request_nth::text, ' ' ORDER BY call_id) FROM harness_calls";
    assert_eq!(fleet.database.texts(numbers).await, ["0 0"]);
    fleet.database.audited().await;
}
