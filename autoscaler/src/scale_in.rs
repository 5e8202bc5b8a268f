//! Scale-in without victims: which workers drain, and which take jobs again. Pure.
//!
//! A worker is removed in three steps. It is *marked* in the ledger and takes no further job. When it holds nothing, it
//! becomes unready and confirms that it is *drained*. Only then is the workload lowered, by
//! [`lowered`](workload::lowered).
//!
//! One rule in two halves says which workers may be marked:
//!
//! 1. **At least `desired` workers that can work stay.** A worker counts if its pod is Ready, it sends heartbeats, and
//!    it has no mark. A pod that is pending, broken or missing does not count. If fewer are left, marks are taken back.
//! 2. **No worker drains in vain.** While nothing that workers do would let the workload be lowered, none is marked,
//!    and marks are taken back. That is so while a rollout is in progress, or while a pod that no mark can drain is not
//!    Ready. Others also wait for Ready pods (a rollout, or a node that is drained under a disruption budget), and
//!    would wait for ours forever.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use job::WorkerId;
use store::WorkerView;

use workload::{Order, Pod, Unsettled, Wait, Workload};

#[cfg(test)]
mod tests;

/// How much longer a mark must hold when the workload is lowered, so that no drained worker takes jobs again meanwhile.
pub const MARK_MARGIN_MS: u64 = 15_000;

/// What to do about surplus workers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ScaleIn {
    /// Workers whose mark is taken back: demand has returned, another worker is removed instead, or none may be removed
    /// now. Workers of pods that are being removed already are left out: their marks expire.
    pub take_back: Vec<WorkerId>,
    /// Workers to mark, and workers whose mark is renewed.
    pub mark: Vec<WorkerId>,
    /// The pods of those workers in `mark` that are drained, and stay drained for long enough.
    pub drained: BTreeSet<String>,
    /// Why no worker is drained, although there are more replicas than wanted.
    pub wait: Option<Wait>,
}

/// A pod and its worker, if that can be marked: it sends heartbeats, and does not drain on a signal. If the pod's
/// process was restarted, it has had several workers, and the last one counts.
struct Member<'a> {
    pod: &'a Pod,
    worker: Option<&'a WorkerView>,
}

/// Plans the scale-in of a workload to `desired` workers.
pub fn plan(desired: u32, workload: &Workload, pods: &[Pod], workers: &[WorkerView]) -> ScaleIn {
    let crew: Vec<Member<'_>> = pods.iter().map(|pod| Member::new(pod, workers)).collect();
    let vain = in_vain(workload, &crew);
    let going = if vain.is_some() { Vec::new() } else { going(desired, workload, &crew) };
    let goes = |worker: &WorkerView| going.iter().any(|going| going.worker == worker.worker);
    let is_here = |worker: &WorkerView| pods.iter().any(|pod| worker.pod_name.as_ref() == Some(&pod.name));
    let unwanted = |worker: &&WorkerView| worker.mark.is_some() && !goes(worker) && is_here(worker);
    let stays_drained = |worker: &&&WorkerView| {
        worker.mark.as_ref().is_some_and(|mark| mark.drained && mark.left_ms > MARK_MARGIN_MS)
    };
    let drained: BTreeSet<String> =
        going.iter().filter(stays_drained).filter_map(|worker| worker.pod_name.clone()).collect();
    let waits = workload.replicas > desired && drained.is_empty();
    ScaleIn {
        take_back: workers.iter().filter(unwanted).map(|worker| worker.worker).collect(),
        mark: going.iter().map(|worker| worker.worker).collect(),
        wait: waits.then(|| vain.unwrap_or_else(|| why(desired, workload, &crew, &going))),
        drained,
    }
}

impl Member<'_> {
    fn new<'a>(pod: &'a Pod, workers: &'a [WorkerView]) -> Member<'a> {
        let here = workers.iter().filter(|worker| worker.pod_name.as_ref() == Some(&pod.name));
        let last = here.min_by_key(|worker| worker.age_ms);
        let can_be_marked = |worker: &&WorkerView| worker.fresh && !worker.draining && pod.trouble.is_none();
        Member { pod, worker: last.filter(can_be_marked) }
    }

    /// Whether it can run jobs once it has no mark.
    fn is_ready(&self) -> bool {
        self.pod.ready && self.worker.is_some()
    }
}

/// Returns why draining would achieve nothing, whichever worker drains.
fn in_vain(workload: &Workload, crew: &[Member<'_>]) -> Option<Wait> {
    if let Order::Never(why) = &workload.order {
        return Some(Wait::Never(why.clone()));
    }
    if let Some(rollout @ Unsettled::Rollout(_)) = &workload.unsettled {
        return Some(Wait::Unsettled(rollout.clone()));
    }
    let broken = crew.iter().find(|member| !member.pod.ready && member.worker.is_none())?.pod;
    Some(Wait::NotReady { pod: broken.name.clone(), trouble: broken.trouble.clone() })
}

/// Returns the workers to remove: the surplus, as long as `desired` Ready ones stay.
fn going<'a>(desired: u32, workload: &Workload, crew: &[Member<'a>]) -> Vec<&'a WorkerView> {
    let ready = crew.iter().filter(|member| member.is_ready()).count();
    let Some(mut spare) = ready.checked_sub(desired as usize) else { return Vec::new() };
    let surplus = match workload.unsettled {
        // No further worker is marked: this may be the beginning of a rollout.
        Some(Unsettled::Changing(_)) => 0,
        _ => workload.replicas.saturating_sub(desired) as usize,
    };
    let mut going = Vec::new();
    for (member, worker) in line(&workload.order, crew) {
        // A marked worker keeps its mark until its pod is gone, even if the workload has been lowered already.
        if worker.mark.is_none() && going.len() >= surplus {
            break;
        }
        if member.is_ready() {
            match spare.checked_sub(1) {
                Some(left) => spare = left,
                None => break,
            }
        }
        going.push(worker);
    }
    going
}

/// Returns the workers that may be marked, in the order of removal.
fn line<'m, 'a>(order: &Order, crew: &'m [Member<'a>]) -> Vec<(&'m Member<'a>, &'a WorkerView)> {
    let with_worker = |member: &'m Member<'a>| Some((member, member.worker?));
    match order {
        Order::Never(_) => Vec::new(),
        // Only the highest ordinal can be removed, so it is marked even if it is busy; it ends the jobs it holds.
        Order::HighestOrdinalFirst => {
            let mut crew: Vec<_> = crew.iter().collect();
            crew.sort_by_key(|member| Reverse(member.pod.ordinal));
            crew.into_iter().map_while(with_worker).collect()
        }
        // First drained workers, then marked ones, then idle ones. Within each group, first those that cannot work,
        // then the youngest, whose caches are the coldest.
        Order::NotReadyFirst | Order::AsNamed => {
            let may_go = |worker: &WorkerView| worker.held == 0 || worker.mark.is_some();
            let mut line: Vec<_> =
                crew.iter().filter_map(with_worker).filter(|(_, worker)| may_go(worker)).collect();
            line.sort_by_key(|(member, worker)| {
                let drained = worker.mark.as_ref().is_some_and(|mark| mark.drained);
                (!drained, worker.mark.is_none(), member.pod.ready, worker.age_ms)
            });
            line
        }
    }
}

/// Returns why no worker is drained.
fn why(desired: u32, workload: &Workload, crew: &[Member<'_>], going: &[&WorkerView]) -> Wait {
    if !going.is_empty() {
        return Wait::Draining { workers: going.len(), jobs: going.iter().map(|worker| worker.held).sum() };
    }
    if let Some(changing @ Unsettled::Changing(_)) = &workload.unsettled {
        return Wait::Unsettled(changing.clone());
    }
    let ready = crew.iter().filter(|member| member.is_ready()).count() as u32;
    let unknown = crew.iter().find(|member| member.pod.ready && member.worker.is_none());
    match unknown {
        Some(member) => Wait::NoWorker { pod: member.pod.name.clone() },
        None if ready <= desired => Wait::TooFewReady { ready, wanted: desired },
        None => Wait::Busy,
    }
}
