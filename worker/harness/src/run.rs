//! A run: what a harness is given, where it writes, when it must stop, and what keeps it within its bounds.
//!
//! This module does not know how checkpoints become durable, nor who stops a run. Both are the runner's business,
//! behind [`Journal`] and [`StopSignal`].

use std::sync::Arc;

use async_trait::async_trait;
use job::{JobId, Json, Labels, Name, Tenant, TraceParent};

use crate::{Delta, Event, Meter, Session, Stop, StopSignal, Usage};

/// What a harness is asked to do: read-only.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The job.
    pub job_id: JobId,
    /// The tenant whose job it is.
    pub tenant: Tenant,
    /// The name of the session it continues. Each tenant has its own sessions, and their names may be equal.
    pub session_id: Name,
    /// The agent that the job asks for.
    pub agent_id: Name,
    /// The user on whose behalf the job runs.
    pub user_id: Option<String>,
    /// What the caller has written on the job.
    pub labels: Labels,
    /// What the caller gave; the harness alone knows its shape.
    pub input: Json,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// The fencing token of this run. It rises with every claim, and so shows which of two runs is the later one.
    pub epoch: i64,
    /// The trace context of this run (W3C Trace Context), for the harness's own spans.
    pub traceparent: Option<TraceParent>,
    /// How many iterations in a row may leave memory and progress unchanged; `None` for any number.
    pub max_stalled_iterations: Option<u32>,
}

/// Where checkpoints and events go.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Returns once the delta is durable. An error means that the run must stop, and that the delta may be lost.
    async fn checkpoint(&self, delta: &Delta) -> Result<(), Stop>;

    /// Shows progress. Never blocks; an event may be dropped.
    fn event(&self, event: Event);

    /// Streams text to those who follow the job. Never blocks; text may be dropped, and is not kept.
    fn text(&self, text: &str);
}

/// One attempt at a job, seen from the inside.
pub struct Run {
    task: Task,
    session: Session,
    journal: Arc<dyn Journal>,
    stop: StopSignal,
    /// Iterations since memory or progress last changed.
    stalled: u64,
    room: Room,
    meter: Option<Arc<dyn Meter>>,
    /// What the meter had counted by the last checkpoint.
    paid: Usage,
}

/// How much a session may hold.
struct Room {
    /// The most bytes that its state may have as JSON.
    most: usize,
    /// An upper bound on its state's present size.
    held: usize,
    /// What was appended to it since its state was last written whole.
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

/// How much may be appended to a session before it is written whole, in multiples of the most bytes of its state.
const MOST_APPENDED: usize = 4;

impl Run {
    /// Makes a run that starts from `session` and ends when `stop` says so.
    pub fn new(task: Task, session: Session, journal: Arc<dyn Journal>, stop: StopSignal) -> Run {
        let room = Room { most: usize::MAX, held: 0, appended: Appended::default() };
        Run { task, session, journal, stop, stalled: 0, room, meter: None, paid: Usage::default() }
    }

    /// Takes what the run uses from a meter.
    pub fn metered_by(self, meter: Option<Arc<dyn Meter>>) -> Run {
        Run { meter, ..self }
    }

    /// Returns the meter through which the run calls models, if it has one.
    pub fn meter(&self) -> Option<&Arc<dyn Meter>> {
        self.meter.as_ref()
    }

    /// Bounds the session's size to `most` bytes. `appended` is what was appended to it before this run.
    pub fn within(self, most: usize, appended: Appended) -> Run {
        let room = Room { most, held: self.session.bytes(), appended };
        Run { room, ..self }
    }

    /// Returns what was appended since the session was last written whole, including this run's checkpoints.
    pub fn appended(&self) -> Appended {
        self.room.appended
    }

    /// Returns what is to be done.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Returns the state as of the last checkpoint.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Makes `delta` durable, then applies it to [`Run::session`]. An empty delta costs nothing.
    ///
    /// A delta that Postgres cannot hold, or that is too large, is refused before anything is written, but its usage is
    /// recorded. After an error the run must end. The session here holds the delta only if it became durable.
    pub async fn checkpoint(&mut self, mut delta: Delta) -> Result<(), Stop> {
        let used = self.meter.as_ref().map(|meter| meter.used());
        if let Some(used) = used {
            delta.usage = used.since(self.paid);
        }
        if delta.is_empty() {
            return Ok(());
        }
        let room = match self.room_for(&delta) {
            Ok(room) => room,
            Err(refused) => {
                self.pay(delta.usage, used).await?;
                return Err(refused);
            }
        };
        self.journal.checkpoint(&delta).await?;
        self.paid = used.unwrap_or_default();
        self.room = room;
        let before = self.task.max_stalled_iterations.map(|_| self.session.progress());
        self.session.apply(&delta);
        match before {
            Some(before) if before == self.session.progress() => self.stalled += delta.iterations,
            _ => self.stalled = 0,
        }
        match self.task.max_stalled_iterations {
            _ if self.stop.asked() == Some(Stop::Interrupted) => Err(Stop::Interrupted),
            Some(most) if self.stalled >= u64::from(most) => Err(Stop::Stalled(self.stalled)),
            _ => Ok(()),
        }
    }

    /// Returns the room that is left after a delta, or an error if the delta does not fit.
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
        // The state is measured only when the sum of all parts is too large, since much may have been replaced.
        let mut held = held + bytes;
        if held > most {
            let mut after = self.session.clone();
            after.apply(delta);
            held = after.bytes();
            // A session that is already too large may still be made smaller.
            if held > most && held > self.session.bytes() {
                return Err(Stop::OutputLimit(format!(
                    "the session would have {held} bytes, expected at most {most} (MAX_SESSION_BYTES); \
                     replace its context by less, or remember less"
                )));
            }
        }
        Ok(Room { most, held, appended })
    }

    /// Records only what was used.
    async fn pay(&mut self, usage: Usage, metered: Option<Usage>) -> Result<(), Stop> {
        let delta = Delta { usage, ..Delta::default() };
        if !delta.is_empty() && delta.check().is_ok() {
            self.journal.checkpoint(&delta).await?;
            self.paid = metered.unwrap_or_default();
            self.session.apply(&delta);
        }
        Ok(())
    }

    /// Applies a delta that became durable although its answer did not reach this run.
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

    /// Streams text, as a model writes it.
    pub fn text(&self, text: &str) {
        self.journal.text(text);
    }

    /// Resolves when the run must stop at once. Never resolves if nothing is left that could ask for a stop.
    pub async fn stopped(&self) -> Stop {
        self.stop.stopped().await
    }

    /// Returns why the run must stop, if it must.
    pub fn stop_requested(&self) -> Option<Stop> {
        self.stop.asked()
    }

    /// Returns the state with every checkpoint of this run applied.
    pub fn into_session(self) -> Session {
        self.session
    }

    /// Returns the stop signal, for code that runs beside a checkpoint.
    pub fn stop_signal(&self) -> StopSignal {
        self.stop.clone()
    }
}
