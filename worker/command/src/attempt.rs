//! One attempt: reads what the program writes, supervises its limits and the stop signal, and ends it.
//!
//! Two futures run side by side. [`Listener::listen`] takes one line after the other and finishes each before the next.
//! [`supervise`] watches the clock, the stop signal and the process, and asks the program to stop. When one of the two
//! ends, so does the attempt, and [`outcome`] says what that means. This module does not handle a lost lease: the whole
//! attempt is dropped.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use harness::{Meter, Run, RunError, StopSignal};
use job::Json;
use lines::{Asked, LastMessage, Lines, Listener, Silence, idle};
use process::{Exit, Group, Stderr};
use rustix::io::ioctl_fionread;
use tokio::process::ChildStdout;
use tokio::time::{Instant, sleep, timeout};

use crate::config::Settings;
use crate::outcome::outcome;

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
            meter.follow(Box::new(move || has_handled(&silence, pipe.as_ref())));
        }
        let lines = Lines::new("stdout", stdout, settings.max_line_bytes, settings.max_output_bytes);
        let mut listener = Listener::new(run, lines, &silence);

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
        wait_for_exit(&group, &mut listener, &last_message, settings.stop_grace).await;
        let exit = group.end().await;
        warn_of_program_mistakes(&mut listener, &last_message, exit).await;
        listener.settle(&last_message).await?;
        outcome(asked.into_inner(), last_message, exit, &stderr.tail().await, settings)
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

/// Gives a program that has said its last word, or closed its stdout, some time to exit by itself.
async fn wait_for_exit(
    group: &Group,
    listener: &mut Listener<'_, ChildStdout>,
    last_message: &LastMessage,
    grace: Duration,
) {
    let reading = async {
        // The pipe is emptied, so that the program does not hang on it instead of exiting.
        listener.discard().await;
        std::future::pending::<()>().await
    };
    match last_message {
        LastMessage::Result(_)
        | LastMessage::Error(_)
        | LastMessage::Asks(_)
        | LastMessage::Nothing { .. } => tokio::select! {
            () = group.exited() => {}
            () = sleep(grace) => {}
            () = reading => {}
        },
        LastMessage::Broken(_) | LastMessage::Refused(_) => {}
    }
}

/// Logs what does not change the outcome but is probably a mistake in the program.
async fn warn_of_program_mistakes(
    listener: &mut Listener<'_, ChildStdout>,
    last_message: &LastMessage,
    exit: Exit,
) {
    if !matches!(last_message, LastMessage::Result(_) | LastMessage::Error(_)) {
        return;
    }
    let _ = timeout(DRAIN, listener.discard()).await;
    let ignored_bytes = listener.discarded();
    let exited_well = exit.by_itself && exit.status.is_some_and(|status| status.success());
    let ended_well = exited_well || matches!(last_message, LastMessage::Error(_));
    if ignored_bytes > 0 || !ended_well {
        tracing::warn!(ignored_bytes, status = ?exit.status, exited = exit.by_itself,
            "a program went on writing after its result, or did not exit with 0 in time; its result counts");
    }
}

/// Returns whether everything that was written into this pipe so far was read and is handled, as far as the pipe says what it
/// holds.
fn has_handled(silence: &Silence, pipe: Option<&OwnedFd>) -> bool {
    let unread = pipe.map(ioctl_fionread);
    silence.is_on() && matches!(unread, None | Some(Ok(0) | Err(_)))
}
