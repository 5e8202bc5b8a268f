//! Fold: writes a session whole and moves its checkpoints into the history, at a job's end or within its run.
//!
//! A fold within a run changes nothing for a reader of the session: its state is the last fold and the deltas since, as
//! ever. Three things go to the job's row, which its end removes:
//! * **What the job has used** in the checkpoints that are folded. Its result is the sum of that and of those that are left.
//! * **The session's state before the job**, at the job's first such fold. A rollback goes back to it.
//! * **The place of the last checkpoint that is folded.** A write of that checkpoint which hangs in the network may still
//!   come, after the worker has repeated it; it would be appended again. So a checkpoint up to this place is not appended.
//!
//! A fold that hangs and comes later than the next one must not set the session back. It finds that its last checkpoint is
//! folded, and changes nothing. For the same reason it is safe to repeat.

use job::Usd;
use uuid::Uuid;

use super::blobs::{KEEP_BLOBS, literal};
use super::claimed::Claim;
use crate::database::{LOCK_SESSIONS, Tx};
use crate::{Fenced, Store, StoreError};

/// A session's whole new state.
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
    /// Whether what the job appended is no part of it, because the job was rolled back. Then `state` counts only if the
    /// session was never folded within the job's run; otherwise the ledger has the state before the job.
    pub undone: bool,
    /// The hashes of the blobs that the context refers to. The store writes the references and this list.
    pub blobs: Vec<Vec<u8>>,
}

/// A fold within the run of a job.
#[derive(Clone, Debug)]
pub struct RunFold {
    /// The run.
    pub claim: Claim,
    /// The number of the run's last checkpoint, which is in the state.
    pub ordinal: i32,
    /// The session's state with that checkpoint.
    pub fold: Fold,
    /// The state before the job, as [`Fold::state`]; `None` if the claim has said that it is kept.
    pub before: Option<[String; 3]>,
}

/// The job's row is locked against rescue and against checkpoints, which lock it as well.
const FOLD: &str = "
    WITH held AS MATERIALIZED (
        SELECT job_id, session_id FROM harness_jobs
         WHERE job_id = $2 AND session_id = $3 AND epoch = $4 AND worker_id IS NOT DISTINCT FROM $1
           FOR UPDATE
    ), due AS MATERIALIZED (
        SELECT h.* FROM held h JOIN harness_checkpoints c ON c.session_id = h.session_id AND c.epoch = $4 AND c.ordinal = $5
    ), moved AS (
        DELETE FROM harness_checkpoints
         WHERE session_id = (SELECT session_id FROM due) AND (epoch, ordinal) <= ($4, $5)
        RETURNING *
    ), kept AS (
        INSERT INTO harness_history
               (session_id, epoch, ordinal, folded_by, job_id, iterations, cost_microusd, input_tokens, output_tokens,
                replaces, undone, context_json, blobs, created_at)
        SELECT session_id, epoch, ordinal, $2, job_id, iterations, cost_microusd, input_tokens, output_tokens,
               coalesce((delta -> 'replace_context')::boolean, false), false,
               coalesce(context_json, (delta -> 'context_window')::json), blobs, created_at
          FROM moved
    ), used AS (
        SELECT coalesce(sum(iterations), 0) AS iterations, coalesce(sum(cost_microusd), 0) AS cost,
               coalesce(sum(input_tokens), 0) AS tokens_in, coalesce(sum(output_tokens), 0) AS tokens_out
          FROM moved WHERE job_id = $2
    ), noted AS (
        UPDATE harness_jobs j
           SET folded_epoch = $4, folded_ordinal = $5,
               folded_iterations = coalesce(folded_iterations, 0) + u.iterations,
               folded_cost_microusd = coalesce(folded_cost_microusd, 0) + u.cost,
               folded_input_tokens = coalesce(folded_input_tokens, 0) + u.tokens_in,
               folded_output_tokens = coalesce(folded_output_tokens, 0) + u.tokens_out,
               before_memory = coalesce(before_memory, $13::text::jsonb),
               before_context = coalesce(before_context, $14::text::json),
               before_progress = coalesce(before_progress, $15::text::jsonb),
               before_blobs = CASE WHEN before_memory IS NULL THEN $17::text::bytea[] ELSE before_blobs END
          FROM used u, due d WHERE j.job_id = d.job_id
    ), written AS (
        UPDATE harness_sessions s
           SET last_updated = now(), memory = $6::text::jsonb, context_window = NULL, context_json = $7::text::json,
               feature_progress = $8::text::jsonb, iteration_count = $9, cost_microusd = $10, input_tokens = $11,
               output_tokens = $12, blobs = $16::text::bytea[]
          FROM due d WHERE s.session_id = d.session_id
    )
    SELECT job_id FROM held";

/// Marks what was folded within the runs of jobs that are rolled back now.
pub(super) const UNDO_FOLDED: &str = "
    UPDATE harness_history h SET undone = true
     WHERE h.session_id = ANY($4) AND h.folded_by = ANY($2) AND h.job_id = h.folded_by AND NOT h.undone
       AND EXISTS (SELECT FROM harness_results r
                    WHERE r.job_id = h.job_id AND r.epoch = ($3::bigint[])[array_position($2, h.job_id)] AND r.worker_id = $1)";

impl Store {
    /// Whether sessions may be folded within runs: all workers know of it.
    pub fn folds_within_runs(&self) -> bool {
        self.switches.schema_26()
    }

    /// Folds a session within the run of a job. Safe to repeat after a lost reply.
    pub async fn fold(&self, mut call: RunFold) -> Result<Fenced<()>, StoreError> {
        let session = call.claim.session_key();
        self.refer_in_fold(session, &mut call.fold).await?;
        let before_blobs = match &mut call.before {
            Some([_, context, _]) => self.refer_in(session, context).await?,
            None => Vec::new(),
        };
        let RunFold { claim, ordinal, fold, before } = &call;
        let [refers_to, before_refers_to] =
            [&fold.blobs, &before_blobs].map(|hashes| literal(hashes.iter().map(Vec::as_slice)));
        let (worker, job) = (Uuid::from(claim.worker()), Uuid::from(claim.job_id()));
        let (session, epoch) = (claim.session_key(), claim.epoch());
        let [memory, context, progress] = &fold.state;
        let before = before.as_ref().map(|texts| texts.each_ref().map(String::as_str));
        let [memory_before, context_before, progress_before] =
            before.map_or([None; 3], |texts| texts.map(Some));
        let (iterations, cost) = (fold.iteration_count as i64, fold.cost.micros() as i64);
        let (read, written) = (fold.input_tokens as i64, fold.output_tokens as i64);
        let tx = Tx::prepare(&self.pool, "fold", [LOCK_SESSIONS, FOLD, KEEP_BLOBS]).await?;
        let [_, held, _] = tx
            .run([
                &[&[session].as_slice()],
                &[
                    &worker,
                    &job,
                    &session,
                    &epoch,
                    ordinal,
                    memory,
                    context,
                    progress,
                    &iterations,
                    &cost,
                    &read,
                    &written,
                    &memory_before,
                    &context_before,
                    &progress_before,
                    &refers_to,
                    &before_refers_to,
                ],
                &[&[session].as_slice(), &[job].as_slice()],
            ])
            .await?;
        Ok(if held.is_empty() { Fenced::Lost } else { Fenced::Done(()) })
    }
}
