//! Cancels jobs that are no longer wanted.

use anyhow::Context;
use dispatch::{Dispatch, InboxRules};
use job::{IdError, JobId, Limits, SessionKey};
use store::Cancelled;

/// The result of a cancel.
pub enum Answer {
    /// What became of each job, in the order given.
    Done(Vec<(JobId, Cancelled)>),
    /// Nothing was cancelled: the ledger cannot record an end for one of the ids.
    Refused(IdError),
}

/// Cancels these jobs, and all live jobs of `session` if one is given. The operators' log names the actor.
pub async fn cancel(
    dispatch: &Dispatch,
    actor: &str,
    mut jobs: Vec<JobId>,
    session: Option<&SessionKey>,
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
    // One that was enqueued by SQL a moment ago is a job of its tenant's first, and then ends as one.
    let rules = InboxRules::of(limits);
    dispatch.take_from_inbox(&jobs, &rules).await.context("taking jobs from the inbox")?;
    let answers = dispatch.cancel(actor, &jobs).await.context("cancelling jobs")?;
    Ok(Answer::Done(jobs.into_iter().zip(answers).collect()))
}
