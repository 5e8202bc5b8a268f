//! Rescue: a dead worker's jobs come due again.
//!
//! Two transactions. The first declares death, which is final: the row lock it takes conflicts with the one that
//! every claim holds on its worker, so no claim of the dead can commit afterwards. The second takes the jobs under
//! their sessions' locks, with a new epoch, so that whatever the dead still sends finds no row.
//!
//! Rescue never ends a job. It spends the attempt; the worker that claims the job next sees whether any is left.
//! So every end is told in one place, by a worker, with its reply to the caller.
//!
//! A worker that ended in good order can be given a job, too, by a claim that hung until then. Nobody has run that job,
//! so it is taken back without an attempt spent.

use job::{JobId, WorkerId};
use std::time::Duration;
use uuid::Uuid;

use crate::claim::{LOCK_SESSIONS, read_job_id};
use crate::dispatch::millis;
use crate::tx::{Tx, query};
use crate::{Store, StoreError};

/// A worker whose own claim holds its row is skipped: it lives.
const DECLARE_DEAD: &str = "
    UPDATE harness_workers w SET state = 'dead', ended_at = now()
      FROM (SELECT worker_id FROM harness_workers
             WHERE state IN ('alive', 'draining')
               AND heartbeat_at < clock_timestamp() - lease_ms * interval '1 millisecond'
               FOR UPDATE SKIP LOCKED) d
     WHERE w.worker_id = d.worker_id
    RETURNING w.worker_id";

const FIND_LOST: &str = "
    SELECT DISTINCT j.session_id FROM harness_jobs j JOIN harness_workers w ON w.worker_id = j.worker_id
     WHERE j.state = 'running' AND j.epoch > 0 AND w.state IN ('dead', 'stopped') LIMIT 1000";

const TAKE_LOST: &str = "
    WITH lost AS (
        SELECT j.job_id, (w.state = 'dead')::int AS death
          FROM harness_jobs j JOIN harness_workers w ON w.worker_id = j.worker_id
         WHERE j.session_id = ANY($1) AND j.state = 'running' AND w.state IN ('dead', 'stopped')
         ORDER BY j.job_id FOR UPDATE OF j
    )
    UPDATE harness_jobs j
       SET state = 'scheduled', worker_id = NULL, attempts = j.attempts + death, deaths = j.deaths + death,
           epoch = nextval('harness_epoch'), due_at = now(), state_since = now(),
           failure = CASE death WHEN 0 THEN j.failure ELSE
               '{\"code\":\"worker_lost\",\"message\":\"the worker that ran it died\",\"retryable\":true}' END
      FROM lost WHERE j.job_id = lost.job_id
    RETURNING j.job_id";

/// Sessions whose head is blocked although nothing has begun and nothing is on its way. The two transactions that end a
/// run release it, so this finds nothing, unless somebody has changed rows by hand.
const FIND_STRANDED: &str = "
    SELECT DISTINCT b.session_id FROM harness_jobs b
     WHERE b.state = 'blocked' AND b.state_since < now() - $1 * interval '1 millisecond'
       AND NOT EXISTS (SELECT FROM harness_jobs o WHERE o.session_id = b.session_id
                          AND (o.seq < b.seq OR o.epoch > 0))
     LIMIT 1000";

const RELEASE_STRANDED: &str = "
    UPDATE harness_jobs b SET state = 'scheduled', due_at = now(), state_since = now()
     WHERE b.session_id = ANY($1) AND b.state = 'blocked'
       AND NOT EXISTS (SELECT FROM harness_jobs o WHERE o.session_id = b.session_id
                          AND (o.seq < b.seq OR o.epoch > 0))
    RETURNING b.job_id";

impl Store {
    /// Declares workers dead whose lease has run out. Only for a caller that has itself reached Postgres all
    /// through a lease: else an outage would kill the living.
    pub async fn declare_dead(&self) -> Result<Vec<WorkerId>, StoreError> {
        let rows = query(&self.pool, "declare_dead", DECLARE_DEAD, &[]).await?;
        Ok(rows.iter().map(|row| row.get::<_, Uuid>(0).into()).collect())
    }

    /// Makes the jobs of dead workers due again. Returns them.
    pub async fn rescue(&self) -> Result<Vec<JobId>, StoreError> {
        let lost = query(&self.pool, "find_lost", FIND_LOST, &[]).await?;
        self.take_sessions("rescue", lost, TAKE_LOST).await
    }

    /// Releases blocked jobs that nothing else would release. Returns them.
    pub async fn release_stranded(&self, older_than: Duration) -> Result<Vec<JobId>, StoreError> {
        let stranded = query(&self.pool, "find_stranded", FIND_STRANDED, &[&millis(older_than)]).await?;
        self.take_sessions("release_stranded", stranded, RELEASE_STRANDED).await
    }

    async fn take_sessions(
        &self,
        name: &'static str,
        found: Vec<tokio_postgres::Row>,
        take: &str,
    ) -> Result<Vec<JobId>, StoreError> {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let sessions: Vec<String> = found.iter().map(|row| row.get(0)).collect();
        let tx = Tx::prepare(&self.pool, name, [LOCK_SESSIONS, take]).await?;
        let [_, taken] = tx.run([&[&sessions], &[&sessions]]).await?;
        Ok(taken.iter().map(|row| read_job_id(row, 0)).collect())
    }
}
