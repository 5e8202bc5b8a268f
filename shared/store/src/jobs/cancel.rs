//! What is asked of jobs from outside: to end, or to make room. They need not be running.
//!
//! A waiting job is ended here, in one transaction under its session's lock. A running job is only asked to
//! stop: its worker sees that within a second ([`Store::asked`]), stops the job and concludes it. If the
//! worker dies first, or the job goes into another attempt, [`Store::unwanted`] returns the cancelled job,
//! and the caller ends it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use job::{Failure, FailureCode, JobId, JobSpec, JobState, Name, OnBusy, SessionKey};
use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::accept::DROP_ENDED;
use super::blobs::KEEP_BLOBS;
use super::claim::READ_ANSWERS;
use super::columns::no_place;
use super::next::NEXT;
use crate::access::jobs_logged;
use crate::database::{LOCK_SESSIONS, Params, Tx, query, read_change, read_ids, read_job_id, uuids};
use crate::webhooks::deliveries;
use crate::{Store, StoreError};

/// What is asked of a running job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To end.
    Cancel,
    /// To end at its next checkpoint: a later job of its session wants its place.
    Interrupt,
    /// To end now and leave nothing in its session: a later job of the session wants its place.
    Rollback,
}

/// Why a job that no worker runs ends. A reason applies only to the jobs of which it is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwanted<'a> {
    /// It was cancelled.
    Cancelled,
    /// Its deadline has passed.
    Overdue,
    /// Its session is busy, and it does not want to wait.
    Rejected,
    /// It waits for a person, and a later job of its session takes its place. What it did stays.
    Interrupted,
    /// As [`Unwanted::Interrupted`], but what it did is undone.
    RolledBack,
    /// Its message was given up before a worker took it.
    DeadLettered {
        /// The pool in whose queue the message was. A message in another pool's queue is not the job's.
        pool: &'a Name,
        /// The message's body. A message that only carries the job's id is not the job's, either.
        body: &'a [u8],
        /// Why, for people.
        reason: &'a str,
    },
    /// They were enqueued by SQL, and are no jobs: see [`Store::end_unstarted`]. With what is wrong with each.
    Invalid(&'a [(JobId, String)]),
    /// They were enqueued by SQL, and another job holds the key of each.
    KeyHeld(&'a [(JobId, String)]),
}

/// What became of a job that was to be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// This call ended it.
    Now,
    /// A worker runs it, and has been asked to stop it.
    Stopping,
    /// The ledger did not know it. Its end is recorded, so that its message finds it. It may never have been
    /// a job.
    Unseen,
    /// It had ended before.
    Before(JobState),
}

/// A job that ended without a worker.
#[derive(Clone, Debug)]
pub struct EndedWaiting {
    /// The job.
    pub job_id: JobId,
    /// Its envelope, for the reply.
    pub message: String,
}

impl Ask {
    /// What a job asks of the one that runs in its session, or waits there for a person.
    pub fn of(spec: &JobSpec) -> Option<Ask> {
        match spec.on_busy {
            OnBusy::Interrupt => Some(Ask::Interrupt),
            OnBusy::Rollback => Some(Ask::Rollback),
            OnBusy::Enqueue | OnBusy::Reject => None,
        }
    }

    /// Parses the word that the table uses.
    pub(crate) fn parse(text: &str) -> Option<Ask> {
        [Ask::Cancel, Ask::Interrupt, Ask::Rollback].into_iter().find(|ask| ask.as_str() == text)
    }

    fn as_str(self) -> &'static str {
        match self {
            Ask::Cancel => "cancel",
            Ask::Interrupt => "interrupt",
            Ask::Rollback => "rollback",
        }
    }
}

impl<'a> Unwanted<'a> {
    /// Returns the word that the statements use.
    fn as_str(self) -> &'static str {
        match self {
            Unwanted::Cancelled => "cancelled",
            Unwanted::Overdue => "overdue",
            Unwanted::Rejected => "rejected",
            Unwanted::Interrupted => "interrupt",
            Unwanted::RolledBack => "rollback",
            Unwanted::DeadLettered { .. } => "dead_lettered",
            Unwanted::Invalid(_) | Unwanted::KeyHeld(_) => "unstarted",
        }
    }

    /// Returns the pool and the body of the message that was given up.
    fn dead_letter(self) -> Option<(String, &'a [u8])> {
        match self {
            Unwanted::DeadLettered { pool, body, .. } => Some((pool.to_string(), body)),
            Unwanted::Cancelled
            | Unwanted::Overdue
            | Unwanted::Rejected
            | Unwanted::Interrupted
            | Unwanted::RolledBack
            | Unwanted::Invalid(_)
            | Unwanted::KeyHeld(_) => None,
        }
    }

    /// Returns the state, and the failure as JSON: one for all jobs, or an object that has each job's.
    fn end(self) -> (JobState, String) {
        let each = |code, reasons: &[(JobId, String)]| {
            let failure =
                |(job, reason): &(JobId, String)| (job.to_string(), Failure::permanent(code, reason));
            json(&reasons.iter().map(failure).collect::<BTreeMap<_, _>>())
        };
        let (state, code, message) = match self {
            Unwanted::Cancelled => (JobState::Cancelled, FailureCode::Cancelled, "cancelled while it waited"),
            Unwanted::Overdue => {
                (JobState::Failed, FailureCode::DeadlineExceeded, "its deadline_ms was over while it waited")
            }
            Unwanted::Rejected => (
                JobState::Failed,
                FailureCode::SessionBusy,
                "its session was busy, and its on_busy is \"reject\"",
            ),
            Unwanted::Interrupted => (
                JobState::Cancelled,
                FailureCode::Interrupted,
                "a later job of the session took its place while it waited for an answer; what it did stays",
            ),
            Unwanted::RolledBack => (
                JobState::Cancelled,
                FailureCode::Interrupted,
                "a later job of the session took its place while it waited for an answer; what it did is undone",
            ),
            Unwanted::DeadLettered { reason, .. } => (JobState::Failed, FailureCode::DeadLettered, reason),
            Unwanted::Invalid(reasons) => return (JobState::Failed, each(FailureCode::Invalid, reasons)),
            Unwanted::KeyHeld(reasons) => {
                return (JobState::Cancelled, each(FailureCode::Cancelled, reasons));
            }
        };
        (state, json(&Failure::permanent(code, message)))
    }
}

fn json(failures: &impl Serialize) -> String {
    serde_json::to_string(failures).expect("a failure is plain text")
}

/// Gives jobs that were never seen a row to end in, so that their message finds an end when it comes.
const FORESTALL: &str = "
    INSERT INTO harness_jobs (job_id, session_id, agent_id, pool, message, state, due_at, asked)
    SELECT job_id, '', '', '', '{}', 'scheduled', 'infinity', 'cancel' FROM unnest($1::uuid[]) AS t(job_id)
     ORDER BY job_id
    ON CONFLICT DO NOTHING
    RETURNING job_id";

/// Selects the transactions that are writing jobs at this moment.
const WRITERS: &str = "
    SELECT DISTINCT virtualtransaction FROM pg_locks
     WHERE locktype = 'relation' AND relation = 'harness_jobs'::regclass AND mode = 'RowExclusiveLock' AND granted
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()
       AND ($1::text[] IS NULL OR virtualtransaction = ANY($1))";

/// Longer than any of our transactions takes.
const WRITERS_BOUND: Duration = Duration::from_secs(30);
const WRITERS_POLL: Duration = Duration::from_millis(5);

const READ_SESSIONS: &str = "SELECT DISTINCT session_id FROM harness_jobs WHERE job_id = ANY($1)";

/// Creates sessions, so that there is a row to lock and to count the end in.
pub(crate) const CREATE_SESSIONS: &str = "
    INSERT INTO harness_sessions (session_id, tenant, agent_id, user_id)
    SELECT session_id, min(tenant), min(agent_id), min(user_id) FROM harness_jobs
     WHERE job_id = ANY($1) AND session_id <> ''
     GROUP BY session_id ORDER BY session_id
    ON CONFLICT DO NOTHING";

const ASK_RUNNING: &str = "
    UPDATE harness_jobs SET asked = 'cancel'
     WHERE job_id = ANY(ARRAY(
           SELECT job_id FROM harness_jobs WHERE job_id = ANY($1) AND state = 'running' AND $2 = 'cancelled'
            ORDER BY job_id FOR UPDATE))
       AND asked IS DISTINCT FROM 'cancel'";

/// Those that this transaction has asked to stop, and those that it has ended. What was cancelled before it was seen is in the
/// log by [`LOG_FORESTALLED`].
const LOG_CANCELLED: &str = jobs_logged!(
    "jobs_cancelled",
    "",
    "SELECT tenant, job_id FROM harness_jobs
      WHERE job_id = ANY($2::uuid[]) AND asked = 'cancel' AND xmin = pg_current_xact_id()::xid
      UNION
     SELECT r.tenant, r.job_id
       FROM unnest($2::uuid[]) AS t(job_id)
      CROSS JOIN LATERAL (SELECT tenant, job_id FROM harness_results r
                           WHERE r.job_id = t.job_id AND r.finished_at = now() AND r.session_id <> '' OFFSET 0) r"
);

/// Nobody knows yet whose they are.
const LOG_FORESTALLED: &str = jobs_logged!(
    "jobs_cancelled",
    ", 'seen', false",
    "SELECT NULL::text AS tenant, job_id FROM harness_jobs
      WHERE job_id = ANY($2::uuid[]) AND session_id = '' AND xmin = pg_current_xact_id()::xid"
);

/// A job depends on its message from its publish to its claim. A scheduled job waits for a message that is
/// yet to be published, so a dead letter ends it only if it has never begun: only then can the message to
/// come be its second one, because the first was believed lost. One that is not due yet needs no message. What is published is the row's message, byte
/// for byte, so a message with another body is not the job's.
///
/// A rollback moves the job's checkpoints to the history, as undone, and leaves the session what they have used: as its
/// worker does if the job runs. If the session was folded within the job's run, it gets the state before the job again.
/// The update of the history asks for the reason itself: so Postgres reads nothing of it for any other.
const END_WAITING: &str = concat!(
    "
    WITH waiting AS (
        SELECT job_id FROM harness_jobs
         WHERE job_id = ANY($1) AND state <> 'running'
           AND CASE $2 WHEN 'cancelled' THEN true
                       WHEN 'overdue' THEN deadline_at <= now()
                       WHEN 'rejected' THEN state = 'blocked' OR (state = 'waiting' AND epoch = 0 AND (
                            SELECT o.job_id FROM harness_jobs o
                             WHERE o.session_id = harness_jobs.session_id AND o.epoch > 0) IS NOT NULL)
                       WHEN 'interrupt' THEN state = 'awaiting_input' AND asked = $2
                       WHEN 'rollback' THEN state = 'awaiting_input' AND asked = $2
                       WHEN 'unstarted' THEN state = 'scheduled' AND epoch = 0 AND due_at = 'infinity' AND session_id <> ''
                       WHEN 'dead_lettered' THEN pool = $5 AND asked IS DISTINCT FROM 'cancel'
                        AND convert_to(message::text, 'UTF8') = $6
                        AND (state IN ('publishing', 'queued')
                             OR (state = 'scheduled' AND epoch = 0 AND seq < ",
    no_place!(),
    ")) END
         ORDER BY job_id FOR UPDATE
    ), ended AS (
        DELETE FROM harness_jobs WHERE job_id = ANY(ARRAY(SELECT job_id FROM waiting)) RETURNING *
    ), results AS (
        INSERT INTO harness_results
               (job_id, tenant, session_id, agent_id, user_id, pool, state, attempts, failure, iterations,
                cost_microusd, input_tokens, output_tokens, epoch, accepted_at, started_at, message, trace_id)
        SELECT e.job_id, tenant, session_id, agent_id, user_id, pool, $3, attempts,
               CASE $2 WHEN 'unstarted' THEN $4::text::json -> e.job_id::text ELSE $4::text::json END,
               c.iterations + coalesce(folded_iterations, 0), c.cost + coalesce(folded_cost_microusd, 0),
               c.tokens_in + coalesce(folded_input_tokens, 0), c.tokens_out + coalesce(folded_output_tokens, 0),
               epoch, accepted_at, started_at, message, trace_id
          FROM ended e CROSS JOIN LATERAL (
               SELECT coalesce(sum(iterations), 0) AS iterations, coalesce(sum(cost_microusd), 0) AS cost,
                      coalesce(sum(input_tokens), 0) AS tokens_in, coalesce(sum(output_tokens), 0) AS tokens_out
                 FROM harness_checkpoints c WHERE c.session_id = e.session_id AND c.job_id = e.job_id) c
    ), ",
    deliveries!("ended", "$3"),
    ", closed AS (
        UPDATE harness_inputs SET outcome = 'job_ended', closed_at = now()
         WHERE job_id = ANY(ARRAY(SELECT job_id FROM ended)) AND outcome IS NULL
    ), undone AS (
        DELETE FROM harness_checkpoints c
         WHERE $2 = 'rollback' AND session_id = ANY(ARRAY(SELECT session_id FROM ended))
           AND job_id = ANY(ARRAY(SELECT job_id FROM ended))
        RETURNING *
    ), kept AS (
        INSERT INTO harness_history
               (session_id, epoch, ordinal, folded_by, job_id, iterations, cost_microusd, input_tokens, output_tokens,
                replaces, undone, context_json, blobs, created_at)
        SELECT session_id, epoch, ordinal, job_id, job_id, iterations, cost_microusd, input_tokens, output_tokens,
               coalesce((delta -> 'replace_context')::boolean, false), true,
               coalesce(context_json, (delta -> 'context_window')::json), blobs, created_at
          FROM undone
    ), goes_back AS MATERIALIZED (
        SELECT * FROM ended WHERE $2 = 'rollback' AND folded_epoch IS NOT NULL
    ), undone_before AS (
        UPDATE harness_history h SET undone = true
          FROM goes_back e
         WHERE $2 = 'rollback' AND h.session_id = e.session_id AND h.folded_by = e.job_id AND h.job_id = e.job_id
    ), used AS (
        SELECT session_id, sum(iterations)::bigint AS iterations, sum(cost_microusd)::bigint AS cost,
               sum(input_tokens)::bigint AS tokens_in, sum(output_tokens)::bigint AS tokens_out
          FROM undone GROUP BY session_id
    ), counted AS (
        UPDATE harness_sessions s
           SET last_updated = now(), version = s.version + e.ends,
               iteration_count = s.iteration_count + coalesce(u.iterations, 0),
               cost_microusd = s.cost_microusd + coalesce(u.cost, 0),
               input_tokens = s.input_tokens + coalesce(u.tokens_in, 0),
               output_tokens = s.output_tokens + coalesce(u.tokens_out, 0),
               memory = CASE WHEN b.job_id IS NULL THEN s.memory ELSE b.before_memory END,
               context_window = CASE WHEN b.job_id IS NULL THEN s.context_window END,
               context_json = CASE WHEN b.job_id IS NULL THEN s.context_json ELSE b.before_context END,
               blobs = CASE WHEN b.job_id IS NULL THEN s.blobs ELSE b.before_blobs END,
               feature_progress = CASE WHEN b.job_id IS NULL THEN s.feature_progress ELSE b.before_progress END
          FROM (SELECT session_id, count(*) AS ends FROM ended GROUP BY session_id) e
          LEFT JOIN used u ON u.session_id = e.session_id
          LEFT JOIN goes_back b ON b.session_id = e.session_id
         WHERE s.session_id = e.session_id
    )
    SELECT job_id, session_id, message::text FROM ended"
);

const MAKE_ROOM: &str = "
    UPDATE harness_jobs j SET asked = $2
     WHERE j.session_id = (SELECT session_id FROM harness_jobs WHERE job_id = $1)
       AND j.seq < (SELECT seq FROM harness_jobs WHERE job_id = $1)
       AND j.epoch > 0 AND j.state IN ('running', 'awaiting_input') AND (j.asked IS NULL OR j.asked = 'interrupt')";

/// As [`MAKE_ROOM`], for many requests. It waits for no row, because it holds locks on others meanwhile:
/// requests to a job that is locked at that moment are returned. A rollback outweighs an interrupt, in
/// whatever order they come.
const MAKE_ROOM_FOR_MANY: &str = "
    WITH asking AS MATERIALIZED (
        SELECT a.job_id, a.ask, r.job_id AS runner
          FROM unnest($1::uuid[], $2::text[]) a (job_id, ask)
         CROSS JOIN LATERAL (SELECT session_id, seq FROM harness_jobs WHERE job_id = a.job_id OFFSET 0) n
         CROSS JOIN LATERAL (SELECT job_id, seq, state, asked FROM harness_jobs
                              WHERE session_id = n.session_id AND epoch > 0 OFFSET 0) r
         WHERE r.seq < n.seq AND r.state IN ('running', 'awaiting_input') AND (r.asked IS NULL OR r.asked = 'interrupt')
    ), locked AS MATERIALIZED (
        SELECT job_id FROM harness_jobs
         WHERE job_id = ANY(ARRAY(SELECT runner FROM asking))
           AND state IN ('running', 'awaiting_input') AND (asked IS NULL OR asked = 'interrupt')
         ORDER BY job_id FOR UPDATE SKIP LOCKED
    ), said AS (
        UPDATE harness_jobs j
           SET asked = (SELECT CASE WHEN bool_or(a.ask = 'rollback') THEN 'rollback' ELSE 'interrupt' END
                          FROM asking a WHERE a.runner = j.job_id)
         WHERE j.job_id = ANY(ARRAY(SELECT job_id FROM locked))
    )
    SELECT job_id, ask FROM asking WHERE runner <> ALL(ARRAY(SELECT job_id FROM locked))";

const FIND_UNWANTED: &str = "
    (SELECT job_id, 'cancelled' FROM harness_jobs WHERE asked = 'cancel' AND state <> 'running' LIMIT 500)
    UNION ALL
    (SELECT job_id, 'overdue' FROM harness_jobs
      WHERE deadline_at <= now() AND state <> 'running' AND asked IS DISTINCT FROM 'cancel' LIMIT 500)
    UNION ALL
    (SELECT job_id, asked FROM harness_jobs
      WHERE asked IN ('interrupt', 'rollback') AND state = 'awaiting_input' AND coalesce(deadline_at > now(), true) LIMIT 500)";

const LIVE_JOBS: &str = "SELECT job_id FROM harness_jobs WHERE session_id = $1 ORDER BY seq";

impl Store {
    /// Cancels jobs, whether or not the ledger has seen them yet. Returns an answer for each, in their order,
    /// and the jobs that ended. The operators' log names the actor.
    ///
    /// An id that the ledger does not know must lie within the retention ([`JobId::check_window`]). For an older one there
    /// is no partition to record the end in; for a live job there is one, however old it is.
    pub async fn cancel(
        &self,
        actor: &str,
        jobs: &[JobId],
    ) -> Result<(Vec<Cancelled>, Vec<EndedWaiting>), StoreError> {
        let ids = uuids(jobs);
        let statements = [FORESTALL, DROP_ENDED, LOG_FORESTALLED];
        let forestall = Tx::prepare(&self.pool, "forestall", statements).await?;
        let [made, had_ended, _] = forestall.run([&[&ids], &[&ids], &[&actor, &ids]]).await?;
        let had_ended = read_ids(&had_ended);
        let unseen: HashSet<Uuid> =
            made.iter().map(|row| row.get(0)).filter(|id| !had_ended.contains(id)).collect();
        let ended = self.end_waiting_by(Some(actor), jobs, Unwanted::Cancelled).await?;
        let standing = query(&self.pool, "read_answers", READ_ANSWERS, &[&ids]).await?;
        let standing: HashMap<Uuid, JobState> = standing
            .iter()
            .filter_map(|row| Some((row.get(0), row.get::<_, Option<&str>>(1)?.parse().ok()?)))
            .collect();
        let answer = |id: &JobId| match standing.get(&Uuid::from(*id)) {
            // Even if a sweep found its row first and ended it.
            Some(JobState::Cancelled) if unseen.contains(&Uuid::from(*id)) => Cancelled::Unseen,
            _ if ended.iter().any(|job| job.job_id == *id) => Cancelled::Now,
            Some(end) if end.is_end() => Cancelled::Before(*end),
            _ => Cancelled::Stopping,
        };
        Ok((jobs.iter().map(answer).collect(), ended))
    }

    /// Ends those of these jobs that wait and of which the reason is true. Running jobs that are to be
    /// cancelled are asked to stop. Returns the jobs that ended. Safe to repeat.
    pub async fn end_waiting(
        &self,
        jobs: &[JobId],
        why: Unwanted<'_>,
    ) -> Result<Vec<EndedWaiting>, StoreError> {
        self.end_waiting_by(None, jobs, why).await
    }

    /// As [`Store::end_waiting`]. With an actor, the operators' log has what changed.
    async fn end_waiting_by(
        &self,
        actor: Option<&str>,
        jobs: &[JobId],
        why: Unwanted<'_>,
    ) -> Result<Vec<EndedWaiting>, StoreError> {
        let ids = uuids(jobs);
        // A job never changes its session. A job that enters the ledger from now on is not among those to
        // end.
        let sessions = query(&self.pool, "read_sessions", READ_SESSIONS, &[&ids]).await?;
        let sessions: Vec<String> = sessions.iter().map(|row| row.get(0)).collect();
        if sessions.is_empty() {
            return Ok(Vec::new());
        }
        if sessions.iter().any(String::is_empty) {
            self.outlast_writers().await?;
        }
        let (state, failure) = why.end();
        let (pool, body) = why.dead_letter().unzip();
        let (why, word, nobody) = (why.as_str(), state.as_str(), Uuid::nil());
        let statements = [CREATE_SESSIONS, LOCK_SESSIONS, ASK_RUNNING, END_WAITING, NEXT];
        // What a rollback moves into the history is kept as long as the newest of these jobs.
        let newest = ids.iter().max().copied().unwrap_or(nobody);
        let kept_by = vec![newest; sessions.len()];
        let (last, last_params): (Option<&str>, &Params<'_>) = match &actor {
            // Only an operator's cancel has one.
            Some(actor) => (Some(LOG_CANCELLED), &[actor, &ids]),
            None if why == "rollback" => (Some(KEEP_BLOBS), &[&sessions, &kept_by]),
            None => (None, &[]),
        };
        let tx = Tx::prepare_more(&self.pool, "end_waiting", statements, last).await?;
        let params: [&Params<'_>; 5] = [
            &[&ids],
            &[&sessions],
            &[&ids, &why],
            &[&ids, &why, &word, &failure, &pool, &body],
            &[&nobody, &sessions, &false],
        ];
        let ([_, _, _, ended, _], _) = tx.run_more(params, last_params).await?;
        self.changes.note(|| ended.iter().map(|row| read_change(row, state)));
        let ended = ended.iter();
        Ok(ended.map(|row| EndedWaiting { job_id: read_job_id(row, 0), message: row.get(2) }).collect())
    }

    /// Waits until the transactions that are writing jobs now are over.
    ///
    /// A job that was cancelled before the ledger saw it has no session, so no lock keeps claims away while
    /// it ends. A claim with a snapshot from before the job's row was made does not see the row. If it is
    /// held up in the middle, it does not see the job's end either, and would run the job as well. So the end
    /// waits until every transaction that was writing by then is over.
    async fn outlast_writers(&self) -> Result<(), StoreError> {
        let mut writers: Option<Vec<String>> = None;
        let deadline = Instant::now() + WRITERS_BOUND;
        loop {
            let left = query(&self.pool, "writers", WRITERS, &[&writers]).await?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(StoreError::unavailable("a transaction on harness_jobs does not end"));
            }
            writers = Some(left.iter().map(|row| row.get(0)).collect());
            tokio::time::sleep(WRITERS_POLL).await;
        }
    }

    /// Returns jobs that are no longer wanted and that no worker runs: cancelled between two attempts,
    /// overdue, or waiting for a person while a later job of their session wants their place.
    pub async fn unwanted(&self) -> Result<Vec<(JobId, Unwanted<'static>)>, StoreError> {
        let rows = query(&self.pool, "find_unwanted", FIND_UNWANTED, &[]).await?;
        let why = |text: &str| match text {
            "overdue" => Unwanted::Overdue,
            "interrupt" => Unwanted::Interrupted,
            "rollback" => Unwanted::RolledBack,
            _ => Unwanted::Cancelled,
        };
        Ok(rows.iter().map(|row| (read_job_id(row, 0), why(row.get(1)))).collect())
    }

    /// Asks the jobs that run, or wait for a person, in the same sessions as these to make room, if they came
    /// earlier. Safe to
    /// repeat.
    pub async fn make_room(&self, asking: &[(JobId, Ask)]) -> Result<(), StoreError> {
        let left = if asking.len() > 1 { self.make_room_for_many(asking).await? } else { asking.to_vec() };
        for (job, ask) in left {
            query(&self.pool, "make_room", MAKE_ROOM, &[&Uuid::from(job), &ask.as_str()]).await?;
        }
        Ok(())
    }

    /// As [`Store::make_room`], but returns the requests to jobs that are locked at that moment.
    async fn make_room_for_many(&self, asking: &[(JobId, Ask)]) -> Result<Vec<(JobId, Ask)>, StoreError> {
        let (jobs, asks): (Vec<Uuid>, Vec<&str>) =
            asking.iter().map(|(job, ask)| (Uuid::from(*job), ask.as_str())).unzip();
        let rows = query(&self.pool, "make_room_for_many", MAKE_ROOM_FOR_MANY, &[&jobs, &asks]).await?;
        Ok(rows.iter().filter_map(|row| Some((read_job_id(row, 0), Ask::parse(row.get(1))?))).collect())
    }

    /// Returns the live jobs of a session, in their order.
    pub async fn jobs_of(&self, session: &SessionKey) -> Result<Vec<JobId>, StoreError> {
        let rows = query(&self.pool, "jobs_of", LIVE_JOBS, &[&session.as_str()]).await?;
        Ok(rows.iter().map(|row| read_job_id(row, 0)).collect())
    }
}
