//! What an attempt comes to: how its process ended says why there is no last word, and its stderr is quoted.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use harness::RunError;
use job::{Failure, FailureCode, Json};
use lines::{Asked, LastMessage, Limits, verdict};
use nix::sys::signal::Signal;
use process::Exit;

use crate::config::Settings;

/// Returns the job's output, or why there is none.
pub(crate) fn outcome(
    asked: Option<Asked>,
    last_message: LastMessage,
    exit: Exit,
    stderr: &[String],
    settings: &Settings,
) -> Result<Json, RunError> {
    let limits = Limits { timeout: settings.timeout, idle_timeout: settings.idle_timeout };
    // Questions of a program that did not end well may not be all that it had to ask.
    let last_message = match last_message {
        LastMessage::Asks(_) if !exit.by_itself || !exit.status.is_some_and(|status| status.success()) => {
            LastMessage::Nothing { torn: None }
        }
        said => said,
    };
    let silent_end = |torn| silent_end(torn, exit, stderr, settings);
    verdict(asked, last_message, limits, |problem| with_stderr(problem, stderr), silent_end)
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
            let problem =
                format!("{} before a result{}", ending(status), suspicion(status, settings, stderr));
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

fn suspicion(status: ExitStatus, settings: &Settings, stderr: &[String]) -> String {
    let refused = settings.sandbox.as_ref().and_then(|sandbox| sandbox.may_have_refused(&stderr.join("\n")));
    if let Some(refused) = refused {
        return format!(" ({refused})");
    }
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
