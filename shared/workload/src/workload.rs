//! What can be seen of a workload.

use std::fmt;

/// A workload at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// How many replicas it is meant to have (`spec.replicas`). Every decision starts from this.
    pub replicas: u32,
    /// How many are Ready.
    pub ready: u32,
    /// Changes with every change of the workload (Kubernetes: `metadata.resourceVersion`).
    pub version: String,
    /// Why it is not at rest; `None` if it is.
    pub unsettled: Option<Unsettled>,
    /// Which pods go when it shrinks.
    pub order: Order,
    /// How its pods are found, in the target's own terms (Kubernetes: a label selector).
    pub selector: String,
}

/// Why a workload is not at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsettled {
    /// Its pods are being replaced by those of another revision, or wait for that. A worker that is not Ready may hold
    /// this up, so none is drained meanwhile.
    Rollout(String),
    /// Its controller has something else to do first.
    Changing(String),
    /// It has fewer pods than it is meant to have: they are being made.
    Missing(String),
    /// It has fewer pods than it is meant to have, and the cluster refuses to make them.
    Refused {
        /// Whether a quota refuses them.
        quota: bool,
        /// The cluster's reason.
        why: String,
    },
}

impl Unsettled {
    /// Returns its kind in one word, for a metric's label.
    pub fn kind(&self) -> &'static str {
        match self {
            Unsettled::Rollout(_) => "rollout",
            Unsettled::Changing(_) => "changing",
            Unsettled::Missing(_) => "missing",
            Unsettled::Refused { quota: true, .. } => "quota",
            Unsettled::Refused { quota: false, .. } => "refused",
        }
    }
}

impl fmt::Display for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsettled::Rollout(why) => write!(f, "a rollout is in progress: {why}"),
            Unsettled::Changing(why) | Unsettled::Missing(why) => f.write_str(why),
            Unsettled::Refused { quota: true, why } => write!(f, "a quota allows no more pods: {why}"),
            Unsettled::Refused { quota: false, why } => write!(f, "pods are refused: {why}"),
        }
    }
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
    /// It must not be shrunk, because it is not known which pods would go, or because they would not go one
    /// by one. Says why, and what would be right.
    Never(String),
}

/// A pod that belongs to a workload and is not about to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name. A worker knows the name of its own pod from `POD_NAME`.
    pub name: String,
    /// Whether it is Ready.
    pub ready: bool,
    /// Its number within a StatefulSet.
    pub ordinal: Option<u32>,
    /// What keeps it from being Ready besides its probe, such as `Pending` or `CrashLoopBackOff`.
    pub trouble: Option<String>,
}
