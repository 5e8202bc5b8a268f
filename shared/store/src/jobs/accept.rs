//! Accept: how a producer puts jobs into the ledger.

use std::collections::HashMap;

use job::{Change, JobSpec, JobState};
use tokio_postgres::Row;
use uuid::Uuid;

use super::columns::{Columns, insert_for_publishing, new_jobs};
use super::labels::LabelColumns;
use crate::database::{Tx, read_state, rfc3339};
use crate::{Store, StoreError};

/// What became of a submitted job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is in the ledger now, in this state: `publishing` if its caller publishes it next, else `waiting` or `scheduled`.
    New(JobState),
    /// The same id was accepted before: nothing changed.
    Duplicate,
    /// Postgres cannot hold it, for this reason: nothing changed.
    Refused(String),
}

pub(super) const ACCEPT: &str = concat!(
    insert_for_publishing!(),
    new_jobs!(),
    "
     ORDER BY turn
    ON CONFLICT DO NOTHING
    RETURNING job_id, ",
    rfc3339!("accepted_at"),
    ", state"
);

/// As [`ACCEPT`], for jobs whose ids nobody can know yet: each is new, or the statement fails. A scan of a function gives
/// its rows in their order, and so does what returns their states.
pub(super) const ACCEPT_FRESH: &str = concat!(insert_for_publishing!(), new_jobs!(), " RETURNING state");

/// Follows an insert of jobs that may have ended already. The insert has waited for any transaction that was
/// ending one, and only a later statement, with a fresh snapshot, sees that end.
pub(crate) const DROP_ENDED: &str = "
    DELETE FROM harness_jobs
     WHERE job_id = ANY(ARRAY(
           SELECT job_id FROM unnest($1::uuid[]) AS t(job_id)
            WHERE (SELECT r.job_id FROM harness_results r WHERE r.job_id = t.job_id) IS NOT NULL))
    RETURNING job_id";

/// Returns the new jobs with their times of acceptance (RFC 3339) and states, from the rows of [`ACCEPT`] and of
/// [`DROP_ENDED`].
pub(super) fn new_jobs_of<'a>(
    inserted: impl IntoIterator<Item = &'a Row>,
    ended: &[Row],
) -> HashMap<Uuid, (String, JobState)> {
    let new = inserted.into_iter().map(|row| (row.get(0), (row.get(1), read_state(row, 2))));
    let mut new: HashMap<Uuid, (String, JobState)> = new.collect();
    for row in ended {
        new.remove(&row.get(0));
    }
    new
}

/// Says that a job is new.
pub(super) fn accepted(spec: &JobSpec, state: JobState) -> Change {
    Change::new(spec.job_id, spec.session_key(), state)
}

impl Store {
    /// Takes jobs into the ledger, in order. Those that are `publishing` the caller publishes next; if it dies first,
    /// [`Store::return_stuck`] makes them due. Those that wait in a line, or are not due, are left to the relays. A job that is
    /// refused does not keep the others out.
    pub async fn accept(&self, specs: &[JobSpec]) -> Result<Vec<Accepted>, StoreError> {
        match self.accept_together(specs).await {
            Err(error) if error.may_lie_in_one_call() => {}
            answers => return answers,
        }
        let mut answers = Vec::with_capacity(specs.len());
        for spec in specs {
            answers.push(match self.accept_together(std::slice::from_ref(spec)).await {
                Ok(mut one) => one.remove(0),
                Err(refused @ StoreError::Refused { .. }) => Accepted::Refused(refused.to_string()),
                Err(error) => return Err(error),
            });
        }
        Ok(answers)
    }

    async fn accept_together(&self, specs: &[JobSpec]) -> Result<Vec<Accepted>, StoreError> {
        let columns = Columns::of(specs.iter());
        let jobs = &columns.jobs;
        let labels = LabelColumns::of(specs.iter());
        let sql = [ACCEPT, DROP_ENDED];
        let tx = Tx::prepare_more(&self.pool, "accept", sql, labels.statement()).await?;
        let ([inserted, ended], _) = tx.run_more([&columns.params(), &[jobs]], &labels.params()).await?;
        let mut new = new_jobs_of(&inserted, &ended);
        // An id that occurs twice in one call is new once.
        let answer =
            |id: &Uuid| new.remove(id).map_or(Accepted::Duplicate, |(_, state)| Accepted::New(state));
        let answers: Vec<Accepted> = jobs.iter().map(answer).collect();
        self.changes.note(|| {
            specs.iter().zip(&answers).filter_map(|(spec, answer)| match answer {
                Accepted::New(state) => Some(accepted(spec, *state)),
                Accepted::Duplicate | Accepted::Refused(_) => None,
            })
        });
        Ok(answers)
    }
}
