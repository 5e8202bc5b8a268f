//! `bench line [JOBS]`: what turns in a line cost, and what they are for.
//!
//! First so many jobs of 10,000 tenants wait, and a relay admits them as fast as it can for workers that exist on paper: each
//! message ends at once. Half of the time a transaction elsewhere holds a snapshot, so that Postgres can remove nothing that has left
//! the line. Then a worker with 64 slots serves tenants, lanes and keys that stand in each other's way, without a line and with one.
//! At last, how long a job waits for its start where nothing stands in its way, by HTTP and by SQL.
//! Writes `target/bench-line.json`.

use std::process::Child;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use job::{JobId, Name, Tenant, WorkerId};
use postgres::{Address, SetBy};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use store::{Store, StoreConfig, WorkerRegistration};

use crate::http::client::post;
use crate::http::door::Door;
use crate::{Worker, program};

const JOBS: usize = 1_000_000;
const TENANTS: usize = 10_000;
/// How long admissions are counted, each time.
const COUNTED: Duration = Duration::from_secs(20);
/// Slots of the worker of the second part, and how long its jobs take.
const SLOTS: usize = 64;
const JOB_MS: u64 = 50;
/// Jobs of the tenant, and of the lane, that stand in the way.
const CROWD: usize = 20_000;

/// Jobs of which the wait for a start is measured, some 25 ms apart.
const ALONE: usize = 400;

/// So many jobs (`$1`) of so many tenants (`$2`), as an acceptance writes them.
const INSERT: &str = "
    INSERT INTO harness_jobs (job_id, tenant, session_id, agent_id, pool, message, state, due_at, lane, line)
    SELECT job_id, tenant, CASE WHEN tenant = 'default' THEN '' ELSE '~' || tenant || '/' END || job_id, $4, $5,
           json_build_object('schema', 'harness.job.v1', 'job_id', job_id, 'session_id', job_id, 'agent_id', $4::text, 'pool', $5::text,
                             'tenant', tenant, 'input', $6::json),
           CASE WHEN (SELECT p.line FROM harness_pools p WHERE p.pool = $5) THEN 'waiting' ELSE 'scheduled' END, now(), $3, $7
      FROM (SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7' ||
                    lpad(to_hex((random() * 4095)::int), 3, '0') || '8' || substr(md5(random()::text), 1, 15))::uuid AS job_id,
                   CASE WHEN $2 = 1 THEN $8 ELSE $8 || (n % $2) END AS tenant
              FROM generate_series(1, $1) n) new
    RETURNING job_id::text";

/// Jobs to insert.
struct Crowd<'a> {
    jobs: usize,
    tenants: usize,
    tenant: &'a str,
    lane: i16,
    key: &'a str,
    ms: u64,
}

impl Crowd<'_> {
    /// Returns the jobs' ids.
    async fn insert(&self, database: &str, pool: &Name) -> anyhow::Result<Vec<String>> {
        let mut ids = Vec::with_capacity(self.jobs);
        let mut sql = PgConnection::connect(database).await?;
        let (agent, input) = match self.ms {
            0 => ("echo", "1".to_owned()),
            ms => ("scripted", json!({"iterations": [{"delay_ms": ms}]}).to_string()),
        };
        // In parts, so that no transaction is long.
        for part in (0..self.jobs).step_by(50_000) {
            let inserted: Vec<String> = sqlx::query_scalar(INSERT)
                .bind(50_000.min(self.jobs - part) as i32)
                .bind(self.tenants as i32)
                .bind(self.lane)
                .bind(agent)
                .bind(pool.as_str())
                .bind(&input)
                .bind(self.key)
                .bind(self.tenant)
                .fetch_all(&mut sql)
                .await?;
            ids.extend(inserted);
        }
        Ok(ids)
    }
}

/// Runs all of it, and writes `target/bench-line.json`.
pub async fn run(database: &str, jobs: Option<usize>) -> anyhow::Result<()> {
    let jobs = jobs.unwrap_or(JOBS);
    let address = Address::new(database, SetBy::Connection).map_err(anyhow::Error::msg)?;
    let store = Store::new(&StoreConfig::new(address, 4).map_err(anyhow::Error::msg)?);
    let admission = if jobs > 0 { admission(&store, database, jobs).await? } else { Value::Null };
    let mut table = Vec::new();
    for line in [false, true] {
        table.push(starvation(&store, database, line).await?);
    }
    let mut starts = Vec::new();
    for (by_sql, line) in [(false, false), (false, true), (true, false), (true, true)] {
        starts.push(start_waits(&store, database, by_sql, line).await?);
    }
    let figures = json!({
        "waiting_jobs": jobs, "tenants": TENANTS, "admission": admission, "without": table[0], "with": table[1],
        "starts": starts,
    });
    std::fs::create_dir_all("target")?;
    std::fs::write("target/bench-line.json", serde_json::to_string_pretty(&figures)?)?;
    println!("{}", serde_json::to_string_pretty(&figures)?);
    Ok(())
}

/// How many jobs get their turn per second.
async fn admission(store: &Store, database: &str, jobs: usize) -> anyhow::Result<Value> {
    let pool: Name = "paper".parse()?;
    store.set_line("bench", &pool, true).await?;
    eprintln!("{jobs} jobs of {TENANTS} tenants wait");
    let crowd = Crowd { jobs, tenants: TENANTS, tenant: "t", lane: 2, key: "", ms: 0 };
    crowd.insert(database, &pool).await?;
    let mut sql = PgConnection::connect(database).await?;
    sqlx::raw_sql("VACUUM ANALYZE harness_jobs").execute(&mut sql).await?;
    let worker = WorkerRegistration {
        worker: WorkerId::random(),
        host: "paper".to_owned(),
        pod_name: None,
        pool: pool.clone(),
        slots: 2_000,
        lease: Duration::from_secs(3_600),
        schema: migrations::newest(),
    };
    store.register_worker(&worker).await?;
    let relay = Relay::start(database)?;
    // What has a message ends, as if workers were as fast as that.
    let ending = tokio::spawn(end_at_once(database.to_owned()));
    let free = counted(database, &pool).await?;
    eprintln!("{free:.0} admitted/s; now beside a held snapshot");
    let mut held = PgConnection::connect(database).await?;
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM harness_pools")
        .execute(&mut held)
        .await?;
    let (first, mut last) = (counted(database, &pool).await?, 0.0);
    for _ in 0..2 {
        last = counted(database, &pool).await?;
    }
    drop(held);
    eprintln!("{first:.0}/s, and {last:.0}/s when it is held for a minute");
    ending.abort();
    drop(relay);
    sqlx::raw_sql("DELETE FROM harness_jobs; DELETE FROM harness_workers").execute(&mut sql).await?;
    sqlx::raw_sql("VACUUM harness_jobs").execute(&mut sql).await?;
    Ok(
        json!({ "per_s": free.round(), "beside_a_snapshot_per_s": first.round(), "after_a_minute_of_it_per_s": last.round() }),
    )
}

/// What has a message. A worker would find each by its id: no walk over what a snapshot keeps from being removed.
const END: &str = "
    DELETE FROM harness_jobs
     WHERE state = 'queued' AND pool = 'paper' AND state_since > now() - interval '30 seconds'";

async fn end_at_once(database: String) -> anyhow::Result<()> {
    let mut sql = PgConnection::connect(&database).await?;
    loop {
        sqlx::raw_sql(END).execute(&mut sql).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn counted(database: &str, pool: &Name) -> anyhow::Result<f64> {
    let mut sql = PgConnection::connect(database).await?;
    let mut waiting = async || -> anyhow::Result<i64> {
        let count = "SELECT count(*) FROM harness_jobs WHERE state = 'waiting' AND pool = $1";
        Ok(sqlx::query_scalar(count).bind(pool.as_str()).fetch_one(&mut sql).await?)
    };
    // The first looks find the lines.
    let begun = waiting().await?;
    while waiting().await? == begun {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (before, started) = (waiting().await?, Instant::now());
    tokio::time::sleep(COUNTED).await;
    let left = waiting().await?;
    ensure!(left > 0, "all were admitted before the end: give more jobs");
    Ok((before - left) as f64 / started.elapsed().as_secs_f64())
}

/// What happens to those that come late, are wanted soon, or share a key.
async fn starvation(store: &Store, database: &str, line: bool) -> anyhow::Result<Value> {
    let pool: Name = format!("turns-{line}").parse()?;
    if line {
        store.set_line("bench", &pool, true).await?;
        store.set_limit("bench", &"keyed".parse()?, &"k".parse()?, 3).await?;
    }
    let mut sql = PgConnection::connect(database).await?;
    eprintln!("line: {line}; five jobs of a tenant, and five that are wanted soon, behind {CROWD} others");
    let crowd = Crowd { jobs: CROWD, tenants: 1, tenant: "crowd", lane: 2, key: "", ms: JOB_MS };
    crowd.insert(database, &pool).await?;
    let worker = Worker::with_slots(database, &pool, SLOTS)?;
    while running(&mut sql, &pool, "%").await? < SLOTS as i64 / 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let few = Crowd { jobs: 5, tenant: "few", ..crowd }.insert(database, &pool).await?;
    let high = Crowd { jobs: 5, tenant: "crowd", lane: 1, ..crowd }.insert(database, &pool).await?;
    let (few, high) = (waited(&mut sql, &few).await?, waited(&mut sql, &high).await?);
    sqlx::raw_sql("DELETE FROM harness_jobs WHERE state <> 'running'").execute(&mut sql).await?;

    eprintln!("line: {line}; at most three of a key");
    Crowd { jobs: 200, tenant: "keyed", key: "k", ms: 100, ..crowd }.insert(database, &pool).await?;
    let mut most = 0;
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        most = most.max(running(&mut sql, &pool, "keyed").await?);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sqlx::raw_sql("DELETE FROM harness_jobs WHERE state <> 'running'").execute(&mut sql).await?;

    eprintln!("line: {line}; jobs of a minute beside jobs of a second");
    Crowd { jobs: 2_000, tenant: "short", ms: 1_000, ..crowd }.insert(database, &pool).await?;
    Crowd { jobs: 1_000, tenant: "long", ms: 60_000, ..crowd }.insert(database, &pool).await?;
    Crowd { jobs: 20_000, tenant: "short", ms: 1_000, ..crowd }.insert(database, &pool).await?;
    // How many jobs a worker starts, it says of the last minute.
    tokio::time::sleep(Duration::from_secs(65)).await;
    let (mut long, mut all) = (0, 0);
    for _ in 0..200 {
        long += running(&mut sql, &pool, "long").await?;
        all += running(&mut sql, &pool, "%").await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(worker);
    sqlx::raw_sql("DELETE FROM harness_jobs").execute(&mut sql).await?;
    Ok(json!({
        "a_tenants_five_have_waited_s": few, "five_that_are_wanted_soon_have_waited_s": high,
        "of_the_key_at_work": most, "slots_of_the_long_ones": (100.0 * long as f64 / all.max(1) as f64).round() / 100.0,
    }))
}

/// How long it takes from the call that hands in a job until the ledger has it, and until its start, where nothing stands in its
/// way. By SQL the first is the inbox's; what publishes follows at once.
async fn start_waits(store: &Store, database: &str, by_sql: bool, line: bool) -> anyhow::Result<Value> {
    let pool: Name = format!("soon-{by_sql}-{line}").parse()?;
    store.set_line("bench", &pool, line).await?;
    let mut sql = PgConnection::connect(database).await?;
    let user: String = sqlx::query_scalar("SELECT session_user::text").fetch_one(&mut sql).await?;
    store.add_role("bench", &user, &Tenant::default(), false).await?;
    let (door, worker) = (Door::start(database).await?, Worker::with_slots(database, &pool, 8)?);
    let alive = "SELECT count(*) FROM harness_workers WHERE state = 'alive' AND pool = $1";
    while sqlx::query_scalar::<_, i64>(alive).bind(pool.as_str()).fetch_one(&mut sql).await? == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut caller = door.caller().await?;
    let mut accepted = Vec::new();
    // The leases of the processes that were killed before must end first.
    Crowd { jobs: 1, tenants: 1, tenant: "default", lane: 2, key: "", ms: 0 }.insert(database, &pool).await?;
    sqlx::query("SELECT harness_enqueue($1::json)")
        .bind(json!({ "agent_id": "echo", "pool": pool }).to_string())
        .execute(&mut sql)
        .await?;
    let ended = "SELECT count(*) FROM harness_results WHERE pool = $1";
    while sqlx::query_scalar::<_, i64>(ended).bind(pool.as_str()).fetch_one(&mut sql).await? < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for number in 0..ALONE {
        let job_id = JobId::now();
        let job = json!({ "job_id": job_id, "agent_id": "echo", "pool": pool, "input": number }).to_string();
        accepted.push((job_id.to_string(), SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64()));
        if by_sql {
            sqlx::query("SELECT harness_enqueue($1::json)").bind(job).execute(&mut sql).await?;
        } else {
            caller.send(&post(&door, &job)).await?.accepted()?;
        }
        // Out of step with every clock of the fleet.
        tokio::time::sleep(Duration::from_millis(10 + number as u64 * 7 % 31)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut taken, mut waits) = (Vec::new(), Vec::new());
    for (job_id, at) in accepted {
        let times = "SELECT extract(epoch FROM accepted_at)::float8, extract(epoch FROM started_at)::float8
                       FROM harness_results WHERE job_id = $1::uuid";
        let (taken_at, started): (f64, f64) = sqlx::query_as(times).bind(job_id).fetch_one(&mut sql).await?;
        taken.push(((taken_at - at) * 1e4).round() / 10.0);
        waits.push(((started - at) * 1e4).round() / 10.0);
    }
    taken.sort_unstable_by(f64::total_cmp);
    waits.sort_unstable_by(f64::total_cmp);
    drop(worker);
    Ok(json!({
        "by": if by_sql { "SQL" } else { "HTTP" }, "line": line,
        "taken_in_p50_ms": taken[ALONE / 2], "taken_in_p99_ms": taken[ALONE * 99 / 100],
        "p50_ms": waits[ALONE / 2], "p99_ms": waits[ALONE * 99 / 100],
    }))
}

async fn running(sql: &mut PgConnection, pool: &Name, tenant: &str) -> anyhow::Result<i64> {
    let count =
        "SELECT count(*) FROM harness_jobs WHERE worker_id IS NOT NULL AND pool = $1 AND tenant LIKE $2";
    Ok(sqlx::query_scalar(count).bind(pool.as_str()).bind(tenant).fetch_one(&mut *sql).await?)
}

/// How long the last of these jobs has waited for its start, in seconds, once all have started.
async fn waited(sql: &mut PgConnection, ids: &[String]) -> anyhow::Result<f64> {
    let live =
        "SELECT count(*) FROM harness_jobs WHERE started_at IS NULL AND job_id = ANY($1::text[]::uuid[])";
    while sqlx::query_scalar::<_, i64>(live).bind(ids).fetch_one(&mut *sql).await? > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let waits = "SELECT max(extract(epoch FROM started_at - accepted_at))::float8
                   FROM (SELECT job_id, started_at, accepted_at FROM harness_jobs
                         UNION ALL SELECT job_id, started_at, accepted_at FROM harness_results) jobs
                  WHERE job_id = ANY($1::text[]::uuid[])";
    let waited: Option<f64> = sqlx::query_scalar(waits).bind(ids).fetch_one(&mut *sql).await?;
    Ok((waited.context("none of them is known")? * 1e3).round() / 1e3)
}

/// A relay alone; it is killed when this is dropped.
struct Relay(Child);

impl Relay {
    fn start(database: &str) -> anyhow::Result<Relay> {
        let relay = program("producer")?
            .args(["relay", "--admin-addr", "127.0.0.1:0"])
            .env("DATABASE_URL", database)
            .env("LOG_LEVEL", "warn")
            .spawn()
            .context("starting `producer relay`")?;
        Ok(Relay(relay))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
