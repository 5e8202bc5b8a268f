//! The facts by which a job's state is explained.

use std::time::Duration;

use job::{JobId, JobState, Lane, SessionKey, Tenant};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::database::{query, read_job_id, read_millis, read_state};
use crate::{Store, StoreError};

/// What is known of a job and of what it waits for.
#[derive(Clone, Debug)]
pub struct JobFacts {
    /// Its state.
    pub state: JobState,
    /// Since when, up to now; since its end, where it has ended.
    pub since: Duration,
    /// Attempts spent.
    pub attempts: i32,
    /// Attempts that it has; unknown where its envelope is not kept.
    pub max_attempts: Option<i64>,
    /// The code of the last failure.
    pub code: Option<String>,
    /// The message of the last failure.
    pub message: Option<String>,
    /// How long until it is due; nothing where it is.
    pub due_in: Option<Duration>,
    /// Whether it is asked to end, or to give way: `cancel`, `interrupt` or `rollback`.
    pub asked: Option<String>,
    /// Its session.
    pub session: String,
    /// Its tenant.
    pub tenant: Tenant,
    /// Its pool.
    pub pool: String,
    /// Jobs of its session that come before it; counted up to 1,000.
    pub ahead: i64,
    /// The job whose turn it is in the session, where that is another one.
    pub turn: Option<Turn>,
    /// Workers of the pool with a fresh lease that take jobs.
    pub workers: i64,
    /// Workers of the pool with a fresh lease that drain.
    pub draining: i64,
    /// Their slots together, of those that take jobs.
    pub slots: i64,
    /// Slots that are taken there; counted up to 1,000.
    pub busy: i64,
    /// The calls that it waits for persons to answer.
    pub calls: Vec<String>,
    /// The job that does its work again.
    pub redriven_as: Option<JobId>,
    /// Its place in the inbox, while it is there.
    pub inbox: Option<InboxPlace>,
    /// Its place in its pool's line, while it waits there.
    pub line: Option<PlaceInLine>,
}

/// Where a job is in its pool's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceInLine {
    /// Jobs of the same tenant, lane and limit keys that come before it; counted up to 1,000.
    pub ahead: i64,
    /// Its lane; `None` once it has begun.
    pub lane: Option<Lane>,
    /// What holds it back beside the number of slots.
    pub held: Option<HeldBack>,
}

/// A bound that is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// The limit key; `None` for the tenant's `max_running`.
    pub key: Option<String>,
    /// How many jobs have a place.
    pub taken: i64,
    /// How many may have one.
    pub most: i64,
}

/// Where a job is in the inbox.
#[derive(Clone, Copy, Debug)]
pub struct InboxPlace {
    /// Jobs of its tenant that come before it; counted up to 1,000.
    pub ahead: i64,
    /// How many jobs of its tenant may wait at a time, where that has a bound.
    pub max_waiting: Option<i64>,
}

/// The job that has its turn in a session.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The job.
    pub job_id: JobId,
    /// Its state.
    pub state: JobState,
    /// Since when.
    pub since: Duration,
}

/// Nothing but its tenant is known before it is decoded.
const IN_INBOX: &str = "
    SELECT 'scheduled', (extract(epoch FROM now() - i.written_at) * 1000)::bigint, 0, NULL::bigint, NULL::text, NULL::text,
           NULL::bigint, NULL::text, CASE WHEN tenant = 'default' THEN '' ELSE '~' || tenant || '/' END, '', 0::bigint,
           NULL::uuid, NULL::text, NULL::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, NULL::uuid, ARRAY[]::text[],
           (SELECT count(*) FROM (SELECT FROM harness_inbox o
                                   WHERE o.tenant = i.tenant AND o.seq < i.seq LIMIT 1000) ahead),
           (SELECT t.max_waiting::bigint FROM harness_tenants t WHERE t.name = i.tenant)
      FROM harness_inbox i WHERE job_id = $1";

const LIVE: &str = "
    SELECT j.state, (extract(epoch FROM now() - j.state_since) * 1000)::bigint, j.attempts,
           (j.message -> 'retry' ->> 'max_attempts')::bigint, j.failure ->> 'code', j.failure ->> 'message',
           CASE WHEN j.due_at > now() AND j.due_at < 'infinity' THEN (extract(epoch FROM j.due_at - now()) * 1000)::bigint END,
           j.asked, j.session_id, j.pool,
           (SELECT count(*) FROM (SELECT FROM harness_jobs o
                                   WHERE o.session_id = j.session_id AND o.seq < j.seq LIMIT 1000) ahead),
           t.job_id, t.state, (extract(epoch FROM now() - t.state_since) * 1000)::bigint,
           w.alive, w.draining, w.slots,
           (SELECT count(*) FROM (SELECT FROM harness_jobs b WHERE b.worker_id IS NOT NULL AND b.pool = j.pool LIMIT 1000) busy),
           NULL::uuid,
           ARRAY(SELECT call_id FROM harness_inputs h WHERE h.job_id = j.job_id AND h.outcome IS NULL ORDER BY asked_at, call_id)
      FROM harness_jobs j
      LEFT JOIN LATERAL (SELECT job_id, state, state_since FROM harness_jobs r
                          WHERE r.session_id = j.session_id AND r.epoch > 0 AND r.job_id <> j.job_id LIMIT 1) t ON true
     CROSS JOIN LATERAL (
           SELECT count(*) FILTER (WHERE NOT drains) AS alive, count(*) FILTER (WHERE drains) AS draining,
                  coalesce(sum(slots) FILTER (WHERE NOT drains), 0)::bigint AS slots
             FROM (SELECT slots, state = 'draining' OR coalesce(drain_until > now(), false) AS drains FROM harness_workers
                    WHERE pool = j.pool AND state IN ('alive', 'draining')
                      AND heartbeat_at >= now() - lease_ms * interval '1 millisecond') of_pool) w
     WHERE j.job_id = $1";

const ENDED: &str = "
    SELECT state, (extract(epoch FROM now() - finished_at) * 1000)::bigint, attempts,
           (message -> 'retry' ->> 'max_attempts')::bigint, failure ->> 'code', failure ->> 'message',
           NULL::bigint, NULL::text, session_id, pool, 0::bigint, NULL::uuid, NULL::text, NULL::bigint,
           0::bigint, 0::bigint, 0::bigint, 0::bigint, redriven_as, ARRAY[]::text[]
      FROM harness_results WHERE job_id = $1";

/// The jobs that have a place (where a pool has a line): those that run, and those of pools with a line whose message is on its way to a worker, up to so
/// many of each pool and state, of those that came there at this time or later (an expression that may use `p.pool`).
macro_rules! placed {
    ($most:literal, $since:literal) => {
        concat!(
            "SELECT pool, tenant, line, worker_id, NULL::timestamptz AS state_since FROM harness_jobs
              WHERE worker_id IS NOT NULL AND EXISTS (SELECT FROM harness_pools WHERE line)
             UNION ALL
             SELECT p.pool, j.tenant, j.line, NULL, j.state_since
               FROM ",
            $crate::jobs::lined_pools!(),
            " p
              CROSS JOIN LATERAL (
                    (SELECT tenant, line, state_since FROM harness_jobs
                      WHERE state = 'publishing' AND pool = p.pool AND state_since >= ",
            $since,
            " ORDER BY state_since LIMIT ",
            $most,
            ")
                    UNION ALL
                    (SELECT tenant, line, state_since FROM harness_jobs
                      WHERE state = 'queued' AND pool = p.pool AND state_since >= ",
            $since,
            " ORDER BY state_since LIMIT ",
            $most,
            ")) j"
        )
    };
}
pub(crate) use placed;

/// The places that are taken, as the admitter counts them.
const IN_LINE: &str = concat!(
    r#"
    WITH me AS (
        SELECT pool, lane, tenant, line, seq FROM harness_jobs WHERE job_id = $1 AND state = 'waiting'
    ), here AS MATERIALIZED (
        SELECT placed.line FROM me CROSS JOIN LATERAL ("#,
    placed!("10000", "'-infinity'"),
    r#") placed
         WHERE me.line <> '' AND placed.pool = me.pool AND placed.tenant = me.tenant AND placed.line <> ''
    )
    SELECT (SELECT count(*) FROM (SELECT FROM harness_jobs o
                                   WHERE o.state = 'waiting' AND o.pool = me.pool AND o.lane = me.lane
                                     AND o.tenant COLLATE "C" = me.tenant AND o.line = me.line AND o.seq < me.seq
                                   LIMIT 1000) ahead),
           me.lane, k.key, coalesce(k.taken, t.taken), coalesce(k.most, t.most)
      FROM me
      LEFT JOIN LATERAL (
           SELECT l.key, l.most, c.taken
             FROM harness_limits l
            CROSS JOIN LATERAL (SELECT count(*) AS taken FROM here h
                                 WHERE l.key COLLATE "C" = ANY(string_to_array(h.line, ','))) c
            WHERE l.tenant = me.tenant AND l.key = ANY(string_to_array(me.line, ',')) AND c.taken >= l.most
            ORDER BY l.key LIMIT 1) k ON true
      LEFT JOIN LATERAL (
           SELECT n.max_running::bigint AS most, c.taken
             FROM harness_tenants n
            CROSS JOIN LATERAL (SELECT count(*) AS taken FROM ("#,
    placed!("10000", "'-infinity'"),
    r#") placed WHERE placed.tenant = me.tenant) c
            WHERE n.name = me.tenant AND n.max_running IS NOT NULL AND c.taken >= n.max_running) t ON true"#
);

impl Store {
    /// What explains where this job is; nothing where the ledger does not know it.
    pub async fn facts(&self, job_id: JobId) -> Result<Option<JobFacts>, StoreError> {
        let id = Uuid::from(job_id);
        // Live ones first: a job that ends in between is then found among the ended. One that leaves the inbox in between is
        // found when these are asked again. What is in the inbox comes behind: another tenant may have taken the same id there.
        let known = [("facts_live", LIVE), ("facts_ended", ENDED)];
        for (name, sql) in known.into_iter().chain([("facts_in_inbox", IN_INBOX)]).chain(known) {
            if let Some(row) = query(&self.pool, name, sql, &[&id]).await?.first() {
                let mut facts = read(row);
                if facts.state == JobState::Waiting {
                    let place = query(&self.pool, "facts_in_line", IN_LINE, &[&id]).await?;
                    facts.line = place.first().map(read_place);
                }
                return Ok(Some(facts));
            }
        }
        Ok(None)
    }
}

fn read_place(row: &Row) -> PlaceInLine {
    let taken: Option<i64> = row.get(3);
    PlaceInLine {
        ahead: row.get(0),
        lane: Lane::ALL.into_iter().find(|lane| lane.number() == row.get::<_, i16>(1)),
        held: taken.map(|taken| HeldBack { key: row.get(2), taken, most: row.get(4) }),
    }
}

fn read(row: &Row) -> JobFacts {
    let turn = row.get::<_, Option<Uuid>>(11).map(|_| Turn {
        job_id: read_job_id(row, 11),
        state: read_state(row, 12),
        since: read_millis(row, 13).unwrap_or_default(),
    });
    let (tenant, session) = SessionKey::split(row.get(8));
    JobFacts {
        state: read_state(row, 0),
        since: read_millis(row, 1).unwrap_or_default(),
        attempts: row.get(2),
        max_attempts: row.get(3),
        code: row.get(4),
        message: row.get(5),
        due_in: read_millis(row, 6),
        asked: row.get(7),
        session: session.into(),
        tenant,
        pool: row.get(9),
        ahead: row.get(10),
        turn,
        workers: row.get(14),
        draining: row.get(15),
        slots: row.get(16),
        busy: row.get(17),
        calls: row.get(19),
        redriven_as: row.get::<_, Option<Uuid>>(18).map(JobId::of_ledger),
        inbox: (row.len() > 20).then(|| InboxPlace { ahead: row.get(20), max_waiting: row.get(21) }),
        line: None,
    }
}
