//! Conclude: the end of one attempt. Ends the job or schedules its next attempt, folds the session, and hands the
//! worker the session's next job.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use deadpool_postgres::Pool;
use job::{Change, Failure, InputRequest, JobState, Json};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::blobs::{KEEP_BLOBS, literal};
use super::claimed::{Claim, Claimed, read_claimed_with_message};
use super::fold::{Fold, UNDO_FOLDED};
use super::inputs::Questions;
use super::next::NEXT;
use crate::database::{Batched, LOCK_SESSIONS, LOCK_WORKER, Params, Tx, as_text, query};
use crate::webhooks::deliveries;
use crate::{Fenced, StoreError};

/// How an attempt ended, as the ledger records it.
#[derive(Clone, Debug)]
pub enum End {
    /// With an output.
    Succeeded(Json),
    /// For good.
    Failed(Failure),
    /// On request. The failure says whose.
    Cancelled(Failure),
    /// The attempt failed, is spent, and another one is due after the delay.
    Retry {
        /// Why.
        failure: Failure,
        /// How long to wait.
        delay: Duration,
    },
    /// We interrupted it: due again after the delay, no attempt spent.
    HandBack {
        /// How long to wait.
        delay: Duration,
    },
    /// With questions to a person, no attempt spent: it waits for the answers, or is due now if all of them are there.
    Asks(Vec<InputRequest>),
}

impl End {
    /// Returns the state of a job that has ended, or `None` for one that goes on.
    fn state(&self) -> Option<JobState> {
        match self {
            End::Succeeded(_) => Some(JobState::Succeeded),
            End::Failed(_) => Some(JobState::Failed),
            End::Cancelled(_) => Some(JobState::Cancelled),
            End::Retry { .. } | End::HandBack { .. } | End::Asks(_) => None,
        }
    }

    fn output(&self) -> Option<&str> {
        match self {
            End::Succeeded(output) => Some(output.as_str()),
            End::Failed(_) | End::Cancelled(_) | End::Retry { .. } | End::HandBack { .. } | End::Asks(_) => {
                None
            }
        }
    }

    /// Returns what it asks.
    fn questions(&self) -> &[InputRequest] {
        match self {
            End::Asks(questions) => questions,
            _ => &[],
        }
    }

    /// Returns the failure as JSON.
    fn failure(&self) -> Option<String> {
        match self {
            End::Failed(failure) | End::Cancelled(failure) | End::Retry { failure, .. } => {
                Some(serde_json::to_string(failure).expect("a failure is plain text"))
            }
            End::Succeeded(_) | End::HandBack { .. } | End::Asks(_) => None,
        }
    }

    /// Returns how long a job that goes on waits.
    fn delay(&self) -> Duration {
        match self {
            End::Retry { delay, .. } | End::HandBack { delay } => *delay,
            End::Succeeded(_) | End::Failed(_) | End::Cancelled(_) | End::Asks(_) => Duration::ZERO,
        }
    }
}

/// The end of one attempt.
#[derive(Clone, Debug)]
pub struct Conclusion {
    /// The run.
    pub claim: Claim,
    /// How it ended.
    pub end: End,
    /// Attempts spent, including this one if it counts.
    pub attempts: u32,
    /// The session's new state. `None` leaves the state and the deltas on top of it as they are: when nothing
    /// was checkpointed, or when the worker does not know whether its last checkpoint was written.
    pub fold: Option<Fold>,
    /// Whether the worker continues with the session's next job at once. A draining one does not.
    pub take_next: bool,
}

/// The answer to a conclusion.
#[derive(Clone, Debug)]
pub struct Concluded {
    /// Whether the end is in the ledger, now or since an earlier call whose reply was lost.
    pub recorded: Fenced<()>,
    /// The session's next job, claimed for the same worker.
    pub next: Option<Box<Claimed>>,
    /// Whether the job waits for a person now. Unknown, and so false, if an earlier call recorded it.
    pub waits: bool,
}

/// Ends jobs. Only the holder of the epoch finds its row. A constraint of the table says that a row with a
/// worker is running, and neither changes while its session is locked. What a job did and cost is the sum of
/// its checkpoints, over all its attempts. (There is also an index by worker. With it, each job of the batch
/// would cost as many pages as the worker has jobs, which Postgres does not foresee. So the job is found by
/// its id, before the worker is compared.)
///
/// Checkpoints that are folded move to the history, under the job whose end folds them: where its result has a partition,
/// they have one. Of a job in whose run the session was folded before, the row knows what those checkpoints have used; and
/// if it is rolled back, the state before it is there.
///
/// The envelope is kept of what did not succeed, so that it can be run again; and of another tenant's job with a
/// `reply_to`, because no message that comes after the end proves where its reply goes.
const END: &str = concat!(
    "
    WITH incoming AS (
        SELECT * FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::int[], $6::text[], $7::text[],
                             $8::text[], $9::text[], $10::text[],
                             $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bool[], $16::text[])
            AS t(job_id, epoch, state, attempts, output, failure,
                 memory, context, progress, s_iterations, s_cost, s_in, s_out, undone, blobs)
    ), ended AS MATERIALIZED (
        SELECT i.*, j.tenant, j.session_id, j.agent_id, j.user_id, j.pool, j.accepted_at, j.started_at, j.trace_id,
               coalesce(j.folded_iterations, 0) AS f_iterations, coalesce(j.folded_cost_microusd, 0) AS f_cost,
               coalesce(j.folded_input_tokens, 0) AS f_in, coalesce(j.folded_output_tokens, 0) AS f_out,
               i.undone AND j.folded_epoch IS NOT NULL AS goes_back,
               CASE WHEN i.undone THEN j.before_memory END AS before_memory,
               CASE WHEN i.undone THEN j.before_context END AS before_context,
               CASE WHEN i.undone THEN j.before_progress END AS before_progress,
               CASE WHEN i.undone THEN j.before_blobs END AS before_blobs,
               CASE WHEN i.state <> 'succeeded'
                      OR (j.session_id LIKE '~%' AND j.message ->> 'reply_to' IS NOT NULL) THEN j.message END AS message
          FROM incoming i
         CROSS JOIN LATERAL (SELECT * FROM harness_jobs j WHERE j.job_id = i.job_id OFFSET 0) j
         WHERE j.epoch = i.epoch AND j.worker_id = $1
    ), gone AS (
        DELETE FROM harness_jobs WHERE job_id = ANY(ARRAY(SELECT job_id FROM ended))
    ), results AS (
        INSERT INTO harness_results
               (job_id, tenant, session_id, agent_id, user_id, pool, state, attempts, output, failure, iterations,
                cost_microusd, input_tokens, output_tokens, epoch, worker_id, accepted_at, started_at, message, trace_id)
        SELECT e.job_id, tenant, session_id, agent_id, user_id, pool, state, attempts, output::json, failure::json,
               c.iterations + f_iterations, c.cost + f_cost, c.tokens_in + f_in, c.tokens_out + f_out, epoch, $1,
               accepted_at, started_at, message, trace_id
          FROM ended e CROSS JOIN LATERAL (
               SELECT coalesce(sum(iterations), 0) AS iterations, coalesce(sum(cost_microusd), 0) AS cost,
                      coalesce(sum(input_tokens), 0) AS tokens_in, coalesce(sum(output_tokens), 0) AS tokens_out
                 FROM harness_checkpoints c WHERE c.session_id = e.session_id AND c.job_id = e.job_id) c
    ), ",
    deliveries!("ended", "e.state"),
    ", cleared AS (
        DELETE FROM harness_checkpoints
         WHERE session_id = ANY(ARRAY(SELECT session_id FROM ended WHERE memory IS NOT NULL))
        RETURNING *
    ), kept AS (
        INSERT INTO harness_history
               (session_id, epoch, ordinal, folded_by, job_id, iterations, cost_microusd, input_tokens, output_tokens,
                replaces, undone, context_json, blobs, created_at)
        SELECT c.session_id, c.epoch, c.ordinal, e.job_id, c.job_id, c.iterations, c.cost_microusd, c.input_tokens,
               c.output_tokens, coalesce((c.delta -> 'replace_context')::boolean, false),
               e.undone AND c.job_id = e.job_id, coalesce(c.context_json, (c.delta -> 'context_window')::json),
               c.blobs, c.created_at
          FROM cleared c JOIN ended e ON e.session_id = c.session_id
    ), form AS MATERIALIZED (
        SELECT ",
    as_text!(),
    " AS as_text
    )
    UPDATE harness_sessions s
       SET last_updated = now(), version = s.version + 1,
           memory = CASE WHEN e.goes_back THEN e.before_memory ELSE coalesce(e.memory::jsonb, s.memory) END,
           context_window = CASE WHEN e.goes_back THEN NULL
                                 WHEN e.context IS NULL THEN s.context_window
                                 WHEN NOT f.as_text THEN e.context::jsonb END,
           context_json = CASE WHEN e.goes_back THEN e.before_context
                               WHEN e.context IS NULL THEN s.context_json
                               WHEN f.as_text THEN e.context::json END,
           blobs = CASE WHEN e.goes_back THEN e.before_blobs
                        WHEN e.context IS NULL THEN s.blobs
                        ELSE e.blobs::bytea[] END,
           feature_progress = CASE WHEN e.goes_back THEN e.before_progress
                                   ELSE coalesce(e.progress::jsonb, s.feature_progress) END,
           iteration_count = coalesce(e.s_iterations, s.iteration_count),
           cost_microusd = coalesce(e.s_cost, s.cost_microusd),
           input_tokens = coalesce(e.s_in, s.input_tokens),
           output_tokens = coalesce(e.s_out, s.output_tokens)
      FROM ended e, form f WHERE s.session_id = e.session_id
    RETURNING e.job_id"
);

/// Gives jobs another attempt. The epoch stays until the next claim, so that a repeated call is recognised.
/// (The worker is compared by IS NOT DISTINCT FROM, which no index serves, so that the jobs are found by
/// their ids.)
const RESCHEDULE: &str = "
    UPDATE harness_jobs j
       SET state = 'scheduled', worker_id = NULL, state_since = now(),
           (attempts, failure, due_at) = (
               SELECT attempts, coalesce(failure::json, j.failure), now() + delay_ms * interval '1 millisecond'
                 FROM unnest($2::uuid[], $4::int[], $5::text[], $6::bigint[]) AS i(job_id, attempts, failure, delay_ms)
                WHERE i.job_id = j.job_id)
     WHERE job_id = ANY($2) AND epoch = ($3::bigint[])[array_position($2, job_id)]
       AND worker_id IS NOT DISTINCT FROM $1
    RETURNING job_id";

/// Selects what an earlier call, whose reply was lost, has recorded.
const READ_RECORDED: &str = "
    SELECT i.job_id FROM unnest($2::uuid[], $3::bigint[]) AS i(job_id, epoch)
     WHERE EXISTS (SELECT FROM harness_results r WHERE r.job_id = i.job_id AND r.epoch = i.epoch AND r.worker_id = $1)
        OR EXISTS (SELECT FROM harness_jobs j WHERE j.job_id = i.job_id AND j.epoch = i.epoch AND j.state <> 'running')";

/// Jobs that end, as [`END`] takes them: one vector per column.
struct Ends<'a> {
    jobs: Vec<Uuid>,
    epochs: Vec<i64>,
    states: Vec<Option<&'static str>>,
    attempts: Vec<i32>,
    outputs: Vec<Option<&'a str>>,
    failures: Vec<Option<String>>,
    /// Memory, context and progress.
    folded: [Vec<Option<&'a str>>; 3],
    /// Iterations, cost, tokens read and written, of the session so far.
    totals: [Vec<Option<i64>>; 4],
    undone: Vec<Option<bool>>,
    /// What the contexts refer to.
    blobs: Vec<Option<String>>,
}

impl<'a> Ends<'a> {
    fn of(calls: &[&'a Conclusion]) -> Ends<'a> {
        let fold = |call: &&'a Conclusion| call.fold.as_ref();
        let part =
            |at: usize| calls.iter().map(|call| fold(call).map(|fold| fold.state[at].as_str())).collect();
        let total =
            |of: fn(&Fold) -> u64| calls.iter().map(|call| fold(call).map(|fold| of(fold) as i64)).collect();
        Ends {
            jobs: calls.iter().map(|call| call.claim.job_id().into()).collect(),
            epochs: calls.iter().map(|call| call.claim.epoch()).collect(),
            states: calls.iter().map(|call| call.end.state().map(JobState::as_str)).collect(),
            attempts: calls.iter().map(|call| call.attempts as i32).collect(),
            outputs: calls.iter().map(|call| call.end.output()).collect(),
            failures: calls.iter().map(|call| call.end.failure()).collect(),
            folded: [part(0), part(1), part(2)],
            totals: [
                total(|fold| fold.iteration_count),
                total(|fold| fold.cost.micros()),
                total(|fold| fold.input_tokens),
                total(|fold| fold.output_tokens),
            ],
            undone: calls.iter().map(|call| fold(call).map(|fold| fold.undone)).collect(),
            blobs: calls.iter().map(|call| literal(fold(call)?.blobs.iter().map(Vec::as_slice))).collect(),
        }
    }

    fn params<'b>(&'b self, worker: &'b Uuid) -> [&'b (dyn ToSql + Sync); 16] {
        let Ends { jobs, epochs, states, attempts, outputs, failures, folded, totals, undone, blobs } = self;
        let ([memory, context, progress], [iterations, cost, read, written]) = (folded, totals);
        [
            worker, jobs, epochs, states, attempts, outputs, failures, memory, context, progress, iterations,
            cost, read, written, undone, blobs,
        ]
    }
}

/// Jobs that go on, as [`RESCHEDULE`] takes them: one vector per column.
struct Retries {
    jobs: Vec<Uuid>,
    epochs: Vec<i64>,
    attempts: Vec<i32>,
    failures: Vec<Option<String>>,
    delays: Vec<i64>,
}

impl Retries {
    fn of(calls: &[&Conclusion]) -> Retries {
        Retries {
            jobs: calls.iter().map(|call| call.claim.job_id().into()).collect(),
            epochs: calls.iter().map(|call| call.claim.epoch()).collect(),
            attempts: calls.iter().map(|call| call.attempts as i32).collect(),
            failures: calls.iter().map(|call| call.end.failure()).collect(),
            delays: calls.iter().map(|call| call.end.delay().as_millis() as i64).collect(),
        }
    }

    fn params<'b>(&'b self, worker: &'b Uuid) -> [&'b (dyn ToSql + Sync); 6] {
        let Retries { jobs, epochs, attempts, failures, delays } = self;
        [worker, jobs, epochs, attempts, failures, delays]
    }
}

impl Batched for Conclusion {
    type Answer = Concluded;

    fn bytes(&self) -> usize {
        let folded = self.fold.as_ref().map_or(0, |fold| fold.state.iter().map(String::len).sum());
        let asked: usize = self.end.questions().iter().map(|question| question.content.as_str().len()).sum();
        self.end.output().map_or(0, str::len) + folded + asked + 200
    }

    fn key(&self) -> u128 {
        Uuid::from(self.claim.job_id()).as_u128()
    }

    async fn commit(pool: &Pool, batch: &[Self]) -> Result<Vec<Concluded>, StoreError> {
        let mut questions = Questions::default();
        batch.iter().for_each(|call| questions.add(&call.claim, call.end.questions()));
        let last = batch.last().expect("a batch is never empty");
        let (worker, take_next) = (last.claim.worker(), last.take_next);
        let worker_id = Uuid::from(worker);
        let sessions: Vec<&str> = batch.iter().map(|call| call.claim.session_key()).collect();
        let (ends, retries): (Vec<_>, Vec<_>) = batch
            .iter()
            .filter(|call| call.end.questions().is_empty())
            .partition(|call| call.end.state().is_some());
        let (ends, retries) = (Ends::of(&ends), Retries::of(&retries));
        let folding = || batch.iter().filter(|call| call.fold.is_some()).map(|call| &call.claim);
        let folded_sessions: Vec<&str> = folding().map(Claim::session_key).collect();
        let folded_by: Vec<Uuid> = folding().map(|claim| claim.job_id().into()).collect();
        let undone = batch.iter().filter(|call| call.fold.as_ref().is_some_and(|fold| fold.undone));
        let (undone, their_epochs): (Vec<Uuid>, Vec<i64>) =
            undone.map(|call| (Uuid::from(call.claim.job_id()), call.claim.epoch())).unzip();
        let statements = [LOCK_WORKER, LOCK_SESSIONS, END, RESCHEDULE, NEXT];
        let params: [&Params<'_>; 5] = [
            &[&worker_id],
            &[&sessions],
            &ends.params(&worker_id),
            &retries.params(&worker_id),
            &[&worker_id, &sessions, &take_next],
        ];
        let asking: &Params<'_> = &questions.params(&worker_id);
        let undoing: &Params<'_> = &[&worker_id, &undone, &their_epochs, &sessions];
        let keeping: &Params<'_> = &[&folded_sessions, &folded_by];
        let mut steps: Vec<(&str, &Params<'_>)> = statements.into_iter().zip(params).collect();
        steps.extend(questions.statement().map(|ask| (ask, asking)));
        steps.extend((!undone.is_empty()).then_some((UNDO_FOLDED, undoing)));
        steps.extend((!folded_by.is_empty()).then_some((KEEP_BLOBS, keeping)));
        let answers = Tx::run_steps(pool, "conclude", &steps).await?;
        let [_, _, ended, rescheduled, next, rest @ ..] = answers.as_slice() else {
            return Err(StoreError::Closed);
        };
        let asked = rest.first().filter(|_| questions.statement().is_some());

        let going = ended.iter().chain(rescheduled).chain(asked.into_iter().flatten());
        let mut recorded: HashSet<Uuid> = going.map(|row| row.get(0)).collect();
        let waiting: HashSet<Uuid> = asked
            .into_iter()
            .flatten()
            .filter(|row| row.get::<_, &str>(1) == JobState::AwaitingInput.as_str())
            .map(|row| row.get(0))
            .collect();
        let (jobs, epochs): (Vec<Uuid>, Vec<i64>) = batch
            .iter()
            .map(|call| (Uuid::from(call.claim.job_id()), call.claim.epoch()))
            .filter(|(job, _)| !recorded.contains(job))
            .unzip();
        if !jobs.is_empty() {
            let before = query(pool, "read_recorded", READ_RECORDED, &[&worker_id, &jobs, &epochs]).await?;
            recorded.extend(before.iter().map(|row| row.get::<_, Uuid>(0)));
        }
        let mut next: HashMap<String, Claimed> =
            next.iter().map(|row| (row.get(1), read_claimed_with_message(row, worker))).collect();
        let answer = |call: &Conclusion| Concluded {
            recorded: if recorded.contains(&call.claim.job_id().into()) {
                Fenced::Done(())
            } else {
                Fenced::Lost
            },
            next: next.remove(call.claim.session_key()).map(Box::new),
            waits: waiting.contains(&call.claim.job_id().into()),
        };
        Ok(batch.iter().map(answer).collect())
    }

    fn changed(&self, answer: &Concluded, changes: &mut Vec<Change>) {
        if answer.recorded == Fenced::Done(()) {
            let live = if answer.waits { JobState::AwaitingInput } else { JobState::Scheduled };
            changes.push(self.claim.change(self.end.state().unwrap_or(live)));
        }
        changes.extend(answer.next.iter().map(|next| next.claim.change(JobState::Running)));
    }
}
