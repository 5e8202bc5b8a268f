//! What a limit makes of programs that are as impatient as SDKs: they wait in the gateway, get the agent's next model, or
//! are stopped. Other things that cost are reserved beside.

use job::{JobSpec, JobState};
use serde_json::{Value, json};
use tests::provider::{PROVIDER_KEY, Provider};
use tests::{Fleet, Launch, job, until};

use crate::programs::fleet_and_provider;

/// Asks a model as often as its input says, and gives up after three answers of 429, as SDKs do. It buys what its input
/// names, and settles all but the last.
const IMPATIENT: &str = r#"#!/usr/bin/env python3
import json, os, sys, time, urllib.error, urllib.request

asked = json.load(sys.stdin)["job"]["input"]
gateway, token = os.environ["HARNESS_GATEWAY_URL"], os.environ["HARNESS_GATEWAY_TOKEN"]
headers = {"x-api-key": token, "anthropic-version": "2023-06-01", "content-type": "application/json"}

def post(path, body):
    for left in (2, 1, 0):
        try:
            return urllib.request.urlopen(urllib.request.Request(gateway + path, json.dumps(body).encode(), headers))
        except urllib.error.HTTPError as refused:
            if refused.code != 429 or not left:
                print(json.dumps({"type": "error", "message": f"{refused.code} {refused.read().decode()}"}), flush=True)
                sys.exit(0)
            time.sleep(0.5)

models = []
for number in range(asked.get("questions", 0)):
    body = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": f"Question {number}"}]}
    answer = post("/v1/messages", body)
    models.append(answer.headers.get("x-harness-model", "claude-opus-5-5"))
    json.load(answer)
buys = asked.get("buys", [])
for number, cost in enumerate(buys):
    bought = json.load(post("/reserve", {"what": "search", "max_cost_usd": "0.10"}))
    if number + 1 < len(buys):
        json.load(post("/settle", {"call_id": bought["call_id"], "cost_usd": cost}))
print(json.dumps({"type": "result", "output": models}), flush=True)
"#;

fn worker(fleet: &Fleet, provider: &Provider, more: &str) -> Launch {
    let program = fleet.program("impatient", IMPATIENT);
    let agents = fleet.folder.path().join("agents.toml");
    let toml = format!("[agents.impatient]\nharness = \"command\"\ncommand = [{program:?}]\n{more}");
    std::fs::write(&agents, toml).expect("written");
    let launch = fleet.worker("worker").set("AGENTS_FILE", agents.display());
    launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url())
}

fn impatient(session: &str, input: Value) -> JobSpec {
    job(session, "impatient", input)
}

#[tokio::test]
async fn jobs_beside_each_other_on_one_budget_wait_for_each_other_and_none_fails() {
    let (fleet, provider) = fleet_and_provider().await;
    // A question costs less than 0.001 dollars, and two fit at a time: each holds about 0.01.
    let launch = worker(&fleet, &provider, "models = [\"claude-opus-5-5\"]\n").set("BUDGET_DAILY", "0.06");
    let _worker = launch.set("CONCURRENCY", 24).start().await;
    let jobs: Vec<_> = (0..24).map(|n| impatient(&format!("s-{n}"), json!({"questions": 1}))).collect();
    provider.pause(std::time::Duration::from_millis(50));
    fleet.enqueue(&jobs).await;
    for spec in &jobs {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    }
    assert_eq!(provider.asked().len(), 24);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_program_that_gives_up_while_others_hold_the_room_comes_back_and_no_attempt_is_spent() {
    let (fleet, provider) = fleet_and_provider().await;
    let launch = worker(&fleet, &provider, "models = [\"claude-opus-5-5\"]\n").set("BUDGET_DAILY", "0.06");
    let _worker = launch.set("MODEL_WAIT_S", 0).start().await;
    let others_hold = async |micros: i64| {
        let key = "'fleet:day:' || to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD') || ':'";
        let moves = "INSERT INTO harness_account_moves (key, held_microusd)";
        fleet.database.execute(&format!("{moves} SELECT {key}, {micros}")).await;
    };
    others_hold(60_000).await;
    let spec = impatient("s", json!({"questions": 1}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let back = "SELECT count(*) FROM harness_jobs WHERE state = 'scheduled' AND attempts = 0 AND started_at IS NOT NULL
                   AND due_at BETWEEN now() + interval '5 seconds' AND now() + interval '20 seconds'";
    until("it comes back", async || (fleet.database.count(back).await == 1).then_some(())).await;
    others_hold(-60_000).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn an_agent_that_degrades_goes_on_with_its_next_model_until_none_fits() {
    let (fleet, provider) = fleet_and_provider().await;
    let models = "models = [\"claude-opus-5-5\", \"claude-haiku-4-5\"]\non_exhausted = \"degrade\"\nmax_cost_usd = \"0.03\"\n";
    let _worker = worker(&fleet, &provider, models).start().await;
    let spec = impatient("s", json!({"questions": 1_000}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let failure = fleet.ended(spec.job_id).await.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "budget_exhausted", "{failure:?}");
    let settled = |model: &str| {
        format!(
            "SELECT count(*) FROM harness_calls WHERE state = 'settled' AND model = '{model}' AND answered_by = model"
        )
    };
    for model in ["claude-opus-5-5", "claude-haiku-4-5"] {
        assert!(fleet.database.count(&settled(model)).await > 3, "{model}");
    }
    let bill = provider.bill_micros();
    assert!((20_000..=30_000).contains(&bill), "{bill}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn other_things_that_cost_are_the_job_s_cost_and_what_is_not_settled_counts_in_full() {
    let (fleet, provider) = fleet_and_provider().await;
    let _worker = worker(&fleet, &provider, "models = [\"claude-opus-5-5\"]\n").start().await;
    let spec = impatient("s", json!({"buys": ["0.02", "0.03", "0"]}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    let unknown = "SELECT count(*) FROM harness_calls WHERE provider = 'other' AND model = 'search' AND state = 'unknown'
                   AND cost_microusd = 100000";
    until("the last one counts in full", async || (fleet.database.count(unknown).await == 1).then_some(()))
        .await;
    let spent = "SELECT sum(cost_microusd)::bigint FROM harness_calls WHERE provider = 'other'";
    assert_eq!(fleet.database.count(spent).await, 150_000);
    fleet.database.audited().await;
}
