//! Whose turn it is: admits the next jobs of some lines of a pool.

use std::collections::HashMap;
use std::time::Duration;

use deadpool_postgres::Pool;
use job::{JobId, JobState, Name, SessionKey};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::find::LinePlace;
use crate::database::{LOCK_LEADERSHIP, LOCK_SESSIONS, Params, Tx, leads, read_change, read_job_id};
use crate::jobs::{CREATE_SESSIONS_OF, DueJob};
use crate::{Leadership, Store, StoreError};

/// How many jobs of a line are to be admitted.
#[derive(Clone, Debug)]
pub struct LineTake {
    /// The line.
    pub place: LinePlace,
    /// How many, at most.
    pub most: u32,
}

/// A job that was looked at in its turn.
#[derive(Clone, Debug)]
pub struct AdmittedJob {
    /// Which of the lines it is of.
    pub line: usize,
    /// Its place.
    pub seq: i64,
    /// How long it has waited in the line.
    pub waited: Duration,
    /// Whether it has its turn. Otherwise another job of its session comes first.
    pub admitted: bool,
}

/// A job whose session another one works in, or has an earlier claim to.
#[derive(Clone, Debug)]
pub struct BusyJob {
    /// The job.
    pub job_id: JobId,
    /// The key of its session.
    pub session: SessionKey,
}

/// What was admitted.
#[derive(Clone, Debug, Default)]
pub struct Admitted {
    /// All that were looked at, by line and place.
    pub looked_at: Vec<AdmittedJob>,
    /// Those that are `publishing` now: the caller publishes them next.
    pub due: Vec<DueJob>,
    /// Those whose session seemed busy: [`Store::block`] looks again.
    pub busy: Vec<BusyJob>,
}

/// A job that asks its session to make room has its turn in any case: the worker that finds the session busy asks as
/// well. One that a busy session rejects has none there: who asks for jobs that wait ends it ([`Store::asking_in_line`]).
/// Row locks are never waited for: what another transaction has at this moment has its turn at the next look.
const ADMIT: &str = concat!(
    r#"
    WITH picked AS MATERIALIZED (
        SELECT j.*, g.turn
          FROM unnest($5::smallint[], $6::text[], $7::text[], $8::bigint[], $9::bigint[])
               WITH ORDINALITY AS g(lane, tenant, line, behind, most, turn)
         CROSS JOIN LATERAL (
               SELECT job_id, session_id, seq, epoch, state_since FROM harness_jobs j
                WHERE j.state = 'waiting' AND j.pool = $4 AND j.lane = g.lane AND j.tenant COLLATE "C" = g.tenant
                  AND j.line = g.line AND j.seq > g.behind
                ORDER BY j.seq LIMIT g.most FOR UPDATE SKIP LOCKED) j
         WHERE "#,
    leads!(),
    "
    ), standing AS MATERIALIZED (
        SELECT p.*,
               epoch > 0 OR ((SELECT o.job_id FROM harness_jobs o
                               WHERE o.session_id = p.session_id AND o.epoch > 0) IS NULL
                             AND (SELECT o.job_id FROM harness_jobs o
                                   WHERE o.session_id = p.session_id ORDER BY o.seq LIMIT 1) = p.job_id)
                         OR CASE coalesce((SELECT m.message ->> 'on_busy' FROM harness_jobs m WHERE m.job_id = p.job_id),
                                          'enqueue')
                            WHEN 'enqueue' THEN false
                            WHEN 'reject' THEN (SELECT o.job_id FROM harness_jobs o
                                                 WHERE o.session_id = p.session_id AND o.epoch > 0) IS NULL
                            ELSE true END AS free
          FROM picked p
    ), admitted AS (
        UPDATE harness_jobs SET state = 'publishing', state_since = now()
         WHERE job_id = ANY(ARRAY(SELECT job_id FROM standing WHERE free))
        RETURNING job_id, session_id, message::text
    )
    SELECT job_id, session_id, turn, seq, (extract(epoch FROM now() - state_since) * 1000000)::bigint, NULL FROM standing
     UNION ALL
    SELECT job_id, session_id, NULL, NULL, NULL, message FROM admitted"
);

/// Under their sessions' locks: what has another job of its session before it waits for that one's end. So do others of
/// these sessions in the line, up to a bound, in their order: a session with a long backlog would have one turn after the other
/// for nothing. Those before have been blocked already.
const BLOCK: &str = "
    WITH known AS (
        SELECT job_id, session_id, seq FROM harness_jobs
         WHERE job_id = ANY($1 || ARRAY(
               SELECT n.job_id
                 FROM unnest($1::uuid[], $2::text[]) AS b(job_id, session_id)
                CROSS JOIN LATERAL (
                      SELECT job_id FROM harness_jobs o
                       WHERE o.session_id = b.session_id AND o.state = 'waiting' AND o.epoch = 0
                         AND o.seq > (SELECT seq FROM harness_jobs WHERE job_id = b.job_id)
                       ORDER BY o.seq LIMIT 2000) n
                LIMIT 2000))
           AND state = 'waiting' AND epoch = 0 AND coalesce(message ->> 'on_busy', 'enqueue') = 'enqueue'
         ORDER BY job_id FOR UPDATE
    )
    UPDATE harness_jobs SET state = 'blocked', state_since = now()
     WHERE job_id = ANY(ARRAY(
           SELECT k.job_id FROM known k
            WHERE (SELECT o.job_id FROM harness_jobs o WHERE o.session_id = k.session_id AND o.epoch > 0) IS NOT NULL
               OR (SELECT o.job_id FROM harness_jobs o WHERE o.session_id = k.session_id ORDER BY o.seq LIMIT 1) <> k.job_id))
    RETURNING job_id, session_id";

/// Lines, one vector per column.
pub(super) struct PlaceColumns<'a> {
    lanes: Vec<i16>,
    tenants: Vec<&'a str>,
    lines: Vec<&'a str>,
    behind: Vec<i64>,
}

impl<'a> PlaceColumns<'a> {
    pub(super) fn of(places: impl Iterator<Item = &'a LinePlace> + Clone) -> PlaceColumns<'a> {
        PlaceColumns {
            lanes: places.clone().map(|place| place.lane).collect(),
            tenants: places.clone().map(|place| place.tenant.as_str()).collect(),
            lines: places.clone().map(|place| place.line.as_str()).collect(),
            behind: places.map(|place| place.behind).collect(),
        }
    }

    pub(super) fn params(&self) -> [&(dyn ToSql + Sync); 4] {
        let PlaceColumns { lanes, tenants, lines, behind } = self;
        [lanes, tenants, lines, behind]
    }
}

/// Runs a statement that counts only under this leadership, which it keeps in place until its end.
pub(super) async fn under(
    pool: &Pool,
    leadership: &Leadership,
    name: &'static str,
    sql: &str,
    more: &Params<'_>,
) -> Result<Vec<Row>, StoreError> {
    let Leadership { name: led, holder, epoch, .. } = leadership;
    let leads: [&(dyn ToSql + Sync); 3] = [led, holder, epoch];
    let params = [leads.as_slice(), more].concat();
    let [_, rows] = Tx::prepare(pool, name, [LOCK_LEADERSHIP, sql]).await?.run([&leads, &params]).await?;
    Ok(rows)
}

impl Store {
    /// Admits the next jobs of these lines of a pool, under this leadership; without it nothing changes. What cannot run
    /// because of its session stays where it is, and is returned.
    pub async fn admit(
        &self,
        leadership: &Leadership,
        pool: &Name,
        takes: &[LineTake],
    ) -> Result<Admitted, StoreError> {
        let columns = PlaceColumns::of(takes.iter().map(|take| &take.place));
        let most: Vec<i64> = takes.iter().map(|take| i64::from(take.most)).collect();
        let [lanes, tenants, lines, behind] = columns.params();
        let more: [&(dyn ToSql + Sync); 6] = [&pool.as_str(), lanes, tenants, lines, behind, &most];
        let rows = under(&self.pool, leadership, "admit", ADMIT, &more).await?;
        let (messages, mut looked_at): (Vec<Row>, Vec<Row>) =
            rows.into_iter().partition(|row| row.get::<_, Option<&str>>(5).is_some());
        self.changes.note(|| messages.iter().map(|row| read_change(row, JobState::Publishing)));
        let mut messages: HashMap<JobId, String> =
            messages.iter().map(|row| (read_job_id(row, 0), row.get(5))).collect();
        looked_at.sort_by_key(|row| (row.get::<_, i64>(2), row.get::<_, i64>(3)));
        let mut admitted = Admitted::default();
        for row in &looked_at {
            let job_id = read_job_id(row, 0);
            let message = messages.remove(&job_id);
            admitted.looked_at.push(AdmittedJob {
                line: usize::try_from(row.get::<_, i64>(2) - 1).unwrap_or(0),
                seq: row.get(3),
                waited: Duration::from_micros(row.get::<_, i64>(4).max(0).unsigned_abs()),
                admitted: message.is_some(),
            });
            match message {
                Some(message) => admitted.due.push(DueJob { job_id, pool: pool.clone(), message }),
                None => {
                    let session = SessionKey::of_ledger(row.get::<_, &str>(1));
                    admitted.busy.push(BusyJob { job_id, session });
                }
            }
        }
        Ok(admitted)
    }

    /// Makes jobs of the line that cannot run because of their session `blocked`, and others of the session with them: the end
    /// of the job before each releases it. Nothing happens to those that can run after all.
    pub async fn block(&self, busy: &[BusyJob]) -> Result<(), StoreError> {
        let (jobs, sessions): (Vec<Uuid>, Vec<&str>) =
            busy.iter().map(|job| (Uuid::from(job.job_id), job.session.as_str())).unzip();
        let tx = Tx::prepare(&self.pool, "block", [CREATE_SESSIONS_OF, LOCK_SESSIONS, BLOCK]).await?;
        let [_, _, blocked] = tx.run([&[&jobs], &[&sessions], &[&jobs, &sessions]]).await?;
        self.changes.note(|| blocked.iter().map(|row| read_change(row, JobState::Blocked)));
        Ok(())
    }
}
