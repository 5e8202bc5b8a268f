//! Cancels jobs that are no longer wanted.

use anyhow::Context;
use dispatch::{Dispatch, InboxRules};
use job::{IdError, JobId, Limits, SessionKey};
use store::Cancelled;

/// The result of a cancel.
pub enum Answer {
    /// What became of each job, in the order given.
    Done(Vec<(JobId, Cancelled)>),
    /// Nothing was cancelled: the ledger does not know one of the ids, and cannot record an end for it.
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
    if let Some(error) = cannot_be_recorded(dispatch, &jobs, limits).await? {
        return Ok(Answer::Refused(error));
    }
    // One that was enqueued by SQL a moment ago is a job of its tenant's first, and then ends as one.
    let rules = InboxRules::of(limits);
    dispatch.take_from_inbox(&jobs, &rules).await.context("taking jobs from the inbox")?;
    let answers = dispatch.cancel(actor, &jobs).await.context("cancelling jobs")?;
    Ok(Answer::Done(jobs.into_iter().zip(answers).collect()))
}

/// What is wrong with the first of these ids whose end has no place in the ledger. The end of a job that the ledger knows
/// has one, however old the job is.
async fn cannot_be_recorded(
    dispatch: &Dispatch,
    jobs: &[JobId],
    limits: &Limits,
) -> anyhow::Result<Option<IdError>> {
    let outside: Vec<(JobId, IdError)> = jobs
        .iter()
        .filter_map(|id| Some((*id, id.check_window(limits.now_unix_ms, limits.retention).err()?)))
        .collect();
    if outside.is_empty() {
        return Ok(None);
    }
    let ids: Vec<JobId> = outside.iter().map(|(id, _)| *id).collect();
    let known = dispatch.store.tenants_of(&ids).await.context("looking for the jobs")?;
    Ok(outside.into_iter().find(|(id, _)| !known.contains_key(id)).map(|(_, error)| error))
}
