//! A run: what a harness is given, where it writes, when it must stop, and what keeps it within its bounds.
//!
//! This module does not know how checkpoints become durable, nor who stops a run. Both are the runner's business,
//! behind [`Journal`] and [`StopSignal`].

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use job::{CallId, ClosedInput, JobId, Json, Labels, Name, Tenant, TraceParent};

use crate::room::{Parts, Room};
use crate::{Delta, Event, Meter, Part, Session, Stop, StopSignal, Usage};

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
    /// The most answers of a model loop, in all attempts, if the job names fewer than its agent.
    pub max_iterations: Option<u32>,
    /// And the most tokens.
    pub max_tokens: Option<u64>,
}

/// Where checkpoints and events go.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Returns once the delta is durable. An error means that the run must stop, and that the delta may be lost.
    async fn checkpoint(&self, delta: &Delta) -> Result<(), Stop>;

    /// Notes that the run has the last durable delta in its session.
    fn applied(&self) {}

    /// Writes the session whole, as the last checkpoint has left it, where it is kept in parts; the first time in a job
    /// (`is_first`) the state before the job as well. Returns whether it did; if not, the parts are all there. An error means
    /// that the run must stop.
    async fn fold(&self, _session: &Session, _is_first: bool) -> Result<bool, Stop> {
        Ok(false)
    }

    /// Shows progress. Never blocks; an event may be dropped.
    fn event(&self, event: Event);

    /// Streams text to those who follow the job. Never blocks; text may be dropped, and is not kept.
    fn text(&self, text: &str);

    /// Notes a part of the work that has ended. Never blocks.
    fn part(&self, _part: &Part) {}
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
    /// What the checkpoints so far have counted.
    paid: Usage,
    answers: BTreeMap<CallId, ClosedInput>,
}

/// A delta that is about to be written, and has room in its session.
#[derive(Clone, Debug)]
pub struct Prepared {
    delta: Delta,
    room: Room,
}

impl Prepared {
    /// Returns the delta.
    pub fn delta(&self) -> &Delta {
        &self.delta
    }
}

impl Run {
    /// Makes a run that starts from `session` and ends when `stop` says so.
    pub fn new(task: Task, session: Session, journal: Arc<dyn Journal>, stop: StopSignal) -> Run {
        let room = Room::ENDLESS;
        let (paid, answers) = (Usage::default(), BTreeMap::new());
        Run { task, session, journal, stop, stalled: 0, room, meter: None, paid, answers }
    }

    /// Lets the run begin after so many iterations in a row, in the job's earlier attempts, that left memory and progress
    /// unchanged.
    pub fn stalled_for(self, iterations: u64) -> Run {
        Run { stalled: iterations, ..self }
    }

    /// Gives the run what became of the questions of the job's earlier attempts.
    pub fn answered(self, answers: impl IntoIterator<Item = (CallId, ClosedInput)>) -> Run {
        Run { answers: answers.into_iter().collect(), ..self }
    }

    /// Returns what became of each call that an earlier attempt at the job has asked a person to answer: the answer, or
    /// that nobody answered in time.
    pub fn answers(&self) -> &BTreeMap<CallId, ClosedInput> {
        &self.answers
    }

    /// Takes what the run uses from a meter.
    pub fn metered_by(self, meter: Option<Arc<dyn Meter>>) -> Run {
        Run { meter, ..self }
    }

    /// Returns the meter through which the run calls models, if it has one.
    pub fn meter(&self) -> Option<&Arc<dyn Meter>> {
        self.meter.as_ref()
    }

    /// Bounds the session's size to `most` bytes. `parts` is what lay there of it before this run.
    pub fn within(self, most: usize, parts: Parts) -> Run {
        let room = Room::new(most, &self.session, parts);
        Run { room, ..self }
    }

    /// Returns the most bytes that the session's state may have as JSON.
    pub fn most_bytes(&self) -> usize {
        self.room.most()
    }

    /// Returns what lies there of the session, including this run's checkpoints.
    pub fn parts(&self) -> Parts {
        self.room.parts()
    }

    /// Returns what is to be done.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Frees the input, for a harness that has written it into the session: a large one would lie in memory twice. The task
    /// has `null` in its place.
    pub fn forget_input(&mut self) {
        self.task.input = Json::null();
    }

    /// Returns the state as of the last checkpoint.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Makes `delta` durable, then applies it to [`Run::session`]. An empty delta costs nothing.
    ///
    /// A delta that Postgres cannot hold, or that is too large, is refused before anything is written, but its usage is
    /// recorded. After an error the run must end. The session here holds the delta only if it became durable.
    ///
    /// Where most of what lies there of the session is not of its state any more, it is written whole as well.
    pub async fn checkpoint(&mut self, delta: Delta) -> Result<(), Stop> {
        let delta = self.metered(delta, Usage::default());
        if delta.is_empty() {
            return Ok(());
        }
        let room = match self.room.after(&delta, &self.session) {
            Ok(room) => room,
            Err(refused) => {
                self.pay(delta.usage).await?;
                return Err(refused);
            }
        };
        self.journal.checkpoint(&delta).await?;
        self.written(Prepared { delta, room }).await
    }

    /// Prepares a delta that the meter writes with the settlement of a call, which has used this ([`Taken`](crate::Taken)).
    /// Returns nothing if it is refused before it is written.
    pub fn prepare(&self, delta: Delta, call: Usage) -> Option<Prepared> {
        let delta = self.metered(delta, call);
        let room = self.room.after(&delta, &self.session).ok()?;
        Some(Prepared { delta, room })
    }

    /// Applies a delta that is durable now.
    pub async fn written(&mut self, Prepared { delta, room }: Prepared) -> Result<(), Stop> {
        if self.task.max_stalled_iterations.is_some() {
            self.stalled = self.session.stalled(self.stalled, &delta);
        }
        self.apply(&delta, room);
        match self.task.max_stalled_iterations {
            _ if self.stop.asked() == Some(Stop::Interrupted) => Err(Stop::Interrupted),
            Some(most) if self.stalled >= u64::from(most) => Err(Stop::Stalled(self.stalled)),
            _ => self.fold_if_due(delta.replace_context).await,
        }
    }

    /// Lets a delta count what was used since the last one, and by a call that the meter does not count yet.
    fn metered(&self, delta: Delta, call: Usage) -> Delta {
        match &self.meter {
            // The meter may count a call a moment after its delta was written.
            Some(meter) => Delta { usage: (meter.used() + call).since(self.paid), ..delta },
            None => delta,
        }
    }

    async fn fold_if_due(&mut self, replaced: bool) -> Result<(), Stop> {
        if !self.room.is_to_be_folded(replaced, &self.session) {
            return Ok(());
        }
        let is_first = !self.room.parts().has_before;
        if self.journal.fold(&self.session, is_first).await? {
            self.room.fold(&self.session);
        }
        Ok(())
    }

    /// Records only what was used.
    async fn pay(&mut self, usage: Usage) -> Result<(), Stop> {
        let delta = Delta { usage, ..Delta::default() };
        if !delta.is_empty() && delta.check().is_ok() {
            self.journal.checkpoint(&delta).await?;
            self.apply(&delta, self.room);
        }
        Ok(())
    }

    /// Applies a delta that became durable although its answer did not reach this run.
    pub fn catch_up(&mut self, delta: &Delta) {
        let room = self.room.after(delta, &self.session).unwrap_or(self.room);
        self.apply(delta, room);
    }

    /// Takes a durable delta in, which leaves this room.
    fn apply(&mut self, delta: &Delta, room: Room) {
        self.room = room;
        self.paid += delta.usage;
        self.session.apply(delta);
        self.journal.applied();
    }

    /// Shows progress.
    pub fn event(&self, event: Event) {
        self.journal.event(event);
    }

    /// Streams text, as a model writes it.
    pub fn text(&self, text: &str) {
        self.journal.text(text);
    }

    /// Notes a part of the work that has ended.
    pub fn part(&self, part: &Part) {
        self.journal.part(part);
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
