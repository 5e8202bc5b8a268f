//! Why a run must stop, and the signal that says so. Who asks for it, and what becomes of the job, is not known here.

use tokio::sync::watch;

use crate::DeltaError;

/// Why a run must stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// Somebody asked for the job's end.
    #[error("the job was cancelled")]
    Cancelled,
    /// The worker goes away: checkpoint and hand back, the job goes on elsewhere.
    #[error("the worker is draining")]
    Drain,
    /// The session may already belong to another worker: nothing this run does counts any more.
    #[error("the lease is lost")]
    LeaseLost,
    /// The job's own wall-clock limit.
    #[error("the job's time is over")]
    Timeout,
    /// The moment by which the job must have ended.
    #[error("the job's deadline is over")]
    Deadline,
    /// A later job of the session wants the place: stop at the next checkpoint, which still counts.
    #[error("the job was interrupted")]
    Interrupted,
    /// A later job of the session wants the place, and the session as it was before this one.
    #[error("the job was rolled back")]
    RolledBack,
    /// So many iterations in a row left memory and progress as they were.
    #[error("no progress in {0} iterations")]
    Stalled(u64),
    /// A checkpoint holds what Postgres cannot; the text names the field.
    #[error("a checkpoint cannot be kept: {0}")]
    Unstorable(String),
    /// A checkpoint is too large; the text says by how much.
    #[error("a checkpoint is too large: {0}")]
    OutputLimit(String),
}

impl Stop {
    /// Whether this reason takes the place of an earlier one. The first one stands, but everything is more urgent than
    /// to stop at the next checkpoint, and after a lost lease nothing may be written at all.
    fn replaces(&self, earlier: Option<&Stop>) -> bool {
        let urgency = |stop: &Stop| match stop {
            Stop::Interrupted => 1,
            Stop::LeaseLost => 3,
            _ => 2,
        };
        earlier.is_none_or(|earlier| urgency(self) > urgency(earlier))
    }

    /// Whether the run must stop at once, and not only at its next checkpoint.
    fn is_immediate(&self) -> bool {
        *self != Stop::Interrupted
    }
}

impl From<DeltaError> for Stop {
    fn from(error: DeltaError) -> Stop {
        match error {
            DeltaError::Unstorable(_) => Stop::Unstorable(error.to_string()),
            DeltaError::TooLarge { .. } => Stop::OutputLimit(error.to_string()),
        }
    }
}

/// Asks one run to stop; clones ask the same one.
#[derive(Clone, Debug, Default)]
pub struct Stopper(watch::Sender<Option<Stop>>);

impl Stopper {
    /// Asks for a stop, unless the reason of an earlier one stands.
    pub fn ask(&self, stop: Stop) {
        self.0.send_if_modified(|asked| {
            let replaces = stop.replaces(asked.as_ref());
            if replaces {
                *asked = Some(stop);
            }
            replaces
        });
    }

    /// What is asked for by now.
    pub fn asked(&self) -> Option<Stop> {
        self.0.borrow().clone()
    }

    /// What the run hears it by.
    pub fn signal(&self) -> StopSignal {
        StopSignal(self.0.subscribe())
    }
}

/// Tells a run to stop.
#[derive(Clone, Debug)]
pub struct StopSignal(watch::Receiver<Option<Stop>>);

impl StopSignal {
    /// Why the run must stop, if it must.
    pub fn asked(&self) -> Option<Stop> {
        self.0.borrow().clone()
    }

    /// Resolves when the run must stop at once; never, if nobody is left who could say so.
    pub async fn stopped(&self) -> Stop {
        self.asked_for(Stop::is_immediate).await
    }

    /// Resolves when nothing that the run does counts any more.
    pub async fn lease_lost(&self) {
        self.asked_for(|stop| *stop == Stop::LeaseLost).await;
    }

    async fn asked_for(&self, which: impl Fn(&Stop) -> bool) -> Stop {
        let mut signal = self.0.clone();
        let stop = signal
            .wait_for(|stop| stop.as_ref().is_some_and(&which))
            .await
            .ok()
            .and_then(|stop| stop.clone());
        match stop {
            Some(stop) => stop,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stands_but_for_two() {
        assert!(Stop::Interrupted.replaces(None));
        assert!(Stop::Cancelled.replaces(Some(&Stop::Interrupted)));
        assert!(!Stop::Interrupted.replaces(Some(&Stop::Timeout)));
        assert!(!Stop::Cancelled.replaces(Some(&Stop::Drain)));
        assert!(Stop::LeaseLost.replaces(Some(&Stop::Cancelled)));
        assert!(!Stop::LeaseLost.replaces(Some(&Stop::LeaseLost)));
    }

    #[tokio::test]
    async fn a_signal_whose_sender_is_gone_still_tells_its_last_word() {
        let stopper = Stopper::default();
        let signal = stopper.signal();
        stopper.ask(Stop::Drain);
        drop(stopper);
        assert_eq!(signal.stopped().await, Stop::Drain);
    }
}
