//! The inbox: what one tenant enqueues by SQL, and what cannot start, holds up no other job; and a session's jobs keep
//! their order.

use std::time::Duration;

use job::{FailureCode, JobState};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tests::{Fleet, job, until};

use super::transactional_enqueue::{connect, enqueue, service};

const WAITS: &str = "SELECT count(*) FROM harness_inbox";

async fn tenants(fleet: &Fleet, names: &[&str]) {
    for name in names {
        assert_eq!(fleet.producer(&["tenants", "create", name]).await.code, 0);
    }
}

/// Enqueues so many jobs of a session, whose inputs are their numbers.
async fn many(connection: &mut PgConnection, session: &str, numbers: std::ops::Range<u32>) {
    let (first, last) = (numbers.start, numbers.end - 1);
    let sql = format!(
        "SELECT count(harness_enqueue(json_build_object('agent_id', 'echo', 'session_id', '{session}', 'input', n)))
           FROM generate_series({first}, {last}) n"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.expect("ids");
}

/// Rows that are gone, which a snapshot leaves in the way for as long as its connection is open.
async fn dead_rows(fleet: &Fleet) -> PgConnection {
    let mut holder = fleet.database.connect().await;
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM harness_inbox";
    sqlx::raw_sql(begin).execute(&mut holder).await.expect("a snapshot");
    let rows = "INSERT INTO harness_inbox (tenant, job_id, job, bytes, role, may_reply)
                SELECT 'a', gen_random_uuid(), '{}', 2, 'x', false FROM generate_series(1, 150000)";
    fleet.database.execute(rows).await;
    fleet.database.execute("DELETE FROM harness_inbox").await;
    holder
}

#[tokio::test]
async fn a_sessions_jobs_keep_their_order_though_a_look_takes_some_of_each_tenants() {
    let fleet = Fleet::new().await;
    tenants(&fleet, &["a", "b"]).await;
    let ((_, a), (_, b)) = (service(&fleet, "a").await, service(&fleet, "b").await);
    let (mut a, mut b) = (connect(&a).await, connect(&b).await);
    fleet.worker("worker").start().await.kill();
    let _snapshot = dead_rows(&fleet).await;
    // A look takes 256 of a tenant's, and a job of the other one lies behind those.
    many(&mut a, "s", 0..300).await;
    many(&mut b, "s", 0..1).await;
    many(&mut a, "s", 300..700).await;
    let _relay = fleet.relay("relay").launch();
    until("all are in the ledger", async || (fleet.database.count(WAITS).await == 0).then_some(())).await;
    let taken = "SELECT message->>'input' FROM harness_jobs WHERE tenant = 'a' ORDER BY seq";
    let wanted: Vec<String> = (0..700).map(|number: u32| number.to_string()).collect();
    assert_eq!(fleet.database.texts(taken).await, wanted);
    fleet.database.audited().await;
}

#[tokio::test]
async fn jobs_beyond_a_tenants_bound_wait_in_the_inbox_and_hold_up_no_other_tenant() {
    let fleet = Fleet::new().await;
    for arguments in
        [&["tenants", "create", "full", "--max-waiting", "5"][..], &["tenants", "create", "other"]]
    {
        assert_eq!(fleet.producer(arguments).await.code, 0);
    }
    let ((_, full), (_, other)) = (service(&fleet, "full").await, service(&fleet, "other").await);
    let (mut full, mut other) = (connect(&full).await, connect(&other).await);
    // A pool that was served a moment ago, and of which no worker is left.
    fleet.worker("worker").start().await.kill();
    let relay = fleet.relay("relay").launch();
    let mut transaction = full.begin().await.expect("a transaction");
    for _ in 0..50 {
        enqueue(&mut transaction, r#"{"agent_id":"echo","session_id":"s"}"#).await.expect("an id");
    }
    transaction.commit().await.expect("a commit");
    let theirs = enqueue(&mut other, r#"{"agent_id":"echo"}"#).await.expect("an id");
    until("the other tenant's job is in the ledger", async || {
        let view = fleet.view(theirs).await?;
        (view.agent_id == "echo").then_some(())
    })
    .await;
    let left = "SELECT count(*) FROM harness_inbox WHERE tenant = 'full'";
    until("its bound is reached", async || (fleet.database.count(left).await == 45).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let taken = "SELECT count(*) FROM harness_jobs WHERE tenant = 'full'";
    assert!((1..=5).contains(&fleet.database.count(taken).await));
    assert_eq!(fleet.database.count(left).await, 45);
    let _worker = fleet.worker("another").start().await;
    let ended = "SELECT count(*) FROM harness_results WHERE tenant = 'full' AND state = 'succeeded'";
    until("all have run", async || (fleet.database.count(ended).await == 50).then_some(())).await;
    drop(relay);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_committed_job_waits_for_the_workers_of_its_pool_to_come_or_to_come_back() {
    let fleet = Fleet::new().await;
    let (_, url) = service(&fleet, "default").await;
    let mut connection = connect(&url).await;
    let relay = fleet.relay("relay").launch();
    // No worker has ever run.
    let first = enqueue(&mut connection, r#"{"agent_id":"echo"}"#).await.expect("an id");
    let taken = async |id| fleet.view(id).await.filter(|view| !view.agent_id.is_empty());
    assert!(!until("it is in the ledger", async || taken(first).await).await.state.is_end());
    // Two workers of another pool have run, two days ago.
    for name in ["one", "two"] {
        fleet.worker(name).set("POOL", "gpu").start().await.kill();
    }
    let ended = "UPDATE harness_workers SET state = 'stopped', ended_at = now() - interval '2 days'";
    fleet.database.execute(ended).await;
    fleet.store.forget_workers(Duration::from_secs(86_400)).await.expect("the upkeep");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_workers").await, 1);
    let second = enqueue(&mut connection, r#"{"agent_id":"echo","pool":"gpu"}"#).await.expect("an id");
    assert!(!until("it is in the ledger", async || taken(second).await).await.state.is_end());
    // What nobody has ever served is a name that is wrong.
    let wrong = enqueue(&mut connection, r#"{"agent_id":"echo","pool":"cpu"}"#).await.expect("an id");
    assert_eq!(fleet.ended(wrong).await.failure.expect("a failure").code, FailureCode::Invalid);
    let _default = fleet.worker("default").start().await;
    let _gpu = fleet.worker("gpu").set("POOL", "gpu").start().await;
    for id in [first, second] {
        assert_eq!(fleet.ended(id).await.state, JobState::Succeeded);
    }
    drop(relay);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_job_from_the_inbox_interrupts_the_running_one_though_no_slot_is_free() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 1).start().await;
    let (_, url) = service(&fleet, "default").await;
    let iterations: Vec<_> = (0..200).map(|_| json!({"delay_ms": 100})).collect();
    let running = job("s", "scripted", json!({"iterations": iterations}));
    fleet.enqueue(std::slice::from_ref(&running)).await;
    fleet.iterated(running.job_id, 1).await;
    let next = r#"{"agent_id":"echo","session_id":"s","on_busy":"interrupt"}"#;
    let next = enqueue(&mut connect(&url).await, next).await.expect("an id");
    let view = fleet.ended(running.job_id).await;
    assert_eq!(
        (view.state, view.failure.map(|it| it.code)),
        (JobState::Cancelled, Some(FailureCode::Interrupted))
    );
    assert_eq!(fleet.ended(next).await.state, JobState::Succeeded);
    fleet.database.audited().await;
}

#[tokio::test]
async fn jobs_are_taken_in_before_what_is_no_job_is_ended_and_that_is_ended_at_once() {
    let fleet = Fleet::new().await;
    tenants(&fleet, &["a", "b"]).await;
    let ((_, a), (_, b)) = (service(&fleet, "a").await, service(&fleet, "b").await);
    // No worker has served the pool of this one.
    let wrong = "SELECT count(harness_enqueue('{\"agent_id\":\"echo\",\"pool\":\"none\"}')) FROM generate_series(1, 200)";
    sqlx::raw_sql(wrong).execute(&mut connect(&a).await).await.expect("ids");
    let unique = "SELECT harness_enqueue('{\"agent_id\":\"echo\",\"unique\":{\"key\":\"k\"}}') FROM generate_series(1, 50)";
    sqlx::raw_sql(unique).execute(&mut connect(&a).await).await.expect("ids");
    let right = enqueue(&mut connect(&b).await, r#"{"agent_id":"echo"}"#).await.expect("an id");
    let _worker = fleet.worker("worker").start().await;
    assert_eq!(fleet.ended(right).await.state, JobState::Succeeded);
    until("all have ended", async || (fleet.database.count(WAITS).await == 0).then_some(())).await;
    let ends =
        "SELECT state || ' ' || count(*) FROM harness_results WHERE tenant = 'a' GROUP BY state ORDER BY 1";
    let ended = async || {
        (fleet.database.texts(ends).await == ["cancelled 49", "failed 200", "succeeded 1"]).then_some(())
    };
    until("each has its end", ended).await;
    let earlier = "SELECT count(*) FROM harness_results r
                    WHERE r.tenant = 'a' AND r.state <> 'succeeded'
                      AND r.finished_at < (SELECT o.accepted_at FROM harness_results o WHERE o.tenant = 'b')";
    assert_eq!(
        fleet.database.count(earlier).await,
        0,
        "none has ended before the other tenant's job was taken in"
    );
    let times =
        "SELECT count(DISTINCT finished_at) FROM harness_results WHERE tenant = 'a' AND state <> 'succeeded'";
    assert!(fleet.database.count(times).await <= 10, "they have ended together");
    fleet.database.audited().await;
}

/// A fault that is no fault of the value.
const FAILS: &str = "
    CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'this one fails' USING ERRCODE = 'system_error';
    END $$;
    CREATE TRIGGER fails BEFORE INSERT ON harness_jobs FOR EACH ROW WHEN (NEW.agent_id = 'cursed')
        EXECUTE FUNCTION fails()";

const CURSED: i64 = 260;

#[tokio::test]
async fn jobs_that_the_ledger_fails_on_are_kept_apart_and_tried_again_and_hold_up_none() {
    let fleet = Fleet::new().await;
    let (_, url) = service(&fleet, "default").await;
    let mut connection = connect(&url).await;
    fleet.database.execute(FAILS).await;
    let mut transaction = connection.begin().await.expect("a transaction");
    let mut cursed = Vec::new();
    // More than are read of a tenant at a time.
    for _ in 0..CURSED {
        cursed.push(enqueue(&mut transaction, r#"{"agent_id":"cursed"}"#).await.expect("an id"));
    }
    let right = enqueue(&mut transaction, r#"{"agent_id":"echo"}"#).await.expect("an id");
    transaction.commit().await.expect("a commit");
    let _worker = fleet.worker("worker").start().await;
    assert_eq!(fleet.ended(right).await.state, JobState::Succeeded);
    until("they alone are left", async || (fleet.database.count(WAITS).await == CURSED).then_some(())).await;
    let next = enqueue(&mut connection, r#"{"agent_id":"echo"}"#).await.expect("an id");
    assert_eq!(fleet.ended(next).await.state, JobState::Succeeded);
    fleet.database.execute("DROP TRIGGER fails ON harness_jobs").await;
    // There is no such agent, which a worker says.
    assert_eq!(fleet.ended(cursed[0]).await.state, JobState::Failed);
    fleet.database.audited().await;
}
