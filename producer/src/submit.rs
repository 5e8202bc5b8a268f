//! Submit: into the ledger first, then to the broker.

use anyhow::Context;
use job::{JobId, JobSpec, OnBusy};
use dispatch::Dispatch;
use store::{Accepted, Ask, DueJob};

/// What became of a batch.
#[derive(Default)]
pub struct Taken {
    /// The new ones, whose messages are to be published next.
    pub due: Vec<DueJob>,
    /// Those that Postgres cannot hold, and why.
    pub refused: Vec<(JobId, String)>,
}

/// Takes a batch into the ledger, in order.
pub async fn accept(dispatch: &Dispatch, specs: &[JobSpec]) -> anyhow::Result<Taken> {
    let answers = dispatch.store.accept(specs).await.context("writing jobs to Postgres")?;
    let (mut new, mut taken) = (Vec::new(), Taken::default());
    for (spec, answer) in specs.iter().zip(answers) {
        match answer {
            Accepted::New => new.push(spec),
            Accepted::Duplicate => {}
            Accepted::Refused(reason) => taken.refused.push((spec.job_id, reason)),
        }
    }
    make_room(dispatch, &new).await?;
    taken.due = new.into_iter().map(due).collect();
    Ok(taken)
}

/// Asks the jobs that run in the sessions of new ones to make room, where the new ones want that. A worker does this too
/// when it claims such a job, but all of them may be busy until then.
pub async fn make_room(dispatch: &Dispatch, new: &[&JobSpec]) -> anyhow::Result<()> {
    let ask = |spec: &&JobSpec| match spec.on_busy {
        OnBusy::Interrupt => Some((spec.job_id, Ask::Interrupt)),
        OnBusy::Rollback => Some((spec.job_id, Ask::Rollback)),
        OnBusy::Enqueue | OnBusy::Reject => None,
    };
    let asking: Vec<_> = new.iter().filter_map(ask).collect();
    if asking.is_empty() {
        return Ok(());
    }
    dispatch.store.make_room(&asking).await.context("making room in sessions")
}

/// What is to be published of a job.
pub fn due(spec: &JobSpec) -> DueJob {
    DueJob { job_id: spec.job_id, pool: spec.pool.clone(), message: job::encode(spec) }
}

/// Publishes what was accepted. A job whose publish is not confirmed stays accepted: a relay sends it later. Returns
/// how many were confirmed.
pub async fn publish(dispatch: &Dispatch, due: Vec<DueJob>) -> anyhow::Result<usize> {
    dispatch.publish(due).await.context("noting the broker's confirms in Postgres")
}
