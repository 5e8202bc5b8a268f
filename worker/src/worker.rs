//! What all slots of a process share.

use std::sync::Arc;

use dispatch::Dispatch;
use model::Gateway;
use store::Store;
use tokio_util::sync::CancellationToken;

use crate::calls::Look;
use crate::lease::Lease;
use crate::machine::Machine;
use crate::mark::Mark;
use crate::memory::Memory;
use crate::running::Running;
use crate::settings::Settings;
use crate::streaming::Streaming;
use crate::throughput::ThroughputWindow;

/// One worker process, as seen from a slot.
pub struct Worker {
    pub settings: Settings,
    pub store: Store,
    pub dispatch: Dispatch,
    /// The text that running jobs stream.
    pub streaming: Arc<Streaming>,
    /// Through which programs call models, if an agent does.
    pub gateway: Option<Gateway>,
    /// How budgets and providers fare, for `/ready`.
    pub look: Arc<Look>,
    pub lease: Lease,
    /// Whether jobs are taken: an autoscaler may have marked this worker to drain.
    pub mark: Mark,
    pub running: Running,
    pub throughput: ThroughputWindow,
    pub machine: Machine,
    /// Bounds what large jobs take while they arrive and checkpoint.
    pub memory: Arc<Memory>,
    /// Cancelled when the worker drains: no more jobs are taken.
    pub draining: CancellationToken,
    /// Cancelled when the process ends: waits for Postgres or the broker are given up.
    pub stop_waiting: CancellationToken,
}
