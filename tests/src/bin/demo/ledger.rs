//! What the demo reads from the ledger: through `store` where possible, otherwise from the tables.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Context;
use job::{JobId, JobState, Name};
use postgres::{Address, SetBy};
use producer::SessionNow;
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};
use store::{JobView, SessionProgress, Store, StoreConfig};
use uuid::Uuid;

use crate::workers::pod_name;

/// The ledger, limited to this run's pool and sessions.
pub struct LedgerReader {
    store: Store,
    tables: PgConnection,
    pool: Name,
    sessions: Vec<Name>,
    /// Workers of this run by their ids. A worker that was declared dead by mistake comes back under another id.
    workers: HashMap<Uuid, char>,
}

/// The state of everything at one moment.
#[derive(Default)]
pub struct Snapshot {
    sessions: BTreeMap<String, SessionProgress>,
    workers: HashMap<Uuid, char>,
    /// Live jobs by state.
    live: HashMap<String, i64>,
    /// Ended jobs by worker and end state.
    ended: Vec<(Option<char>, JobState, i64)>,
}

/// A job that a worker held when it was killed.
pub struct Held {
    pub job_id: JobId,
    pub session_id: String,
    /// The job's iterations in the ledger at that time.
    pub done: i64,
    /// The iterations of its whole session.
    pub session_done: i64,
}

/// When and where a held job resumed.
pub struct Resumed {
    pub job_id: JobId,
    pub worker: char,
    /// The session's iterations that the new worker received.
    pub session_done: i64,
    /// Unix time, by Postgres's clock.
    pub at_s: f64,
}

const WORKERS: &str = "SELECT worker_id::text, pod_name FROM harness_workers WHERE pool = $1";

const LIVE: &str = "SELECT state, count(*) FROM harness_jobs WHERE session_id = ANY($1) GROUP BY state";

const ENDED: &str =
    "SELECT worker_id::text, state, count(*) FROM harness_results WHERE session_id = ANY($1) GROUP BY 1, 2";

const HELD: &str = "
    SELECT j.job_id::text, j.session_id, c.of_job, s.iteration_count + c.of_session
      FROM harness_jobs j
      JOIN harness_workers w ON w.worker_id = j.worker_id
      JOIN harness_sessions s ON s.session_id = j.session_id
     CROSS JOIN LATERAL (
           SELECT coalesce(sum(iterations), 0)::bigint AS of_session,
                  coalesce(sum(iterations) FILTER (WHERE c.job_id = j.job_id), 0)::bigint AS of_job
             FROM harness_checkpoints c WHERE c.session_id = j.session_id) c
     WHERE j.session_id = ANY($1) AND j.state = 'running' AND w.pod_name = $2
     ORDER BY j.session_id";

/// A run received what had been checkpointed before its epoch.
const RESUMED: &str = "
    SELECT j.job_id::text, j.worker_id::text, extract(epoch FROM j.state_since)::float8,
           s.iteration_count + (SELECT coalesce(sum(iterations), 0)::bigint FROM harness_checkpoints c
                                 WHERE c.session_id = j.session_id AND c.epoch < j.epoch)
      FROM harness_jobs j
      JOIN harness_workers w ON w.worker_id = j.worker_id
      JOIN harness_sessions s ON s.session_id = j.session_id
     WHERE j.session_id = ANY($1) AND j.state = 'running' AND w.pod_name <> $2";

/// Jobs that had little left to do and ended between two looks.
const RESUMED_AND_ENDED: &str = "
    SELECT job_id::text, worker_id::text, extract(epoch FROM finished_at)::float8,
           coalesce((output->>'resumed_at')::bigint, -1)
      FROM harness_results WHERE session_id = ANY($1) AND job_id::text = ANY($2)";

impl LedgerReader {
    pub async fn connect(url: &str, pool: &Name, sessions: Vec<Name>) -> anyhow::Result<LedgerReader> {
        let address =
            Address::new(url, SetBy::Connection).map_err(anyhow::Error::msg).context("DATABASE_URL")?;
        let config = StoreConfig::new(address, 2).map_err(anyhow::Error::msg)?;
        let tables = PgConnection::connect(url).await.context("connecting to Postgres (DATABASE_URL)")?;
        let store = Store::new(&config);
        Ok(LedgerReader { store, tables, pool: pool.clone(), sessions, workers: HashMap::new() })
    }

    /// Whether all these workers have registered.
    pub async fn knows(&mut self, workers: &[char]) -> anyhow::Result<bool> {
        let rows = sqlx::query(WORKERS).bind(self.pool.as_str()).fetch_all(&mut self.tables).await?;
        let pods = rows.iter().filter_map(|row| row.get::<Option<String>, _>(1));
        let known: Vec<String> = pods.collect();
        Ok(workers.iter().all(|worker| known.contains(&pod_name(&self.pool, *worker))))
    }

    pub async fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        self.read_snapshot().await.context("reading the ledger")
    }

    async fn read_snapshot(&mut self) -> anyhow::Result<Snapshot> {
        let progress = self.store.session_progress(&self.sessions).await?;
        let names = self.names();
        let live = sqlx::query(LIVE).bind(&names).fetch_all(&mut self.tables).await?;
        let ended = sqlx::query(ENDED).bind(&names).fetch_all(&mut self.tables).await?;
        // Read last, so that every worker found above is known.
        let workers = sqlx::query(WORKERS).bind(self.pool.as_str()).fetch_all(&mut self.tables).await?;
        self.workers = workers
            .iter()
            .filter_map(|row| Some((row.get::<&str, _>(0).parse().ok()?, row.get::<Option<&str>, _>(1)?)))
            .filter_map(|(id, pod)| Some((id, pod.chars().next_back()?)))
            .collect();
        let mut snapshot = Snapshot {
            sessions: progress.into_iter().map(|session| (session.session_id.clone(), session)).collect(),
            workers: self.workers.clone(),
            live: live.iter().map(|row| (row.get(0), row.get(1))).collect(),
            ended: Vec::new(),
        };
        for row in &ended {
            let end = row.get::<&str, _>(1).parse().map_err(anyhow::Error::msg)?;
            snapshot.ended.push((self.worker(row, 0), end, row.get(2)));
        }
        Ok(snapshot)
    }

    /// Returns Unix time by Postgres's clock.
    pub async fn now_s(&mut self) -> anyhow::Result<f64> {
        let now = sqlx::query("SELECT extract(epoch FROM clock_timestamp())::float8");
        Ok(now.fetch_one(&mut self.tables).await.context("reading Postgres's clock")?.get(0))
    }

    /// Returns the jobs that this worker holds according to the ledger.
    pub async fn held(&mut self, worker: char) -> anyhow::Result<Vec<Held>> {
        let held = sqlx::query(HELD).bind(self.names()).bind(pod_name(&self.pool, worker));
        let rows = held.fetch_all(&mut self.tables).await.context("reading the killed worker's jobs")?;
        let held = |row: &PgRow| {
            let job_id = row.get::<&str, _>(0).parse()?;
            Ok(Held { job_id, session_id: row.get(1), done: row.get(2), session_done: row.get(3) })
        };
        rows.iter().map(held).collect()
    }

    /// Returns those of these jobs that another worker has taken over.
    pub async fn resumed(&mut self, held: &[&Held], killed: char) -> anyhow::Result<Vec<Resumed>> {
        let sessions: Vec<&str> = held.iter().map(|held| held.session_id.as_str()).collect();
        let ids: Vec<String> = held.iter().map(|held| held.job_id.to_string()).collect();
        let running = sqlx::query(RESUMED).bind(&sessions).bind(pod_name(&self.pool, killed));
        let running = running.fetch_all(&mut self.tables).await.context("reading resumed jobs")?;
        let ended = sqlx::query(RESUMED_AND_ENDED).bind(&sessions).bind(&ids);
        let ended =
            ended.fetch_all(&mut self.tables).await.context("reading resumed jobs that have ended")?;
        let mut resumed = Vec::new();
        for (row, has_ended) in
            running.iter().map(|row| (row, false)).chain(ended.iter().map(|row| (row, true)))
        {
            let job_id: JobId = row.get::<&str, _>(0).parse()?;
            let Some(held) = held.iter().find(|held| held.job_id == job_id) else { continue };
            let before_job = if has_ended { held.session_done - held.done } else { 0 };
            let worker = self.worker(row, 1).unwrap_or('?');
            let session_done = before_job + row.get::<i64, _>(3);
            resumed.push(Resumed { job_id, worker, session_done, at_s: row.get(2) });
        }
        Ok(resumed)
    }

    pub async fn jobs(&self, ids: &[JobId]) -> anyhow::Result<Vec<JobView>> {
        self.store.jobs(ids).await.context("reading the jobs")
    }

    pub async fn session(&self, id: &Name) -> anyhow::Result<Option<SessionNow>> {
        SessionNow::read(&self.store, &id.clone().into())
            .await
            .with_context(|| format!("reading session {id}"))
    }

    /// Removes this run's unfinished jobs from the ledger, so that no relay publishes them for ever. Their pool belongs
    /// to this run alone, and its workers must be gone.
    pub async fn forget_unfinished(&mut self) -> anyhow::Result<u64> {
        let delete = sqlx::query("DELETE FROM harness_jobs WHERE pool = $1").bind(self.pool.as_str());
        Ok(delete.execute(&mut self.tables).await.context("removing unfinished jobs")?.rows_affected())
    }

    fn names(&self) -> Vec<String> {
        self.sessions.iter().map(Name::to_string).collect()
    }

    fn worker(&self, row: &PgRow, column: usize) -> Option<char> {
        let id: Uuid = row.get::<Option<&str>, _>(column)?.parse().ok()?;
        self.workers.get(&id).copied()
    }
}

/// Longer than any read of the ledger takes.
pub const LOOK: Duration = Duration::from_secs(15);

impl Snapshot {
    pub fn iterations(&self, session: &Name) -> i64 {
        self.sessions.get(session.as_str()).map_or(0, |session| session.iterations)
    }

    pub fn all_iterations(&self) -> i64 {
        self.sessions.values().map(|session| session.iterations).sum()
    }

    /// Returns the worker that runs a job of the session.
    pub fn runner(&self, session: &Name) -> Option<char> {
        self.workers.get(&self.sessions.get(session.as_str())?.worker_id?).copied()
    }

    pub fn running_on(&self, worker: char) -> usize {
        let on = |session: &&SessionProgress| {
            session.worker_id.is_some_and(|id| self.workers.get(&id) == Some(&worker))
        };
        self.sessions.values().filter(on).count()
    }

    pub fn live(&self, states: &[JobState]) -> i64 {
        states.iter().filter_map(|state| self.live.get(state.as_str())).sum()
    }

    pub fn ended(&self) -> i64 {
        self.ended.iter().map(|(_, _, count)| count).sum()
    }

    pub fn ended_as(&self, state: JobState) -> i64 {
        self.ended.iter().filter(|(_, end, _)| *end == state).map(|(_, _, count)| count).sum()
    }

    pub fn ended_by(&self, worker: char) -> i64 {
        self.ended.iter().filter(|(by, _, _)| *by == Some(worker)).map(|(_, _, count)| count).sum()
    }
}
