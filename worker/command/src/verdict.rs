//! Decides an attempt's outcome from how it was stopped, what the program said last, and how it ended. The decision is
//! pure; it holds the rules of the contract's failure table in one place.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use harness::{RunError, Stop};
use job::{Failure, FailureCode, Json};
use nix::sys::signal::Signal;
use process::Exit;

use crate::config::Settings;

/// Why we asked the program to stop.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asked {
    /// The worker asked for it.
    Stop(Stop),
    /// `timeout_ms` is over.
    Timeout,
    /// `idle_timeout_ms` is over.
    Idle,
}

/// The last thing that the program said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LastMessage {
    /// `result`.
    Result(Json),
    /// `error`.
    Error(Failure),
    /// A line that breaks the contract, or output over a limit.
    Broken(Failure),
    /// A checkpoint that was refused.
    Refused(Stop),
    /// The end of stdout. `torn` says what is wrong with a torn last line.
    Nothing { torn: Option<Failure> },
}

/// Returns the job's output, or why there is none.
pub(crate) fn verdict(
    asked: Option<Asked>,
    last_message: LastMessage,
    exit: Exit,
    stderr: &[String],
    settings: &Settings,
) -> Result<Json, RunError> {
    match (asked, last_message) {
        (_, LastMessage::Refused(Stop::LeaseLost)) => Err(RunError::Stopped(Stop::LeaseLost)),
        (None | Some(Asked::Stop(Stop::Drain)), LastMessage::Result(output)) => Ok(output),
        (Some(Asked::Stop(stop)), _) => Err(stop.into()),
        (Some(Asked::Timeout), _) => {
            let problem = format!("ran longer than timeout_ms = {}", settings.timeout.as_millis());
            Err(Failure::retryable(FailureCode::Timeout, with_stderr(problem, stderr)).into())
        }
        (Some(Asked::Idle), _) => {
            let limit = settings.idle_timeout.as_millis();
            let problem = format!("no line on stdout for longer than idle_timeout_ms = {limit}");
            Err(Failure::retryable(FailureCode::IdleTimeout, with_stderr(problem, stderr)).into())
        }
        (None, LastMessage::Error(failure) | LastMessage::Broken(failure)) => Err(failure.into()),
        (None, LastMessage::Refused(stop)) => Err(stop.into()),
        (None, LastMessage::Nothing { torn }) => Err(silent_end(torn, exit, stderr, settings).into()),
    }
}

/// Returns the failure of a program that ended, or closed its stdout, with neither a result nor an error.
fn silent_end(torn: Option<Failure>, exit: Exit, stderr: &[String], settings: &Settings) -> Failure {
    let protocol =
        |problem: &str| Failure::permanent(FailureCode::Protocol, with_stderr(problem.to_owned(), stderr));
    match exit.status {
        _ if !exit.by_itself => protocol(
            "closed stdout without a line of type result or error, and was still running after stop_grace_ms",
        ),
        Some(status) if status.success() => torn.unwrap_or_else(|| {
            protocol("ended with exit code 0, but without a line of type result or error")
        }),
        Some(status) => {
            let problem = format!("{} before a result{}", ending(status), suspicion(status, settings));
            Failure::retryable(FailureCode::Crashed, with_stderr(problem, stderr))
        }
        None => Failure::retryable(
            FailureCode::Crashed,
            with_stderr("ended, but its exit status is unknown".to_owned(), stderr),
        ),
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("was ended by signal {number} ({signal})"),
            Err(_) => format!("was ended by signal {number}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

fn suspicion(status: ExitStatus, settings: &Settings) -> String {
    match (settings.memory_limit_mb, status.signal()) {
        (Some(limit), _) => format!(" (its address space was limited to memory_limit_mb = {limit})"),
        (None, Some(9)) => " (not by this worker: perhaps the machine ran out of memory)".to_owned(),
        (None, _) => String::new(),
    }
}

fn with_stderr(problem: String, stderr: &[String]) -> String {
    /// A failure's message is cut at 4,000 characters, and the last line of a traceback must survive that.
    const KEEP: usize = 3_500;
    if stderr.is_empty() {
        return format!("the program {problem}; it wrote nothing to stderr");
    }
    let text = stderr.join("\n");
    let skip = text.chars().count().saturating_sub(KEEP);
    let (more, tail) = match text.char_indices().nth(skip) {
        Some((start, _)) if skip > 0 => ("…", &text[start..]),
        _ => ("", text.as_str()),
    };
    format!("the program {problem}; its last lines on stderr:\n{more}{tail}")
}
