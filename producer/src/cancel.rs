//! Cancel: ends jobs that nobody wants any more.

use anyhow::Context;
use dispatch::Dispatch;
use job::{IdError, JobId, Limits, Name};
use store::Cancelled;

/// What was answered.
pub enum Answer {
    /// What became of each, in order.
    Done(Vec<(JobId, Cancelled)>),
    /// Nothing was cancelled: an id is none for which an end can be recorded.
    Refused(IdError),
}

/// Cancels these jobs, and all live ones of the session where one is given.
pub async fn cancel(
    dispatch: &Dispatch,
    mut jobs: Vec<JobId>,
    session: Option<&Name>,
    limits: &Limits,
) -> anyhow::Result<Answer> {
    if let Some(session) = session {
        let live = dispatch.store.jobs_of(session).await.context("reading the session's jobs")?;
        // The last ones first, so that none of them starts meanwhile.
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
