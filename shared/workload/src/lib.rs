//! The workload whose replicas are a pool's workers: in Kubernetes, or processes of this machine.
//!
//! A [`Target`] looks, resizes and tells; it decides nothing and has never heard of a queue, of a ledger or of a policy. What may be
//! lowered when is one pure rule, [`lowered`], for every kind of target.
//!
//! The order of a caller: `look`; decide; to grow, `resize`. To shrink, have workers drain first; then `look`, `pods`,
//! [`lowered`], and `resize` with the very [`Workload`] that was looked at: whatever changed it since makes that a
//! [`TargetError::Conflict`], and the caller looks again.

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
    /// What it is called in logs and explanations, such as `Deployment fleet/workers`.
    fn name(&self) -> &str;

    /// The workload as it is now. Cheap enough for every tick.
    async fn look(&self) -> Result<Workload, TargetError>;

    /// Its pods now (of `process`: its processes), by name. Asked for when some of them are to go.
    async fn pods(&self, seen: &Workload) -> Result<Vec<Pod>, TargetError>;

    /// Sets the number of replicas, provided that nothing has changed since the workload was seen. `leaving` names the
    /// drained pods that are meant to go, none when it grows; a target that cannot choose relies on [`lowered`].
    async fn resize(&self, seen: &Workload, to: u32, leaving: &[String]) -> Result<(), TargetError>;

    /// Changes the workload in a way that nobody minds, so that every `resize` by an earlier look conflicts from here
    /// on, also one that is still on its way. `why` is kept with the workload where there is a place for it.
    async fn touch(&self, why: &str) -> Result<(), TargetError>;

    /// Tells those who watch the workload. Best effort: a failure is logged and is nobody's error.
    async fn tell(&self, event: &Event);
}
