//! Programs call models through the worker's gateway: what a job costs is what was metered, a budget that is spent stops
//! it, and what was answered before a worker died is not paid again.

use job::{JobSpec, JobState, Usd};
use lapin::BasicProperties;
use serde_json::{Value, json};
use store::{Budget, Period, SpendScope};
use tests::Fleet;
use tests::Launch;
use tests::provider::{Fault, PROVIDER_KEY, Provider};
use tests::{job, until};

/// Asks a model as often as its input says, each time something else, and stops before the question `halt` until a file
/// is there; with `hangs` it stops behind a refusal as well. Before the question `fails` it fails, once. With `anew` no other run asks the same, and
/// what it costs is in no checkpoint before its end. It knows the gateway by its environment alone.
const ASKS: &str = r#"#!/usr/bin/env python3
import json, os, sys, time, urllib.error, urllib.request

order = json.load(sys.stdin)
asked = order["job"]["input"]
assert not os.environ["ANTHROPIC_API_KEY"].startswith("sk-"), "the real key"
anew = f" at {time.time_ns()}" if asked.get("anew") else ""
for number in range(asked["questions"]):
    while number == asked.get("halt") and not os.path.exists(asked["go"]):
        open(asked["go"] + ".halted", "w").close()
        time.sleep(0.02)
    if number == asked.get("fails") and not os.path.exists(asked["go"]):
        open(asked["go"], "w").close()
        print(json.dumps({"type": "error", "message": "not today", "retryable": True}), flush=True)
        sys.exit(0)
    body = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": f"Question {number}{anew}"}]}
    request = urllib.request.Request(
        os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages",
        json.dumps(body).encode(),
        {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01", "content-type": "application/json"},
    )
    while True:
        try:
            answer = json.load(urllib.request.urlopen(request))
            break
        except urllib.error.HTTPError as refused:
            while asked.get("hangs") and not os.path.exists(asked.get("go", "")):
                if "go" in asked:
                    open(asked["go"] + ".halted", "w").close()
                time.sleep(0.02)
            if refused.code != 429:
                print(json.dumps({"type": "error", "message": f"{refused.code} {refused.read().decode()}"}), flush=True)
                sys.exit(0)
            time.sleep(float(refused.headers["retry-after"]) / 20)
    if not anew:
        print(json.dumps({"type": "cost", "cost_usd": 99}), flush=True)
print(json.dumps({"type": "result", "output": answer["content"][0]["text"]}), flush=True)
"#;

/// One question of the program: 4 and 20 micro-dollars a token of input and output.
pub async fn fleet_and_provider() -> (Fleet, Provider) {
    (Fleet::new().await, Provider::start().await)
}

pub fn worker(fleet: &Fleet, provider: &Provider, name: &str, more: &str) -> Launch {
    let program = fleet.program("asks", ASKS);
    let agents = fleet.folder.path().join("agents.toml");
    let toml = format!(
        "[agents.asks]\nharness = \"command\"\ncommand = [{program:?}]\nmodels = [\"claude-opus-5-5\"]\n{more}"
    );
    std::fs::write(&agents, toml).expect("written");
    let launch = fleet.worker(name).set("AGENTS_FILE", agents.display());
    launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url())
}

pub fn asks(session: &str, input: Value) -> JobSpec {
    job(session, "asks", input)
}

#[tokio::test]
async fn a_job_costs_what_the_gateway_metered_and_the_provider_bills() {
    let (fleet, provider) = fleet_and_provider().await;
    let _worker = worker(&fleet, &provider, "worker", "").start().await;
    let spec = asks("s", json!({"questions": 3}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    assert_eq!(provider.asked().len(), 3);
    assert_eq!(view.cost_usd.micros(), provider.bill_micros(), "{view:?}");
    let settled = "SELECT count(*) FROM harness_calls WHERE state = 'settled' AND agent_id = 'asks'";
    assert_eq!(fleet.database.count(settled).await, 3);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_budget_that_is_spent_stops_the_job_and_the_bill_stays_within_it() {
    let (fleet, provider) = fleet_and_provider().await;
    // A question costs less than 0.001 dollars, and about ten times as much is held for it.
    let _worker = worker(&fleet, &provider, "worker", "").set("BUDGET_DAILY", "0.03").start().await;
    let spec = asks("s", json!({"questions": 1_000}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    let failure = view.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "budget_exhausted", "{failure:?}");
    assert!(failure.message.contains("fleet:day:"), "{failure:?}");
    let bill = provider.bill_micros();
    assert!((10_000..=30_000).contains(&bill), "{bill}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_job_that_may_wait_comes_back_when_the_window_turns() {
    let (fleet, provider) = fleet_and_provider().await;
    let launch = worker(&fleet, &provider, "worker", "on_exhausted = \"wait\"\nbudget_daily = \"0.004\"\n");
    let _worker = launch.start().await;
    let (waits, fails) = (asks("s-1", json!({"questions": 99})), asks("s-2", json!({"questions": 99})));
    let fails = JobSpec { deadline_ms: Some(120_000), ..fails };
    fleet.enqueue(&[waits.clone(), fails.clone()]).await;
    let view = fleet.ended(fails.job_id).await;
    let failure = view.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "budget_exhausted", "its deadline is sooner");
    let due = "SELECT count(*) FROM harness_jobs WHERE state = 'scheduled' AND attempts = 0
               AND due_at >= date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + interval '1 day'";
    until("it is due tomorrow", async || (fleet.database.count(due).await == 1).then_some(())).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_call_that_needs_more_than_the_limit_fails_at_once_also_where_its_agent_waits() {
    let (fleet, provider) = fleet_and_provider().await;
    let launch = worker(&fleet, &provider, "worker", "on_exhausted = \"wait\"\nbudget_daily = \"0.001\"\n");
    let _worker = launch.start().await;
    let spec = asks("s", json!({"questions": 1}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let failure = fleet.ended(spec.job_id).await.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "budget_exhausted", "{failure:?}");
    let said = ["agent:day:", "a call needs $0.00", "the limit is $0.001000"];
    assert!(said.iter().all(|said| failure.message.contains(said)), "{failure:?}");
    assert_eq!(provider.bill_micros(), 0);
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_after_a_refusal_has_failed_by_that() {
    let (fleet, provider) = fleet_and_provider().await;
    let _worker = worker(&fleet, &provider, "worker", "max_cost_usd = \"0.001\"\n").start().await;
    let mut spec = asks("s", json!({"questions": 1, "hangs": true}));
    (spec.timeout_ms, spec.retry.max_attempts) = (Some(3_000), 1);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let failure = fleet.ended(spec.job_id).await.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "timeout", "{failure:?}");
    assert!(provider.asked().iter().all(|asked| asked.path.ends_with("count_tokens")));
}

#[tokio::test]
async fn a_provider_that_falls_silent_ends_the_attempt_by_its_idle_timeout_and_the_call_counts_in_full() {
    let (fleet, provider) = fleet_and_provider().await;
    let launch = worker(&fleet, &provider, "worker", "idle_timeout_ms = 5000\n").set("USAGE_DRAIN_S", 1);
    let _worker = launch.start().await;
    provider.fault(Fault::Stalls);
    let mut spec = asks("s", json!({"questions": 1}));
    spec.retry.max_attempts = 1;
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let failure = fleet.ended(spec.job_id).await.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "idle_timeout", "{failure:?}");
    let in_full = "SELECT count(*) FROM harness_calls
                    WHERE state = 'unknown' AND cost_microusd = reserved_microusd AND cost_microusd > 0";
    until("the call counts in full", async || (fleet.database.count(in_full).await == 1).then_some(())).await;
    let counted = "SELECT sum(cost_microusd)::bigint FROM harness_calls";
    assert!(provider.bill_micros() as i64 <= fleet.database.count(counted).await);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_provider_s_key_that_is_wrong_costs_nothing_and_the_program_is_told() {
    let (fleet, provider) = fleet_and_provider().await;
    let launch = worker(&fleet, &provider, "worker", "").set("ANTHROPIC_API_KEY", "sk-wrong");
    let _worker = launch.start().await;
    let spec = asks("s", json!({"questions": 1}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    let failure = view.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "harness_error", "{failure:?}");
    assert!(failure.message.starts_with("401 ") && !failure.message.contains("sk-wrong"), "{failure:?}");
    assert_eq!((view.cost_usd, provider.bill_micros()), (Usd::ZERO, 0));
    assert_eq!(fleet.database.texts("SELECT state FROM harness_calls").await, ["free"]);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_settlement_that_postgres_refuses_counts_in_full_and_holds_nothing() {
    let (fleet, provider) = fleet_and_provider().await;
    let refuse = "
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'not that' USING ERRCODE = '22021'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON harness_calls FOR EACH ROW
            WHEN (NEW.state = 'settled') EXECUTE FUNCTION refuse()";
    fleet.database.execute(refuse).await;
    let _worker = worker(&fleet, &provider, "worker", "").start().await;
    let mut spec = asks("s", json!({"questions": 1}));
    spec.retry.max_attempts = 1;
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!(view.state, JobState::Failed, "its answer is not stored: {view:?}");
    let unknown =
        "SELECT reason FROM harness_calls WHERE state = 'unknown' AND cost_microusd = reserved_microusd";
    let reasons = fleet.database.texts(unknown).await;
    assert_eq!(reasons, ["the ledger refused what was to be recorded"]);
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_calls").await, 1);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_settlement_that_postgres_cannot_take_for_a_while_loses_nothing() {
    let (fleet, provider) = fleet_and_provider().await;
    // As without the right to change the table.
    let forbid = "
        CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'permission denied' USING ERRCODE = '42501'; END $$;
        CREATE TRIGGER forbid BEFORE UPDATE ON harness_calls FOR EACH ROW
            WHEN (NEW.state = 'settled') EXECUTE FUNCTION forbid()";
    fleet.database.execute(forbid).await;
    let worker = worker(&fleet, &provider, "worker", "").start().await;
    let mut spec = asks("s", json!({"questions": 1}));
    spec.retry.max_attempts = 1;
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    worker.said("settling a model call failed, trying again").await;
    fleet.database.execute("DROP TRIGGER forbid ON harness_calls").await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    assert_eq!(view.cost_usd.micros(), provider.bill_micros());
    let settled = "SELECT sum(cost_microusd)::bigint FROM harness_calls WHERE state = 'settled'";
    assert_eq!(fleet.database.count(settled).await, provider.bill_micros() as i64);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_limit_without_a_window_stops_a_job_that_may_wait() {
    let (fleet, provider) = fleet_and_provider().await;
    let launch = worker(&fleet, &provider, "worker", "on_exhausted = \"wait\"\nmax_cost_usd = \"0.002\"\n");
    let _worker = launch.start().await;
    let spec = asks("s", json!({"questions": 99}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let failure = fleet.ended(spec.job_id).await.failure.expect("a failure");
    assert_eq!(failure.code.as_str(), "budget_exhausted", "{failure:?}");
    assert!(failure.message.contains("job:life:"), "{failure:?}");
}

#[tokio::test]
async fn the_lowest_limit_of_a_job_holds_whoever_names_it() {
    let (fleet, provider) = fleet_and_provider().await;
    let _worker = worker(&fleet, &provider, "worker", "max_cost_usd = \"0.02\"\n").start().await;
    let limited = |session: &str, micros| JobSpec {
        max_cost_usd: Some(Usd::from_micros(micros)),
        ..asks(session, json!({"questions": 999}))
    };
    let (lower, higher, tabled) = (limited("s-1", 15_000), limited("s-2", 500_000), limited("s-3", 15_000));
    let budget = Budget {
        scope: SpendScope::Job,
        period: Period::Life,
        name: tabled.job_id.to_string(),
        limit: Usd::from_micros(12_000),
    };
    fleet.store.set_budget(&budget, "test").await.expect("set");
    // One comes as a message alone.
    fleet.vhost.publish(vec![(job::encode(&lower).into_bytes(), BasicProperties::default())]).await;
    fleet.enqueue(&[higher.clone(), tabled.clone()]).await;
    for (spec, limit) in [(&lower, 15_000), (&higher, 20_000), (&tabled, 12_000)] {
        let view = fleet.ended(spec.job_id).await;
        let failure = view.failure.expect("a failure");
        let said = format!("the budget job:life::{} of {} is spent", spec.job_id, Usd::from_micros(limit));
        assert!(failure.message.contains(&said), "{said}: {failure:?}");
        assert!((1..=limit).contains(&view.cost_usd.micros()), "{:?} of {limit}", view.cost_usd);
    }
    // The job that redoes its work has the same limit, and an account of its own.
    let redriven = fleet.producer(&["dead", "redrive", &lower.job_id.to_string()]).await;
    assert_eq!(redriven.code, 0, "{redriven:?}");
    let accounts = format!(
        "SELECT count(*) FROM harness_accounts WHERE key LIKE 'job:%' AND bound_microusd = 15000 AND key NOT LIKE '%{}'",
        lower.job_id
    );
    let failed = "SELECT count(*) FROM harness_results WHERE state = 'failed'";
    until("it ends as well", async || (fleet.database.count(failed).await == 4).then_some(())).await;
    fleet.store.fold_accounts().await.expect("folded");
    assert_eq!(fleet.database.count(&accounts).await, 1);
    fleet.database.audited().await;
}

#[tokio::test]
async fn what_was_answered_before_the_worker_died_is_not_paid_again() {
    let (fleet, provider) = fleet_and_provider().await;
    let go = fleet.folder.path().join("go");
    let mut first = worker(&fleet, &provider, "first", "").short_lease().start().await;
    let spec = asks("s", json!({"questions": 6, "halt": 4, "go": go}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let halted = fleet.folder.path().join("go.halted");
    until("four questions are answered", async || halted.exists().then_some(())).await;
    first.kill();
    std::fs::write(&go, "").unwrap();
    let _second = worker(&fleet, &provider, "second", "").start().await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 2), "{view:?}");
    assert_eq!(provider.asked().len(), 6, "the second run paid for the last two alone");
    let calls = "SELECT sum(cost_microusd)::bigint FROM harness_calls";
    assert_eq!(fleet.database.count(calls).await, provider.bill_micros() as i64);
    fleet.database.audited().await;
}

#[tokio::test]
async fn what_was_answered_before_the_program_failed_is_not_paid_again() {
    let (fleet, provider) = fleet_and_provider().await;
    let _worker = worker(&fleet, &provider, "worker", "").start().await;
    let fails = fleet.folder.path().join("fails");
    let spec = asks("s", json!({"questions": 6, "fails": 4, "go": fails}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 2), "{view:?}");
    assert_eq!(provider.asked().len(), 6, "the second attempt paid for the last two alone");
    let calls = "SELECT sum(cost_microusd)::bigint FROM harness_calls";
    assert_eq!(fleet.database.count(calls).await, provider.bill_micros() as i64);
    assert_eq!(view.cost_usd.micros(), provider.bill_micros());
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_program_gets_the_key_that_its_settings_name_unless_its_agent_names_models() {
    let fleet = Fleet::new().await;
    let program = fleet.program(
        "key",
        "#!/bin/sh\necho \"{\\\"type\\\":\\\"result\\\",\\\"output\\\":\\\"$ANTHROPIC_API_KEY\\\"}\"\n",
    );
    let agents = fleet.folder.path().join("agents.toml");
    let toml = format!(
        "[agents.key]\nharness = \"command\"\ncommand = [{program:?}]\nenv_allow = [\"ANTHROPIC_API_KEY\"]\n"
    );
    std::fs::write(&agents, &toml).unwrap();
    let launch =
        || fleet.worker("worker").set("AGENTS_FILE", agents.display()).set("ANTHROPIC_API_KEY", "sk-own");
    let worker = launch().start().await;
    let spec = job("s", "key", json!(null));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    let output = "SELECT output #>> '{}' FROM harness_results";
    assert_eq!(fleet.database.texts(output).await, ["sk-own"]);
    drop(worker);

    std::fs::write(
        &agents,
        toml + "models = [\"claude-opus-5-5\", \"claude-none\"]\nbudget_daily = \"a lot\"\n",
    )
    .unwrap();
    let mut refused = launch().set("BUDGET_DAILY", "ten").launch();
    assert_eq!(refused.exit().await, 2);
    let log = refused.log();
    for said in ["env_allow[0]: it is set for each run", "budget_daily: ", "BUDGET_DAILY: got \"ten\""] {
        assert!(log.contains(said), "{said} is not in {log}");
    }
}
