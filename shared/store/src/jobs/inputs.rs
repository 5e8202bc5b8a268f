//! Inputs: what jobs ask of persons, and how an answer makes a job go on.
//!
//! Everything here happens under the session's lock, after looking for the input: so of a question and its answer, or of
//! an answer and the end of its time, each sees what the other has done. A call is answered once.

use std::time::Duration;

use job::{CallId, ClosedInput, Input, InputAnswer, InputKind, InputRequest, JobId, JobState, Json, Tenant};
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::cancel::CREATE_SESSIONS;
use super::claimed::Claim;
use crate::database::{LOCK_SESSIONS, Params, Tx, query, read_change, read_job_id, read_state};
use crate::{Store, StoreError};

/// The schema since which a worker gives a job its answers.
const KNOWN_SINCE: i64 = 22;
/// How long a job waits that asks while an older worker could get it: each time it runs again.
const OLDER_DELAY_S: i64 = 60;
/// How many open questions one look takes.
const AT_ONCE: i64 = 500;

/// Ends attempts with questions. A job waits if one of its questions has no answer yet, and else is due. An answer that
/// came before its question counts, if it is of the kind that was asked for. `$1` is the worker.
pub(super) const ASK: &str = "
    WITH incoming AS (
        SELECT * FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bigint[])
            AS t(job_id, epoch, call_id, kind, question, timeout_ms)
    ), asking AS MATERIALIZED (
        SELECT i.*, EXISTS (SELECT FROM harness_workers w
                             WHERE w.pool = j.pool AND w.state IN ('alive', 'draining')
                               AND coalesce(w.schema_version, 0) < $8) AS older
          FROM incoming i
         CROSS JOIN LATERAL (SELECT pool, epoch, worker_id FROM harness_jobs j WHERE j.job_id = i.job_id OFFSET 0) j
         WHERE j.epoch = i.epoch AND j.worker_id = $1
    ), asked AS (
        INSERT INTO harness_inputs AS h (job_id, call_id, kind, question, asked_at, expires_at)
        SELECT job_id, call_id, kind, question::json, now(), now() + timeout_ms * interval '1 millisecond'
          FROM asking WHERE NOT older
         ORDER BY job_id, call_id
        ON CONFLICT (job_id, call_id) DO UPDATE
           SET kind = excluded.kind, question = excluded.question, asked_at = coalesce(h.asked_at, now()),
               expires_at = excluded.expires_at,
               outcome = CASE WHEN h.kind = excluded.kind THEN h.outcome END,
               closed_at = CASE WHEN h.kind = excluded.kind THEN h.closed_at END,
               answer = CASE WHEN h.kind = excluded.kind THEN h.answer END,
               answered_by = CASE WHEN h.kind = excluded.kind THEN h.answered_by END
        RETURNING job_id, outcome IS NULL AS open
    )
    UPDATE harness_jobs j
       SET state = CASE WHEN EXISTS (SELECT FROM asked a WHERE a.job_id = j.job_id AND a.open)
                        THEN 'awaiting_input' ELSE 'scheduled' END,
           worker_id = NULL, state_since = now(),
           (due_at, failure) = (
               SELECT CASE WHEN older THEN now() + $9::bigint * interval '1 second' ELSE now() END,
                      CASE WHEN older THEN $10::text::json ELSE j.failure END
                 FROM asking a WHERE a.job_id = j.job_id LIMIT 1)
     WHERE job_id = ANY(ARRAY(SELECT job_id FROM asking))
    RETURNING job_id, state";

/// Why a job that asks is due again instead of waiting.
const OLDER_WORKER: &str = r#"{"code":"harness_error","message":"it asks a person, which waits until no worker of an older release serves its pool","retryable":true}"#;

/// Questions, as [`ASK`] takes them: one vector per column.
#[derive(Default)]
pub(super) struct Questions<'a> {
    jobs: Vec<Uuid>,
    epochs: Vec<i64>,
    calls: Vec<&'a str>,
    kinds: Vec<&'static str>,
    contents: Vec<&'a str>,
    timeouts: Vec<Option<i64>>,
}

impl<'a> Questions<'a> {
    pub(super) fn add(&mut self, claim: &Claim, requests: &'a [InputRequest]) {
        for request in requests {
            self.jobs.push(claim.job_id().into());
            self.epochs.push(claim.epoch());
            self.calls.push(request.call_id.as_str());
            self.kinds.push(request.kind.as_str());
            self.contents.push(request.content.as_str());
            self.timeouts.push(request.timeout.map(|timeout| timeout.as_millis() as i64));
        }
    }

    /// Returns the statement, if there are questions.
    pub(super) fn statement(&self) -> Option<&'static str> {
        (!self.jobs.is_empty()).then_some(ASK)
    }

    pub(super) fn params<'b>(&'b self, worker: &'b Uuid) -> [&'b (dyn ToSql + Sync); 10] {
        let Questions { jobs, epochs, calls, kinds, contents, timeouts } = self;
        [worker, jobs, epochs, calls, kinds, contents, timeouts, &KNOWN_SINCE, &OLDER_DELAY_S, &OLDER_WORKER]
    }
}

/// The closed inputs of a job `c`, as [`read_answers`] takes them. An answer without a question is not among them: its
/// call may still be asked.
macro_rules! answers_of {
    ($job:literal) => {
        concat!(
            "(SELECT json_agg(json_build_object('call_id', h.call_id, 'kind', h.kind, 'answer', h.answer,
                                                'timed_out', h.outcome = 'timed_out', 'by', h.answered_by) ORDER BY h.call_id)::text
                FROM harness_inputs h
               WHERE h.job_id = ",
            $job,
            " AND h.outcome IN ('answered', 'timed_out') AND h.asked_at IS NOT NULL)"
        )
    };
}
pub(crate) use answers_of;

/// Reads [`answers_of`]. A row that was changed by hand is left out.
pub(super) fn read_answers(text: Option<&str>) -> Vec<(CallId, ClosedInput)> {
    #[derive(Deserialize)]
    struct Closed {
        call_id: CallId,
        kind: InputKind,
        answer: Json,
        timed_out: bool,
        by: Option<String>,
    }
    let closed: Vec<Closed> = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let read = |Closed { call_id, kind, answer, timed_out, by }: Closed| {
        let answer = match kind {
            InputKind::Question => InputAnswer::Answer { answer },
            InputKind::Approval => InputAnswer::Approve { approve: answer.as_str() == "true" },
        };
        // An answer may be `null`.
        let answer = (!timed_out).then_some(answer);
        (call_id, ClosedInput { answer, by, timed_out })
    };
    closed.into_iter().map(read).collect()
}

/// A question that waits for its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenInput {
    /// The call.
    pub call_id: CallId,
    /// What kind of answer it takes.
    pub kind: InputKind,
    /// What the person is shown.
    pub question: Json,
    /// RFC 3339, UTC.
    pub asked_at: String,
    /// When the job goes on without an answer: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// The open questions of a job, as [`read_questions`] takes them.
macro_rules! questions_of {
    ($job:literal) => {
        concat!(
            "(SELECT json_agg(json_build_object('call_id', h.call_id, 'kind', h.kind, 'question', h.question,
                                                'asked_at', ",
            $crate::database::rfc3339!("h.asked_at"),
            ", 'expires_at', ",
            $crate::database::rfc3339!("h.expires_at"),
            ") ORDER BY h.asked_at, h.call_id)::text
                FROM harness_inputs h WHERE h.job_id = ",
            $job,
            " AND h.outcome IS NULL)"
        )
    };
}
pub(super) use questions_of;

/// Reads [`questions_of`].
pub(super) fn read_questions(row: &Row, column: usize) -> Vec<OpenInput> {
    let text: Option<&str> = row.get(column);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// What became of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// It counts. Says whether the job goes on with it, or waits for other answers.
    Counts {
        /// Whether the job is due now.
        due: bool,
    },
    /// It counts when its call is asked: the job has not asked it yet.
    Early,
    /// The call was answered before, or its time was over.
    Closed {
        /// Whether it was answered.
        answered: bool,
        /// Whether by the same answer of the same person: a repeat, which changes nothing.
        same: bool,
        /// By whom.
        by: Option<String>,
        /// When: RFC 3339, UTC.
        at: String,
    },
    /// The job waits for other calls.
    NotAsked {
        /// For these.
        open: Vec<String>,
    },
    /// The call takes an answer of another kind.
    WrongKind {
        /// Of this one.
        asked: InputKind,
    },
    /// The job has as many inputs as a job may have.
    TooMany,
    /// The job has ended.
    Ended(JobState),
    /// There is no such job.
    Unknown,
}

impl Answered {
    /// Whether the answer counts, by this call or by an earlier one that it repeats.
    pub fn counts(&self) -> bool {
        matches!(self, Answered::Counts { .. } | Answered::Early | Answered::Closed { same: true, .. })
    }

    /// Returns why the answer does not count: the field, and what is wrong with it.
    pub fn refused(&self, call_id: &CallId) -> Option<(&'static str, String)> {
        Some(match self {
            _ if self.counts() => return None,
            Answered::Counts { .. } | Answered::Early => return None,
            Answered::Closed { answered: true, by, at, .. } => {
                let by = by.as_deref().map(|by| format!(" by {}", job::shown(by))).unwrap_or_default();
                ("call_id", format!("call {call_id} is already answered{by}, at {at}; an answer counts once"))
            }
            Answered::Closed { at, .. } => {
                ("call_id", format!("too late: the time for an answer to call {call_id} was over at {at}"))
            }
            Answered::NotAsked { open } => (
                "call_id",
                format!("got {call_id}, which the job has not asked, expected one of {}", open.join(", ")),
            ),
            Answered::WrongKind { asked } => {
                let field = if *asked == InputKind::Approval { "answer" } else { "approve" };
                (field, format!("call {call_id} is of kind {asked}, expected {}", asked.expected()))
            }
            Answered::TooMany => {
                ("call_id", format!("the job has {} inputs, as many as a job may have", job::MAX_INPUTS))
            }
            Answered::Ended(state) => ("job_id", format!("the job has ended: {state}")),
            Answered::Unknown => ("job_id", "the ledger does not know the job".to_owned()),
        })
    }
}

const FIND_JOB: &str = "
    SELECT session_id FROM harness_jobs WHERE job_id = $1 AND session_id <> '' AND ($2::text IS NULL OR tenant = $2)";

const FIND_END: &str =
    "SELECT state FROM harness_results WHERE job_id = $1 AND ($2::text IS NULL OR tenant = $2)";

const ANSWER: &str = concat!(
    "
    WITH job AS MATERIALIZED (
        SELECT job_id, state FROM harness_jobs WHERE job_id = $1 FOR UPDATE
    ), there AS MATERIALIZED (
        SELECT kind, outcome, answered_by, ",
    crate::database::rfc3339!("closed_at"),
    " AS closed_at, answer::text = $4 AND answered_by IS NOT DISTINCT FROM $5 AS same
          FROM harness_inputs WHERE job_id = $1 AND call_id = $2
    ), open AS MATERIALIZED (
        SELECT call_id FROM harness_inputs WHERE job_id = $1 AND outcome IS NULL
    ), counted AS (
        UPDATE harness_inputs SET outcome = 'answered', closed_at = now(), answer = $4::text::json, answered_by = $5
         WHERE job_id = $1 AND call_id = $2 AND outcome IS NULL AND kind = $3 AND EXISTS (SELECT FROM job)
        RETURNING call_id
    ), early AS (
        INSERT INTO harness_inputs (job_id, call_id, kind, outcome, closed_at, answer, answered_by)
        SELECT job_id, $2, $3, 'answered', now(), $4::text::json, $5 FROM job
         WHERE state <> 'awaiting_input' AND NOT EXISTS (SELECT FROM there)
           AND (SELECT count(*) FROM harness_inputs WHERE job_id = $1) < $6
        RETURNING call_id
    ), due AS (
        UPDATE harness_jobs SET state = 'scheduled', due_at = now(), state_since = now()
         WHERE job_id = $1 AND state = 'awaiting_input' AND EXISTS (SELECT FROM counted)
           AND NOT EXISTS (SELECT FROM open WHERE call_id <> $2)
        RETURNING job_id, session_id
    )
    SELECT due.job_id, due.session_id, (SELECT state FROM job),
           EXISTS (SELECT FROM counted), EXISTS (SELECT FROM early),
           there.kind, there.outcome, there.answered_by, there.closed_at,
           ARRAY(SELECT call_id FROM open ORDER BY call_id), coalesce(there.same, false)
      FROM (SELECT 1) one LEFT JOIN there ON true LEFT JOIN due ON true"
);

/// An answer is not there to be read in a log.
const LOG_ANSWERED: &str = "
    INSERT INTO harness_audit_log (actor, act, tenant, detail)
    SELECT $1::text, 'call_answered', j.tenant,
           jsonb_build_object('job_id', j.job_id, 'call_id', i.call_id, 'by', i.answered_by)
      FROM harness_jobs j JOIN harness_inputs i ON i.job_id = j.job_id
     WHERE j.job_id = $2::uuid AND i.call_id = $3::text AND i.outcome = 'answered' AND i.closed_at = now()";

/// Jobs with a question whose time is over, and questions of jobs that are not there.
const FIND_LATE: &str = "
    SELECT i.job_id, (SELECT j.session_id FROM harness_jobs j WHERE j.job_id = i.job_id)
      FROM harness_inputs i WHERE i.outcome IS NULL AND i.expires_at <= now() ORDER BY i.expires_at LIMIT $1";

const TIME_OUT: &str = "
    WITH closed AS (
        UPDATE harness_inputs i
           SET outcome = CASE WHEN EXISTS (SELECT FROM harness_jobs j WHERE j.job_id = i.job_id)
                              THEN 'timed_out' ELSE 'job_ended' END,
               closed_at = now()
         WHERE job_id = ANY($1) AND outcome IS NULL AND expires_at <= now()
        RETURNING job_id
    )
    UPDATE harness_jobs j SET state = 'scheduled', due_at = now(), state_since = now()
     WHERE job_id = ANY($1) AND state = 'awaiting_input' AND job_id = ANY(ARRAY(SELECT job_id FROM closed))
       AND NOT EXISTS (SELECT FROM harness_inputs i
                        WHERE i.job_id = j.job_id AND i.outcome IS NULL AND coalesce(i.expires_at > now(), true))
    RETURNING job_id, session_id";

/// Closes questions of jobs that have ended: a binary of before questions ends a job and leaves them.
const CLOSE_LEFT: &str = "
    UPDATE harness_inputs i SET outcome = 'job_ended', closed_at = now()
     WHERE outcome IS NULL AND (SELECT j.job_id FROM harness_jobs j WHERE j.job_id = i.job_id) IS NULL";

/// `$1` is the oldest job id that may have a result.
const FORGET: &str = "
    DELETE FROM harness_inputs
     WHERE (job_id, call_id) IN (SELECT job_id, call_id FROM harness_inputs i
                                  WHERE job_id < $1 AND outcome IS NOT NULL
                                    AND (SELECT j.job_id FROM harness_jobs j WHERE j.job_id = i.job_id) IS NULL
                                  ORDER BY job_id LIMIT 10000)
    RETURNING job_id";

const AWAITING: &str = "
    SELECT count(*), coalesce(extract(epoch FROM now() - min(state_since)), 0)::float8
      FROM (SELECT state_since FROM harness_jobs WHERE state = 'awaiting_input' ORDER BY state_since LIMIT 10000) waiting";

impl Store {
    /// Answers a call of a job; with a tenant, only of that tenant's jobs. The answer that comes first counts. With an actor,
    /// the operators' log has it.
    pub async fn answer(
        &self,
        actor: Option<&str>,
        input: &Input,
        tenant: Option<&Tenant>,
    ) -> Result<Answered, StoreError> {
        let job_id = Uuid::from(input.job_id);
        let tenant = tenant.map(Tenant::as_str);
        let found = query(&self.pool, "find_asking", FIND_JOB, &[&job_id, &tenant]).await?;
        let Some(session) = found.first().map(|row| row.get::<_, String>(0)) else {
            let ended = query(&self.pool, "find_asked", FIND_END, &[&job_id, &tenant]).await?;
            return Ok(ended.first().map_or(Answered::Unknown, |row| Answered::Ended(read_state(row, 0))));
        };
        let Input { call_id, answer, by, .. } = input;
        let (jobs, sessions) = ([job_id], [session]);
        let (kind, text, most) = (answer.kind().as_str(), answer.json(), job::MAX_INPUTS as i64);
        let call_id = call_id.as_str();
        let statements = [CREATE_SESSIONS, LOCK_SESSIONS, ANSWER];
        let last = actor.map(|_| LOG_ANSWERED);
        let tx = Tx::prepare_more(&self.pool, "answer", statements, last).await?;
        let params: [&Params<'_>; 3] =
            [&[&jobs.as_slice()], &[&sessions.as_slice()], &[&job_id, &call_id, &kind, &text, by, &most]];
        let ([_, _, answered], _) = tx.run_more(params, &[&actor, &job_id, &call_id]).await?;
        let row = answered.first().expect("one row");
        let due = row.get::<_, Option<Uuid>>(0).is_some();
        if due {
            self.changes.note(|| [read_change(row, JobState::Scheduled)].into_iter());
        }
        if row.get::<_, Option<&str>>(2).is_none() {
            // It has ended since it was found.
            let ended = query(&self.pool, "find_asked", FIND_END, &[&job_id, &tenant]).await?;
            return Ok(ended.first().map_or(Answered::Unknown, |row| Answered::Ended(read_state(row, 0))));
        }
        Ok(read_answered(row, due))
    }

    /// Lets jobs go on whose questions nobody has answered in time, and returns them.
    pub async fn time_out_inputs(&self) -> Result<Vec<JobId>, StoreError> {
        let late = query(&self.pool, "find_late_inputs", FIND_LATE, &[&AT_ONCE]).await?;
        if late.is_empty() {
            return Ok(Vec::new());
        }
        let jobs: Vec<Uuid> = late.iter().map(|row| row.get(0)).collect();
        let sessions: Vec<String> = late.iter().filter_map(|row| row.get(1)).collect();
        let tx = Tx::prepare(&self.pool, "time_out_inputs", [LOCK_SESSIONS, TIME_OUT]).await?;
        let [_, due] = tx.run([&[&sessions], &[&jobs]]).await?;
        self.changes.note(|| due.iter().map(|row| read_change(row, JobState::Scheduled)));
        Ok(due.iter().map(|row| read_job_id(row, 0)).collect())
    }

    /// Closes the questions of jobs that have ended, and removes those whose results are gone.
    pub async fn forget_inputs(&self, retention: Duration) -> Result<(), StoreError> {
        query(&self.pool, "close_left_inputs", CLOSE_LEFT, &[]).await?;
        let now = self.clock().await?.now_unix_ms();
        let oldest_ms = now.saturating_sub(retention.as_millis() as u64);
        let oldest = Uuid::from_u128(u128::from(oldest_ms) << 80);
        while !query(&self.pool, "forget_inputs", FORGET, &[&oldest]).await?.is_empty() {}
        Ok(())
    }

    /// Returns how many jobs wait for a person, counted up to 10,000, and for how long the first of them has.
    pub async fn awaiting_input(&self) -> Result<(i64, Duration), StoreError> {
        let rows = query(&self.pool, "awaiting_input", AWAITING, &[]).await?;
        let row = rows.first().expect("one row");
        Ok((row.get(0), Duration::try_from_secs_f64(row.get(1)).unwrap_or_default()))
    }
}

/// Reads [`ANSWER`] of a job that is there.
fn read_answered(row: &Row, due: bool) -> Answered {
    let (counts, early): (bool, bool) = (row.get(3), row.get(4));
    match (row.get::<_, Option<&str>>(5), row.get::<_, Option<&str>>(6)) {
        _ if counts => Answered::Counts { due },
        _ if early => Answered::Early,
        (Some(_), Some(outcome)) => Answered::Closed {
            answered: outcome == "answered",
            same: row.get(10),
            by: row.get(7),
            at: row.get::<_, Option<String>>(8).unwrap_or_default(),
        },
        (Some(kind), None) => Answered::WrongKind { asked: kind.parse().unwrap_or_default() },
        (None, _) if row.get::<_, Option<&str>>(2) == Some(JobState::AwaitingInput.as_str()) => {
            Answered::NotAsked { open: row.get(9) }
        }
        (None, _) => Answered::TooMany,
    }
}
