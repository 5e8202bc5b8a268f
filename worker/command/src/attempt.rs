//! One attempt: reads what the program writes, supervises its limits and the stop signal, and ends it.
//!
//! Two futures run side by side. [`Listener::listen`] takes one line after the other and finishes each before the next.
//! [`supervise`] watches the clock, the stop signal and the process, and asks the program to stop. When one of the two
//! ends, so does the attempt, and [`verdict`] decides its outcome. This module does not handle a lost lease: the whole
//! attempt is dropped.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use harness::{Delta, Meter, Run, RunError, Stop, StopSignal, Usage};
use job::{Failure, FailureCode, Json};
use process::{Exit, Group, Stderr};
use rustix::io::ioctl_fionread;
use tokio::io::AsyncRead;
use tokio::process::ChildStdout;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::Settings;
use crate::contract::{self, Message};
use crate::lines::{LineError, Lines};
use crate::verdict::{Asked, LastMessage, verdict};

/// How long to wait for the rest of stdout once the group is dead: a process that left the group may hold the pipe.
const DRAIN: Duration = Duration::from_millis(500);

/// A running program and everything that belongs to it.
pub(crate) struct Attempt<'a> {
    pub settings: &'a Settings,
    pub run: &'a mut Run,
    pub group: Group,
    pub stderr: Stderr,
}

impl Attempt<'_> {
    /// Runs until the program is gone.
    pub async fn run(self, stdout: ChildStdout) -> Result<Json, RunError> {
        let Attempt { settings, run, group, stderr } = self;
        let signal = run.stop_signal();
        let asked = OnceLock::new();
        let silence = Arc::new(Silence::default());
        let meter = run.meter().cloned();
        if let Some(meter) = &meter {
            let (silence, pipe) = (silence.clone(), stdout.as_fd().try_clone_to_owned().ok());
            meter.follow(Box::new(move || pipe.as_ref().is_none_or(|pipe| silence.has_handled(pipe))));
        }
        let lines = Lines::new(stdout, settings.max_line_bytes, settings.max_output_bytes);
        let mut listener = Listener { run, lines, silence: &silence, unpaid: Usage::default() };

        let last_message = {
            let mut listening = pin!(listener.listen());
            tokio::select! {
                last_message = &mut listening => last_message,
                () = supervise(&group, signal, (&silence, meter.as_deref()), &asked, settings) => {
                    group.kill();
                    // Everything that it wrote while it lived still counts.
                    let over = silence.lasts(DRAIN, Instant::now());
                    tokio::select! {
                        last_message = &mut listening => last_message,
                        () = over => LastMessage::Nothing { torn: None },
                    }
                }
            }
        };
        // Nothing that it writes from here on counts, so nothing has to become durable.
        silence.begin();
        wait_for_exit(&group, &mut listener.lines, &last_message, settings.stop_grace).await;
        let exit = group.end().await;
        listener.warn_of_program_mistakes(&last_message, exit).await;
        listener.settle(&last_message).await?;
        verdict(asked.into_inner(), last_message, exit, &stderr.tail().await, settings)
    }
}

/// Asks the program to stop when there is a reason. Returns when the leader has ended, or its time to do so is over.
async fn supervise(
    group: &Group,
    signal: StopSignal,
    (silence, meter): (&Silence, Option<&dyn Meter>),
    asked: &OnceLock<Asked>,
    settings: &Settings,
) {
    let reason = tokio::select! {
        () = group.exited() => return,
        stop = signal.stopped() => Asked::Stop(stop),
        () = sleep(settings.timeout) => Asked::Timeout,
        () = idle(silence, meter, settings.idle_timeout) => Asked::Idle,
    };
    asked.get_or_init(|| reason);
    group.terminate();
    // In either case the caller kills it next.
    let _ = timeout(settings.stop_grace, group.exited()).await;
}

/// Resolves when the program has neither written a line nor called a model for this long.
async fn idle(silence: &Silence, meter: Option<&dyn Meter>, limit: Duration) {
    let mut from = Instant::now();
    loop {
        silence.lasts(limit, from).await;
        match meter.map(Meter::idle) {
            Some(idle) if idle < limit => from = Instant::now() - idle,
            _ => return,
        }
    }
}

/// Gives a program that has said its last word, or closed its stdout, some time to exit by itself.
async fn wait_for_exit<R: AsyncRead + Unpin>(
    group: &Group,
    lines: &mut Lines<R>,
    last_message: &LastMessage,
    grace: Duration,
) {
    let reading = async {
        // The pipe is emptied, so that the program does not hang on it instead of exiting.
        lines.discard().await;
        std::future::pending::<()>().await
    };
    match last_message {
        LastMessage::Result(_) | LastMessage::Error(_) | LastMessage::Nothing { .. } => tokio::select! {
            () = group.exited() => {}
            () = sleep(grace) => {}
            () = reading => {}
        },
        LastMessage::Broken(_) | LastMessage::Refused(_) => {}
    }
}

/// Reads what the program writes.
struct Listener<'a> {
    run: &'a mut Run,
    lines: Lines<ChildStdout>,
    silence: &'a Silence,
    /// Usage that was reported with `cost` and is in no checkpoint yet.
    unpaid: Usage,
}

impl Listener<'_> {
    /// Takes one line after the other, up to the last word. A checkpoint is durable before the next line is looked at:
    /// while we commit, the pipe fills and the program waits.
    async fn listen(&mut self) -> LastMessage {
        loop {
            self.silence.begin();
            let line = self.lines.next().await;
            self.silence.end();
            let line = match line {
                Ok(Some(line)) => line,
                Ok(None) => return LastMessage::Nothing { torn: None },
                Err(error) => return LastMessage::Broken(cannot_read(error)),
            };
            let message = match contract::parse(&line) {
                Ok(Some(message)) => message,
                Ok(None) => continue,
                Err(failure) if line.complete => return LastMessage::Broken(failure),
                Err(failure) => return LastMessage::Nothing { torn: Some(failure) },
            };
            match message {
                Message::Checkpoint(delta) => {
                    if let Err(stop) = self.checkpoint(delta).await {
                        return LastMessage::Refused(at_line(stop, line.number));
                    }
                }
                Message::Event(event) => self.run.event(event),
                Message::Text(text) => self.run.text(&text),
                Message::Cost(usage) => self.unpaid += usage,
                Message::Result(output) => return LastMessage::Result(output),
                Message::Error(failure) => return LastMessage::Error(failure),
            }
        }
    }

    async fn checkpoint(&mut self, mut delta: Delta) -> Result<(), Stop> {
        delta.usage += self.unpaid;
        self.run.checkpoint(delta).await?;
        self.unpaid = Usage::default();
        Ok(())
    }

    /// Logs what does not change the outcome but is probably a mistake in the program.
    async fn warn_of_program_mistakes(&mut self, last_message: &LastMessage, exit: Exit) {
        if !matches!(last_message, LastMessage::Result(_) | LastMessage::Error(_)) {
            return;
        }
        let _ = timeout(DRAIN, self.lines.discard()).await;
        let ignored_bytes = self.lines.discarded();
        let exited_well = exit.by_itself && exit.status.is_some_and(|status| status.success());
        let ended_well = exited_well || matches!(last_message, LastMessage::Error(_));
        if ignored_bytes > 0 || !ended_well {
            tracing::warn!(ignored_bytes, status = ?exit.status, exited = exit.by_itself,
                "a program went on writing after its result, or did not exit with 0 in time; its result counts");
        }
    }

    /// Records what was spent, however the attempt ended, unless its checkpoints are no longer accepted.
    async fn settle(&mut self, last_message: &LastMessage) -> Result<(), Stop> {
        match last_message {
            LastMessage::Refused(_) => Ok(()),
            _ => self.checkpoint(Delta::default()).await,
        }
    }
}

/// Adds the line's number if the refused checkpoint is the program's fault.
fn at_line(stop: Stop, number: u64) -> Stop {
    match stop {
        Stop::Unstorable(problem) => Stop::Unstorable(format!("stdout line {number}: {problem}")),
        Stop::OutputLimit(problem) => Stop::OutputLimit(format!("stdout line {number}: {problem}")),
        _ => stop,
    }
}

fn cannot_read(error: LineError) -> Failure {
    match &error {
        LineError::TooLong { .. } | LineError::TooMuch { .. } => {
            Failure::permanent(FailureCode::OutputLimit, error.to_string())
        }
        LineError::Io { source, .. } => {
            Failure::retryable(FailureCode::Crashed, format!("{error}: {source}"))
        }
    }
}

/// Since when we have been waiting for a line. The count pauses while a line is handled: our slowness is not the
/// program's silence.
#[derive(Default)]
struct Silence {
    since: Mutex<Option<Instant>>,
}

impl Silence {
    fn begin(&self) {
        self.set(Some(Instant::now()));
    }

    fn end(&self) {
        self.set(None);
    }

    /// Returns whether everything that was written into this pipe so far was read and is handled.
    fn has_handled(&self, pipe: &OwnedFd) -> bool {
        let unread = ioctl_fionread(pipe);
        self.since.lock().unwrap_or_else(PoisonError::into_inner).is_some()
            && matches!(unread, Ok(0) | Err(_))
    }

    fn set(&self, since: Option<Instant>) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Resolves when the silence has lasted for `limit`, counted from `from` at the earliest.
    async fn lasts(&self, limit: Duration, from: Instant) {
        loop {
            let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let due = since.map_or(now, |since| since.max(from)) + limit;
            if due <= now {
                return;
            }
            sleep_until(due).await;
        }
    }
}
