//! Why a run must stop, and the signal that says so. This module does not know who asks for a stop, or what becomes of
//! the job.

use tokio::sync::watch;

use crate::{DeltaError, RunError};

/// Why a run must stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// A caller asked to cancel the job.
    #[error("the job was cancelled")]
    Cancelled,
    /// The worker is about to end: checkpoint and hand the job back; it goes on elsewhere.
    #[error("the worker is draining")]
    Drain,
    /// The worker is about to end, and there is still time: a run that calls models hands the job back at its next
    /// checkpoint and starts no other call. Other runs go on.
    #[error("the worker wants to end")]
    HandBack,
    /// The session may already belong to another worker, and nothing that this run does counts any more.
    #[error("the lease is lost")]
    LeaseLost,
    /// The job's own wall-clock limit is over.
    #[error("the job's time is over")]
    Timeout,
    /// The time by which the job must have ended has passed.
    #[error("the job's deadline is over")]
    Deadline,
    /// A later job of the session takes this one's place: stop at the next checkpoint, which still counts.
    #[error("the job was interrupted")]
    Interrupted,
    /// A later job of the session takes this one's place, and needs the session as it was before this one.
    #[error("the job was rolled back")]
    RolledBack,
    /// This many iterations in a row left memory and progress unchanged.
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
    /// Returns whether this reason replaces an earlier one. The first reason is kept, with two exceptions: every other
    /// reason is more urgent than a stop at the next checkpoint (that of a later job before that of a drain), and after a
    /// lost lease nothing may be written at all.
    fn replaces(&self, earlier: Option<&Stop>) -> bool {
        let urgency = |stop: &Stop| match stop {
            Stop::HandBack => 0,
            Stop::Interrupted => 1,
            Stop::LeaseLost => 3,
            _ => 2,
        };
        earlier.is_none_or(|earlier| urgency(self) > urgency(earlier))
    }

    /// Returns whether the run must stop at once, and not only at its next checkpoint.
    fn is_immediate(&self) -> bool {
        !matches!(self, Stop::Interrupted | Stop::HandBack)
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

/// Asks one run to stop; clones ask the same run.
#[derive(Clone, Debug, Default)]
pub struct Stopper(watch::Sender<Option<Stop>>);

impl Stopper {
    /// Asks for a stop, unless an earlier reason takes precedence.
    pub fn ask(&self, stop: Stop) {
        self.0.send_if_modified(|asked| {
            let replaces = stop.replaces(asked.as_ref());
            if replaces {
                *asked = Some(stop);
            }
            replaces
        });
    }

    /// Returns what has been asked for so far.
    pub fn asked(&self) -> Option<Stop> {
        self.0.borrow().clone()
    }

    /// Returns a signal through which the run learns of it.
    pub fn signal(&self) -> StopSignal {
        StopSignal(self.0.subscribe())
    }
}

/// The signal that asks a run to stop.
#[derive(Clone, Debug)]
pub struct StopSignal(watch::Receiver<Option<Stop>>);

impl StopSignal {
    /// Returns why the run must stop, if it must.
    pub fn asked(&self) -> Option<Stop> {
        self.0.borrow().clone()
    }

    /// Resolves when the run must stop at once. Never resolves if no [`Stopper`] is left that could ask for it.
    pub async fn stopped(&self) -> Stop {
        self.asked_for(Stop::is_immediate).await
    }

    /// Resolves when the run must end: at once, or at its next checkpoint. A run that can stop between its checkpoints without
    /// losing anything waits for this. A job that is only wanted back goes on.
    pub async fn must_end(&self) -> Stop {
        self.asked_for(|stop| *stop != Stop::HandBack).await
    }

    /// Returns whether the worker wants the job back at its next checkpoint, or sooner.
    pub fn is_wanted_back(&self) -> bool {
        matches!(self.asked(), Some(Stop::HandBack | Stop::Drain))
    }

    /// Resolves when [`StopSignal::is_wanted_back`].
    pub async fn wanted_back(&self) {
        self.asked_for(|stop| matches!(stop, Stop::HandBack | Stop::Drain)).await;
    }

    /// Does this as long as what the run does counts. Otherwise it is dropped where it is.
    pub async fn unless_lease_lost<T>(
        &self,
        work: impl Future<Output = Result<T, RunError>>,
    ) -> Result<T, RunError> {
        tokio::select! {
            biased;
            lost = self.asked_for(|stop| *stop == Stop::LeaseLost) => Err(RunError::Stopped(lost)),
            done = work => done,
        }
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
        assert!(Stop::Interrupted.replaces(Some(&Stop::HandBack)));
        assert!(Stop::Drain.replaces(Some(&Stop::HandBack)));
        assert!(!Stop::HandBack.replaces(Some(&Stop::Interrupted)));
        assert!(Stop::Cancelled.replaces(Some(&Stop::Interrupted)));
        assert!(!Stop::Interrupted.replaces(Some(&Stop::Timeout)));
        assert!(!Stop::Cancelled.replaces(Some(&Stop::Drain)));
        assert!(Stop::LeaseLost.replaces(Some(&Stop::Cancelled)));
        assert!(!Stop::LeaseLost.replaces(Some(&Stop::LeaseLost)));
    }

    #[tokio::test]
    async fn a_signal_whose_sender_is_gone_still_has_its_last_value() {
        let stopper = Stopper::default();
        let signal = stopper.signal();
        stopper.ask(Stop::Drain);
        drop(stopper);
        assert_eq!(signal.stopped().await, Stop::Drain);
    }
}
