//! Checkpoint: appends what a running job added to its session.

use std::collections::HashSet;

use deadpool_postgres::Pool;
use job::{Change, JobState, Usd};
use uuid::Uuid;

use super::claimed::Claim;
use crate::database::{Batched, Tx};
use crate::{Fenced, StoreError};

/// One delta of one run.
#[derive(Clone, Debug)]
pub struct CheckpointRow {
    /// The run.
    pub claim: Claim,
    /// Numbers the deltas of a run from 0, so that a repeated call is recognised.
    pub ordinal: i32,
    /// The delta as JSON.
    pub delta: String,
    /// Iterations it finished.
    pub iterations: u64,
    /// What it cost.
    pub cost: Usd,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
}

/// Locks the job rows against rescue, which takes them in the same order, until the delta is written. (The
/// worker is compared by IS NOT DISTINCT FROM, which no index serves, so that the jobs are found by their
/// ids.)
const APPEND: &str = "
    WITH incoming AS (
        SELECT * FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::int[], $6::text[], $7::bigint[],
                             $8::bigint[], $9::bigint[], $10::bigint[])
            AS t(job_id, session_id, epoch, ordinal, delta, iterations, cost_microusd, input_tokens, output_tokens)
    ), held AS (
        SELECT job_id FROM harness_jobs
         WHERE job_id = ANY($2) AND session_id = ($3::text[])[array_position($2, job_id)]
           AND epoch = ($4::bigint[])[array_position($2, job_id)] AND worker_id IS NOT DISTINCT FROM $1
         ORDER BY job_id FOR SHARE
    ), appended AS (
        INSERT INTO harness_checkpoints
               (session_id, epoch, ordinal, job_id, iterations, cost_microusd, input_tokens, output_tokens, delta)
        SELECT session_id, epoch, ordinal, job_id, iterations, cost_microusd, input_tokens, output_tokens, delta::jsonb
          FROM incoming WHERE job_id = ANY(ARRAY(SELECT job_id FROM held))
        ON CONFLICT DO NOTHING
    )
    SELECT job_id FROM held";

impl Batched for CheckpointRow {
    type Answer = Fenced<()>;

    fn bytes(&self) -> usize {
        self.delta.len() + 100
    }

    fn key(&self) -> u128 {
        Uuid::from(self.claim.job_id()).as_u128()
    }

    async fn commit(pool: &Pool, batch: &[Self]) -> Result<Vec<Fenced<()>>, StoreError> {
        let tx = Tx::prepare(pool, "checkpoint", [APPEND]).await?;
        let worker_id = Uuid::from(batch.last().expect("a batch is never empty").claim.worker());
        let jobs: Vec<Uuid> = batch.iter().map(|row| row.claim.job_id().into()).collect();
        let sessions: Vec<&str> = batch.iter().map(|row| row.claim.session_key()).collect();
        let epochs: Vec<i64> = batch.iter().map(|row| row.claim.epoch()).collect();
        let ordinals: Vec<i32> = batch.iter().map(|row| row.ordinal).collect();
        let deltas: Vec<&str> = batch.iter().map(|row| row.delta.as_str()).collect();
        let iterations: Vec<i64> = batch.iter().map(|row| row.iterations as i64).collect();
        let costs: Vec<i64> = batch.iter().map(|row| row.cost.micros() as i64).collect();
        let input_tokens: Vec<i64> = batch.iter().map(|row| row.input_tokens as i64).collect();
        let output_tokens: Vec<i64> = batch.iter().map(|row| row.output_tokens as i64).collect();
        let [held] = tx
            .run([&[
                &worker_id,
                &jobs,
                &sessions,
                &epochs,
                &ordinals,
                &deltas,
                &iterations,
                &costs,
                &input_tokens,
                &output_tokens,
            ]])
            .await?;
        let held: HashSet<Uuid> = held.iter().map(|row| row.get(0)).collect();
        let answer = |row: &CheckpointRow| {
            if held.contains(&row.claim.job_id().into()) { Fenced::Done(()) } else { Fenced::Lost }
        };
        Ok(batch.iter().map(answer).collect())
    }

    fn changed(&self, answer: &Fenced<()>, changes: &mut Vec<Change>) {
        if *answer == Fenced::Done(()) {
            changes.push(self.claim.change(JobState::Running));
        }
    }
}
