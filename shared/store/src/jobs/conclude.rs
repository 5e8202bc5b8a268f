//! Conclude: the end of one attempt. Ends the job or schedules its next attempt, folds the session, and hands the
//! worker the session's next job.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use deadpool_postgres::Pool;
use job::{Change, Failure, JobState, Json, Usd};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::claimed::{Claim, Claimed, read_claimed_with_message};
use super::next::NEXT;
use crate::database::{Batched, LOCK_SESSIONS, LOCK_WORKER, Tx, query};
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
}

impl End {
    /// Returns the state of a job that has ended, or `None` for one that goes on.
    fn state(&self) -> Option<JobState> {
        match self {
            End::Succeeded(_) => Some(JobState::Succeeded),
            End::Failed(_) => Some(JobState::Failed),
            End::Cancelled(_) => Some(JobState::Cancelled),
            End::Retry { .. } | End::HandBack { .. } => None,
        }
    }

    fn output(&self) -> Option<&str> {
        match self {
            End::Succeeded(output) => Some(output.as_str()),
            End::Failed(_) | End::Cancelled(_) | End::Retry { .. } | End::HandBack { .. } => None,
        }
    }

    /// Returns the failure as JSON.
    fn failure(&self) -> Option<String> {
        match self {
            End::Failed(failure) | End::Cancelled(failure) | End::Retry { failure, .. } => {
                Some(serde_json::to_string(failure).expect("a failure is plain text"))
            }
            End::Succeeded(_) | End::HandBack { .. } => None,
        }
    }

    /// Returns how long a job that goes on waits.
    fn delay(&self) -> Duration {
        match self {
            End::Retry { delay, .. } | End::HandBack { delay } => *delay,
            End::Succeeded(_) | End::Failed(_) | End::Cancelled(_) => Duration::ZERO,
        }
    }
}

/// A session's whole new state, written when its job ends and anything was checkpointed.
#[derive(Clone, Debug)]
pub struct Fold {
    /// The JSON texts of memory, context window and feature progress.
    pub state: [String; 3],
    /// Iterations of the session so far.
    pub iteration_count: u64,
    /// Spend of the session so far.
    pub cost: Usd,
    /// Tokens read so far.
    pub input_tokens: u64,
    /// Tokens written so far.
    pub output_tokens: u64,
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
}

/// Ends jobs. Only the holder of the epoch finds its row. A constraint of the table says that a row with a
/// worker is running, and neither changes while its session is locked. What a job did and cost is the sum of
/// its checkpoints, over all its attempts. (There is also an index by worker. With it, each job of the batch
/// would cost as many pages as the worker has jobs, which Postgres does not foresee. So the job is found by
/// its id, before the worker is compared.)
///
/// The envelope is kept of what did not succeed, so that it can be run again; and of another tenant's job with a
/// `reply_to`, because no message that comes after the end proves where its reply goes.
const END: &str = concat!(
    "
    WITH incoming AS (
        SELECT * FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::int[], $6::text[], $7::text[],
                             $8::text[], $9::text[], $10::text[],
                             $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[])
            AS t(job_id, epoch, state, attempts, output, failure,
                 memory, context, progress, s_iterations, s_cost, s_in, s_out)
    ), ended AS MATERIALIZED (
        SELECT i.*, j.tenant, j.session_id, j.agent_id, j.user_id, j.pool, j.accepted_at, j.started_at, j.trace_id,
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
               c.iterations, c.cost, c.tokens_in, c.tokens_out, epoch, $1, accepted_at, started_at, message, trace_id
          FROM ended e CROSS JOIN LATERAL (
               SELECT coalesce(sum(iterations), 0) AS iterations, coalesce(sum(cost_microusd), 0) AS cost,
                      coalesce(sum(input_tokens), 0) AS tokens_in, coalesce(sum(output_tokens), 0) AS tokens_out
                 FROM harness_checkpoints c WHERE c.session_id = e.session_id AND c.job_id = e.job_id) c
    ), ",
    deliveries!("ended", "e.state"),
    ", cleared AS (
        DELETE FROM harness_checkpoints
         WHERE session_id = ANY(ARRAY(SELECT session_id FROM ended WHERE memory IS NOT NULL))
    )
    UPDATE harness_sessions s
       SET last_updated = now(), version = s.version + 1,
           memory = coalesce(e.memory::jsonb, s.memory),
           context_window = coalesce(e.context::jsonb, s.context_window),
           feature_progress = coalesce(e.progress::jsonb, s.feature_progress),
           iteration_count = coalesce(e.s_iterations, s.iteration_count),
           cost_microusd = coalesce(e.s_cost, s.cost_microusd),
           input_tokens = coalesce(e.s_in, s.input_tokens),
           output_tokens = coalesce(e.s_out, s.output_tokens)
      FROM ended e WHERE s.session_id = e.session_id
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
        }
    }

    fn params<'b>(&'b self, worker: &'b Uuid) -> [&'b (dyn ToSql + Sync); 14] {
        let Ends { jobs, epochs, states, attempts, outputs, failures, folded, totals } = self;
        let ([memory, context, progress], [iterations, cost, read, written]) = (folded, totals);
        [
            worker, jobs, epochs, states, attempts, outputs, failures, memory, context, progress, iterations,
            cost, read, written,
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
        self.end.output().map_or(0, str::len) + folded + 200
    }

    fn key(&self) -> u128 {
        Uuid::from(self.claim.job_id()).as_u128()
    }

    async fn commit(pool: &Pool, batch: &[Self]) -> Result<Vec<Concluded>, StoreError> {
        let statements = [LOCK_WORKER, LOCK_SESSIONS, END, RESCHEDULE, NEXT];
        let tx = Tx::prepare(pool, "conclude", statements).await?;
        let last = batch.last().expect("a batch is never empty");
        let (worker, take_next) = (last.claim.worker(), last.take_next);
        let worker_id = Uuid::from(worker);
        let sessions: Vec<&str> = batch.iter().map(|call| call.claim.session_key()).collect();
        let (ends, retries): (Vec<_>, Vec<_>) = batch.iter().partition(|call| call.end.state().is_some());
        let (ends, retries) = (Ends::of(&ends), Retries::of(&retries));
        let [_, _, ended, rescheduled, next] = tx
            .run([
                &[&worker_id],
                &[&sessions],
                &ends.params(&worker_id),
                &retries.params(&worker_id),
                &[&worker_id, &sessions, &take_next],
            ])
            .await?;

        let mut recorded: HashSet<Uuid> = ended.iter().chain(&rescheduled).map(|row| row.get(0)).collect();
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
        };
        Ok(batch.iter().map(answer).collect())
    }

    fn changed(&self, answer: &Concluded, changes: &mut Vec<Change>) {
        if answer.recorded == Fenced::Done(()) {
            changes.push(self.claim.change(self.end.state().unwrap_or(JobState::Scheduled)));
        }
        changes.extend(answer.next.iter().map(|next| next.claim.change(JobState::Running)));
    }
}
