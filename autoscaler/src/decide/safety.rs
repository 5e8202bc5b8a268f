//! Safety: unknown numbers never shrink a pool, a worker that holds a job stays, and the budget and operators can stop
//! a change.

use super::{Demand, Observation, Policy, Proposal, Reading, Reason};

/// Two depths that differ by at most this many messages count as one depth, read at different moments.
const DEPTH_NOISE: u64 = 10;
/// So do two depths that differ by at most the larger one divided by this: a half.
const DEPTH_NOISE_PART: u64 = 2;

/// Returns the ready messages and the ledger's numbers, or why they cannot be used.
pub(super) fn jobs<'a>(
    observation: &'a Observation,
    policy: &Policy,
    now_ms: u64,
) -> Result<(u64, &'a Demand), Reason> {
    let ready = observation.ready.as_ref().ok_or(Reason::QueueUnknown)?;
    let demand = observation.demand.as_ref().ok_or(Reason::LedgerUnknown)?;
    if is_stale(ready, policy, now_ms) {
        return Err(Reason::QueueStale);
    }
    if is_stale(demand, policy, now_ms) {
        return Err(Reason::LedgerStale);
    }
    // A pool without workers may have no admitter either: it gets its first worker.
    if demand.value.line_is_old
        && observation.replicas.as_ref().is_none_or(|replicas| replicas.value.wanted > 0)
    {
        return Err(Reason::LineStale);
    }
    Ok((ready.value, &demand.value))
}

/// Applies what can stop a pool from shrinking.
pub(super) fn shrink(proposal: &mut Proposal, observation: &Observation, policy: &Policy, now_ms: u64) {
    let current = proposal.current;
    if proposal.workers >= current {
        return;
    }
    if let Err(unknown) = jobs(observation, policy, now_ms) {
        proposal.change(unknown, current);
    }
    if observation.replicas.as_ref().is_some_and(|replicas| is_stale(replicas, policy, now_ms)) {
        proposal.change(Reason::WorkloadStale, current);
    }
    if observation.managed_ready.as_ref().is_some_and(|managed| is_stale(managed, policy, now_ms)) {
        proposal.change(Reason::ManagementStale, current);
    }
    if observation.disagrees() {
        proposal.change(Reason::Disagreement, current);
    }
    if policy.pause_down {
        proposal.change(Reason::PausedDown, current);
    }
    let busy = observation.demand.as_ref().map_or(0, |demand| demand.value.busy_workers);
    proposal.change(Reason::Busy, proposal.workers.max(busy.min(current)));
}

/// Applies what can stop a pool from growing. The minimum holds even if the budget is spent.
pub(super) fn grow(proposal: &mut Proposal, observation: &Observation, policy: &Policy, now_ms: u64) {
    let current = proposal.current;
    if proposal.workers <= current {
        return;
    }
    if observation.budget_exhausted.as_ref().is_some_and(|exhausted| exhausted.value) {
        let most = current.max(policy.minimum_at(now_ms));
        proposal.change(Reason::BudgetExhausted, proposal.workers.min(most));
    }
    if policy.pause_up {
        proposal.change(Reason::PausedUp, current);
    }
}

fn is_stale<T>(reading: &Reading<T>, policy: &Policy, now_ms: u64) -> bool {
    now_ms.saturating_sub(reading.at_ms) > policy.stale_after_s.saturating_mul(1000)
}

impl Observation {
    /// Whether the management API's number of ready messages, if it is read, differs from the queue's own by more than
    /// ten messages and by more than half of the larger number.
    pub fn disagrees(&self) -> bool {
        let (Some(ready), Some(managed)) = (&self.ready, &self.managed_ready) else { return false };
        let apart = ready.value.abs_diff(managed.value);
        apart > DEPTH_NOISE && apart > ready.value.max(managed.value) / DEPTH_NOISE_PART
    }

    /// Whether the management API sees messages.
    pub(super) fn manages_more(&self) -> bool {
        self.managed_ready.as_ref().is_some_and(|managed| managed.value > 0)
    }
}
