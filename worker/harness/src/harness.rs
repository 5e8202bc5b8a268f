//! The contract between a harness and whoever runs it: what it is given, where it writes, when it must stop.
//!
//! It knows neither how checkpoints become durable nor why a run is stopped; both are the runner's business, behind
//! [`Journal`] and a `watch` channel.

use std::sync::Arc;

use async_trait::async_trait;
use job::{Failure, FailureCode, JobId, Json, Name, TraceParent};
use tokio::sync::watch;

use crate::{Delta, DeltaError, Event, Session, Usage};

/// One way of doing jobs. One value serves every job of its agent, many at a time.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Works on one attempt at a job and returns the job's output.
    ///
    /// It checkpoints what it must not lose, and returns soon after [`Run::stopped`] resolves. Dropping the future
    /// must end all work at once.
    async fn run(&self, run: &mut Run) -> Result<Json, RunError>;
}

/// What a harness is asked to do: read-only.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The job.
    pub job_id: JobId,
    /// The session it continues.
    pub session_id: Name,
    /// The agent that was asked for.
    pub agent_id: Name,
    /// On whose behalf.
    pub user_id: Option<String>,
    /// What the caller gave; the harness alone knows its shape.
    pub input: Json,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// The fencing token of this run: it rises with every claim, so that of two runs the later one is known.
    pub epoch: i64,
    /// The place of this run in its trace (W3C Trace Context), for what it does itself.
    pub traceparent: Option<TraceParent>,
    /// How many iterations in a row may leave memory and progress as they are; any number without.
    pub max_stalled_iterations: Option<u32>,
}

/// Where checkpoints and events go.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Returns once the delta is durable. An error means that the run must stop, and that the delta may be lost.
    async fn checkpoint(&self, delta: &Delta) -> Result<(), Stop>;

    /// Shows progress. Never blocks; an event may be dropped.
    fn event(&self, event: Event);
}

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
    pub fn replaces(&self, earlier: Option<&Stop>) -> bool {
        let urgency = |stop: &Stop| match stop {
            Stop::Interrupted => 1,
            Stop::LeaseLost => 3,
            _ => 2,
        };
        earlier.is_none_or(|earlier| urgency(self) > urgency(earlier))
    }

    /// Whether the run must stop at once, and not only at its next checkpoint.
    pub fn is_immediate(&self) -> bool {
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

/// Why a run has no output.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RunError {
    /// The attempt failed.
    #[error("the attempt failed")]
    Failed(#[source] Failure),
    /// The run did as it was told.
    #[error("the run was stopped")]
    Stopped(#[source] Stop),
    /// The run has not begun, and that is no fault of the job's: it can begin elsewhere, or later.
    #[error("the run could not begin on this machine")]
    Short(#[source] Shortage),
}

/// What this machine lacks. Nothing of it is a job's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// A folder for the session: the disk is full, read-only, away or not ours.
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
    /// A refused checkpoint is the harness's own fault: it ends the job instead of handing it back.
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
            | Stop::LeaseLost
            | Stop::Timeout
            | Stop::Deadline
            | Stop::Interrupted
            | Stop::RolledBack => RunError::Stopped(stop),
        }
    }
}

/// One attempt at a job, seen from the inside.
pub struct Run {
    task: Task,
    session: Session,
    journal: Arc<dyn Journal>,
    stop: watch::Receiver<Option<Stop>>,
    /// Iterations since memory or progress last changed.
    stalled: u64,
    room: Room,
}

/// How much a session may hold.
struct Room {
    /// The most bytes of its state, as JSON.
    most: usize,
    /// Its state is not larger than this.
    held: usize,
    /// What was appended since the state was last written whole.
    appended: Appended,
}

/// What was appended to a session since its state was last written whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Checkpoints.
    pub rows: usize,
    /// Their size as JSON.
    pub bytes: usize,
}

/// So many times the most bytes of a session's state may be appended to it before it is written whole.
const MOST_APPENDED: usize = 4;

impl Run {
    /// A run that starts from `session` and ends when `stop` holds a reason.
    pub fn new(
        task: Task,
        session: Session,
        journal: Arc<dyn Journal>,
        stop: watch::Receiver<Option<Stop>>,
    ) -> Run {
        let room = Room { most: usize::MAX, held: 0, appended: Appended::default() };
        Run { task, session, journal, stop, stalled: 0, room }
    }

    /// The same with a bound to the session's size in bytes; so much was appended to it already.
    pub fn within(self, most: usize, appended: Appended) -> Run {
        let room = Room { most, held: self.session.bytes(), appended };
        Run { room, ..self }
    }

    /// What was appended since the session was last written whole, this run's checkpoints included.
    pub fn appended(&self) -> Appended {
        self.room.appended
    }

    /// What is to be done.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// The state as of the last checkpoint.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Makes `delta` durable, then applies it to [`Run::session`]. An empty delta costs nothing.
    ///
    /// What Postgres cannot hold, or is too large, is refused before anything is written; but what it has cost is recorded.
    /// After an error the run must end; the session here holds the delta if it stands.
    pub async fn checkpoint(&mut self, delta: Delta) -> Result<(), Stop> {
        if delta.is_empty() {
            return Ok(());
        }
        let room = match self.room_for(&delta) {
            Ok(room) => room,
            Err(refused) => {
                self.pay(delta.usage).await?;
                return Err(refused);
            }
        };
        self.journal.checkpoint(&delta).await?;
        self.room = room;
        let before = self.task.max_stalled_iterations.map(|_| self.session.progress());
        self.session.apply(&delta);
        match before {
            Some(before) if before == self.session.progress() => self.stalled += delta.iterations,
            _ => self.stalled = 0,
        }
        match self.task.max_stalled_iterations {
            _ if *self.stop.borrow() == Some(Stop::Interrupted) => Err(Stop::Interrupted),
            Some(most) if self.stalled >= u64::from(most) => Err(Stop::Stalled(self.stalled)),
            _ => Ok(()),
        }
    }

    /// The room that is left after a delta; an error if it cannot be kept.
    fn room_for(&self, delta: &Delta) -> Result<Room, Stop> {
        let bytes = delta.check()?;
        let Room { most, held, appended } = self.room;
        let appended = Appended { rows: appended.rows + 1, bytes: appended.bytes + bytes };
        let most_appended = most.saturating_mul(MOST_APPENDED);
        if appended.bytes > most_appended {
            return Err(Stop::OutputLimit(format!(
                "{} bytes were appended since the session was last written whole, expected at most {most_appended} \
                 ({MOST_APPENDED} times MAX_SESSION_BYTES); checkpoint less",
                appended.bytes
            )));
        }
        // Measured only where the sum of all parts is too large: much may have been replaced.
        let mut held = held + bytes;
        if held > most {
            let mut after = self.session.clone();
            after.apply(delta);
            held = after.bytes();
            // One that is too large already may still be made smaller.
            if held > most && held > self.session.bytes() {
                return Err(Stop::OutputLimit(format!(
                    "the session would have {held} bytes, expected at most {most} (MAX_SESSION_BYTES); \
                     replace its context by less, or remember less"
                )));
            }
        }
        Ok(Room { most, held, appended })
    }

    /// Records what was used, and nothing else.
    async fn pay(&mut self, usage: Usage) -> Result<(), Stop> {
        let delta = Delta { usage, ..Delta::default() };
        if !delta.is_empty() && delta.check().is_ok() {
            self.journal.checkpoint(&delta).await?;
            self.session.apply(&delta);
        }
        Ok(())
    }

    /// Takes a delta that became durable although nobody here has heard of it.
    pub fn catch_up(&mut self, delta: &Delta) {
        if let Ok(room) = self.room_for(delta) {
            self.room = room;
        }
        self.session.apply(delta);
    }

    /// Shows progress.
    pub fn event(&self, event: Event) {
        self.journal.event(event);
    }

    /// Resolves when the run must stop at once; never, if nobody is left who could say so.
    pub async fn stopped(&self) -> Stop {
        stopped(self.stop.clone()).await
    }

    /// Why the run must stop, if it must.
    pub fn stop_requested(&self) -> Option<Stop> {
        self.stop.borrow().clone()
    }

    /// The state with every checkpoint of this run applied.
    pub fn into_session(self) -> Session {
        self.session
    }

    /// The stop signal, for what goes on beside a checkpoint.
    pub fn stop_signal(&self) -> watch::Receiver<Option<Stop>> {
        self.stop.clone()
    }
}

/// [`Run::stopped`] for a signal of one's own.
pub async fn stopped(mut signal: watch::Receiver<Option<Stop>>) -> Stop {
    let stop = signal
        .wait_for(|stop| stop.as_ref().is_some_and(Stop::is_immediate))
        .await
        .ok()
        .and_then(|stop| stop.clone());
    match stop {
        Some(stop) => stop,
        None => std::future::pending().await,
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
        let (sender, signal) = watch::channel(None);
        sender.send(Some(Stop::Drain)).unwrap();
        drop(sender);
        assert_eq!(stopped(signal).await, Stop::Drain);
    }
}
