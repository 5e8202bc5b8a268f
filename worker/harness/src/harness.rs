//! The contract between a harness and its runner: what a harness is given, and how it may end.

use async_trait::async_trait;
use job::{Failure, FailureCode, InputRequest, Json};

use crate::{Run, Stop};

/// A way of doing jobs. One value serves every job of its agent, many at a time.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Works on one attempt at a job and returns the job's output.
    ///
    /// It checkpoints what it must not lose, and returns soon after [`Run::stopped`] resolves. Dropping the future
    /// must end all work at once.
    async fn run(&self, run: &mut Run) -> Result<Json, RunError>;
}

/// Why a run has no output.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RunError {
    /// The attempt failed.
    #[error("the attempt failed")]
    Failed(#[source] Failure),
    /// The run stopped because it was asked to.
    #[error("the run was stopped")]
    Stopped(#[source] Stop),
    /// The run asks a person. The attempt ends here, and spends nothing: the next one begins when every question is
    /// answered or its time is over, and finds that in [`Run::answers`]. So a harness checkpoints first what it must not
    /// do again. A call whose answer the run was given must not be asked again.
    #[error("the run waits for a person")]
    Asks(Vec<InputRequest>),
    /// The run has not begun, through no fault of the job. It can begin elsewhere, or later.
    #[error("the run could not begin on this machine")]
    Short(#[source] Shortage),
}

/// What this machine lacks. It is never the job's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// A folder for the session: the disk is full, read-only, missing or not ours.
    #[error("the workspace cannot be written: {0}")]
    Workspace(String),
    /// Files, processes or memory.
    #[error("this machine has too few resources: {0}")]
    Resources(String),
}

impl From<Shortage> for RunError {
    fn from(shortage: Shortage) -> RunError {
        RunError::Short(shortage)
    }
}

impl From<Failure> for RunError {
    fn from(failure: Failure) -> RunError {
        RunError::Failed(failure)
    }
}

impl From<Stop> for RunError {
    /// A refused checkpoint is the harness's own fault, so it ends the job instead of handing it back.
    fn from(stop: Stop) -> RunError {
        match stop {
            Stop::Unstorable(problem) => Failure::permanent(FailureCode::Unstorable, problem).into(),
            Stop::OutputLimit(problem) => Failure::permanent(FailureCode::OutputLimit, problem).into(),
            Stop::Stalled(iterations) => {
                let message =
                    format!("{iterations} iterations in a row changed neither memory nor feature_progress");
                Failure::permanent(FailureCode::NoProgress, message).into()
            }
            Stop::Cancelled
            | Stop::Drain
            | Stop::HandBack
            | Stop::LeaseLost
            | Stop::Timeout
            | Stop::Deadline
            | Stop::Interrupted
            | Stop::RolledBack => RunError::Stopped(stop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_checkpoint_fails_the_job_and_every_other_stop_hands_it_back() {
        let refused = RunError::from(Stop::Unstorable("memory.x: no".to_owned()));
        let RunError::Failed(failure) = refused else { panic!("{refused}") };
        assert_eq!((failure.code, failure.retryable), (FailureCode::Unstorable, false));
        for stop in [Stop::Cancelled, Stop::Drain, Stop::LeaseLost, Stop::Timeout, Stop::RolledBack] {
            assert_eq!(RunError::from(stop.clone()), RunError::Stopped(stop));
        }
    }
}
