//! What the scenarios read from the ledger. Postgres may be away at any time. Each read has a bound and reports
//! failures, and the next read connects anew.

use std::time::Duration;

use anyhow::Context;
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};
use tokio::time::timeout;

const BOUND: Duration = Duration::from_secs(5);

/// A separate connection to the ledger.
pub struct LedgerProbe {
    url: String,
    connection: Option<PgConnection>,
}

/// A job and the epoch of its last run; 0 before the first.
#[derive(Clone)]
pub struct Held {
    pub job_id: String,
    pub epoch: i64,
    /// How many workers have died while they ran it.
    pub deaths: i32,
}

const ENDED: &str = "SELECT count(*) FROM harness_results";

const HELD: &str = "
    SELECT j.job_id::text, j.epoch, j.deaths FROM harness_jobs j JOIN harness_workers w ON w.worker_id = j.worker_id
     WHERE w.pod_name = $1 AND j.state = 'running'";

const RUNNING: &str = "SELECT count(*) FROM harness_jobs WHERE state = 'running'";

/// Jobs that wait at the broker, according to the ledger.
const QUEUED: &str = "SELECT job_id::text, epoch, deaths FROM harness_jobs WHERE state = 'queued'";

/// Jobs that have another run, or have ended.
const GONE_ON: &str = "
    SELECT count(*) FROM unnest($1::text[], $2::bigint[]) AS t(job_id, epoch)
     WHERE EXISTS (SELECT FROM harness_jobs j WHERE j.job_id = t.job_id::uuid AND j.state = 'running' AND j.epoch > t.epoch)
        OR EXISTS (SELECT FROM harness_results r WHERE r.job_id = t.job_id::uuid)";

/// The jobs that took longest from acceptance to end.
const SLOW: &str = "
    SELECT job_id || ' of ' || session_id || ': accepted ' || accepted_at || ', started ' || started_at
           || ', ended ' || finished_at || ', ' || attempts || ' attempts'
      FROM harness_results ORDER BY finished_at - accepted_at DESC NULLS LAST LIMIT 20";

/// What must be gone once all jobs have ended: a line of text for each kind.
const LEFT_OVER: &str = "
    SELECT count(*) || ' live jobs are left' FROM harness_jobs HAVING count(*) > 0";

impl LedgerProbe {
    pub fn new(url: &str) -> LedgerProbe {
        LedgerProbe { url: url.to_owned(), connection: None }
    }

    /// How many jobs have ended.
    pub async fn ended(&mut self) -> anyhow::Result<i64> {
        let row = self.look(async |connection| sqlx::query(ENDED).fetch_one(connection).await).await?;
        Ok(row.get(0))
    }

    /// How many jobs are running.
    pub async fn running(&mut self) -> anyhow::Result<usize> {
        let row = self.look(async |connection| sqlx::query(RUNNING).fetch_one(connection).await).await?;
        Ok(usize::try_from(row.get::<i64, _>(0)).unwrap_or_default())
    }

    /// What this worker runs.
    pub async fn held(&mut self, worker: &str) -> anyhow::Result<Vec<Held>> {
        let rows =
            self.look(async |connection| sqlx::query(HELD).bind(worker).fetch_all(connection).await).await?;
        Ok(rows.iter().map(read_held).collect())
    }

    /// Jobs that wait at the broker, according to the ledger.
    pub async fn queued(&mut self) -> anyhow::Result<Vec<Held>> {
        let rows = self.look(async |connection| sqlx::query(QUEUED).fetch_all(connection).await).await?;
        Ok(rows.iter().map(read_held).collect())
    }

    /// How many of these have another run, or have ended.
    pub async fn gone_on(&mut self, held: &[Held]) -> anyhow::Result<usize> {
        let ids: Vec<&str> = held.iter().map(|held| held.job_id.as_str()).collect();
        let epochs: Vec<i64> = held.iter().map(|held| held.epoch).collect();
        let look = async |connection: &mut PgConnection| {
            sqlx::query(GONE_ON).bind(&ids).bind(&epochs).fetch_one(connection).await
        };
        let count: i64 = self.look(look).await?.get(0);
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// Describes the slowest jobs.
    pub async fn slow(&mut self) -> anyhow::Result<Vec<String>> {
        let rows = self.look(async |connection| sqlx::query(SLOW).fetch_all(connection).await).await?;
        Ok(rows.iter().filter_map(|row| row.get(0)).collect())
    }

    /// Lists what is left over once all jobs have ended.
    pub async fn left_over(&mut self) -> anyhow::Result<Vec<String>> {
        let rows = self.look(async |connection| sqlx::query(LEFT_OVER).fetch_all(connection).await).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn look<T>(
        &mut self,
        query: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> anyhow::Result<T> {
        let look = async {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => PgConnection::connect(&self.url).await?,
            };
            let seen = query(&mut connection).await?;
            // The connection is kept only when all went well.
            self.connection = Some(connection);
            anyhow::Ok(seen)
        };
        timeout(BOUND, look).await.context("Postgres does not answer")?.context("reading the ledger")
    }
}

fn read_held(row: &PgRow) -> Held {
    Held { job_id: row.get(0), epoch: row.get(1), deaths: row.get(2) }
}
