//! What calls cost and how budgets fare is seen: in metrics, in `/ready`, and in the figures of the whole fleet.

use std::collections::BTreeMap;

use job::JobState;
use serde_json::{Value, json};
use store::{BudgetGauge, Period, SpendScope};
use tests::provider::Fault;
use tests::{Fleet, Runner, Worker, until, until_ok};

use crate::caller::{Caller, cost, limit, unknown, usd};
use crate::programs::{asks, fleet_and_provider, worker};

/// The samples of a process, by name and labels as they are exported.
async fn samples(process: &Worker) -> BTreeMap<String, f64> {
    let (_, text) = process.get("/metrics").await;
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

/// Waits until a worker has counted so much as paid again.
async fn repaid(worker: &Worker, dollars: f64) {
    assert!(dollars > 0.0);
    let counted = async || match samples(worker).await.get("harness_cost_repaid_usd_total") {
        Some(counted) if (counted - dollars).abs() < 1e-9 => Ok(()),
        other => Err((other.copied(), dollars)),
    };
    until_ok("what was paid again is counted", counted).await;
}

async fn dollars(fleet: &Fleet, sql: &str) -> f64 {
    fleet.database.count(sql).await as f64 / 1e6
}

#[tokio::test]
async fn a_worker_counts_its_calls_and_says_that_a_budget_is_spent_and_stays_ready() {
    let (fleet, provider) = fleet_and_provider().await;
    let worker = worker(&fleet, &provider, "worker", "").set("BUDGET_DAILY", "0.03").start().await;
    let spec = asks("s", json!({"questions": 1_000}));
    let model = "model=\"claude-opus-5-5\"";
    let fresh = samples(&worker).await;
    let calls = |outcome: &str| format!("harness_model_calls_total{{{model},outcome=\"{outcome}\"}}");
    for outcome in ["settled", "free", "unknown"] {
        assert_eq!(fresh.get(&calls(outcome)), Some(&0.0), "a counter that appears at 1 has no rate");
    }
    let ready = |wanted: Value| {
        let worker = &worker;
        async move || match worker.get_json("/ready").await {
            (200, body)
                if body["checks"]["budget_ok"] == wanted
                    && body["checks"]["model_responsive"] == json!(true) =>
            {
                Ok(body)
            }
            other => Err(other),
        }
    };
    let body = until_ok("the budget is whole", ready(json!(true))).await;
    assert_eq!(body["checks"]["budget_remaining_usd"], json!(0.03), "{body}");

    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!(view.failure.map(|failure| failure.code.to_string()), Some("budget_exhausted".to_owned()));
    let seen = samples(&worker).await;
    let asked = provider.asked().iter().filter(|asked| asked.path == "/v1/messages").count();
    assert_eq!(seen[&calls("settled")] as usize, asked);
    let spent = seen[&format!("harness_model_cost_usd_total{{agent=\"asks\",{model}}}")];
    assert!((spent - provider.bill_micros() as f64 / 1e6).abs() < 1e-9, "{spent}");
    let tokens = format!("harness_model_tokens_total{{agent=\"asks\",class=\"output\",{model}}}");
    let ledger = fleet.database.count("SELECT sum(output_tokens)::bigint FROM harness_calls").await;
    assert_eq!(seen[&tokens] as i64, ledger);
    assert_eq!(seen["harness_model_calls_refused_total{reason=\"spent\",scope=\"fleet\"}"], 1.0);
    assert_eq!(seen["harness_cost_overrun_usd_total"], 0.0);
    let body = until_ok("the budget is spent", ready(json!(false))).await;
    assert!(body["reasons"]["budget_ok"].as_str().is_some_and(|said| said.contains("fleet:day:")), "{body}");
    let left = body["checks"]["budget_remaining_usd"].as_f64().expect("dollars");
    assert!((left - (0.03 - spent)).abs() < 1e-9, "{body}");
}

#[tokio::test]
async fn a_silent_provider_is_shown_and_takes_no_worker_out_of_service() {
    let (fleet, provider) = fleet_and_provider().await;
    provider.close().await;
    let worker = worker(&fleet, &provider, "worker", "").start().await;
    let look = async || match worker.get_json("/ready").await {
        (200, body) if body["checks"]["model_responsive"] == json!(false) => Ok(body),
        other => Err(other),
    };
    let body = until_ok("the provider is looked at", look).await;
    let reason = body["reasons"]["model_responsive"].as_str().unwrap_or_default();
    assert!(reason.starts_with("anthropic cannot be reached: "), "{body}");
    assert_eq!(body["ready"], json!(true));
    let without = fleet.worker("without").start().await.get_json("/ready").await.1;
    assert!(
        without["checks"].get("model_responsive").is_none() && without["checks"].get("budget_ok").is_none()
    );
}

#[tokio::test]
async fn what_a_later_run_pays_again_is_counted_and_what_it_is_given_is_a_replay() {
    let (fleet, provider) = fleet_and_provider().await;
    let go = fleet.folder.path().join("go");
    let mut first = worker(&fleet, &provider, "first", "").short_lease().start().await;
    let spec = asks("s", json!({"questions": 3, "halt": 1, "go": go}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let halted = fleet.folder.path().join("go.halted");
    until("one question is answered", async || halted.exists().then_some(())).await;
    provider.fault(Fault::Stalls);
    std::fs::write(&go, "").expect("written");
    let asked = async || (provider.asked().len() == 2).then_some(());
    until("the second one is under way", asked).await;
    first.kill();
    let second = worker(&fleet, &provider, "second", "").start().await;
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    let seen = samples(&second).await;
    assert_eq!(seen["harness_model_replays_total{agent=\"asks\"}"], 1.0);
    let lost = dollars(&fleet, "SELECT cost_microusd FROM harness_calls WHERE state = 'unknown'").await;
    repaid(&second, lost).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn what_is_paid_again_is_counted_also_of_a_program_that_writes_its_requests_anew() {
    let (fleet, provider) = fleet_and_provider().await;
    let go = fleet.folder.path().join("go");
    let mut first = worker(&fleet, &provider, "first", "").short_lease().start().await;
    let spec = asks("s", json!({"questions": 3, "halt": 2, "go": go, "anew": true}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let halted = fleet.folder.path().join("go.halted");
    until("two questions are answered", async || halted.exists().then_some(())).await;
    first.kill();
    std::fs::write(&go, "").expect("written");
    let second = worker(&fleet, &provider, "second", "").start().await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, provider.asked().len()), (JobState::Succeeded, 5), "{view:?}");
    repaid(&second, (provider.bill_micros() - view.cost_usd.micros()) as f64 / 1e6).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_call_that_is_settled_after_its_job_has_ended_is_counted_then() {
    let (fleet, provider) = fleet_and_provider().await;
    let worker = worker(&fleet, &provider, "worker", "").set("USAGE_DRAIN_S", 3).start().await;
    provider.fault(Fault::Stalls);
    let spec = asks("s", json!({"questions": 1}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    until("a question is under way", async || (provider.asked().len() == 1).then_some(())).await;
    assert_eq!(fleet.producer(&["cancel", &spec.job_id.to_string()]).await.code, 0);
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.cost_usd), (JobState::Cancelled, usd(0)), "nothing is known of it yet");
    let settled = "SELECT count(*) FROM harness_calls WHERE state = 'unknown'";
    until("the call is settled", async || (fleet.database.count(settled).await == 1).then_some(())).await;
    let lost = fleet.database.count("SELECT sum(cost_microusd)::bigint FROM harness_calls").await;
    repaid(&worker, lost as f64 / 1e6).await;
    let rows = fleet.producer(&["spend", "--by", "job", "--json"]).await.json();
    assert_eq!(rows[0]["cost_microusd"], json!(lost), "{rows:?}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn what_the_calls_of_an_ended_job_cost_and_no_checkpoint_has_is_known_to_the_run_that_ended_it() {
    let fleet = Fleet::new().await;
    let runner = Runner::register(&fleet.store).await;
    let first = Caller::new(&runner, "s", &[]).await;
    let checkpoint = async |caller: &Caller, micros| {
        let row = store::CheckpointRow { cost: usd(micros), ..runner.iteration(&caller.run, 0) };
        fleet.store.checkpoint(row).await.expect("an answer");
    };
    let repaid = async |caller: &Caller| fleet.store.repaid(&caller.run.claim).await.expect("an answer");
    first.settle(&first.granted(10).await, cost(3)).await;
    checkpoint(&first, 3).await;
    first.settle(&first.granted(10).await, cost(4)).await;
    first.hand_back().await;
    assert_eq!(repaid(&first).await, usd(0), "it has not ended");
    let later = first.again(&runner).await;
    later.settle(&later.granted(10).await, cost(5)).await;
    checkpoint(&later, 5).await;
    later.succeed().await;
    assert_eq!((repaid(&first).await, repaid(&later).await), (usd(0), usd(4)));
}

#[tokio::test]
async fn the_figures_of_the_fleet_show_each_limit_and_what_is_not_known() {
    let fleet = Fleet::new().await;
    let relay = fleet.relay("relay").launch();
    let runner = Runner::register(&fleet.store).await;
    let limits = [
        limit(SpendScope::Fleet, Period::Day, 1_000_000),
        limit(SpendScope::Agent, Period::Month, 2_000_000),
    ];
    let caller = Caller::new(&runner, "s", &limits).await;
    let tenant = store::Budget {
        scope: SpendScope::Tenant,
        period: Period::Day,
        name: "default".to_owned(),
        limit: usd(500_000),
    };
    fleet.store.set_budget(&tenant, "test").await.expect("set");
    caller.granted(100_000).await;
    caller.settle(&caller.granted(100_000).await, cost(90_000)).await;
    caller.settle(&caller.granted(50_000).await, unknown()).await;
    caller.settle(&caller.granted(40_000).await, cost(60_000)).await;
    let gauges = fleet.store.spend_gauges().await.expect("an answer");
    let row = |gauge: &BudgetGauge| {
        let of = format!("{}:{}:{}", gauge.scope.as_str(), gauge.period.as_str(), gauge.name);
        (of, [gauge.spent, gauge.held, gauge.overrun].map(|sum| sum.micros() / 1_000), gauge.limit)
    };
    let mut rows: Vec<_> = gauges.budgets.iter().map(row).collect();
    rows.sort();
    let all = [200, 100, 20];
    assert_eq!(
        rows,
        [
            ("agent:month:coder".to_owned(), all, Some(usd(2_000_000))),
            ("fleet:day:".to_owned(), all, Some(usd(1_000_000))),
            ("fleet:month:".to_owned(), all, None),
            ("tenant:day:default".to_owned(), all, Some(usd(500_000))),
        ]
    );
    assert_eq!((gauges.unknown_calls, gauges.unknown), (1, usd(50_000)));

    let name = |family: &str, scope: &str, period: &str, agent: &str| {
        format!("harness_budget_{family}_usd{{agent=\"{agent}\",period=\"{period}\",scope=\"{scope}\"}}")
    };
    let remaining = name("remaining", "fleet", "day", "");
    let look = async || samples(&relay).await.remove(&remaining).filter(|left| (left - 0.8).abs() < 1e-9);
    until("the relay has read it", look).await;
    let seen = samples(&relay).await;
    for (sample, expected) in [
        (name("limit", "fleet", "day", ""), 1.0),
        (name("held", "fleet", "month", ""), 0.1),
        (name("overrun", "fleet", "day", ""), 0.02),
        (name("remaining", "agent", "month", "coder"), 1.8),
        (name("remaining", "tenant", "day", ""), 0.3),
        ("harness_budget_unknown_usd".to_owned(), 0.05),
        ("harness_budget_unknown_calls".to_owned(), 1.0),
    ] {
        assert!((seen[&sample] - expected).abs() < 1e-9, "{sample}: {seen:#?}");
    }
    assert!(!seen.contains_key(&name("limit", "fleet", "month", "")), "there is none");
    // What is opened again is no overrun any more, and a limit that is gone is not shown.
    for gauge in gauges.budgets {
        assert!(fleet.store.reopen_account(&gauge.account, "test").await.expect("an answer"));
    }
    assert!(
        fleet
            .store
            .remove_budget(SpendScope::Tenant, Period::Day, "default", "test")
            .await
            .expect("an answer")
    );
    let gone = async || {
        let seen = samples(&relay).await;
        let is_gone = !seen.contains_key(&name("remaining", "tenant", "day", ""));
        (is_gone && seen.get(&name("overrun", "fleet", "day", "")) == Some(&0.0)).then_some(())
    };
    until("the relay shows neither", gone).await;
}
