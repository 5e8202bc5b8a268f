//! Submit: into the ledger first, then to the broker. Every entry point uses it: for one job, for many, and for jobs
//! that redo the work of failed ones.

use std::collections::HashSet;

use anyhow::Context;
use dispatch::Dispatch;
use job::{JobId, JobSpec, Limits, OnBusy};
use store::{Accepted, Ask, DueJob};
use tracing::warn;

use crate::send_spans::SendSpans;

/// Jobs that were submitted, and what became of each. The new ones still have to be published.
#[must_use = "what is not published here waits until a relay publishes it"]
pub struct Submitted {
    /// The new jobs, in order.
    pub new: Vec<JobId>,
    /// Jobs that Postgres cannot hold, and why.
    pub refused: Vec<(JobId, String)>,
    /// How many jobs had been accepted before.
    pub accepted_before: usize,
    due: Vec<DueJob>,
    /// Jobs that want their session's running job to give way.
    asking: Vec<(JobId, Ask)>,
    /// The spans end when the broker has confirmed.
    send_spans: SendSpans,
    dispatch: Dispatch,
}

/// Writes jobs to the ledger, in order. A job counts as accepted once it is there.
pub async fn submit(
    dispatch: &Dispatch,
    mut jobs: Vec<JobSpec>,
    limits: &Limits,
) -> anyhow::Result<Submitted> {
    let send_spans = SendSpans::begin(&mut jobs, limits);
    let answers = dispatch.store.accept(&jobs).await.context("writing jobs to Postgres")?;
    let (mut new, mut refused) = (Vec::new(), Vec::new());
    for (spec, answer) in jobs.iter().zip(answers) {
        match answer {
            Accepted::New => new.push(spec),
            Accepted::Duplicate => {}
            Accepted::Refused(reason) => refused.push((spec.job_id, reason)),
        }
    }
    let accepted_before = jobs.len() - new.len() - refused.len();
    Ok(Submitted::accepted(dispatch, new, refused, accepted_before, send_spans))
}

/// Accepts jobs that redo the work of failed ones; each comes with the id of its failed job. If another caller has
/// settled the failed job meanwhile, its new job is not accepted.
pub async fn redrive(
    dispatch: &Dispatch,
    jobs: Vec<(JobId, JobSpec)>,
    limits: &Limits,
) -> anyhow::Result<Submitted> {
    let (failed, mut jobs): (Vec<JobId>, Vec<JobSpec>) = jobs.into_iter().unzip();
    let send_spans = SendSpans::begin(&mut jobs, limits);
    let pairs: Vec<(JobId, JobSpec)> = failed.into_iter().zip(jobs).collect();
    let taken = dispatch.store.redrive(&pairs).await.context("redriving jobs")?;
    let taken: HashSet<JobId> = taken.into_iter().collect();
    let new: Vec<&JobSpec> =
        pairs.iter().map(|(_, spec)| spec).filter(|spec| taken.contains(&spec.job_id)).collect();
    let before = pairs.len() - new.len();
    Ok(Submitted::accepted(dispatch, new, Vec::new(), before, send_spans))
}

impl Submitted {
    fn accepted(
        dispatch: &Dispatch,
        new: Vec<&JobSpec>,
        refused: Vec<(JobId, String)>,
        accepted_before: usize,
        mut send_spans: SendSpans,
    ) -> Submitted {
        let asking = new.iter().filter_map(|spec| ask(spec)).collect();
        let due: Vec<DueJob> = new.into_iter().map(due).collect();
        send_spans.accepted(&due, &refused);
        let new = due.iter().map(|job| job.job_id).collect();
        Submitted { new, refused, accepted_before, due, asking, send_spans, dispatch: dispatch.clone() }
    }

    /// Asks running jobs to give way where the new ones want that, and publishes the new ones. A job whose publish is
    /// not confirmed stays accepted, and a relay publishes it later. Returns how many were confirmed.
    pub async fn publish(self) -> anyhow::Result<usize> {
        let Submitted { due, asking, send_spans, dispatch, .. } = self;
        // A worker also asks when it claims such a job, but until then all workers may be busy.
        if !asking.is_empty()
            && let Err(cause) = dispatch.store.make_room(&asking).await
        {
            warn!(
                cause = cause.as_dyn(),
                "running jobs were not asked to give way yet; workers will ask them"
            );
        }
        let confirmed = dispatch.publish(due).await.context("noting the broker's confirms in Postgres");
        drop(send_spans);
        confirmed
    }
}

/// What the job asks of the one that runs in its session.
fn ask(spec: &JobSpec) -> Option<(JobId, Ask)> {
    match spec.on_busy {
        OnBusy::Interrupt => Some((spec.job_id, Ask::Interrupt)),
        OnBusy::Rollback => Some((spec.job_id, Ask::Rollback)),
        OnBusy::Enqueue | OnBusy::Reject => None,
    }
}

fn due(spec: &JobSpec) -> DueJob {
    DueJob { job_id: spec.job_id, pool: spec.pool.clone(), message: job::encode(spec) }
}
