//! Which workers are marked, whatever else is broken.

use proptest::prelude::*;
use proptest::sample::select;
use store::MarkView;

use super::*;
use workload::lowered;

const EPOCH: i64 = 7;

fn workload(replicas: u32, order: Order) -> Workload {
    let (ready, version, selector) = (0, "1".to_owned(), String::new());
    Workload { replicas, ready, version, unsettled: None, order, selector }
}

fn pod(at: usize, ready: bool, trouble: Option<&str>) -> Pod {
    let trouble = trouble.map(str::to_owned);
    Pod { name: format!("w-{at}"), ready, ordinal: Some(at as u32), trouble }
}

/// The worker of pod `at`: `at` = 0 is the oldest.
fn worker(at: usize, held: u64, mark: Option<bool>) -> WorkerView {
    WorkerView {
        worker: uuid::Uuid::from_u128(at as u128 + 1).into(),
        pool: job::Name::default(),
        host: String::new(),
        pod_name: Some(format!("w-{at}")),
        slots: 1,
        held,
        draining: false,
        fresh: true,
        age_ms: 1_000_000 - at as u64,
        mark: mark.map(|drained| MarkView { epoch: EPOCH, left_ms: 30_000, drained }),
    }
}

fn id(at: usize) -> WorkerId {
    worker(at, 0, None).worker
}

/// Each character is a pod: `r` Ready, `b` busy, `m` marked and busy, `d` drained, `n` not Ready but with a worker, `p`
/// pending.
fn fleet(signs: &str) -> (Vec<Pod>, Vec<WorkerView>) {
    let (mut pods, mut workers) = (Vec::new(), Vec::new());
    for (at, sign) in signs.chars().enumerate() {
        let trouble = (sign == 'p').then_some("Unschedulable");
        pods.push(pod(at, "rbm".contains(sign), trouble));
        let mark = match sign {
            'm' => Some(false),
            'd' => Some(true),
            _ => None,
        };
        if sign != 'p' {
            workers.push(worker(at, u64::from("bm".contains(sign)), mark));
        }
    }
    (pods, workers)
}

/// Returns the places of the marked workers, those of marks taken back, and the kind of wait.
fn planned(replicas: u32, signs: &str, desired: u32) -> (Vec<usize>, Vec<usize>, Option<&'static str>) {
    let (pods, workers) = fleet(signs);
    let plan = plan(desired, &workload(replicas, Order::NotReadyFirst), &pods, &workers);
    let places = |ids: &[WorkerId]| (0..pods.len()).filter(|at| ids.contains(&id(*at))).collect();
    (places(&plan.mark), places(&plan.take_back), plan.wait.map(|wait| wait.kind()))
}

#[test]
fn pods_that_do_not_run_drain_none_that_does() {
    // A node has room for three of six pods, and the burst is over.
    assert_eq!(planned(6, "rrrppp", 1), (vec![], vec![], Some("not_ready")));
    // A quota allows three of six pods: the missing ones do not delay the scale-in.
    assert_eq!(planned(6, "rrr", 1), (vec![1, 2], vec![], Some("draining")));
    assert_eq!(planned(6, "rrr", 3), (vec![], vec![], Some("too_few_ready")));
    // One cannot work (its broker is away). It is removed first, and does not count as one that stays.
    assert_eq!(planned(3, "nrr", 2), (vec![0], vec![], Some("draining")));
    assert_eq!(planned(4, "nrrb", 2), (vec![0, 2], vec![], Some("draining")));
}

#[test]
fn marks_are_taken_back_when_too_few_others_can_work() {
    assert_eq!(planned(4, "rrdd", 2), (vec![2, 3], vec![], None));
    // One of the two that should stay is no longer Ready.
    assert_eq!(planned(4, "rndd", 2), (vec![], vec![2, 3], Some("too_few_ready")));
    assert_eq!(planned(4, "rrmd", 3), (vec![3], vec![2], None));
    assert_eq!(planned(4, "rrdd", 4), (vec![], vec![2, 3], None));
    // A pod that cannot run appeared, so none can be removed.
    assert_eq!(planned(5, "rrddp", 2), (vec![], vec![2, 3], Some("not_ready")));
}

#[test]
fn a_mark_holds_until_its_pod_has_gone() {
    // The workload has been lowered to two; its controller has not removed the pods yet.
    assert_eq!(planned(2, "rrdd", 2), (vec![2, 3], vec![], None));
    let (mut pods, workers) = fleet("rrdd");
    pods.truncate(2);
    let plan = plan(2, &workload(2, Order::NotReadyFirst), &pods, &workers);
    assert_eq!((plan.mark, plan.take_back), (vec![], vec![]), "they are going");
}

#[test]
fn while_a_rollout_is_in_progress_no_worker_is_marked_and_marks_are_taken_back() {
    let (pods, workers) = fleet("rrdmr");
    let mut seen = workload(5, Order::NotReadyFirst);
    seen.unsettled = Some(Unsettled::Rollout("it is paused".into()));
    let planned = plan(1, &seen, &pods, &workers);
    assert_eq!((planned.mark, planned.take_back), (vec![], vec![id(2), id(3)]));
    assert_eq!(planned.wait.map(|wait| wait.kind()), Some("rollout"));
    // What may be the beginning of a rollout takes no mark back, and marks no further worker.
    seen.unsettled = Some(Unsettled::Changing("later".into()));
    let planned = plan(1, &seen, &pods, &workers);
    assert_eq!((planned.mark, planned.take_back), (vec![id(2), id(3)], vec![]));
    // Without a marked worker, the scale-in waits for it, because all workers are idle.
    let (pods, workers) = fleet("rrr");
    let planned = plan(1, &seen, &pods, &workers);
    assert_eq!((planned.mark, planned.take_back), (vec![], vec![]));
    assert_eq!(planned.wait.map(|wait| wait.kind()), Some("changing"));
}

#[test]
fn only_the_last_worker_of_a_pod_counts() {
    // Its process died after it was drained, and was started again. The lease of the first worker has not ended yet.
    let (mut pods, mut workers) = fleet("rd");
    pods[1].ready = true;
    let next =
        WorkerView { worker: uuid::Uuid::from_u128(99).into(), age_ms: 5, held: 1, ..worker(1, 1, None) };
    workers.push(next);
    let planned = plan(1, &workload(2, Order::NotReadyFirst), &pods, &workers);
    assert_eq!((planned.mark, planned.drained.len()), (vec![id(0)], 0));
    assert_eq!(planned.take_back, [id(1)], "the mark of a worker that no longer exists");
}

#[test]
fn a_stateful_set_marks_no_gap() {
    let marked = |signs, desired| {
        let (pods, workers) = fleet(signs);
        let plan = plan(desired, &workload(pods.len() as u32, Order::HighestOrdinalFirst), &pods, &workers);
        (0..pods.len()).filter(|at| plan.mark.contains(&id(*at))).collect::<Vec<_>>()
    };
    assert_eq!(marked("rrrb", 2), [2, 3]);
    assert_eq!(marked("nrrr", 2), [3], "the first cannot work");
    assert_eq!(marked("nrrn", 2), [3]);
    assert_eq!(marked("rrrp", 2), [0; 0]);
}

fn views() -> impl Strategy<Value = (Vec<Pod>, Vec<WorkerView>)> {
    let trouble = prop::option::weighted(0.1, Just("CrashLoopBackOff"));
    let mark = prop::option::weighted(0.4, any::<bool>());
    let worker_of = (0_u64..3, mark, prop::bool::weighted(0.9), prop::bool::weighted(0.1), 0..4_usize);
    let member = (prop::bool::weighted(0.8), trouble, prop::option::weighted(0.9, worker_of));
    prop::collection::vec(member, 0..9).prop_map(|members| {
        let (mut pods, mut workers) = (Vec::new(), Vec::new());
        for (at, (ready, trouble, its)) in members.into_iter().enumerate() {
            pods.push(pod(at, ready && trouble.is_none(), trouble));
            if let Some((held, mark, fresh, draining, away)) = its {
                // Some workers are in pods that are not the workload's, or that are being removed.
                let pod_name = (away > 0).then(|| format!("w-{at}")).or(Some("elsewhere".to_owned()));
                workers.push(WorkerView { fresh, draining, pod_name, ..worker(at, held, mark) });
            }
        }
        (pods, workers)
    })
}

fn unsettleds() -> impl Strategy<Value = Option<Unsettled>> {
    let some = select(vec![
        Unsettled::Rollout("r".into()),
        Unsettled::Changing("c".into()),
        Unsettled::Missing("m".into()),
        Unsettled::Refused { quota: true, why: "q".into() },
    ]);
    prop::option::weighted(0.4, some)
}

fn orders() -> impl Strategy<Value = Order> {
    select(vec![
        Order::NotReadyFirst,
        Order::HighestOrdinalFirst,
        Order::AsNamed,
        Order::Never("unknown".into()),
    ])
}

proptest! {
    #[test]
    fn whatever_is_broken_desired_workers_stay_that_can_work(
        (pods, workers) in views(), unsettled in unsettleds(), order in orders(), missing in 0_u32..4, desired in 0_u32..9,
    ) {
        let seen = Workload { unsettled, ..workload(pods.len() as u32 + missing, order.clone()) };
        let plan = plan(desired, &seen, &pods, &workers);
        let can_work = |worker: &&WorkerView| worker.fresh && !worker.draining
            && pods.iter().any(|pod| Some(&pod.name) == worker.pod_name.as_ref() && pod.ready);
        let stay = workers.iter().filter(can_work).filter(|worker| !plan.mark.contains(&worker.worker)).count();
        prop_assert!(plan.mark.is_empty() || stay >= desired as usize, "{stay} stay of {desired}: {plan:?}");

        let view = |id: &WorkerId| workers.iter().find(|worker| worker.worker == *id).unwrap();
        for marked in plan.mark.iter().map(view) {
            prop_assert!(!plan.take_back.contains(&marked.worker));
            prop_assert!(marked.fresh && !marked.draining && marked.pod_name.as_deref() != Some("elsewhere"));
            prop_assert!(marked.held == 0 || marked.mark.is_some() || order == Order::HighestOrdinalFirst);
        }
        let new = plan.mark.iter().map(view).filter(|worker| worker.mark.is_none()).count();
        prop_assert!(new == 0 || plan.mark.len() <= seen.replicas.saturating_sub(desired) as usize);
        if matches!(seen.unsettled, Some(Unsettled::Rollout(_))) {
            prop_assert!(plan.mark.is_empty());
        }
        // The mark of a pod that exists is renewed or taken back.
        let here = |worker: &&WorkerView| worker.mark.is_some() && worker.pod_name.as_deref() != Some("elsewhere");
        prop_assert!(workers.iter().filter(here).all(|it| plan.mark.contains(&it.worker) || plan.take_back.contains(&it.worker)));
        let marked_pods: BTreeSet<_> = plan.mark.iter().map(view).filter_map(|it| it.pod_name.clone()).collect();
        prop_assert!(plan.drained.is_subset(&marked_pods));
        prop_assert!(plan.wait.is_none() || plan.drained.is_empty() && seen.replicas > desired);
    }

    /// Second by second, workers obey their marks late, and pods fail and recover. Then everything works again.
    #[test]
    fn when_all_is_well_again_the_pool_shrinks_to_what_is_wanted(
        count in 1_usize..9, desired in 0_u32..9, order in orders(),
        mishaps in prop::collection::vec((0_usize..9, any::<bool>(), prop::bool::weighted(0.2)), 0..30),
    ) {
        prop_assume!(!matches!(order, Order::Never(_)));
        let mut seen = workload(count as u32, order);
        let (mut pods, mut workers) = fleet(&"r".repeat(count));
        let calm = std::iter::repeat_n((9, true, false), 20);
        for (hit, well, rollout) in mishaps.into_iter().chain(calm) {
            seen.unsettled = rollout.then(|| Unsettled::Rollout("r".into()));
            let plan = plan(desired, &seen, &pods, &workers);
            for (pod, worker) in pods.iter_mut().zip(&mut workers) {
                // A worker shows now what was asked of it a second ago.
                pod.ready = worker.mark.is_none();
                if let Some(mark) = &mut worker.mark {
                    mark.drained = true;
                }
                if plan.mark.contains(&worker.worker) {
                    worker.mark.get_or_insert(MarkView { epoch: EPOCH, left_ms: 30_000, drained: false });
                } else {
                    worker.mark = None;
                }
            }
            if let Some(pod) = pods.get_mut(hit) {
                (pod.ready, workers[hit].fresh) = (pod.ready && well, well);
            }
            if let Ok(lowering) = lowered(&seen, &pods, &plan.drained, desired) {
                // Whatever the order, the pods to remove are named here.
                let mut left = pods.len() - lowering.to as usize;
                let leaving: Vec<_> = pods.iter().rev().filter(|pod| lowering.leaving.contains(&pod.name))
                    .take_while(|_| { let more = left > 0; left -= usize::from(more); more })
                    .map(|pod| pod.name.clone()).collect();
                pods.retain(|pod| !leaving.contains(&pod.name));
                workers.retain(|worker| worker.pod_name.as_ref().is_some_and(|pod| !leaving.contains(pod)));
                seen.replicas = lowering.to;
            }
            if hit == 9 {
                workers.iter_mut().for_each(|worker| worker.fresh = true);
            }
        }
        prop_assert_eq!(seen.replicas, desired.min(count as u32));
        prop_assert!(workers.iter().all(|worker| worker.mark.is_none()) || desired == 0);
    }
}
