//! Submit: into the ledger first, then to the broker. One way in for every door, for one job, for many, and for those that do failed
//! ones' work again.

use std::collections::HashSet;

use anyhow::Context;
use dispatch::Dispatch;
use job::{JobId, JobSpec, Limits, OnBusy};
use store::{Accepted, Ask, DueJob};
use tracing::warn;

use crate::send_spans::SendSpans;

/// Jobs that were submitted: what became of each. The new ones are still to be published.
#[must_use = "what is not published here is published by a relay, later"]
pub struct Submitted {
    /// The new ones, in order.
    pub new: Vec<JobId>,
    /// Those that Postgres cannot hold, and why.
    pub refused: Vec<(JobId, String)>,
    /// How many had been accepted before.
    pub accepted_before: usize,
    due: Vec<DueJob>,
    /// Those that want room made in their sessions.
    asking: Vec<(JobId, Ask)>,
    /// They end with the broker's confirms.
    send_spans: SendSpans,
    dispatch: Dispatch,
}

/// Takes jobs into the ledger, in order. A job counts as accepted once it stands there.
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

/// Takes in the jobs that do failed ones' work again, each with the failed one's id. Those whose failed job somebody else has
/// settled meanwhile are none of the new ones.
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

    /// Makes room for the new ones, where they want that, and publishes them. One whose publish is not confirmed stays accepted: a relay publishes it later. Returns how many were
    /// confirmed.
    pub async fn publish(self) -> anyhow::Result<usize> {
        let Submitted { due, asking, send_spans, dispatch, .. } = self;
        // A worker asks as well when it claims such a job, but all of them may be busy until then.
        if !asking.is_empty()
            && let Err(cause) = dispatch.store.make_room(&asking).await
        {
            warn!(cause = cause.as_dyn(), "no room was made in sessions yet: workers ask again");
        }
        let confirmed = dispatch.publish(due).await.context("noting the broker's confirms in Postgres");
        drop(send_spans);
        confirmed
    }
}

/// What it wants of the job that runs in its session.
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
