//! Rescue: makes a dead worker's jobs due again.
//!
//! It takes two transactions. The first declares the death, which is final: its row lock conflicts with the
//! one that every claim holds on its worker, so none of the dead worker's claims can commit afterwards. The
//! second takes the jobs under their sessions' locks and gives them a new epoch, so that whatever the dead
//! worker still sends finds no row.
//!
//! Rescue never ends a job. It spends the attempt; the worker that claims the job next sees whether any is
//! left. So every end is recorded in one place, by a worker, which also sends the reply to the caller.

use std::time::Duration;

use job::{JobId, JobState, WorkerId};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::database::{LOCK_SESSIONS, Params, Tx, millis, query, read_change, read_job_id};
use crate::jobs::heads;
use crate::spend::{LEAVE_OLDER_RUNS_OF, LEAVE_WORKERS};
use crate::{Clock, Store, StoreError};

/// Skips a worker whose row is locked by its own claim, because it is alive. `$2` is what Postgres's clock
/// shows now, unless it was set since the caller has read it. So a step of the clock ends no lease.
const DECLARE_DEAD: &str = "
    UPDATE harness_workers SET state = 'dead', ended_at = now()
     WHERE worker_id = ANY(ARRAY(
           SELECT worker_id FROM harness_workers
            WHERE state IN ('alive', 'draining') AND lease_ms <= $1
              AND heartbeat_at < least(clock_timestamp(), $2) - lease_ms * interval '1 millisecond'
              FOR UPDATE SKIP LOCKED))
    RETURNING worker_id";

const NOT_RESCUED: &str = "SELECT worker_id FROM harness_workers WHERE state = 'dead' AND rescued_at IS NULL";

const FIND_LOST: &str = "
    SELECT session_id FROM harness_jobs WHERE worker_id = ANY($1) LIMIT $2";

/// A job is a suspect if one more death would make it poison. If a worker dies that was given several
/// suspects, the ledger cannot know which of them did it: none is charged, and they come due one after the
/// other, a second apart. A worker that was asked to stop, and died before it could hand its jobs back, died
/// of that: no job is charged. `$2` says that this transaction looks at all that the dead workers ran.
/// Otherwise a suspect may only seem to be alone, and none is charged.
///
/// A job's run is counted up to the latest moment at which its worker may have died.
const TAKE_LOST: &str = "
    WITH lost AS (
        SELECT j.job_id, j.worker_id, w.noticed, j.deaths >= 2 AND NOT w.noticed AS suspect,
               (extract(epoch FROM w.died_at - j.state_since) * 1000)::bigint AS ran_ms
          FROM harness_jobs j
         CROSS JOIN LATERAL (
               SELECT noticed_at IS NOT NULL AS noticed,
                      least(ended_at, heartbeat_at + lease_ms * interval '1 millisecond') AS died_at
                 FROM harness_workers w WHERE w.worker_id = j.worker_id AND w.state = 'dead' OFFSET 0) w
         WHERE j.session_id = ANY($1) AND j.epoch > 0 AND j.worker_id IS NOT NULL
         ORDER BY j.job_id FOR UPDATE OF j
    ), numbered AS (
        SELECT *, count(*) FILTER (WHERE suspect) OVER (PARTITION BY worker_id) AS suspects,
               row_number() OVER (PARTITION BY worker_id, suspect ORDER BY job_id) - 1 AS turn
          FROM lost
    ), judged AS (
        SELECT job_id, noticed, ran_ms, CASE WHEN suspect THEN turn ELSE 0 END AS turn,
               (NOT noticed AND (NOT suspect OR (suspects = 1 AND $2)))::int AS charged,
               (suspect AND NOT (suspects = 1 AND $2))::int AS shared
          FROM numbered
    )
    UPDATE harness_jobs j
       SET state = 'scheduled', worker_id = NULL, attempts = j.attempts + charged, deaths = j.deaths + charged,
           epoch = nextval('harness_epoch'), state_since = now(),
           due_at = now() + shared * turn * interval '1 second',
           failure = CASE WHEN noticed THEN failure
               ELSE '{\"code\":\"worker_lost\",\"message\":\"the worker that ran it died\",\"retryable\":true}' END,
           shared_deaths = j.shared_deaths + shared,
           suspected_at = CASE WHEN noticed THEN suspected_at ELSE now() END,
           killed_after_ms = CASE WHEN noticed THEN killed_after_ms ELSE greatest(killed_after_ms, ran_ms) END
      FROM judged WHERE j.job_id = judged.job_id AND j.job_id = ANY(ARRAY(SELECT job_id FROM lost))
    RETURNING j.job_id, j.session_id";

const RESCUED: &str = "UPDATE harness_workers SET rescued_at = now() WHERE worker_id = ANY($1)";

/// How many sessions one transaction takes.
const SESSIONS: i64 = 1_000;

const _: () = assert!(job::POISON_DEATHS == 3, "a suspect in TAKE_LOST has one death less");

/// Selects the next sessions that have blocked jobs, in their order, and whether the first job of each is
/// blocked although no job has begun and none is on its way. The two transactions that end a run release such
/// a job, so this finds one only if rows were changed by hand. It goes from one session to the next by an
/// index and reads none of the jobs between them: a session may have a million.
const LOOK_FOR_STRANDED: &str = "
    WITH RECURSIVE sessions AS (
        SELECT (SELECT session_id FROM harness_jobs
                 WHERE state = 'blocked' AND session_id > $1 ORDER BY session_id LIMIT 1) AS session_id, 1 AS turn
        UNION ALL
        SELECT (SELECT j.session_id FROM harness_jobs j
                 WHERE j.state = 'blocked' AND j.session_id > s.session_id ORDER BY j.session_id LIMIT 1), turn + 1
          FROM sessions s WHERE s.session_id IS NOT NULL AND turn < $2
    )
    SELECT session_id,
           (SELECT h.state = 'blocked' AND h.state_since < now() - $3 * interval '1 millisecond' FROM harness_jobs h
             WHERE h.session_id = s.session_id ORDER BY h.seq LIMIT 1)
           AND (SELECT b.job_id FROM harness_jobs b WHERE b.session_id = s.session_id AND b.epoch > 0) IS NULL
      FROM sessions s WHERE session_id IS NOT NULL ORDER BY turn";

/// How many sessions one call looks at.
const LOOKED_AT: i32 = 250;

const RELEASE_STRANDED: &str = concat!(
    "WITH ",
    heads!("$1"),
    " UPDATE harness_jobs SET state = 'scheduled', due_at = now(), state_since = now()
     WHERE job_id = ANY(ARRAY(SELECT job_id FROM heads))
    RETURNING job_id, session_id"
);

impl Store {
    /// Declares workers dead if their lease has run out. `watched` says for how long the caller has reached
    /// Postgres without a gap. A worker with a longer lease is left alone, because it may not have had the
    /// time to renew it after an outage. `clock` is the caller's last reading of Postgres's clock, which was
    /// not set during that time.
    pub async fn declare_dead(&self, watched: Duration, clock: &Clock) -> Result<Vec<WorkerId>, StoreError> {
        let watched_ms = i64::try_from(watched.as_millis()).unwrap_or(i64::MAX);
        let rows = query(&self.pool, "declare_dead", DECLARE_DEAD, &[&watched_ms, &clock.now()]).await?;
        Ok(rows.iter().map(|row| row.get::<_, Uuid>(0).into()).collect())
    }

    /// Makes the jobs of dead workers due again, and returns them.
    pub async fn rescue(&self) -> Result<Vec<JobId>, StoreError> {
        let dead_workers = query(&self.pool, "not_rescued", NOT_RESCUED, &[]).await?;
        let dead_workers: Vec<Uuid> = dead_workers.iter().map(|row| row.get(0)).collect();
        if dead_workers.is_empty() {
            return Ok(Vec::new());
        }
        let lost = query(&self.pool, "find_lost", FIND_LOST, &[&dead_workers, &SESSIONS]).await?;
        let lost: Vec<String> = lost.iter().map(|row| row.get(0)).collect();
        let all = (lost.len() as i64) < SESSIONS;
        let (taken, left) = self.take_sessions("rescue", &lost, TAKE_LOST, &[&all], &[&false]).await?;
        if all && left.is_none() {
            let tx = Tx::prepare(&self.pool, "rescued", [LEAVE_WORKERS, RESCUED]).await?;
            tx.run([&[&dead_workers], &[&dead_workers]]).await?;
        }
        // The next call looks for those that are left.
        left.filter(|_| taken.is_empty()).map_or(Ok(taken), Err)
    }

    /// Releases blocked jobs that nothing else would release, in some of the sessions after this one. Returns
    /// the jobs, and the session to continue after if there may be more.
    pub async fn release_stranded(
        &self,
        behind: Option<&str>,
        older_than: Duration,
    ) -> Result<(Vec<JobId>, Option<String>), StoreError> {
        let behind = behind.unwrap_or_default();
        let params: [&(dyn ToSql + Sync); 3] = [&behind, &LOOKED_AT, &millis(older_than)];
        let mut found = query(&self.pool, "look_for_stranded", LOOK_FOR_STRANDED, &params).await?;
        let rest = found.last().filter(|_| found.len() >= LOOKED_AT as usize).map(|row| row.get(0));
        found.retain(|row| row.get::<_, Option<bool>>(1) == Some(true));
        let found: Vec<String> = found.iter().map(|row| row.get(0)).collect();
        let (taken, left) =
            self.take_sessions("release_stranded", &found, RELEASE_STRANDED, &[], &[]).await?;
        left.filter(|_| taken.is_empty()).map_or(Ok((taken, rest)), Err)
    }

    /// Takes sessions together, or one by one if the fault may lie in one of them, so that a session that is
    /// locked elsewhere does not hold up the others. `together` and `alone` are the further parameters of
    /// `take` in each case. Also returns the fault of the last session that is left.
    async fn take_sessions(
        &self,
        name: &'static str,
        sessions: &[String],
        take: &str,
        together: &Params<'_>,
        alone: &Params<'_>,
    ) -> Result<(Vec<JobId>, Option<StoreError>), StoreError> {
        match self.take_together(name, sessions, take, together).await {
            Err(error) if sessions.len() > 1 && error.may_lie_in_one_call() => {}
            taken => return taken.map(|taken| (taken, None)),
        }
        let (mut taken, mut left) = (Vec::new(), None);
        for session in sessions.chunks(1) {
            match self.take_together(name, session, take, alone).await {
                Ok(jobs) => taken.extend(jobs),
                Err(error) if error.may_lie_in_one_call() => left = Some(error),
                Err(error) => return Err(error),
            }
        }
        Ok((taken, left))
    }

    /// Takes sessions in one transaction, under their locks.
    async fn take_together(
        &self,
        name: &'static str,
        sessions: &[String],
        take: &str,
        more: &Params<'_>,
    ) -> Result<Vec<JobId>, StoreError> {
        if sessions.is_empty() {
            return Ok(Vec::new());
        }
        let tx = Tx::prepare(&self.pool, name, [LOCK_SESSIONS, take, LEAVE_OLDER_RUNS_OF]).await?;
        let params = [&[&sessions as &(dyn ToSql + Sync)], more].concat();
        let [_, taken, _] = tx.run([&[&sessions], &params, &[&sessions]]).await?;
        self.changes.note(|| taken.iter().map(|row| read_change(row, JobState::Scheduled)));
        Ok(taken.iter().map(|row| read_job_id(row, 0)).collect())
    }
}
