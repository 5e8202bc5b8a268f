//! The cache of answers: what one job has paid, another one of its tenant is given, if its agent says so. It costs nothing,
//! keeps within its bounds, and is never in the way of a call.

use std::time::Duration;

use job::{JobSpec, JobState, Usd};
use serde_json::json;
use store::{CacheEntry, CacheLookup, GivenAnswer, Lookup, NewCall, Reserved, Store};
use tests::provider::Provider;
use tests::{Database, Fleet, Launch, Runner, job, until};

use crate::caller::{Caller, account, daily};
use crate::programs::{fleet_and_provider, worker};

/// Starts with agents' keys of its own, and with the cache on.
fn caching(fleet: &Fleet, provider: &Provider, more: &str) -> Launch {
    worker(fleet, provider, "worker", more).set("ENABLE_CACHING", "true")
}

async fn kept(fleet: &Fleet, answers: i64) {
    let all = "SELECT count(*) FROM harness_cache";
    until("the answers are kept", async || (fleet.database.count(all).await == answers).then_some(())).await;
}

/// Runs a job that asks questions. Returns what it cost, and how many questions the provider got.
async fn run(fleet: &Fleet, provider: &Provider, spec: &JobSpec) -> (u64, usize) {
    let before = provider.asked().len();
    fleet.enqueue(std::slice::from_ref(spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    (view.cost_usd.micros(), provider.asked().len() - before)
}

fn asks_as(tenant: &str, agent: &str, questions: u32) -> JobSpec {
    let tenant = tenant.parse().expect("a tenant");
    JobSpec { tenant, ..job("s", agent, json!({"questions": questions})) }
}

#[tokio::test]
async fn another_job_of_the_tenant_is_given_the_answers_and_costs_nothing() {
    let (fleet, provider) = fleet_and_provider().await;
    let program = fleet.folder.path().join("asks");
    let plain = format!(
        "cache = true\n[agents.plain]\nharness = \"command\"\ncommand = [{program:?}]\nmodels = [\"claude-opus-5-5\"]\n"
    );
    let worker = caching(&fleet, &provider, &plain).start().await;
    let (cost, asked) = run(&fleet, &provider, &asks_as("default", "asks", 3)).await;
    assert!(cost > 0);
    assert_eq!(asked, 3);
    kept(&fleet, 3).await;
    // The fourth question is new.
    let (again, asked) = run(&fleet, &provider, &asks_as("default", "asks", 4)).await;
    assert_eq!(asked, 1);
    assert!((1..cost).contains(&again), "{again} of {cost}");
    assert_eq!(
        run(&fleet, &provider, &asks_as("default", "plain", 3)).await.1,
        3,
        "its agent does not say so"
    );
    assert_eq!(run(&fleet, &provider, &asks_as("acme", "asks", 3)).await, (cost, 3), "another tenant's");
    kept(&fleet, 7).await;
    assert_eq!(run(&fleet, &provider, &asks_as("acme", "asks", 3)).await, (0, 0));
    for (outcome, count) in [("hit", 6.0), ("miss", 7.0), ("kept", 7.0), ("not_kept", 0.0)] {
        worker.counted(&format!("harness_response_cache_total{{outcome=\"{outcome}\"}}"), count).await;
    }
    let doctor = fleet.producer(&["doctor"]).await;
    assert!(doctor.out.contains("7 answers of models may be given again"), "{doctor:?}");
    // A hit is no call.
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_calls").await, 10);
    let spent = "SELECT sum(cost_microusd)::bigint FROM harness_calls";
    assert_eq!(fleet.database.count(spent).await, provider.bill_micros() as i64);
    fleet.database.audited().await;
}

#[tokio::test]
async fn without_the_setting_nothing_is_kept() {
    let (fleet, provider) = fleet_and_provider().await;
    let _worker = worker(&fleet, &provider, "worker", "cache = true\n").start().await;
    for _ in 0..2 {
        assert_eq!(run(&fleet, &provider, &asks_as("default", "asks", 2)).await.1, 2);
    }
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_cache").await, 0);
}

#[tokio::test]
async fn an_answer_that_is_too_old_is_not_given() {
    let (fleet, provider) = fleet_and_provider().await;
    let worker = caching(&fleet, &provider, "cache = { max_age_s = 3600 }\n").start().await;
    assert_eq!(run(&fleet, &provider, &asks_as("default", "asks", 1)).await.1, 1);
    kept(&fleet, 1).await;
    fleet.database.execute("UPDATE harness_cache SET stored_at = stored_at - interval '59 minutes'").await;
    assert_eq!(run(&fleet, &provider, &asks_as("default", "asks", 1)).await, (0, 0));
    fleet.database.execute("UPDATE harness_cache SET stored_at = stored_at - interval '2 minutes'").await;
    assert_eq!(
        run(&fleet, &provider, &asks_as("default", "asks", 1)).await.1,
        1,
        "older than its agent says"
    );
    // The newer answer takes its place.
    worker.counted("harness_response_cache_total{outcome=\"kept\"}", 2.0).await;
    assert_eq!(run(&fleet, &provider, &asks_as("default", "asks", 1)).await, (0, 0));
    fleet.database.execute("UPDATE harness_cache SET keep_until = now() - interval '3 hours'").await;
    assert_eq!(
        run(&fleet, &provider, &asks_as("default", "asks", 1)).await.1,
        1,
        "older than the worker says"
    );
}

#[tokio::test]
async fn an_answer_over_the_bound_is_not_kept() {
    let (fleet, provider) = fleet_and_provider().await;
    let worker = caching(&fleet, &provider, "cache = true\n").set("CACHE_MAX_BYTES", "4096").start().await;
    // Its answer has more than a sixteenth of that.
    provider.say(90);
    assert_eq!(run(&fleet, &provider, &asks_as("default", "asks", 1)).await.1, 1);
    worker.counted("harness_response_cache_total{outcome=\"not_kept\"}", 1.0).await;
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_cache").await, 0);
}

#[tokio::test]
async fn a_cache_that_does_not_answer_is_no_cache() {
    let (fleet, provider) = fleet_and_provider().await;
    let worker = caching(&fleet, &provider, "cache = true\n").start().await;
    run(&fleet, &provider, &asks_as("default", "asks", 1)).await;
    kept(&fleet, 1).await;
    let mut other = fleet.database.connect().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE harness_cache IN ACCESS EXCLUSIVE MODE")
        .execute(&mut other)
        .await
        .expect("locked");
    assert_eq!(run(&fleet, &provider, &asks_as("default", "asks", 2)).await.1, 2, "it is locked");
    worker.said("the cache of answers does not answer").await;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("released");
    fleet.database.execute("ALTER TABLE harness_cache RENAME TO harness_cache_away").await;
    for _ in 0..2 {
        assert_eq!(run(&fleet, &provider, &asks_as("default", "asks", 2)).await.1, 2, "it is away");
    }
    fleet.database.execute("ALTER TABLE harness_cache_away RENAME TO harness_cache").await;
    assert!(worker.metric("harness_response_cache_total{outcome=\"skipped\"}").await > 0.0);
    let back = async || (run(&fleet, &provider, &asks_as("default", "asks", 1)).await.1 == 0).then_some(());
    until("it is asked again", back).await;
    let spent = "SELECT sum(cost_microusd)::bigint FROM harness_calls";
    assert_eq!(fleet.database.count(spent).await, provider.bill_micros() as i64);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_wrong_bound_is_refused_by_its_name() {
    let (fleet, provider) = fleet_and_provider().await;
    for (toml, setting, said) in [
        ("cache = \"yes\"\n", ("ENABLE_CACHING", "true"), "expected true, false, or { max_age_s = N }"),
        (
            "cache = { max_age_s = 0 }\n",
            ("ENABLE_CACHING", "true"),
            "expected true, false, or { max_age_s = N }",
        ),
        ("cache = true\n", ("ENABLE_CACHING", "maybe"), "ENABLE_CACHING: got \"maybe\""),
        ("cache = true\n", ("CACHE_MAX_AGE_S", "0"), "CACHE_MAX_AGE_S: got 0, expected"),
        ("cache = true\n", ("CACHE_MAX_BYTES", "1"), "CACHE_MAX_BYTES: got 1, expected"),
    ] {
        let mut refused = worker(&fleet, &provider, "worker", toml).set(setting.0, setting.1).launch();
        assert_eq!(refused.exit().await, 2, "{said}");
        let log = refused.log();
        assert!(log.contains(said), "{said} is not in {log}");
    }
}

fn entry(key: u8, bytes: usize) -> CacheEntry {
    CacheEntry {
        tenant: "default".parse().expect("a tenant"),
        entry: CacheLookup { key: [key; 32], max_age: Duration::from_secs(60) },
        model: "m".to_owned(),
        content_type: "application/json".to_owned(),
        body: vec![key; bytes],
        cost: Usd::from_micros(5),
    }
}

fn looking(caller: &Caller, key: u8) -> NewCall {
    let cache = Some(entry(key, 0).entry);
    let lookup = Some(Lookup { after_checkpoints: 0, cache });
    NewCall { lookup, request_hash: [key; 32], ..caller.call(10) }
}

async fn keep(store: &Store, entry: &CacheEntry, bound: u64) {
    store.keep_answer(entry, bound).await.expect("kept");
}

#[tokio::test]
async fn the_oldest_go_when_the_bytes_are_too_many() {
    let database = Database::new().await;
    let store = database.store();
    for key in 0..40 {
        keep(&store, &entry(key, 800), 10_000).await;
    }
    // A sixteenth of the bound may be kept before somebody looks.
    assert!(database.count("SELECT sum(bytes)::bigint FROM harness_cache").await <= 11_000);
    let newest = "SELECT min(get_byte(key, 0))::bigint FROM harness_cache";
    assert!(database.count(newest).await >= 28);
    assert_eq!(store.forget_cached().await.expect("an answer"), 0);
    database
        .execute(
            "UPDATE harness_cache SET keep_until = now() - interval '3 hours' WHERE get_byte(key, 0) = 39",
        )
        .await;
    let found = database.audit().await.checks.into_iter().filter(|it| it.found > 0).map(|it| it.check);
    assert_eq!(found.collect::<Vec<_>>(), ["cache"]);
    assert_eq!(store.forget_cached().await.expect("an answer"), 1);
    database.audited().await;
    store.revive("ann").await.expect("revived");
    assert_eq!(database.count("SELECT count(*) FROM harness_cache").await, 0);
}

#[tokio::test]
async fn a_later_attempt_is_given_the_same_whatever_became_of_the_cache() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let first = Caller::new(&runner, "s", &daily(5)).await;
    keep(&runner.store, &entry(1, 3), 10_000).await;
    let given = |cached| GivenAnswer {
        content_type: "application/json".to_owned(),
        body: vec![1; 3],
        cached,
        paid: job::Usage::default(),
    };
    // There would be no room for it.
    assert_eq!(first.reserve(&looking(&first, 1)).await, Reserved::Answered(given(true)));
    assert!(matches!(first.reserve(&looking(&first, 2)).await, Reserved::Spent { .. }));
    assert_eq!(account(&runner.store, "fleet:day:").await, (0, 0));
    first.hand_back().await;
    let second = first.again(&runner).await;
    // The first run is over.
    assert_eq!(runner.store.look_up(looking(&first, 1)).await.expect("an answer"), None);
    keep(&runner.store, &CacheEntry { body: b"news".to_vec(), ..entry(1, 0) }, 10_000).await;
    assert_eq!(second.reserve(&looking(&second, 1)).await, Reserved::Answered(given(false)), "not the news");
    assert_eq!(database.count("SELECT count(*) FROM harness_calls").await, 0);
    database.audited().await;
}
