//! Greedy jobs on a small budget: the provider's bill stays within it through kills, cancels and cut streams, and nearly all
//! of it is used.

use std::time::Duration;

use job::JobSpec;
use serde_json::{Value, json};
use tests::provider::{Fault, PROVIDER_KEY, Provider};
use tests::{Fleet, Launch, job, until, until_ok_within};
use tokio::time::sleep;

/// Asks a model for as long as it gets answers. Its input is what all its requests have.
const GREEDY: &str = r#"#!/usr/bin/env python3
import http.client, itertools, json, os, sys, time, urllib.parse

order = json.load(sys.stdin)
job, memory = order["job"], order["session"]["memory"]
gateway = urllib.parse.urlsplit(os.environ["ANTHROPIC_BASE_URL"])
headers = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01", "content-type": "application/json"}
for number in itertools.count(memory.get("next", 0)):
    body = {**job["input"], "messages": [{"role": "user", "content": f"{job['job_id']}: question {number}"}]}
    while True:
        connection = http.client.HTTPConnection(gateway.netloc)
        connection.request("POST", "/v1/messages", json.dumps(body), headers)
        answer = connection.getresponse()
        try:
            text = answer.read().decode()
        except http.client.IncompleteRead:
            continue
        if answer.status == 200:
            break
        if answer.status not in (429, 503):
            print(json.dumps({"type": "error", "message": f"{answer.status} {text}"}), flush=True)
            sys.exit(0)
        time.sleep(float(answer.headers.get("retry-after", "1")) / 5)
    if number % 4 == 3:
        print(json.dumps({"type": "checkpoint", "memory": {"next": number + 1}}), flush=True)
"#;

/// In micro-dollars.
const BUDGET: u64 = 1_000_000;
const COUNTED: &str = "
    SELECT coalesce(sum(cost_microusd + CASE state WHEN 'held' THEN reserved_microusd ELSE 0 END), 0)::bigint FROM harness_calls";
const JOBS: usize = 200;
const WORKERS: usize = 4;
/// On a busy machine. Undisturbed it takes some seconds.
const ALL_END_WITHIN: Duration = Duration::from_secs(180);

fn worker(fleet: &Fleet, provider: &Provider, number: usize, toml: &str) -> Launch {
    let program = fleet.program("greedy", GREEDY);
    let agents = fleet.agents(&[("greedy", &program)]);
    std::fs::write(&agents, std::fs::read_to_string(&agents).expect("agents") + toml).expect("written");
    let launch = fleet.worker(&format!("worker-{number}")).short_lease().set("AGENTS_FILE", agents);
    launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url())
}

fn jobs(input: Value) -> Vec<JobSpec> {
    (0..JOBS).map(|n| job(&format!("s-{n}"), "greedy", input.clone())).collect()
}

#[tokio::test]
async fn two_hundred_greedy_jobs_stay_within_a_dollar_through_kills_cancels_and_cut_streams() {
    let (fleet, provider) = (Fleet::new().await, Provider::start().await);
    provider.say(400);
    let jobs = jobs(json!({"model": "claude-haiku-4-5", "max_tokens": 2_000, "stream": true}));
    // The programs ask again by themselves, and sooner than the gateway would.
    let worker = |number| {
        let launch = worker(&fleet, &provider, number, "models = [\"claude-haiku-4-5\"]\n");
        launch.set("BUDGET_DAILY", "1.00").set("MODEL_WAIT_S", 0)
    };
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        workers.push(worker(number).start().await);
    }
    fleet.enqueue(&jobs).await;

    // What is counted is looked at after the bill: it may only have grown since.
    let watch = async {
        loop {
            let bill = provider.bill_micros();
            let counted = fleet.database.count(COUNTED).await;
            assert!(
                bill as i64 <= counted && counted <= BUDGET as i64,
                "the bill is {bill}, spent and held {counted}"
            );
            sleep(Duration::from_millis(20)).await;
        }
    };
    let disturb = async {
        // With each tenth of the budget: faults of the provider, two cancels, a kill.
        for round in 0..5_usize {
            let at = BUDGET / 10 * (round as u64 + 1);
            until("the bill has grown", async || (provider.bill_micros() >= at).then_some(())).await;
            for fault in [Fault::CutAfter(50), Fault::Fails(500), Fault::CutAfter(3), Fault::NoUsage] {
                provider.fault(fault);
            }
            let running =
                "SELECT job_id::text FROM harness_jobs WHERE state = 'running' ORDER BY job_id LIMIT 2";
            for job_id in fleet.database.texts(running).await {
                fleet.producer(&["cancel", &job_id]).await;
            }
            let number = round % WORKERS;
            workers[number].kill();
            workers[number] = worker(number).start().await;
        }
        for tenth in 6..=9 {
            let counted = async || fleet.database.count(COUNTED).await >= (BUDGET / 10 * tenth) as i64;
            until("more of the budget is used", async || counted().await.then_some(())).await;
        }
        // They end when all of it is used. A rescued job waits behind all the others.
        until_ok_within(ALL_END_WITHIN, "all jobs have ended", async || {
            let ended = fleet.database.count("SELECT count(*) FROM harness_results").await as usize;
            if ended == JOBS { Ok(()) } else { Err(ended) }
        })
        .await;
    };
    tokio::select! {
        () = watch => unreachable!("it has no end"),
        () = disturb => {}
    }
    let bill = provider.bill_micros();
    assert!((BUDGET / 3..=BUDGET).contains(&bill), "the bill is {bill}");
    // The others were cancelled, or gave up after a 500 of the provider.
    let stopped = "SELECT count(*) FROM harness_results WHERE failure ->> 'code' = 'budget_exhausted'";
    let stopped = fleet.database.count(stopped).await;
    assert!(stopped as usize > JOBS * 3 / 4, "{stopped}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn two_hundred_jobs_with_long_answers_use_nearly_all_of_ten_dollars_before_one_stops() {
    let (fleet, provider) = (Fleet::new().await, Provider::start().await);
    // Each answer costs 1.28 dollars.
    provider.say(64_000);
    let toml = "models = [\"claude-opus-5-5\"]\nfit = true\n";
    let _worker = worker(&fleet, &provider, 0, toml).set("BUDGET_DAILY", "10.00").start().await;
    fleet.enqueue(&jobs(json!({"model": "claude-opus-5-5", "max_tokens": 64_000}))).await;
    let stopped = "SELECT count(*) FROM harness_results WHERE failure ->> 'code' = 'budget_exhausted'";
    until("a job stops", async || (fleet.database.count(stopped).await > 0).then_some(())).await;
    let bill = provider.bill_micros();
    assert!((9_500_000..=10_000_000).contains(&bill), "the bill is {bill}");
}
