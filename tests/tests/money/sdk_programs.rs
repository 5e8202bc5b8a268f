//! A program that knows its official SDK and no gateway, with all that is real but the provider.

use std::path::Path;

use job::JobState;
use serde_json::json;
use tests::provider::PROVIDER_KEY;
use tests::{SDKS, python_with, until};

use crate::programs::{asks, fleet_and_provider};

/// Asks a model six times, every other time for a stream. Before the fifth question it waits for a file.
const PROGRAM: &str = r#"
import json, os, sys, time
import anthropic

go = json.load(sys.stdin)["job"]["input"]["go"]
claude = anthropic.Anthropic()
for number in range(6):
    while number == 4 and not os.path.exists(go):
        open(go + ".halted", "w").close()
        time.sleep(0.02)
    asked = dict(model="claude-opus-5-5", max_tokens=100, messages=[{"role": "user", "content": f"Question {number}"}])
    if number % 2:
        with claude.messages.stream(**asked) as stream:
            said = stream.get_final_text()
    else:
        said = claude.messages.create(**asked).content[0].text
print(json.dumps({"type": "result", "output": said}), flush=True)
"#;

#[tokio::test]
async fn a_program_of_the_official_sdk_whose_worker_is_killed_after_four_calls_pays_for_the_rest_only() {
    let (fleet, provider) = fleet_and_provider().await;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(SDKS[0].0);
    let python = tokio::task::spawn_blocking(move || python_with(&folder, SDKS)).await.expect("a Python");
    let (program, agents) = (fleet.program("six.py", PROGRAM), fleet.folder.path().join("agents.toml"));
    let toml = format!(
        "[agents.asks]\nharness = \"command\"\ncommand = [{python:?}, {program:?}]\nmodels = [\"claude-opus-5-5\"]\n"
    );
    std::fs::write(&agents, toml).expect("written");
    let launch = |name| {
        let launch = fleet.worker(name).set("AGENTS_FILE", agents.display());
        launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url())
    };
    let mut first = launch("first").short_lease().start().await;
    let go = fleet.folder.path().join("go");
    let spec = asks("s", json!({"go": go}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let halted = fleet.folder.path().join("go.halted");
    until("four questions are answered", async || halted.exists().then_some(())).await;
    let paid = provider.bill_micros();
    first.kill();
    std::fs::write(&go, "").expect("written");

    let _second = launch("second").start().await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 2), "{view:?}");
    assert_eq!(provider.charged().len(), 6, "the second run paid for the last two alone");
    assert!(!provider.charged().iter().any(|call| call.again), "an answer is paid again");
    let bill = provider.bill_micros();
    assert!(paid > 0 && bill > paid, "{paid} of {bill}");
    let calls = "SELECT sum(cost_microusd)::bigint FROM harness_calls WHERE state = 'settled'";
    assert_eq!(fleet.database.count(calls).await, bill as i64);
    assert_eq!(view.cost_usd.micros(), bill);
    fleet.database.audited().await;
}
