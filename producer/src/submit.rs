//! Submit: into the ledger first, then to the broker.

use anyhow::Context;
use job::{JobSpec, OnBusy};
use relay::Relay;
use store::{Accepted, Ask, DueJob};

/// Takes a batch into the ledger, in order. Returns the new ones, whose messages are to be published next.
pub async fn accept(relay: &Relay, specs: &[JobSpec]) -> anyhow::Result<Vec<DueJob>> {
    let answers = relay.store.accept(specs).await.context("writing jobs to Postgres")?;
    let new = specs.iter().zip(answers).filter(|(_, answer)| *answer == Accepted::New);
    let new: Vec<&JobSpec> = new.map(|(spec, _)| spec).collect();
    make_room(relay, &new).await?;
    Ok(new.into_iter().map(due).collect())
}

/// Asks the jobs that run in the sessions of new ones to make room, where the new ones want that. A worker does this too
/// when it claims such a job, but all of them may be busy until then.
pub async fn make_room(relay: &Relay, new: &[&JobSpec]) -> anyhow::Result<()> {
    for spec in new {
        let ask = match spec.on_busy {
            OnBusy::Interrupt => Ask::Interrupt,
            OnBusy::Rollback => Ask::Rollback,
            OnBusy::Enqueue | OnBusy::Reject => continue,
        };
        relay.store.make_room(spec.job_id, ask).await.context("making room in a session")?;
    }
    Ok(())
}

/// What is to be published of a job.
pub fn due(spec: &JobSpec) -> DueJob {
    DueJob { job_id: spec.job_id, pool: spec.pool.clone(), message: job::encode(spec) }
}

/// Publishes what was accepted. A job whose publish is not confirmed stays accepted: a relay sends it later. Returns
/// how many were confirmed.
pub async fn publish(relay: &Relay, due: Vec<DueJob>) -> anyhow::Result<usize> {
    relay::publish(relay, due).await.context("noting the broker's confirms in Postgres")
}
