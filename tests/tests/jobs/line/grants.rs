//! While nothing waits, new jobs are published at once, as many as the admitter grants; what may be held back is not.

use std::collections::BTreeMap;

use job::{JobSpec, JobState, LimitKeys};
use serde_json::json;
use store::{Accepted, Grant, Leadership, PoolSeen, Store};
use tests::{Database, Fleet, job, steps, until};

use super::{admitting, name, with_line};

const AT_ONCE: Accepted = Accepted::New(JobState::Publishing);
const WAITS: Accepted = Accepted::New(JobState::Waiting);

/// Grants, for longer than the two seconds after which a grant is renewed: a test takes steps under one.
async fn grant(database: &Database, leadership: &Leadership, waiting: u64, messages: u64) {
    let seen = PoolSeen { normal: waiting, ..PoolSeen::default() };
    let noted = BTreeMap::from([(name("default"), (seen, Grant { messages, counted_from: 0 }))]);
    database.store().note_seen(leadership, &noted).await.expect("an answer");
    let longer =
        "UPDATE harness_pools SET granted_until = now() + interval '1 hour' WHERE granted_until IS NOT NULL";
    database.execute(longer).await;
}

/// Jobs of sessions of their own.
fn fresh<const N: usize>() -> [JobSpec; N] {
    std::array::from_fn(|n| job(&format!("{n}-{}", job::JobId::now()), "echo", json!(n)))
}

async fn accept<const N: usize>(store: &Store, jobs: &[JobSpec; N]) -> [Accepted; N] {
    store.accept(jobs).await.expect("an answer").try_into().expect("one for each")
}

/// From now on the table `states` has each state of each job, and when it began.
pub(super) async fn note_states(database: &Database) {
    let noting = "
        CREATE TABLE states (job_id uuid, state text, at timestamptz DEFAULT clock_timestamp());
        CREATE FUNCTION note_state() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO states VALUES (NEW.job_id, NEW.state); RETURN NEW; END $$;
        CREATE TRIGGER note_state AFTER INSERT OR UPDATE OF state ON harness_jobs FOR EACH ROW EXECUTE FUNCTION note_state()";
    database.execute(noting).await;
}

#[tokio::test]
async fn as_many_are_published_at_once_as_are_granted_and_what_is_on_its_way_counts() {
    let (database, store) = with_line().await;
    let leadership = admitting(&store, "one").await;
    assert_eq!(accept(&store, &fresh()).await, [WAITS], "nothing is granted");
    database.execute("DELETE FROM harness_jobs").await;

    grant(&database, &leadership, 0, 3).await;
    assert_eq!(accept(&store, &fresh()).await, [AT_ONCE, AT_ONCE, AT_ONCE, WAITS, WAITS]);
    assert_eq!(accept(&store, &fresh()).await, [WAITS], "three are on their way");
    let first = "UPDATE harness_jobs SET state = 'queued', state_since = now()
                  WHERE job_id = (SELECT min(job_id::text)::uuid FROM harness_jobs WHERE state = 'publishing')";
    database.execute(first).await;
    assert_eq!(accept(&store, &fresh()).await, [WAITS], "a queued one is as well");
    database.execute("DELETE FROM harness_jobs WHERE state = 'queued'").await;
    assert_eq!(accept(&store, &fresh()).await, [AT_ONCE], "there is room for one");

    // Another transaction uses the grant.
    database.execute("DELETE FROM harness_jobs").await;
    let mut sql = database.connect().await;
    let lock = "BEGIN; SELECT pg_advisory_xact_lock(34, hashtext('default'))";
    sqlx::raw_sql(lock).execute(&mut sql).await.unwrap();
    assert_eq!(accept(&store, &fresh()).await, [WAITS]);
    sqlx::raw_sql("COMMIT").execute(&mut sql).await.unwrap();
    assert_eq!(accept(&store, &fresh()).await, [AT_ONCE]);
    database.audited().await;
}

#[tokio::test]
async fn no_grant_is_for_what_may_be_held_back_nor_outlives_its_time_its_leader_or_an_empty_line() {
    let (database, store) = with_line().await;
    let leadership = admitting(&store, "one").await;
    database.execute("INSERT INTO harness_tenants (name, max_running) VALUES ('bounded', 1)").await;
    grant(&database, &leadership, 0, 100).await;

    let [keyed, theirs, elsewhere, later, free] = fresh();
    let keyed = JobSpec { limits: LimitKeys::of([name("k")]).unwrap(), ..keyed };
    let theirs = JobSpec { tenant: "bounded".parse().unwrap(), ..theirs };
    let elsewhere = JobSpec { pool: name("other"), ..elsewhere };
    let later = JobSpec { delay_ms: Some(60_000), ..later };
    store.set_line("a test", &name("other"), true).await.unwrap();
    let accepted = accept(&store, &[keyed, theirs, elsewhere, later, free]).await;
    assert_eq!(accepted, [WAITS, WAITS, WAITS, Accepted::New(JobState::Scheduled), AT_ONCE]);

    database.execute("UPDATE harness_pools SET granted_until = now() - interval '1 millisecond'").await;
    assert_eq!(accept(&store, &fresh()).await, [WAITS], "its time is over");
    grant(&database, &leadership, 0, 100).await;
    assert_eq!(accept(&store, &fresh()).await, [AT_ONCE]);
    grant(&database, &leadership, 5, 0).await;
    assert_eq!(accept(&store, &fresh()).await, [WAITS], "others wait");

    store.resign(&leadership).await.unwrap();
    grant(&database, &leadership, 0, 100).await;
    assert_eq!(accept(&store, &fresh()).await, [WAITS], "it leads no more");

    let successor = admitting(&store, "two").await;
    grant(&database, &successor, 0, 100).await;
    store.set_line("a test", &name("default"), false).await.unwrap();
    store.set_line("a test", &name("default"), true).await.unwrap();
    assert_eq!(accept(&store, &fresh()).await, [WAITS], "this line is another one");
    database.audited().await;
}

#[tokio::test]
async fn a_fleet_with_free_slots_publishes_new_jobs_without_a_turn() {
    let fleet = Fleet::new().await;
    fleet.line("default").await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 4).start().await;
    note_states(&fleet.database).await;
    let mut jobs = Vec::new();
    until("one job passes by the line", async || {
        let spec = steps(jobs.len(), 1, 1);
        jobs.push(spec.clone());
        fleet.enqueue(std::slice::from_ref(&spec)).await;
        fleet.ended(spec.job_id).await;
        let waited =
            format!("SELECT count(*) FROM states WHERE job_id = '{}' AND state = 'waiting'", spec.job_id);
        (fleet.database.count(&waited).await == 0).then_some(())
    })
    .await;
    fleet.database.audited().await;
}
