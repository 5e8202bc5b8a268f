//! The rule of shrinking: how far a workload may be lowered now, so that only drained pods go.
//!
//! Pure. It compares what the ledger says (which workers are drained) with what the target says (which pods
//! are Ready), and lowers only where both agree about every single pod.

use std::collections::BTreeSet;
use std::fmt;

use super::{Order, Pod, Unsettled, Workload};

/// How far a workload may be lowered now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lowering {
    /// The number of replicas that it may be lowered to.
    pub to: u32,
    /// The pods from which those that go are taken, all of them drained. Empty if the replicas that go have
    /// no pods yet.
    pub leaving: Vec<String>,
}

/// Why a workload is not lowered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// None of its pods is drained, or it has no more replicas than are wanted.
    NothingToLower,
    /// It must not be shrunk at all.
    Never(String),
    /// It is not at rest.
    Unsettled(Unsettled),
    /// There are more or fewer pods than it is meant to have.
    Pods {
        /// How many there are.
        found: usize,
        /// How many there should be.
        wanted: u32,
    },
    /// A pod that is not drained is not Ready, so it might go instead of a drained one.
    NotReady {
        /// The pod.
        pod: String,
        /// What is wrong with it, if that is known.
        trouble: Option<String>,
    },
    /// A pod is Ready, but the ledger knows no worker in it.
    NoWorker {
        /// The pod.
        pod: String,
    },
    /// No more workers are Ready than are wanted, whatever the number of replicas.
    TooFewReady {
        /// How many are Ready.
        ready: u32,
        /// How many are wanted.
        wanted: u32,
    },
    /// All workers that might go hold jobs.
    Busy,
    /// Marked workers have not finished yet what they hold, or have not confirmed yet that they hold nothing.
    Draining {
        /// How many of them.
        workers: usize,
        /// Jobs that they hold together.
        jobs: u64,
    },
    /// No drained pod has been seen as not Ready yet.
    StillReady {
        /// One of them.
        pod: String,
    },
    /// The pod that would go first is not drained.
    NotDrained {
        /// That pod.
        pod: String,
    },
}

impl Wait {
    /// Its kind in one word, for a metric's label.
    pub fn kind(&self) -> &'static str {
        match self {
            Wait::NothingToLower => "nothing_to_lower",
            Wait::Never(_) => "never",
            Wait::Unsettled(why) => why.kind(),
            Wait::Pods { .. } => "pods",
            Wait::NotReady { .. } => "not_ready",
            Wait::NoWorker { .. } => "no_worker",
            Wait::TooFewReady { .. } => "too_few_ready",
            Wait::Busy | Wait::Draining { .. } => "draining",
            Wait::StillReady { .. } => "still_ready",
            Wait::NotDrained { .. } => "not_drained",
        }
    }

    /// Returns whether the wait ends by itself, when jobs end, so that there is nothing to mend.
    pub fn is_usual(&self) -> bool {
        matches!(self, Wait::Busy | Wait::Draining { .. })
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::NothingToLower => write!(f, "there is nothing to lower"),
            Wait::Never(why) => write!(f, "{why}"),
            Wait::Unsettled(why) => write!(f, "{why}"),
            Wait::Pods { found, wanted } => write!(f, "{found} pods are there, expected {wanted}"),
            Wait::NotReady { pod, trouble: None } => write!(f, "pod {pod} is not Ready and not drained"),
            Wait::NotReady { pod, trouble: Some(trouble) } => {
                write!(f, "pod {pod} is not Ready ({trouble}) and not drained")
            }
            Wait::NoWorker { pod } => {
                write!(f, "pod {pod} is Ready, but no worker says that it runs there (POD_NAME)")
            }
            Wait::TooFewReady { ready, wanted } => {
                write!(f, "{ready} workers are Ready and {wanted} are wanted, so none of them goes")
            }
            Wait::Busy => write!(f, "all workers that might go hold jobs"),
            Wait::Draining { workers, jobs } => write!(f, "{workers} workers drain and hold {jobs} jobs"),
            Wait::StillReady { pod } => write!(f, "pod {pod} is drained but still Ready"),
            Wait::NotDrained { pod } => write!(f, "pod {pod} would go first and is not drained"),
        }
    }
}

/// Returns how far the workload may be lowered now, but never below `at_least`. `drained` names the pods
/// whose workers hold nothing and take nothing.
///
/// Replicas without a pod, such as those that a quota refuses, may go at once: no worker goes with them.
/// Beyond those, whatever order the target has, the workload is lowered by at most the number of pods that go
/// first in that order, are drained and are seen as not Ready. It is not lowered at all while any other pod
/// is not Ready.
pub fn lowered(
    seen: &Workload,
    pods: &[Pod],
    drained: &BTreeSet<String>,
    at_least: u32,
) -> Result<Lowering, Wait> {
    let is_drained = |pod: &Pod| drained.contains(&pod.name);
    let spare = seen.replicas.saturating_sub(at_least);
    if spare == 0 {
        return Err(Wait::NothingToLower);
    }
    if let Order::Never(why) = &seen.order {
        return Err(Wait::Never(why.clone()));
    }
    if let Some(why @ (Unsettled::Rollout(_) | Unsettled::Changing(_))) = &seen.unsettled {
        return Err(Wait::Unsettled(why.clone()));
    }
    let found = pods.len();
    let with_pods = with_pods(&seen.order, pods);
    if with_pods < seen.replicas {
        return Ok(Lowering { to: with_pods.max(at_least), leaving: Vec::new() });
    }
    if found != seen.replicas as usize {
        let missing = seen.unsettled.clone().filter(|_| found < seen.replicas as usize);
        return Err(missing.map_or(Wait::Pods { found, wanted: seen.replicas }, Wait::Unsettled));
    }
    let Some(some_drained) = pods.iter().find(|pod| is_drained(pod)) else {
        return Err(Wait::NothingToLower);
    };
    if let Some(pod) = pods.iter().find(|pod| !pod.ready && !is_drained(pod)) {
        return Err(Wait::NotReady { pod: pod.name.clone(), trouble: pod.trouble.clone() });
    }
    // If pods are named, no other pod can go instead of them, whatever their readiness.
    let may_leave = |pod: &&Pod| is_drained(pod) && (!pod.ready || seen.order == Order::AsNamed);
    let leaving: Vec<&Pod> = match seen.order {
        Order::HighestOrdinalFirst => {
            let mut pods: Vec<&Pod> = pods.iter().collect();
            pods.sort_unstable_by_key(|pod| std::cmp::Reverse(pod.ordinal));
            if let Some(first) = pods.first().filter(|pod| !is_drained(pod)) {
                return Err(Wait::NotDrained { pod: first.name.clone() });
            }
            pods.into_iter().take_while(may_leave).collect()
        }
        Order::NotReadyFirst | Order::AsNamed | Order::Never(_) => pods.iter().filter(may_leave).collect(),
    };
    if leaving.is_empty() {
        return Err(Wait::StillReady { pod: some_drained.name.clone() });
    }
    let by = leaving.len().min(spare as usize);
    let named = if seen.order == Order::NotReadyFirst { leaving.len() } else { by };
    let leaving = leaving[..named].iter().map(|pod| pod.name.clone()).collect();
    Ok(Lowering { to: seen.replicas - by as u32, leaving })
}

/// Returns the smallest number of replicas with which none of the pods goes.
fn with_pods(order: &Order, pods: &[Pod]) -> u32 {
    match order {
        Order::HighestOrdinalFirst => {
            pods.iter().filter_map(|pod| pod.ordinal).max().map_or(0, |highest| highest.saturating_add(1))
        }
        Order::NotReadyFirst | Order::AsNamed | Order::Never(_) => pods.len() as u32,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn workload(replicas: u32, order: Order) -> Workload {
        Workload {
            replicas,
            ready: replicas,
            version: "1".into(),
            unsettled: None,
            order,
            selector: String::new(),
        }
    }

    /// Makes one pod for each sign: `r` Ready, `n` not Ready. Their names are w-0, w-1, …
    fn pods(signs: &str) -> Vec<Pod> {
        let pod = |(at, sign): (usize, char)| Pod {
            name: format!("w-{at}"),
            ready: sign == 'r',
            ordinal: Some(at as u32),
            trouble: None,
        };
        signs.chars().enumerate().map(pod).collect()
    }

    fn drained(ordinals: &[u32]) -> BTreeSet<String> {
        ordinals.iter().map(|at| format!("w-{at}")).collect()
    }

    fn lower(order: Order, signs: &str, gone: &[u32], at_least: u32) -> Result<u32, &'static str> {
        let seen = workload(signs.len() as u32, order);
        lowered(&seen, &pods(signs), &drained(gone), at_least).map(|it| it.to).map_err(|wait| wait.kind())
    }

    #[test]
    fn a_deployment_is_lowered_by_the_drained_pods_that_are_not_ready() {
        let lower = |signs, gone, at_least| lower(Order::NotReadyFirst, signs, gone, at_least);
        assert_eq!(lower("rnrn", &[1, 3], 0), Ok(2));
        assert_eq!(lower("rnrn", &[1, 3], 3), Ok(3));
        assert_eq!(lower("rnrr", &[1, 3], 0), Ok(3));
        assert_eq!(lower("rrrr", &[1, 3], 0), Err("still_ready"));
        assert_eq!(lower("rnrn", &[1], 0), Err("not_ready"));
        assert_eq!(lower("rnrn", &[], 0), Err("nothing_to_lower"));
        assert_eq!(lower("rnrn", &[1, 3], 4), Err("nothing_to_lower"));
        assert_eq!(lower("nn", &[0, 1], 0), Ok(0));
    }

    #[test]
    fn a_stateful_set_is_lowered_by_its_drained_suffix() {
        let lower = |signs, gone| lower(Order::HighestOrdinalFirst, signs, gone, 0);
        assert_eq!(lower("rrnn", &[2, 3]), Ok(2));
        assert_eq!(lower("nrrn", &[0, 3]), Ok(3));
        assert_eq!(lower("rrrn", &[2, 3]), Ok(3));
        assert_eq!(lower("rrnr", &[2, 3]), Err("still_ready"));
        assert_eq!(lower("rrnr", &[2]), Err("not_drained"));
        assert_eq!(lower("rrnn", &[3]), Err("not_ready"));
    }

    #[test]
    fn nothing_is_lowered_while_the_workload_is_not_at_rest() {
        let pods = pods("rn");
        let gone = drained(&[1]);
        let mut seen = workload(2, Order::NotReadyFirst);
        for why in [Unsettled::Rollout("1 of 2".into()), Unsettled::Changing("later".into())] {
            seen.unsettled = Some(why.clone());
            assert_eq!(lowered(&seen, &pods, &gone, 0), Err(Wait::Unsettled(why)));
        }
        let seen = workload(1, Order::NotReadyFirst);
        assert_eq!(lowered(&seen, &pods, &gone, 0), Err(Wait::Pods { found: 2, wanted: 1 }));
        let seen = workload(2, Order::Never("OrderedReady".into()));
        assert_eq!(lowered(&seen, &pods, &gone, 0), Err(Wait::Never("OrderedReady".into())));
    }

    #[test]
    fn replicas_that_have_no_pod_go_first_and_take_no_pod_with_them() {
        let quota = Unsettled::Refused { quota: true, why: "exceeded quota: few".into() };
        let lower = |replicas, order, pods: &[Pod], at_least| {
            let seen = Workload { unsettled: Some(quota.clone()), ..workload(replicas, order) };
            lowered(&seen, pods, &drained(&[1]), at_least)
        };
        let to = |to| Ok(Lowering { to, leaving: Vec::new() });
        // Drained or not, Ready or not: none of the three goes.
        assert_eq!(lower(6, Order::NotReadyFirst, &pods("rnn"), 1), to(3));
        assert_eq!(lower(6, Order::NotReadyFirst, &pods("rnn"), 4), to(4));
        assert_eq!(lower(6, Order::AsNamed, &pods("r"), 0), to(1));
        assert_eq!(lower(6, Order::HighestOrdinalFirst, &pods("rnr"), 0), to(3));
        assert_eq!(lower(2, Order::HighestOrdinalFirst, &[], 0), to(0));
        // Worker 0 is missing: under two replicas worker 2 would go, and it is not drained.
        let hole = pods("rrr")[1..].to_vec();
        assert_eq!(lower(5, Order::HighestOrdinalFirst, &hole, 0), to(3));
        assert_eq!(lower(3, Order::HighestOrdinalFirst, &hole, 0), Err(Wait::Unsettled(quota.clone())));
    }

    /// Returns the pods that the controllers remove when only `to` replicas may be left. Where readiness and
    /// ordinals do not decide, chance does.
    fn victims(order: &Order, pods: &[Pod], to: u32, chance: &[u8], named: &[String]) -> Vec<String> {
        let mut pods: Vec<_> = pods.iter().zip(chance).collect();
        match order {
            Order::HighestOrdinalFirst => pods.retain(|(pod, _)| pod.ordinal >= Some(to)),
            Order::AsNamed => pods.retain(|(pod, _)| named.contains(&pod.name)),
            Order::NotReadyFirst | Order::Never(_) => {
                pods.sort_by_key(|(pod, chance)| (pod.ready, **chance));
                pods.truncate(pods.len().saturating_sub(to as usize));
            }
        }
        pods.into_iter().map(|(pod, _)| pod.name.clone()).collect()
    }

    proptest! {
        #[test]
        fn whoever_goes_was_drained(
            // Some replicas have no pod.
            ready in prop::collection::vec(prop::option::weighted(0.9, any::<bool>()), 0..9),
            gone in prop::collection::btree_set(0u32..9, 0..9),
            chance in prop::array::uniform9(any::<u8>()),
            at_least in 0u32..9,
            order in prop_oneof![
                Just(Order::NotReadyFirst), Just(Order::HighestOrdinalFirst), Just(Order::AsNamed),
            ],
        ) {
            let signs: String = ready.iter().map(|ready| if *ready == Some(true) { 'r' } else { 'n' }).collect();
            let mut there = ready.iter();
            let mut pods = pods(&signs);
            pods.retain(|_| there.next().is_some_and(Option::is_some));
            let gone = drained(&gone.into_iter().collect::<Vec<_>>());
            let seen = workload(ready.len() as u32, order.clone());
            if let Ok(Lowering { to, leaving }) = lowered(&seen, &pods, &gone, at_least) {
                prop_assert!(to >= at_least && to < seen.replicas);
                let victims = victims(&order, &pods, to, &chance, &leaving);
                prop_assert!(victims.iter().all(|victim| gone.contains(victim)), "{:?} of {:?}", victims, gone);
                prop_assert!(victims.iter().all(|victim| leaving.contains(victim)));
                prop_assert!(leaving.len() >= victims.len());
            }
        }
    }
}
