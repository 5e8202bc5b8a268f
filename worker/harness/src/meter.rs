//! The meter of a run: the place through which its program calls models, and what that has cost.

use std::fmt;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::{Offer, Usage};

/// What a harness needs of the meter of its run. Where a run has one, what it metered is the job's usage, and what the
/// program reports beside it counts for nothing.
pub trait Meter: Send + Sync {
    /// Returns the variables that lead the program's SDK to the meter.
    fn environment(&self) -> Vec<(&'static str, String)>;

    /// Returns the TCP port of the meter, on this machine.
    fn port(&self) -> u16;

    /// Returns the most tokens that one answer of a model can have, if that is known.
    fn most_output(&self, model: &str) -> Option<u64>;

    /// Returns what all calls of the run have used so far. It only grows.
    fn used(&self) -> Usage;

    /// Returns for how long nothing has passed through it. Traffic is a sign of life.
    fn idle(&self) -> Duration;

    /// Notes that the run's program has ended: what it has reserved and not settled counts in full from now on.
    fn close(&self);

    /// Takes a function that returns whether everything that the program wrote so far is durable. A stored answer is
    /// looked up only then, because a checkpoint covers the answers before it.
    fn follow(&self, is_durable: IsDurable);

    /// Returns where the answer to the run's next call is offered, if the meter can write what the run adds to its session. The
    /// call names this number, so that no other one of the run is meant.
    fn offers(&self, _call: u64) -> Option<oneshot::Receiver<Offer>> {
        None
    }
}

/// Returns whether everything that the program wrote so far is durable.
pub type IsDurable = Box<dyn Fn() -> bool + Send + Sync>;

impl fmt::Debug for dyn Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("used", &self.used()).finish_non_exhaustive()
    }
}
