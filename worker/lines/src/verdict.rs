//! Decides an attempt's outcome from how it was stopped and what the program said last. The decision is pure; it holds the
//! rules of the contract's failure table in one place.

use std::time::Duration;

use harness::{RunError, Stop};
use job::{Failure, FailureCode, Json};

use crate::listener::LastMessage;

/// Why we asked the program to stop.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// The worker asked for it.
    Stop(Stop),
    /// `timeout_ms` is over.
    Timeout,
    /// `idle_timeout_ms` is over.
    Idle,
}

/// The limits of time that an attempt had.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the whole of it.
    pub timeout: Duration,
    /// For a silence.
    pub idle_timeout: Duration,
}

/// Returns the job's output, or why there is none. `message` makes a message of a problem, and `silent_end` the failure of a
/// program that ended with neither a result nor an error, and perhaps with a torn line.
pub fn verdict(
    asked: Option<Asked>,
    last_message: LastMessage,
    limits: Limits,
    message: impl Fn(String) -> String,
    silent_end: impl FnOnce(Option<Failure>) -> Failure,
) -> Result<Json, RunError> {
    match (asked, last_message) {
        (_, LastMessage::Refused(Stop::LeaseLost)) => Err(RunError::Stopped(Stop::LeaseLost)),
        (None | Some(Asked::Stop(Stop::Drain)), LastMessage::Result(output)) => Ok(output),
        (None | Some(Asked::Stop(Stop::Drain)), LastMessage::Asks(asks)) => Err(RunError::Asks(asks)),
        (Some(Asked::Stop(stop)), _) => Err(stop.into()),
        (Some(Asked::Timeout), _) => {
            let problem = format!("ran longer than timeout_ms = {}", limits.timeout.as_millis());
            Err(Failure::retryable(FailureCode::Timeout, message(problem)).into())
        }
        (Some(Asked::Idle), _) => {
            let limit = limits.idle_timeout.as_millis();
            let problem = format!("wrote no line for longer than idle_timeout_ms = {limit}");
            Err(Failure::retryable(FailureCode::IdleTimeout, message(problem)).into())
        }
        (None, LastMessage::Error(failure) | LastMessage::Broken(failure)) => Err(failure.into()),
        (None, LastMessage::Refused(stop)) => Err(stop.into()),
        (None, LastMessage::Nothing { torn }) => Err(silent_end(torn).into()),
    }
}
