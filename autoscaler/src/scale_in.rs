//! Scale-in without victims: which workers are to drain, and which take jobs again. Pure.
//!
//! A worker goes in three steps. It is *marked* in the ledger and takes no further job; when it holds nothing it
//! becomes unready and says that it is *drained*; only then is the workload lowered, by [`lowered`](crate::apply::lowered).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use job::WorkerId;
use store::WorkerView;

use crate::apply::{Order, Pod, Workload};

/// A mark must hold for so much longer when the workload is lowered: no drained worker may take jobs again under it.
pub const MARK_MARGIN_MS: u64 = 15_000;

/// What is to be done about workers that are too many.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ScaleIn {
    /// Marks to take back: demand has returned, or another worker goes instead.
    pub take_back: Vec<WorkerId>,
    /// Workers to mark, or whose mark is renewed.
    pub mark: Vec<WorkerId>,
    /// Pods of those among them that are drained, and stay so for long enough.
    pub drained: BTreeSet<String>,
}

/// Plans for `desired` workers of a workload.
pub fn plan(desired: u32, workload: &Workload, pods: &[Pod], workers: &[WorkerView]) -> ScaleIn {
    let surplus = workload.replicas.saturating_sub(desired) as usize;
    let going: Vec<&WorkerView> = line(&workload.order, pods, workers).into_iter().take(surplus).collect();
    let goes = |worker: &WorkerView| going.iter().any(|going| going.worker == worker.worker);
    let stays_drained = |worker: &&&WorkerView| {
        worker.mark.as_ref().is_some_and(|mark| mark.drained && mark.left_ms > MARK_MARGIN_MS)
    };
    ScaleIn {
        take_back: workers.iter().filter(|it| it.mark.is_some() && !goes(it)).map(|it| it.worker).collect(),
        mark: going.iter().map(|worker| worker.worker).collect(),
        drained: going.iter().filter(stays_drained).filter_map(|worker| worker.pod_name.clone()).collect(),
    }
}

/// Those that may be told to go, in their order.
fn line<'a>(order: &Order, pods: &[Pod], workers: &'a [WorkerView]) -> Vec<&'a WorkerView> {
    let pods: BTreeMap<&str, &Pod> = pods.iter().map(|pod| (pod.name.as_str(), pod)).collect();
    let pod = |worker: &WorkerView| pods.get(worker.pod_name.as_deref()?).copied();
    // Those that drain on a signal go by themselves.
    let present = workers.iter().filter(|it| it.fresh && !it.draining && pod(it).is_some());
    let mut line: Vec<&WorkerView> = match order {
        Order::Never(_) => return Vec::new(),
        // Only the highest can go, so even a busy one gets the mark; it ends what it holds.
        Order::HighestOrdinalFirst => present.collect(),
        Order::NotReadyFirst | Order::AsNamed => {
            present.filter(|worker| worker.held == 0 || worker.mark.is_some()).collect()
        }
    };
    line.sort_by_key(|worker| match order {
        Order::HighestOrdinalFirst => (Reverse(pod(worker).and_then(|pod| pod.ordinal)), false, false, 0),
        // Drained ones, then those on their way, then idle ones; the youngest first, whose caches are the coldest.
        _ => {
            let drained = worker.mark.as_ref().is_some_and(|mark| mark.drained);
            (Reverse(None), !drained, worker.mark.is_none(), worker.age_ms)
        }
    });
    line
}
