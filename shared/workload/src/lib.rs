//! The workload whose replicas are a pool's workers: in Kubernetes, or processes of this machine.
//!
//! A [`Target`] looks, resizes and reports. It decides nothing, and has never heard of a queue, of a ledger
//! or of a policy. How far a workload may be lowered is one pure rule, [`lowered`], for every kind of target.
//!
//! A caller calls `look` and decides. To grow, it calls `resize`. To shrink, it has workers drain first. Then
//! it calls `look`, `pods`, [`lowered`], and `resize` with the very [`Workload`] that was looked at. If the
//! workload has changed since, that is a [`TargetError::Conflict`], and the caller looks again.

mod workload;
mod lowering;
mod error;
mod event;
pub mod kubernetes;
mod process;

use async_trait::async_trait;

pub use error::TargetError;
pub use event::Event;
pub use lowering::{Lowering, Wait, lowered};
pub use process::{Environment, Processes};
pub use workload::{Order, Pod, Unsettled, Workload};

/// A workload that can be resized. Every call is bounded in time (5 s for each request).
#[async_trait]
pub trait Target: Send + Sync {
    /// Returns what it is called in logs and explanations, such as `Deployment fleet/workers`.
    fn name(&self) -> &str;

    /// Returns the workload as it is now. Cheap enough for every tick.
    async fn look(&self) -> Result<Workload, TargetError>;

    /// Returns its pods now (of `process`: its processes), by name. Called when some of them are to go.
    async fn pods(&self, seen: &Workload) -> Result<Vec<Pod>, TargetError>;

    /// Sets the number of replicas, provided that nothing has changed since the workload was seen. `leaving`
    /// names the drained pods that are to go; it is empty when the workload grows. A target that cannot
    /// choose relies on [`lowered`].
    async fn resize(&self, seen: &Workload, to: u32, leaving: &[String]) -> Result<(), TargetError>;

    /// Changes the workload without any effect on its pods, so that from now on every `resize` by an earlier
    /// look conflicts, even one that is still on its way. `why` is kept with the workload if there is a place
    /// for it.
    async fn touch(&self, why: &str) -> Result<(), TargetError>;

    /// Reports an event to people who watch the workload. Best effort: a failure is logged and not returned.
    async fn report(&self, event: &Event);
}
