//! Workers keep to the rate limits of a provider's key together, whatever their programs ask for.

use job::JobState;
use serde_json::json;
use tests::{Fleet, Worker, until};

use crate::programs::{asks, fleet_and_provider, worker};

/// Dates everything that was taken back by more than a minute. What a call gives back when it is settled must be there.
async fn pass_a_minute(fleet: &Fleet) {
    let held = "SELECT count(*) FROM harness_calls WHERE state = 'held'";
    until("all are settled", async || (fleet.database.count(held).await == 0).then_some(())).await;
    let back = "UPDATE harness_provider_moves SET counts_until = counts_until - interval '70 seconds';
                UPDATE harness_calls SET reserved_at = reserved_at - interval '70 seconds'";
    fleet.database.execute(back).await;
}

async fn waits_for(worker: &Worker, limit: &str) -> Option<()> {
    let name = format!("harness_model_rate_limited_total{{limit=\"{limit}\",provider=\"anthropic\"}}");
    (worker.metric(&name).await > 0.0).then_some(())
}

#[tokio::test]
async fn a_provider_that_refuses_is_asked_by_no_worker_until_the_time_that_it_names() {
    let (fleet, provider) = fleet_and_provider().await;
    // With Retry-After: 7.
    provider.fault(tests::provider::Fault::Refuses(429));
    let _first =
        worker(&fleet, &provider, "first", "").set("MODEL_WAIT_S", 0).set("WORKER_SLOTS", 1).start().await;
    let (refused, other) = (asks("s-1", json!({"questions": 1})), asks("s-2", json!({"questions": 3})));
    fleet.enqueue(std::slice::from_ref(&refused)).await;
    let shut = "SELECT count(*) FROM harness_provider_keys WHERE shut_for = 'rate_limit'";
    until("the key is shut", async || (fleet.database.count(shut).await == 1).then_some(())).await;
    let for_s = "SELECT extract(epoch FROM shut_until - shut_at)::bigint FROM harness_provider_keys";
    assert!((7..=9).contains(&fleet.database.count(for_s).await));
    // However slow this machine is. The refused program asks again after a twentieth of it.
    let shut_until = async |until: &str| {
        fleet.database.execute(&format!("UPDATE harness_provider_keys SET shut_until = {until}")).await;
    };
    shut_until("now() + interval '40 seconds'").await;
    // The first one still runs its job, so this is the second one's.
    let second =
        worker(&fleet, &provider, "second", "").set("MODEL_WAIT_S", 0).set("WORKER_SLOTS", 1).start().await;
    fleet.enqueue(std::slice::from_ref(&other)).await;
    until("the second waits, too", async || waits_for(&second, "shut").await).await;
    let doctor = fleet.producer(&["doctor"]).await;
    assert!(doctor.out.contains("ok       provider_keys"), "{doctor:?}");
    assert_eq!(provider.asked().len(), 1);
    shut_until("now()").await;
    for spec in [refused, other] {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    }
    assert_eq!(provider.asked().len(), 5, "one was refused, four were answered");
    let keys = "SELECT key FROM harness_provider_keys";
    let key = fleet.database.texts(keys).await.remove(0);
    assert!(!key.contains("sk-") && key.len() == "anthropic:".len() + 12, "{key}");
    let no_credit =
        "UPDATE harness_provider_keys SET shut_for = 'quota', shut_until = now() + interval '1 hour'";
    fleet.database.execute(no_credit).await;
    let doctor = fleet.producer(&["doctor"]).await;
    assert!(doctor.code == 1 && doctor.out.contains("MISSING  provider_keys"), "{doctor:?}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn workers_send_no_more_requests_in_a_minute_than_the_settings_allow() {
    let (fleet, provider) = fleet_and_provider().await;
    let launch = |name| {
        let launch = worker(&fleet, &provider, name, "").set("MODEL_WAIT_S", 0).set("WORKER_SLOTS", 1);
        launch.set("ANTHROPIC_REQUESTS_PER_MINUTE", 5).set("ANTHROPIC_INPUT_TOKENS_PER_MINUTE", 1_000_000)
    };
    let (first, second) = (launch("first").start().await, launch("second").start().await);
    let jobs = ["s-1", "s-2"].map(|session| asks(session, json!({"questions": 6})));
    fleet.enqueue(&jobs).await;
    for worker in [&first, &second] {
        until("each worker waits", async || waits_for(worker, "requests").await).await;
    }
    assert_eq!(provider.asked().len(), 5);
    pass_a_minute(&fleet).await;
    until("five more", async || (provider.asked().len() == 10).then_some(())).await;
    pass_a_minute(&fleet).await;
    for spec in jobs {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    }
    assert_eq!(provider.asked().len(), 12);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_worker_keeps_to_the_limits_that_answers_report() {
    let (fleet, provider) = fleet_and_provider().await;
    provider.report("anthropic-ratelimit-requests-limit", 3);
    let started = worker(&fleet, &provider, "worker", "").set("MODEL_WAIT_S", 0).start().await;
    let spec = asks("s", json!({"questions": 6}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    until("it waits", async || waits_for(&started, "requests").await).await;
    assert_eq!(provider.asked().len(), 4, "the first answer has reported a limit of three");
    pass_a_minute(&fleet).await;
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    assert_eq!(provider.asked().len(), 6);
    fleet.database.audited().await;
}
