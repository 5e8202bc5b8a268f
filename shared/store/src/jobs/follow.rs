//! What those who follow jobs and sessions are shown. One question covers all of them, however many they are.

use job::{JobId, JobState, Json, SessionKey, Usd};
use tokio_postgres::Row;
use uuid::Uuid;

use super::inputs::{OpenInput, questions_of, read_questions};
use super::labels::labels_of;
use super::status::{JobView, ended_columns, read_view};
use crate::database::{Params, queries, query, read_job_id, read_state, read_usd, rfc3339, uuids};
use crate::{Store, StoreError};

/// A job that has not ended.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveJob {
    /// The job.
    pub job_id: JobId,
    /// The key of its session.
    pub session: SessionKey,
    /// Its state.
    pub state: JobState,
    /// Attempts spent.
    pub attempts: i32,
    /// Whether a run of it has begun. Before that there are no checkpoints of it.
    pub begun: bool,
    /// The code of the last failure.
    pub code: Option<String>,
    /// What it asks persons, while it waits for their answers.
    pub questions: Vec<OpenInput>,
}

/// A place among a session's checkpoints: behind this one, in the order of epoch and ordinal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepPlace {
    /// The run.
    pub epoch: i64,
    /// The checkpoint of the run.
    pub ordinal: i32,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Where it is among the session's checkpoints.
    pub place: StepPlace,
    /// The job that wrote it.
    pub job_id: JobId,
    /// Iterations it finished.
    pub iterations: i64,
    /// What it cost.
    pub cost: Usd,
    /// Tokens read.
    pub input_tokens: i64,
    /// Tokens written.
    pub output_tokens: i64,
    /// What it changed in the session's progress: a JSON merge patch. `None` if nothing, or if it is large.
    pub progress: Option<Json>,
}

/// Whose checkpoints are wanted, and behind which one.
#[derive(Clone, Debug)]
pub struct StepsOf {
    /// The session.
    pub session: SessionKey,
    /// This job's alone.
    pub job_id: Option<JobId>,
    /// Those behind this place.
    pub behind: StepPlace,
}

/// The next checkpoints of one [`StepsOf`].
#[derive(Clone, Debug, Default)]
pub struct Steps {
    /// In order.
    pub steps: Vec<Step>,
    /// Whether more were left, because they would have been too many bytes.
    pub is_more: bool,
}

/// A session's jobs that have not ended.
#[derive(Clone, Debug)]
pub struct LiveSession {
    /// The key of the session.
    pub session: SessionKey,
    /// A number that each end of one of its jobs raises; 0 before the first job was claimed.
    pub version: i64,
    /// The first hundred of its live jobs, in their order.
    pub live: Vec<LiveJob>,
}

/// A job that has ended.
#[derive(Clone, Debug)]
pub struct EndedJob {
    /// The job.
    pub job_id: JobId,
    /// The key of its session.
    pub session: SessionKey,
    /// Its last run; 0 if it has never run.
    pub epoch: i64,
    /// When its first run began, in milliseconds of the Unix epoch.
    pub started_ms: Option<i64>,
    /// When it ended, in milliseconds of the Unix epoch.
    pub finished_ms: i64,
    /// Bytes, about: what is stored, or eight times as much where that is compressed.
    pub bytes: i64,
    /// The job as it is read; `None` if it did not fit.
    pub view: Option<JobView>,
}

/// What one question finds.
#[derive(Clone, Debug, Default)]
pub struct LiveAndEnded {
    /// Jobs that have not ended.
    pub live: Vec<LiveJob>,
    /// Sessions, with their live jobs.
    pub sessions: Vec<LiveSession>,
    /// Jobs that have ended, in the order asked for.
    pub ended: Vec<EndedJob>,
}

/// Live jobs of one session, and checkpoints of one [`StepsOf`], that are read at a time.
pub const STEPS: usize = 100;

const LIVE: &str = concat!(
    "
    SELECT j.job_id, j.session_id, j.state, j.attempts, j.epoch > 0, j.failure ->> 'code', CASE WHEN j.state = 'awaiting_input' THEN ",
    questions_of!("j.job_id"),
    " END
      FROM unnest($1::uuid[]) AS t(job_id)
     CROSS JOIN LATERAL (SELECT * FROM harness_jobs j WHERE j.job_id = t.job_id OFFSET 0) j"
);

/// A session without live jobs has one row. Each end of a job raises its session's version, and both are of one snapshot.
const LIVE_OF: &str = concat!(
    "
    SELECT j.job_id, j.session_id, j.state, j.attempts, j.epoch > 0, j.failure ->> 'code', CASE WHEN j.state = 'awaiting_input' THEN ",
    questions_of!("j.job_id"),
    " END, t.session_id, s.version
      FROM unnest($1::text[]) AS t(session_id)
      LEFT JOIN LATERAL (SELECT version FROM harness_sessions s WHERE s.session_id = t.session_id OFFSET 0) s ON true
      LEFT JOIN LATERAL (SELECT * FROM harness_jobs j WHERE j.session_id = t.session_id
                          ORDER BY j.seq LIMIT 100) j ON true"
);

/// A session's results are compared and ordered as pairs, so that only the index on (session_id, job_id) serves. A plan of
/// an empty partition could otherwise go by the primary key, and would walk over the results of all sessions.
const ENDED_SINCE: &str = "
    SELECT t.ordinality, count(*),
           coalesce(array_agg(r.job_id) FILTER (WHERE r.finished_at >= to_timestamp(t.since_ms / 1000)), '{}')
      FROM unnest($1::text[], $2::float8[]) WITH ORDINALITY AS t(session_id, since_ms, ordinality)
     CROSS JOIN LATERAL (SELECT job_id, finished_at FROM harness_results r
                          WHERE (r.session_id, r.job_id) <= (t.session_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
                            AND r.session_id >= t.session_id
                          ORDER BY r.session_id DESC, r.job_id DESC LIMIT $3) r
     GROUP BY t.ordinality";

/// An end's size is what is stored, or eight times as much where that is compressed. No output is read that does not fit:
/// what is large is stored elsewhere, and its size with the row. The first one always fits.
const ENDED_WITHIN: &str = concat!(
    "SELECT ",
    ended_columns!("r.fits"),
    ", r.fits, r.bytes, r.epoch, (extract(epoch FROM r.started_at) * 1000)::bigint,
       (extract(epoch FROM r.finished_at) * 1000)::bigint
  FROM (
       SELECT r.*, sum(r.bytes) OVER w <= $2::bigint AND row_number() OVER w <= $3::bigint
                OR row_number() OVER w = 1 AS fits
         FROM (
              SELECT r.*, t.ordinality,
                     coalesce(pg_column_size(r.output)
                                * CASE WHEN pg_column_compression(r.output) IS NULL THEN 1 ELSE 8 END, 0)::bigint
                       + coalesce(pg_column_size(r.failure), 0) + 512 AS bytes
                FROM unnest($1::uuid[]) WITH ORDINALITY AS t(job_id, ordinality)
               CROSS JOIN LATERAL (SELECT * FROM harness_results r WHERE r.job_id = t.job_id OFFSET 0) r) r
       WINDOW w AS (ORDER BY r.ordinality ROWS UNBOUNDED PRECEDING)) r"
);

/// The row comparison is a range of the primary key. Nothing of a checkpoint is read that does not fit. A topic of which
/// nothing fits has its first checkpoint as a row, which says so.
const STEPS_BEHIND: &str = "
    SELECT ordinality, job_id, epoch, ordinal, iterations, cost_microusd, input_tokens, output_tokens,
           CASE WHEN fits AND length((delta -> 'feature_progress')::text) <= 16384
                THEN (delta -> 'feature_progress')::text END,
           fits, count
      FROM (
           SELECT t.ordinality, c.job_id, c.epoch, c.ordinal, c.iterations, c.cost_microusd, c.input_tokens,
                  c.output_tokens, c.delta,
                  sum(c.bytes) OVER (ORDER BY t.ordinality, c.epoch, c.ordinal) - c.bytes < $5::bigint AS fits,
                  row_number() OVER (PARTITION BY t.ordinality ORDER BY c.epoch, c.ordinal) = 1 AS is_first,
                  count(*) OVER (PARTITION BY t.ordinality) AS count
             FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::int[])
             WITH ORDINALITY AS t(session_id, job_id, epoch, ordinal, ordinality)
            CROSS JOIN LATERAL (
                  SELECT c.*, pg_column_size(c.delta) AS bytes FROM harness_checkpoints c
                   WHERE c.session_id = t.session_id AND (c.epoch, c.ordinal) > (t.epoch, t.ordinal)
                     AND (t.job_id IS NULL OR c.job_id = t.job_id)
                   ORDER BY c.epoch, c.ordinal LIMIT 100) c) c
     WHERE fits OR is_first
     ORDER BY ordinality, epoch, ordinal";

/// A session has no row before its first job is claimed.
const LAST_PLACE: &str = "
    SELECT c.epoch, c.ordinal
      FROM (SELECT WHERE EXISTS (SELECT FROM harness_sessions WHERE session_id = $1)
                      OR EXISTS (SELECT FROM harness_jobs WHERE session_id = $1)) there
      LEFT JOIN LATERAL (SELECT epoch, ordinal FROM harness_checkpoints WHERE session_id = $1
                          ORDER BY epoch DESC, ordinal DESC LIMIT 1) c ON true";

impl StepPlace {
    /// Before the first checkpoint.
    pub const START: StepPlace = StepPlace { epoch: 0, ordinal: -1 };
    /// Behind the last one, whatever comes.
    pub const END: StepPlace = StepPlace { epoch: i64::MAX, ordinal: i32::MAX };
}

impl Store {
    /// Returns those of these jobs that have not ended, each of these sessions with its live jobs, and those of `ended` that
    /// have ended, all in one round trip. Of the last it reads as many as fit into so many bytes; the first one is always
    /// read. One that ends meanwhile may be both live and ended, and is never neither.
    pub async fn live_and_ended(
        &self,
        jobs: &[JobId],
        sessions: &[SessionKey],
        ended: &[JobId],
        bytes: i64,
        count: i64,
    ) -> Result<LiveAndEnded, StoreError> {
        let (live, sessions, ended) = (uuids(jobs), texts(sessions), uuids(ended));
        let all: [(&str, bool, &Params<'_>); 3] = [
            (LIVE, live.is_empty(), &[&live]),
            (LIVE_OF, sessions.is_empty(), &[&sessions]),
            (ENDED_WITHIN, ended.is_empty(), &[&ended, &bytes, &count]),
        ];
        // Each statement has a snapshot of its own, later than the one before it.
        let steps: Vec<(&str, &Params<'_>)> =
            all.iter().filter(|(_, is_empty, _)| !is_empty).map(|(sql, _, params)| (*sql, *params)).collect();
        if steps.is_empty() {
            return Ok(LiveAndEnded::default());
        }
        let mut answers = queries(&self.pool, "live_and_ended", &steps).await?.into_iter();
        let [live, sessions, ended] = all
            .map(|(_, is_empty, _)| if is_empty { Vec::new() } else { answers.next().unwrap_or_default() });
        Ok(LiveAndEnded {
            live: live.iter().map(read_live).collect(),
            sessions: read_sessions(&sessions),
            ended: ended.iter().map(read_ended).collect(),
        })
    }

    /// Returns for each of these sessions, in the same order, its jobs that have ended since a time (in milliseconds of the
    /// Unix epoch), and whether it may have more of them: so many of its results are looked at, by job id, the newest first.
    /// An old id may have ended last.
    pub async fn ended_since(
        &self,
        sessions: &[(SessionKey, i64)],
        most: i64,
    ) -> Result<Vec<(Vec<JobId>, bool)>, StoreError> {
        let keys: Vec<&str> = sessions.iter().map(|(key, _)| key.as_str()).collect();
        let since: Vec<f64> = sessions.iter().map(|(_, since)| *since as f64).collect();
        let rows = query(&self.pool, "ended_since", ENDED_SINCE, &[&keys, &since, &most]).await?;
        let mut found = vec![(Vec::new(), false); sessions.len()];
        for row in &rows {
            // The ordinality counts from 1.
            let at = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or_default();
            let Some(found) = found.get_mut(at) else { continue };
            let ended = row.get::<_, Vec<Uuid>>(2).into_iter().map(JobId::of_ledger).collect();
            *found = (ended, row.get::<_, i64>(1) >= most);
        }
        Ok(found)
    }

    /// Returns those of these jobs that have ended, in the order asked for, and reads as many as fit into so many bytes; the
    /// first one is always read.
    pub async fn ended_jobs(
        &self,
        jobs: &[JobId],
        bytes: i64,
        count: i64,
    ) -> Result<Vec<EndedJob>, StoreError> {
        let params: &Params<'_> = &[&uuids(jobs), &bytes, &count];
        let rows = query(&self.pool, "ended_jobs", ENDED_WITHIN, params).await?;
        Ok(rows.iter().map(read_ended).collect())
    }

    /// Returns the next hundred checkpoints of each of these, in the same order, but no more than so many bytes of all
    /// together, as they are stored; the first one is always returned. Those of a job that has ended are there until its
    /// session is folded.
    pub async fn steps(&self, of: &[StepsOf], bytes: i64) -> Result<Vec<Steps>, StoreError> {
        let sessions: Vec<&str> = of.iter().map(|of| of.session.as_str()).collect();
        let jobs: Vec<Option<Uuid>> = of.iter().map(|of| of.job_id.map(Uuid::from)).collect();
        let epochs: Vec<i64> = of.iter().map(|of| of.behind.epoch).collect();
        let ordinals: Vec<i32> = of.iter().map(|of| of.behind.ordinal).collect();
        let params: &Params<'_> = &[&sessions, &jobs, &epochs, &ordinals, &bytes];
        let rows = query(&self.pool, "steps", STEPS_BEHIND, params).await?;
        let mut found = vec![Steps::default(); of.len()];
        for row in &rows {
            // The ordinality counts from 1.
            let at = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or_default();
            let Some(found) = found.get_mut(at) else { continue };
            if row.get(9) {
                found.steps.push(read_step(row));
            }
            found.is_more = (found.steps.len() as i64) < row.get(10);
        }
        Ok(found)
    }

    /// Returns the place of the last checkpoint of a session; `None` if there is neither a session of this key nor a
    /// live job that will make one.
    pub async fn last_place(&self, session: &SessionKey) -> Result<Option<StepPlace>, StoreError> {
        let rows = query(&self.pool, "last_place", LAST_PLACE, &[&session.as_str()]).await?;
        let place = |row: &Row| {
            let start = StepPlace::START;
            StepPlace {
                epoch: row.get::<_, Option<i64>>(0).unwrap_or(start.epoch),
                ordinal: row.get::<_, Option<i32>>(1).unwrap_or(start.ordinal),
            }
        };
        Ok(rows.first().map(place))
    }
}

fn texts(sessions: &[SessionKey]) -> Vec<&str> {
    sessions.iter().map(SessionKey::as_str).collect()
}

fn read_live(row: &Row) -> LiveJob {
    LiveJob {
        job_id: read_job_id(row, 0),
        session: SessionKey::of_ledger(row.get::<_, String>(1)),
        state: read_state(row, 2),
        attempts: row.get(3),
        begun: row.get(4),
        code: row.get(5),
        questions: read_questions(row, 6),
    }
}

fn read_sessions(rows: &[Row]) -> Vec<LiveSession> {
    let mut found: Vec<LiveSession> = Vec::new();
    for row in rows {
        let key: &str = row.get(7);
        if found.last().is_none_or(|last| last.session.as_str() != key) {
            let version = row.get::<_, Option<i64>>(8).unwrap_or(0);
            found.push(LiveSession { session: SessionKey::of_ledger(key), version, live: Vec::new() });
        }
        if let Some(last) = found.last_mut()
            && row.get::<_, Option<Uuid>>(0).is_some()
        {
            last.live.push(read_live(row));
        }
    }
    found
}

fn read_ended(row: &Row) -> EndedJob {
    EndedJob {
        job_id: read_job_id(row, 0),
        session: SessionKey::of_ledger(row.get::<_, &str>(1)),
        view: row.get::<_, bool>(19).then(|| read_view(row)),
        bytes: row.get(20),
        epoch: row.get(21),
        started_ms: row.get(22),
        finished_ms: row.get(23),
    }
}

fn read_step(row: &Row) -> Step {
    let progress: Option<&str> = row.get(8);
    Step {
        job_id: read_job_id(row, 1),
        place: StepPlace { epoch: row.get(2), ordinal: row.get(3) },
        iterations: row.get(4),
        cost: read_usd(row, 5),
        input_tokens: row.get(6),
        output_tokens: row.get(7),
        progress: progress.and_then(|text| Json::parse(text).ok()),
    }
}
