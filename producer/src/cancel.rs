//! Cancels jobs that are no longer wanted.

use anyhow::Context;
use dispatch::Dispatch;
use job::{IdError, JobId, Limits, Name};
use store::Cancelled;

/// The result of a cancel.
pub enum Answer {
    /// What became of each job, in the order given.
    Done(Vec<(JobId, Cancelled)>),
    /// Nothing was cancelled: the ledger cannot record an end for one of the ids.
    Refused(IdError),
}

/// Cancels these jobs, and all live jobs of `session` if one is given.
pub async fn cancel(
    dispatch: &Dispatch,
    mut jobs: Vec<JobId>,
    session: Option<&Name>,
    limits: &Limits,
) -> anyhow::Result<Answer> {
    if let Some(session) = session {
        let live = dispatch.store.jobs_of(session).await.context("reading the session's jobs")?;
        // In reverse order, so that no blocked job starts when the one before it ends.
        jobs.extend(live.into_iter().rev());
    }
    for job_id in &jobs {
        if let Err(error) = job_id.check_window(limits.now_unix_ms, limits.retention) {
            return Ok(Answer::Refused(error));
        }
    }
    let answers = dispatch.cancel(&jobs).await.context("cancelling jobs")?;
    Ok(Answer::Done(jobs.into_iter().zip(answers).collect()))
}
