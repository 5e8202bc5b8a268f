//! Checkpoint: appends what a running job added to its session.

use std::collections::HashSet;
use std::sync::Arc;

use deadpool_postgres::Pool;
use job::{Change, JobState, Usd};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::blobs::{Blob, STORE_BLOBS, literal, part};
use super::claimed::Claim;
use crate::database::{Batched, Tx, as_text, read_ids};
use crate::{Fenced, StoreError};

/// One delta of one run.
#[derive(Clone, Debug)]
pub struct CheckpointRow {
    /// The run.
    pub claim: Claim,
    /// Numbers the deltas of a run from 0, so that a repeated call is recognised.
    pub ordinal: i32,
    /// The delta as JSON, without its entries of the context.
    pub delta: String,
    /// These entries, as a JSON array. They are kept to the letter.
    pub entries: Option<Arc<str>>,
    /// Iterations it finished.
    pub iterations: u64,
    /// What it cost.
    pub cost: Usd,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
}

/// A delta on its way into the ledger.
#[derive(Clone)]
pub(crate) struct Append {
    row: CheckpointRow,
    /// The entries as they are written, if long strings are taken out of them.
    parted: Option<String>,
    /// These strings, by their places in the row's entries.
    blobs: Vec<Blob>,
}

impl Append {
    /// With `parts`, long strings are taken out of the entries.
    pub(crate) fn of(row: CheckpointRow, parts: bool) -> Append {
        let (parted, blobs) = row.entries.as_deref().filter(|_| parts).and_then(part).unzip();
        Append { row, parted, blobs: blobs.unwrap_or_default() }
    }

    /// Returns the entries as they are written.
    fn entries(&self) -> Option<&str> {
        self.parted.as_deref().or(self.row.entries.as_deref())
    }
}

/// Locks the job rows against rescue, which takes them in the same order, until the delta is written. (The
/// worker is compared by IS NOT DISTINCT FROM, which no index serves, so that the jobs are found by their
/// ids.) A repeated delta is there, or was folded within the run.
///
/// A cast to jsonb changes what an entry looks like, and fails for some. It is made only where a worker may come that
/// reads no text ([`as_text`]).
const APPEND: &str = concat!(
    "
    WITH incoming AS (
        SELECT * FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::int[], $6::text[], $7::bigint[],
                             $8::bigint[], $9::bigint[], $10::bigint[], $11::text[], $12::text[])
            AS t(job_id, session_id, epoch, ordinal, delta, iterations, cost_microusd, input_tokens, output_tokens,
                 entries, blobs)
    ), form AS MATERIALIZED (
        SELECT ",
    as_text!(),
    " AS as_text
    ), held AS (
        SELECT job_id,
               folded_epoch IS DISTINCT FROM epoch OR ($5::int[])[array_position($2, job_id)] > folded_ordinal AS is_new
          FROM harness_jobs
         WHERE job_id = ANY($2) AND session_id = ($3::text[])[array_position($2, job_id)]
           AND epoch = ($4::bigint[])[array_position($2, job_id)]
           AND worker_id IS NOT DISTINCT FROM ($1::uuid[])[array_position($2, job_id)]
         ORDER BY job_id FOR SHARE
    ), appended AS (
        INSERT INTO harness_checkpoints
               (session_id, epoch, ordinal, job_id, iterations, cost_microusd, input_tokens, output_tokens, delta,
                context_json, blobs)
        SELECT session_id, epoch, ordinal, job_id, iterations, cost_microusd, input_tokens, output_tokens,
               CASE WHEN as_text OR entries IS NULL THEN delta::jsonb
                    ELSE delta::jsonb || jsonb_build_object('context_window', entries::jsonb) END,
               CASE WHEN as_text THEN entries::json END, blobs::bytea[]
          FROM incoming CROSS JOIN form
         WHERE (job_id IN (SELECT job_id FROM held WHERE is_new)) IS TRUE
         ORDER BY job_id
        ON CONFLICT DO NOTHING
    )
    SELECT job_id FROM held"
);

/// Deltas of a batch, as [`APPEND`] takes them: one vector per column. A job has at most one.
pub(crate) struct Appends<'a> {
    /// A process that goes on under a new id may still write what its last one has done.
    workers: Vec<Uuid>,
    jobs: Vec<Uuid>,
    sessions: Vec<&'a str>,
    epochs: Vec<i64>,
    ordinals: Vec<i32>,
    deltas: Vec<&'a str>,
    iterations: Vec<i64>,
    costs: Vec<i64>,
    input_tokens: Vec<i64>,
    output_tokens: Vec<i64>,
    entries: Vec<Option<&'a str>>,
    refers_to: Vec<Option<String>>,
    blobs: Blobs<'a>,
}

/// Blobs of a batch, as [`STORE_BLOBS`] takes them.
#[derive(Default)]
struct Blobs<'a> {
    workers: Vec<Uuid>,
    jobs: Vec<Uuid>,
    epochs: Vec<i64>,
    sessions: Vec<&'a str>,
    hashes: Vec<&'a [u8]>,
    contents: Vec<&'a str>,
}

impl<'a> Appends<'a> {
    /// Returns nothing without a delta.
    pub fn of(calls: &[&'a Append]) -> Option<Appends<'a>> {
        let rows = || calls.iter().map(|call| &call.row);
        let hashes = |call: &&Append| literal(call.blobs.iter().map(|blob| blob.hash.as_slice()));
        (!calls.is_empty()).then(|| Appends {
            workers: rows().map(|row| row.claim.worker().into()).collect(),
            jobs: rows().map(|row| row.claim.job_id().into()).collect(),
            sessions: rows().map(|row| row.claim.session_key()).collect(),
            epochs: rows().map(|row| row.claim.epoch()).collect(),
            ordinals: rows().map(|row| row.ordinal).collect(),
            deltas: rows().map(|row| row.delta.as_str()).collect(),
            iterations: rows().map(|row| row.iterations as i64).collect(),
            costs: rows().map(|row| row.cost.micros() as i64).collect(),
            input_tokens: rows().map(|row| row.input_tokens as i64).collect(),
            output_tokens: rows().map(|row| row.output_tokens as i64).collect(),
            entries: calls.iter().map(|call| call.entries()).collect(),
            refers_to: calls.iter().map(hashes).collect(),
            blobs: Blobs::of(calls),
        })
    }

    /// Returns the statements with their parameters: one for the deltas, and one for their blobs if there are any.
    pub fn steps(&self) -> Vec<(&'static str, Vec<&(dyn ToSql + Sync)>)> {
        let appending: Vec<&(dyn ToSql + Sync)> = vec![
            &self.workers,
            &self.jobs,
            &self.sessions,
            &self.epochs,
            &self.ordinals,
            &self.deltas,
            &self.iterations,
            &self.costs,
            &self.input_tokens,
            &self.output_tokens,
            &self.entries,
            &self.refers_to,
        ];
        let Blobs { workers, jobs, epochs, sessions, hashes, contents } = &self.blobs;
        let mut steps = vec![(APPEND, appending)];
        if !jobs.is_empty() {
            steps.push((STORE_BLOBS, vec![workers, jobs, epochs, sessions, hashes, contents]));
        }
        steps
    }

    /// Returns what became of a delta, given the rows of the first step.
    pub fn answer(held: &HashSet<Uuid>, call: &Append) -> Fenced<()> {
        if held.contains(&call.row.claim.job_id().into()) { Fenced::Done(()) } else { Fenced::Lost }
    }
}

impl<'a> Blobs<'a> {
    fn of(calls: &[&'a Append]) -> Blobs<'a> {
        let mut columns = Blobs::default();
        for (row, blob) in calls.iter().flat_map(|call| call.blobs.iter().map(|blob| (&call.row, blob))) {
            let content = row.entries.as_deref().and_then(|entries| entries.get(blob.at.clone()));
            columns.workers.push(row.claim.worker().into());
            columns.jobs.push(row.claim.job_id().into());
            columns.epochs.push(row.claim.epoch());
            columns.sessions.push(row.claim.session_key());
            columns.hashes.push(&blob.hash);
            columns.contents.push(content.unwrap_or_default());
        }
        columns
    }
}

impl Batched for Append {
    type Answer = Fenced<()>;

    fn bytes(&self) -> usize {
        let Append { row, parted, .. } = self;
        let sizes = [row.entries.as_deref(), parted.as_deref()].map(|text| text.map_or(0, str::len));
        row.delta.len() + sizes.iter().sum::<usize>() + 100
    }

    fn key(&self) -> u128 {
        Uuid::from(self.row.claim.job_id()).as_u128()
    }

    async fn commit(pool: &Pool, batch: &[Self]) -> Result<Vec<Fenced<()>>, StoreError> {
        let appends = Appends::of(&batch.iter().collect::<Vec<_>>()).expect("a batch is never empty");
        let steps = appends.steps();
        let steps: Vec<_> = steps.iter().map(|(sql, params)| (*sql, params.as_slice())).collect();
        let answers = Tx::run_steps(pool, "checkpoint", &steps).await?;
        let held = read_ids(&answers[0]);
        Ok(batch.iter().map(|call| Appends::answer(&held, call)).collect())
    }

    fn changed(&self, answer: &Fenced<()>, changes: &mut Vec<Change>) {
        if *answer == Fenced::Done(()) {
            changes.push(self.row.claim.change(JobState::Running));
        }
    }
}
