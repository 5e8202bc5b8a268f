//! The query of a loop costs what it finds, not what is stored.
//!
//! Real processes work beside a million rows of each kind that waits. Postgres explains every statement that they send
//! (auto_explain, as notices that end up in their logs). What counts is the number of pages touched, not time.

use std::collections::BTreeMap;

use serde_json::Value;
use tests::{Database, Fleet, job, until, until_ok};

/// A million jobs of each kind: due tomorrow, between two attempts, being published, queued, and blocked in one
/// session. None is old enough for any sweep to act on it. Indexes are made afterwards, which is faster.
const FILL: &str = r#"
    ALTER TABLE harness_jobs SET UNLOGGED;
    CREATE TEMP TABLE indexes AS SELECT indexname, indexdef FROM pg_indexes
     WHERE tablename = 'harness_jobs' AND indexname <> 'harness_jobs_pkey';
    DO $$ DECLARE i record; BEGIN
        FOR i IN SELECT * FROM indexes LOOP EXECUTE 'DROP INDEX ' || i.indexname; END LOOP;
    END $$;
    ALTER TABLE harness_jobs DROP CONSTRAINT harness_jobs_pkey;
    INSERT INTO harness_jobs (job_id, session_id, agent_id, pool, state, epoch, due_at, state_since, message)
    SELECT j.id, j.session, 'echo', 'default', j.state, j.epoch, now() + interval '1 day', now() + interval '1 day',
           format('{"schema":"harness.job.v1","job_id":"%s","session_id":"%s","agent_id":"echo","input":%s}',
                  j.id, j.session, n)::json
      FROM generate_series(1, 1000000) AS n
     CROSS JOIN LATERAL (
           SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '7'
                   || substr(md5(kind || n), 1, 3) || '8' || substr(md5(kind || n), 4, 15))::uuid AS id,
                  CASE kind WHEN 'blocked' THEN 'hot' ELSE kind || n END AS session, state, begun * n AS epoch
             FROM (VALUES ('scheduled', 'scheduled', 0), ('retry', 'scheduled', 1), ('publishing', 'publishing', 0),
                          ('queued', 'queued', 0), ('blocked', 'blocked', 0)) AS kinds(kind, state, begun)) j;
    SELECT setval('harness_epoch', 1000000);
    ALTER TABLE harness_jobs ADD PRIMARY KEY (job_id);
    DO $$ DECLARE i record; BEGIN
        FOR i IN SELECT * FROM indexes LOOP EXECUTE i.indexdef; END LOOP;
    END $$;
    INSERT INTO harness_workers (worker_id, host, pool, slots, state, lease_ms, ended_at, rescued_at, schema_version)
    SELECT gen_random_uuid(), 'gone', 'default', 4, state, 10000, now() - interval '1 hour', now(), 1000
      FROM generate_series(1, 50000), (VALUES ('stopped'), ('dead')) AS ended(state);
"#;

/// Parts of statements that must have been seen, so that the test cannot pass without them.
const EXPECTED: [&str; 17] = [
    // Relays.
    "state = 'scheduled' AND due_at <= now()\n            ORDER BY due_at LIMIT $1",
    "publishing p",
    "SELECT pool FROM queued p",
    "'overdue'",
    "AND session_id > $1",
    "SET state = 'dead'",
    "state = 'dead' AND rescued_at IS NULL",
    "DELETE FROM harness_workers",
    // A worker.
    "SET heartbeat_at = clock_timestamp()",
    "asked IS NOT NULL",
    "INSERT INTO harness_jobs",
    "INSERT INTO harness_results",
    "WITH heads",
    // Readings and the autoscaler.
    "FROM pools p ORDER BY pool",
    "ORDER BY started_at, worker_id",
    "GROUP BY worker_id, pool",
    "LIMIT 10000) blocked",
];

/// Postgres's explanations come as notices, which are not logged by default.
const NOTICES: &str = "info,tokio_postgres=info";

/// Pages that one statement may touch, besides those of the rows that it writes. In a slow run, jobs come due or get
/// stuck.
const PAGES: u64 = 2_000;
/// A row in the table and its indexes, before and after.
const PAGES_OF_A_ROW: u64 = 35;
/// This one counts up to 10,000 rows of each of three kinds.
const COUNTS: (&str, u64) = ("LIMIT 10000) blocked", 35_000);

#[tokio::test]
async fn no_loop_and_no_job_pays_for_a_million_rows_of_each_kind_that_wait() {
    let database = Database::new().await;
    database.execute(FILL).await;
    database.execute("VACUUM ANALYZE harness_jobs").await;
    database.execute("VACUUM ANALYZE harness_workers").await;
    database.explain().await;

    let fleet = Fleet::on(database);
    let worker = fleet.worker("worker").set("LOG_LEVEL", NOTICES).start().await;
    let relay = fleet.relay("relay").set("LOG_LEVEL", NOTICES).launch();
    // The hot session makes progress, and so do others.
    let head = "UPDATE harness_jobs SET state = 'scheduled', due_at = now()
                 WHERE seq = (SELECT min(seq) FROM harness_jobs WHERE session_id = 'hot')";
    fleet.database.execute(head).await;
    let jobs: Vec<_> = (0..20).map(|n| job(&format!("s-{}", n / 2), "echo", serde_json::json!(n))).collect();
    fleet.enqueue(&jobs).await;
    fleet.undisturbed(&jobs).await;
    let pools = fleet.folder.path().join("pools.toml");
    std::fs::write(&pools, "[pools.default]\ntarget = \"process\"\n").expect("written");
    let (pools, processes) = (pools.to_string_lossy(), fleet.processes());
    let processes = processes.to_string_lossy();
    let once = ["once", "--dry-run", "--log-level", NOTICES, "--pools", &pools, "--process-dir", &processes];
    let looked = fleet.run_autoscaler(&once).await;

    let missing = async || {
        let seen = statements(&[&worker.log(), &relay.log(), &looked.err]);
        let missing: Vec<_> =
            EXPECTED.iter().filter(|part| !seen.keys().any(|statement| statement.contains(**part))).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    };
    until_ok("all statements were seen", missing).await;
    let hot = "SELECT count(*) FROM harness_results WHERE session_id = 'hot'";
    assert!(fleet.database.count(hot).await > 20, "the hot session gets on");

    let seen = statements(&[&worker.log(), &relay.log(), &looked.err]);
    let bound = |statement: &str| if statement.contains(COUNTS.0) { COUNTS.1 } else { PAGES };
    let dear: Vec<_> = seen.iter().filter(|(statement, cost)| cost.beside > bound(statement)).collect();
    assert!(dear.is_empty(), "statements and their pages: {dear:#?}");
}

/// Postgres saw the table empty, so it considers all indexes equally good. It analyses again at most once a minute.
#[tokio::test]
async fn no_job_pays_for_those_that_run_beside_it() {
    let fleet = Fleet::new().await;
    fleet.database.execute("ALTER TABLE harness_jobs SET (autovacuum_enabled = off)").await;
    fleet.database.explain().await;
    let worker = fleet.worker("worker").set("LOG_LEVEL", NOTICES).set("WORKER_SLOTS", "1000").start().await;
    let first = [job("first", "echo", serde_json::json!(0))];
    fleet.enqueue(&first).await;
    fleet.undisturbed(&first).await;
    fleet.database.execute("VACUUM (TRUNCATE FALSE, ANALYZE) harness_jobs").await;

    let padding = "x".repeat(1_500);
    let steps = |n: usize, delay_ms: u32| {
        let input = serde_json::json!({"count": 2, "delay_ms": delay_ms, "output": padding});
        job(&format!("s-{n}"), "scripted", input)
    };
    let long: Vec<_> = (0..RUNNING).map(|n| steps(n, 600_000)).collect();
    fleet.enqueue(&long).await;
    let running = "SELECT count(*) FROM harness_jobs WHERE state = 'running'";
    until("all run", async || (fleet.database.count(running).await == RUNNING as i64).then_some(())).await;
    // Plans are logged in order, so the plan of a heartbeat that begins now comes after those of the claims.
    let beats = || worker.log().matches("SET heartbeat_at").count();
    let so_far = beats();
    until("two more heartbeats", async || (beats() > so_far + 1).then_some(())).await;
    let before = worker.log().len();
    let short: Vec<_> = (RUNNING..RUNNING + 5).map(|n| steps(n, 1)).collect();
    fleet.enqueue(&short).await;
    fleet.undisturbed(&short).await;

    let seen = statements(&[&worker.log()[before..]]);
    for part in [
        "INSERT INTO harness_jobs",
        "INSERT INTO harness_checkpoints",
        "INSERT INTO harness_results",
        "WITH heads",
    ] {
        let pages =
            seen.iter().filter(|(statement, _)| statement.contains(part)).map(|(_, cost)| cost.pages).max();
        let pages = pages.unwrap_or_else(|| panic!("a statement with {part:?} was seen"));
        assert!(pages < RUNNING_PAGES, "{pages} pages for five jobs at most: {part}");
    }
}

/// A webhook for which nothing waits, and one for which something does, later.
const WEBHOOKS: &str = "
    INSERT INTO harness_webhooks (id, tenant, url, states, secret)
    SELECT 'wh_' || n, 'default', 'https://example.com/', ARRAY['failed'], 'whsec_' FROM generate_series(1, 5000) n;
    INSERT INTO harness_deliveries (webhook_id, job_id, due_at)
    VALUES ('wh_7', gen_random_uuid(), now() + interval '1 hour');
    ANALYZE harness_webhooks, harness_deliveries";

#[tokio::test]
async fn who_sends_to_webhooks_does_not_pay_for_those_for_which_nothing_waits() {
    let fleet = Fleet::new().await;
    let mut connection = fleet.database.connect().await;
    sqlx::raw_sql(WEBHOOKS).execute(&mut connection).await.expect("webhooks");
    fleet.database.explain().await;
    let relay = fleet.relay("relay").set("LOG_LEVEL", NOTICES).launch();
    for part in ["SET taken_by = $1", "pending),"] {
        let pages = async || {
            let seen = statements(&[&relay.log()]);
            seen.iter().filter(|(statement, _)| statement.contains(part)).map(|(_, cost)| cost.pages).max()
        };
        let pages = until(part, pages).await;
        assert!(pages < 60, "{pages} pages: {part}");
    }
}

/// Rows of the inbox that are gone, which a snapshot leaves in the way, and a job behind them.
const TAKEN: &str = "
    INSERT INTO harness_inbox (tenant, job_id, job, bytes, role, may_reply)
    SELECT 'default', gen_random_uuid(), json_build_object('agent_id', repeat('x', 300)), 320, 'x', false
      FROM generate_series(1, 150000)";
const JOB: &str = r#"
    INSERT INTO harness_inbox (tenant, job_id, job, bytes, role, may_reply)
    SELECT 'default', (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008'
                       || substr(md5(random()::text), 1, 15))::uuid,
           '{"agent_id":"echo"}', 19, 'x', false FROM generate_series(1, 3)"#;

#[tokio::test]
async fn a_look_at_the_inbox_does_not_pay_for_rows_that_were_taken_while_a_snapshot_is_held() {
    let fleet = Fleet::new().await;
    fleet.worker("worker").start().await.kill();
    let mut holder = fleet.database.connect().await;
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM harness_inbox";
    sqlx::raw_sql(begin).execute(&mut holder).await.expect("a snapshot");
    fleet.database.execute(TAKEN).await;
    fleet.database.execute("DELETE FROM harness_inbox").await;
    fleet.database.explain().await;
    let relay = fleet.relay("relay").set("LOG_LEVEL", NOTICES).launch();
    let empty =
        async || (fleet.database.count("SELECT count(*) FROM harness_inbox").await == 0).then_some(());
    let looks = async |part: &str, from: usize| {
        let pages = async || {
            let seen = statements(&[&relay.log()[from..]]);
            seen.iter().filter(|(statement, _)| statement.contains(part)).map(|(_, cost)| cost.pages).max()
        };
        until(part, pages).await
    };
    // From the place of the first jobs on, the looks begin there.
    fleet.database.execute(JOB).await;
    until("the first jobs are taken", empty).await;
    // That look began before them, and its line of the log may come late.
    looks("i.seq > t.place", 0).await;
    let from = relay.log().len();
    looks("seq > $1", from).await;
    let from = relay.log().len();
    fleet.database.execute(JOB).await;
    until("more are taken", empty).await;
    for part in ["seq > $1", "i.seq > t.place"] {
        let pages = looks(part, from).await;
        assert!(pages < 60, "{pages} pages: {part}");
    }
    drop(holder);
}

/// So many that, by [`RUNNING_PAGES`], they fill far more pages than five jobs should touch.
const RUNNING: usize = 900;
/// Fewer pages than these jobs fill, at five jobs a page.
const RUNNING_PAGES: u64 = 150;

/// The most pages that a statement has touched.
#[derive(Debug, Default)]
struct Cost {
    pages: u64,
    /// Pages besides those of the rows that it wrote.
    beside: u64,
}

/// The number of rows that a plan wrote.
fn written(plan: &Value) -> u64 {
    let parts = plan["Plans"].as_array().map(Vec::as_slice).unwrap_or_default();
    let below: u64 = parts.iter().map(written).sum();
    if plan["Node Type"] != "ModifyTable" {
        return below;
    }
    let feeding = parts.iter().find(|part| part["Parent Relationship"] == "Outer");
    below + feeding.and_then(|part| part["Actual Rows"].as_f64()).unwrap_or_default() as u64
}

/// The statements in these logs, each with its greatest cost.
fn statements(logs: &[&str]) -> BTreeMap<String, Cost> {
    let mut seen = BTreeMap::new();
    for log in logs {
        let mut lines = log.lines();
        while let Some(line) = lines.next() {
            if !line.ends_with("plan:") {
                continue;
            }
            let mut plan = String::new();
            for line in lines.by_ref() {
                plan.push_str(line);
                if line == "}" {
                    break;
                }
            }
            // The last line may be incomplete.
            let Ok(plan) = serde_json::from_str::<Value>(&plan) else { continue };
            let text = plan["Query Text"].as_str().unwrap_or_default().to_owned();
            let touched = |kind: &str| plan["Plan"][kind].as_u64().unwrap_or_default();
            let pages = touched("Shared Hit Blocks") + touched("Shared Read Blocks");
            let most: &mut Cost = seen.entry(text).or_default();
            most.pages = pages.max(most.pages);
            most.beside = pages.saturating_sub(written(&plan["Plan"]) * PAGES_OF_A_ROW).max(most.beside);
        }
    }
    seen
}
