//! Results are kept for as long as promised, in partitions that exist before they are needed.
//!
//! The store alone decides how much time a partition spans; no test here depends on it.

use std::collections::BTreeMap;
use std::time::Duration;

use job::{JobId, JobSpec, JobState};
use lapin::BasicProperties;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection};
use store::{Fenced, Store};
use tests::{Database, Fleet, Runner, claimed, job, until};
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(86_400);

/// An id from this many days ago, or from the future if negative.
fn id_from(days_ago: f64) -> JobId {
    let now = Uuid::from(JobId::now()).as_u128();
    let at = (now >> 80) as i128 - (days_ago * 86_400_000.0) as i128;
    let id = Uuid::from_u128(((at as u128) << 80) | (now & ((1 << 80) - 1)));
    id.try_into().expect("version 7")
}

fn job_from(days_ago: f64) -> JobSpec {
    let id = id_from(days_ago);
    JobSpec { job_id: id, ..job(&format!("s-{id}"), "echo", json!(1)) }
}

/// Each partition's bounds as Postgres shows them: the first id, and the first one past it. A partition that a worker
/// is removing meanwhile has none.
async fn partitions(database: &Database) -> BTreeMap<JobId, JobId> {
    let bounds = database
        .texts(
            "WITH text AS MATERIALIZED (
               SELECT pg_get_expr(c.relpartbound, c.oid) AS bounds
                 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = 'harness_results'::regclass)
             SELECT bounds FROM text WHERE bounds IS NOT NULL",
        )
        .await;
    let ids = |bound: String| {
        let mut ids = bound.split('\'').skip(1).step_by(2).map(|id| {
            // A bound is not a valid id of version 7: everything after its time is zero.
            let time = id.parse::<Uuid>().expect("a UUID").as_u128();
            JobId::try_from(Uuid::from_u128(time | (7 << 76) | (2 << 62))).expect("version 7")
        });
        (ids.next().expect("from"), ids.next().expect("to"))
    };
    bounds.into_iter().map(ids).collect()
}

async fn maintain(store: &Store, days: u32) -> (usize, usize) {
    store.maintain_partitions(DAY * days).await.expect("maintained").expect("no other process at it")
}

/// Runs a job from its claim to its end.
async fn conclude(store: &Store, spec: &JobSpec) {
    let runner = Runner::register(store).await;
    let run = claimed(runner.claim(spec).await.expect("an answer"));
    assert_eq!(runner.succeed(&run).await.expect("an answer").recorded, Fenced::Done(()));
}

#[tokio::test]
async fn every_id_that_is_accepted_has_a_partition_before_it_is_needed() {
    const RETENTION_DAYS: u32 = 40;
    let database = Database::empty().await;
    database.migrate().await;
    let store = database.store();
    let (made, dropped) = maintain(&store, RETENTION_DAYS).await;
    assert!(made > 1 && dropped == 0, "{made} made, {dropped} dropped");
    assert_eq!(maintain(&store, RETENTION_DAYS).await, (0, 0), "once");
    // There is no gap, from the oldest id that is accepted to well past the newest.
    let bounds: Vec<(JobId, JobId)> = partitions(&database).await.into_iter().collect();
    assert!(bounds.windows(2).all(|pair| pair[0].1 == pair[1].0), "{bounds:?}");
    assert!(bounds[0].0 <= id_from(f64::from(RETENTION_DAYS)));
    assert!(bounds[bounds.len() - 1].1 > id_from(-3.0), "upkeep may fail for two days");
    for days_ago in [39.99, 20.0, 0.0, -0.99] {
        conclude(&store, &job_from(days_ago)).await;
    }
    assert_eq!(database.count("SELECT count(*) FROM harness_results").await, 4);
}

#[tokio::test]
async fn old_results_go_but_a_partition_stays_while_a_live_job_lies_in_or_before_it() {
    let database = Database::empty().await;
    database.migrate().await;
    let store = database.store();
    maintain(&store, 100).await;
    let all = partitions(&database).await.len();
    let (ended, live, recent) = (job_from(99.0), job_from(60.0), job_from(1.0));
    for spec in [&ended, &recent] {
        conclude(&store, spec).await;
    }
    store.accept(std::slice::from_ref(&live)).await.unwrap();

    let (made, dropped) = maintain(&store, 10).await;
    let left = partitions(&database).await;
    assert_eq!((made, left.len()), (0, all - dropped));
    assert!(
        dropped > 0 && left.values().all(|to| *to > live.job_id),
        "what lies before the live job is gone"
    );
    assert!(left.keys().any(|from| *from <= live.job_id), "its own is not");
    assert!(store.jobs(&[ended.job_id]).await.unwrap().is_empty());
    assert_eq!(maintain(&store, 10).await, (0, 0));

    // The job ends, long after its time.
    conclude(&store, &live).await;
    assert_eq!(store.jobs(&[live.job_id]).await.unwrap()[0].state, JobState::Succeeded);
    let (_, dropped) = maintain(&store, 10).await;
    assert!(dropped > 0);
    assert!(partitions(&database).await.values().all(|to| *to > id_from(10.0)));
    assert!(store.jobs(&[live.job_id]).await.unwrap().is_empty());
    assert_eq!(store.jobs(&[recent.job_id]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_long_reader_delays_the_removal_and_does_not_break_it() {
    let database = Database::empty().await;
    database.migrate().await;
    // Retention is two days here.
    let fleet = Fleet::on(database);
    let (database, store) = (&fleet.database, &fleet.store);
    maintain(store, 30).await;
    let all = partitions(database).await.len();
    // A report, for instance, or a backup.
    let mut reader = database.connect().await;
    let mut reading = reader.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM harness_results").execute(&mut *reading).await.unwrap();
    assert_eq!(maintain(store, 2).await, (0, 0), "nothing is removed meanwhile");
    // Workers can start, and jobs can end.
    let _worker = fleet.worker("worker").start().await;
    let spec = job_from(0.0);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    reading.rollback().await.unwrap();

    let removed = async || {
        // The worker may be doing it.
        store.maintain_partitions(DAY * 2).await.unwrap();
        let left = partitions(database).await;
        let tables =
            "SELECT count(*) FROM pg_class WHERE relname LIKE 'harness_results\\_w%' AND relkind = 'r'";
        let nothing_lies_about = database.count(tables).await == left.len() as i64;
        (nothing_lies_about && left.len() < all && left.values().all(|to| *to > id_from(2.0))).then_some(())
    };
    until("the removal is completed", removed).await;
    let made = async || store.maintain_partitions(DAY * 60).await.unwrap().filter(|(made, _)| *made > 0);
    until("and new ones can be made", made).await;
}

#[tokio::test]
async fn one_process_at_a_time_is_at_it() {
    let database = Database::new().await;
    let stores: Vec<Store> = (0..8).map(|_| database.store()).collect();
    let retention = DAY * 200;
    let results =
        futures::future::join_all(stores.iter().map(|store| store.maintain_partitions(retention))).await;
    let made: usize = results.into_iter().map(|result| result.unwrap().map_or(0, |(made, _)| made)).sum();
    assert!(made > 0);
    assert_eq!(maintain(&stores[0], 200).await, (0, 0));
    let bounds: Vec<(JobId, JobId)> = partitions(&database).await.into_iter().collect();
    assert!(bounds.windows(2).all(|pair| pair[0].1 == pair[1].0), "{bounds:?}");
}

#[tokio::test]
async fn an_id_outside_of_the_window_is_refused_by_the_name_of_its_field() {
    // Retention is two days here.
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let (old, early) = (job_from(2.1), job_from(-1.1));
    let cases =
        [(&old, "whose time is more than 2 days ago"), (&early, "whose time is more than a day ahead")];
    for (spec, text) in cases {
        let id = spec.job_id.to_string();
        let one = ["enqueue", "--session", "s", "--agent", "echo", "--job-id", &id];
        let ran = fleet.producer(&one).await;
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.err.contains("job_id: got ") && ran.err.contains(text), "{ran:?}");
        let ran = fleet.producer_with_input(&job::encode(spec), &["enqueue", "--file", "-"]).await;
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(ran.err.contains("line 1: job_id: got ") && ran.err.contains(text), "{ran:?}");
        let message = (job::encode(spec).into_bytes(), BasicProperties::default());
        fleet.vhost.publish(vec![message]).await;
        let said = worker.said(&id).await;
        assert!(said.contains("job_id: got ") && said.contains(text), "{said}");
    }
    let fine = [job_from(1.9), job_from(-0.9)];
    fleet.enqueue(&fine).await;
    for spec in &fine {
        assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }
    fleet.vhost.so_many_dead_letters(2).await;
}

#[tokio::test]
async fn an_id_is_looked_up_by_the_primary_key_even_where_partitions_were_analyzed_while_they_were_empty() {
    let database = Database::empty().await;
    database.migrate().await;
    maintain(&database.store(), 7).await;
    database.execute("ANALYZE").await;
    let mut session = database.connect().await;
    // As our sessions are.
    for setting in ["enable_seqscan = off", "enable_bitmapscan = off", "plan_cache_mode = force_generic_plan"]
    {
        sqlx::query(AssertSqlSafe(format!("SET {setting}"))).execute(&mut session).await.expect("a setting");
    }
    for (table, id) in [("harness_results", "job_id"), ("harness_calls", "call_id")] {
        let prepare = format!(
            "PREPARE {table}(uuid[]) AS SELECT t.id FROM unnest($1) AS t(id)
              CROSS JOIN LATERAL (SELECT * FROM {table} x WHERE x.{id} = t.id OFFSET 0) x"
        );
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut session).await.expect("a statement");
        let explain = AssertSqlSafe(format!("EXPLAIN EXECUTE {table}('{{}}')"));
        let plan: Vec<String> = sqlx::query_scalar(explain).fetch_all(&mut session).await.expect("a plan");
        let is_scan = |line: &&String| line.contains("Scan") && line.contains(table);
        let scans: Vec<&String> = plan.iter().filter(is_scan).collect();
        assert!(scans.len() > 1, "no look-up in partitions: {plan:#?}");
        assert!(scans.iter().all(|scan| scan.contains("_pkey on ")), "another index: {plan:#?}");
    }
}
