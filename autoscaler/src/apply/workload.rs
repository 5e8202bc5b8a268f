//! What can be seen of a workload.

/// A workload at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// How many it is meant to have (`spec.replicas`): where every decision starts from.
    pub replicas: u32,
    /// How many are Ready.
    pub ready: u32,
    /// Changes with every change of the workload (Kubernetes: `metadata.resourceVersion`).
    pub version: String,
    /// Why it is no time to shrink, such as a rollout in progress; `None` when it is at rest.
    pub unsettled: Option<String>,
    /// Which pods go when it shrinks.
    pub order: Order,
    /// How its pods are found, in the target's own words (Kubernetes: a label selector).
    pub selector: String,
}

/// Which pods go when a workload shrinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Those that are not Ready go before those that are (Deployment, ReplicaSet).
    NotReadyFirst,
    /// The highest ordinal goes first, in whatever state (StatefulSet).
    HighestOrdinalFirst,
    /// Those that the caller names (`process`).
    AsNamed,
    /// It must not be shrunk: nobody can tell which would go, or they would not go one by one. Says why, and what
    /// would be right.
    Never(String),
}

/// A pod that belongs to a workload and is not about to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name; a worker knows its own as `POD_NAME`.
    pub name: String,
    /// Whether it is Ready.
    pub ready: bool,
    /// Its number within a StatefulSet.
    pub ordinal: Option<u32>,
    /// What keeps it from being Ready besides its probe, such as `Pending` or `CrashLoopBackOff`.
    pub trouble: Option<String>,
}
