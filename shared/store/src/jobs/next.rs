//! A session's next job: the one whose turn it is when no other has begun.

use super::claimed::claimed_columns;

/// Whether a job has to wait for its turn in its pool's line. What was seen of the line long ago, or never, says nothing.
macro_rules! waits_its_turn {
    ($job:literal) => {
        concat!(
            "EXISTS (SELECT FROM harness_pools p
                      WHERE p.pool = ",
            $job,
            ".pool AND p.line
                        AND (p.waiting > 0 OR coalesce(p.seen_at < now() - interval '10 seconds', true) OR ",
            $job,
            ".line <> ''
                             OR EXISTS (SELECT FROM harness_tenants t WHERE t.name = ",
            $job,
            ".tenant AND t.max_running IS NOT NULL)))"
        )
    };
}

/// The CTE `heads`: the first job of each of these sessions in which no job has begun, if it waits only for
/// its turn. (The subquery looks up whether a job has begun for the few blocked heads alone. NOT EXISTS would
/// become a join of every session of the batch with every job that has begun.)
macro_rules! heads {
    ($sessions:literal) => {
        concat!(
            "heads AS (
                SELECT h.job_id, h.pool, h.tenant, h.line FROM unnest(",
            $sessions,
            "::text[]) AS t(session_id)
                 CROSS JOIN LATERAL (SELECT job_id, session_id, state, pool, tenant, line FROM harness_jobs j
                                      WHERE j.session_id = t.session_id ORDER BY j.seq LIMIT 1) h
                 WHERE h.state = 'blocked'
                   AND (SELECT b.job_id FROM harness_jobs b
                         WHERE b.session_id = h.session_id AND b.epoch > 0) IS NULL
            )"
        )
    };
}
pub(crate) use heads;

/// Takes the heads of these sessions that wait for their turn: they run here (with $3), or a relay makes them wait in
/// their pool's line or publishes them. A worker takes those of its own pool alone, and if it is marked to drain, none. Where jobs
/// wait in the line, or a limit or a tenant's bound may hold this one back, it gets its turn there.
pub(crate) const NEXT: &str = concat!(
    "WITH ",
    heads!("$2"),
    ", taken AS (
        SELECT job_id FROM heads
         WHERE $3 AND pool = (SELECT w.pool FROM harness_workers w
                               WHERE w.worker_id = $1 AND w.state IN ('alive', 'draining')
                                 AND coalesce(w.drain_until <= now(), true))
           AND NOT ",
    waits_its_turn!("heads"),
    "
    ), released AS (
        UPDATE harness_jobs SET state = 'scheduled', due_at = now(), state_since = now()
         WHERE job_id = ANY(ARRAY(SELECT job_id FROM heads EXCEPT SELECT job_id FROM taken))
    ), c AS (
        UPDATE harness_jobs
           SET state = 'running', epoch = nextval('harness_epoch'), worker_id = $1,
               started_at = coalesce(started_at, now()), due_at = now(), state_since = now()
         WHERE job_id = ANY(ARRAY(SELECT job_id FROM taken))
        RETURNING job_id, session_id, epoch, attempts, deaths, deadline_at, killed_after_ms, suspected_at, shared_deaths,
                  folded_epoch, message
    )
    SELECT ",
    claimed_columns!(),
    ", c.message::text FROM c JOIN harness_sessions s ON s.session_id = c.session_id"
);
