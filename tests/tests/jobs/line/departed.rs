//! Beside a held snapshot, what has left a line stays in the index. Looks do not pay for it again and again.
//!
//! What counts is how many entries of indexes were read, not time. Postgres counts them when a connection ends.

use std::time::Duration;

use job::{JobSpec, Lane};
use serde_json::json;
use store::{LinePlace, Since, Store};
use tests::{Database, job, until};

use super::{name, with_line};

/// Jobs of ten thousand tenants that came an hour ago.
const FILL: &str = "
    INSERT INTO harness_jobs (job_id, tenant, session_id, agent_id, pool, state, state_since, message)
    SELECT gen_random_uuid(), 't' || n / 2, '~t' || n / 2 || '/' || n, 'echo', 'default', 'waiting',
           now() - interval '1 hour', '{}'
      FROM generate_series(1, 20000) AS n";

const ENTRIES: &str =
    "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE indexrelname LIKE 'harness_jobs_line%'";
/// Connections of the store.
const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NULL
                         AND backend_type = 'client backend'";

/// How many entries this reads.
async fn entries(database: &Database, read: impl AsyncFn(&Store)) -> i64 {
    let counted = async || {
        until("all has been counted", async || (database.count(OTHERS).await == 0).then_some(())).await;
        database.count(ENTRIES).await
    };
    let before = counted().await;
    let store = database.store();
    read(&store).await;
    drop(store);
    counted().await - before
}

#[tokio::test]
async fn what_has_left_the_line_is_passed_by_where_it_is_of_another_lane_or_time() {
    let (database, store) = with_line().await;
    let pool = name("default");
    database.execute(FILL).await;
    let mut snapshot = database.connect().await;
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM harness_pools")
        .execute(&mut snapshot)
        .await
        .unwrap();
    database.execute("DELETE FROM harness_jobs").await;
    let high = JobSpec { lane: Lane::High, ..job("h", "echo", json!(1)) };
    let low = JobSpec { lane: Lane::Low, ..job("l", "echo", json!(2)) };
    store.accept(&[high, low]).await.unwrap();
    drop(store);

    let first = |lane| LinePlace { lane, tenant: String::new(), line: String::new(), behind: 0 };
    let lanes = |lines: Vec<LinePlace>| lines.iter().map(|line| line.lane).collect::<Vec<_>>();
    let read = entries(&database, async |store| {
        assert_eq!(lanes(store.find_lines(&pool, Some(&first(2)), 3, 100).await.unwrap()), [3]);
    })
    .await;
    assert!(read >= 20_000, "the walk passes them: {read}");
    let read = entries(&database, async |store| {
        assert_eq!(lanes(store.find_lines(&pool, Some(&first(0)), 1, 100).await.unwrap()), [1]);
    })
    .await;
    assert!(read < 100, "{read} for the lanes before");
    let read = entries(&database, async |store| {
        let since = Since { from: 0, ago: 60_000_000, width: 120_000_000 };
        let mut entered = store.entered_lines(&pool, since, 100).await.unwrap();
        entered.lines.sort();
        assert_eq!((entered.jobs, lanes(entered.lines)), (2, vec![1, 3]));
        assert!(entered.since < entered.last.unwrap() && entered.last.unwrap() <= entered.now);
    })
    .await;
    assert!(read < 100, "{read} for the last minute");
    let read = entries(&database, async |store| {
        let pools = [(pool.clone(), Some(Duration::from_secs(60)))];
        assert_eq!(store.pools_with_lines(&pools).await.unwrap().len(), 1);
    })
    .await;
    assert!(read < 100, "{read} for a pool that was empty a minute ago");
}

#[tokio::test]
async fn by_time_lines_are_found_from_the_first_job_to_the_last_a_part_at_a_time() {
    let (database, store) = with_line().await;
    let jobs: Vec<JobSpec> = (0..5).map(|n| job(&format!("s-{n}"), "echo", json!(n))).collect();
    store.accept(&jobs).await.unwrap();
    let apart = "UPDATE harness_jobs SET tenant = session_id,
                        state_since = now() - (interval '1 day' * (5 - substr(session_id, 3)::int))";
    database.execute(apart).await;
    let forever = 100 * 366 * 24 * 3_600 * 1_000_000;
    let (mut from, mut tenants) = (0, Vec::new());
    for _ in 0..3 {
        let since = Since { from, ago: forever, width: forever };
        let entered = store.entered_lines(&name("default"), since, 2).await.unwrap();
        tenants.extend(entered.lines.into_iter().map(|line| line.tenant));
        from = entered.last.unwrap() + 1;
    }
    tenants.sort();
    assert_eq!(tenants, ["s-0", "s-1", "s-2", "s-3", "s-4"]);
    let later = Since { from, ago: forever, width: forever };
    let entered = store.entered_lines(&name("default"), later, 2).await.unwrap();
    assert!(entered.lines.is_empty() && entered.last.is_none() && entered.since == from, "{entered:?}");
    // A day that has passed: the part between two of them.
    let hour = 3_600 * 1_000_000;
    let part = Since { from: entered.now - 36 * hour, ago: forever, width: 24 * hour };
    let entered = store.entered_lines(&name("default"), part, 10).await.unwrap();
    assert_eq!(entered.lines.iter().map(|line| line.tenant.as_str()).collect::<Vec<_>>(), ["s-4"]);
}
