//! The target in a Kubernetes cluster: anything that has the subresource `scale`.
//!
//! One [`Cluster`] is the way to the API server for all pools. Each pool's [`Kubernetes`] is a name within it
//! and holds no connection of its own. Every request has a time limit here and, by its `timeout` parameter,
//! at the API server as well, so that a change that we have given up on is not made later.
//!
//! It needs the rights in `ops/k8s/autoscaler/rights.yaml`, and no test runs with more.

mod reference;
mod object;
mod pods;
mod call;
mod api;
mod rivals;
mod cluster;
mod report;
mod target;

pub use cluster::{Cluster, ClusterError};
pub use reference::{Reference, ReferenceError};
pub use target::Kubernetes;

/// Silences the client's own log, because the caller reports what fails.
pub const LOG_DIRECTIVE: &str = "kube_client=off";

/// Who we are in events and in `managedFields`.
const CONTROLLER: &str = "harness-fleet-autoscaler";
