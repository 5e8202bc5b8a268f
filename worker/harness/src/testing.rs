//! What the tests of every harness need: a journal in memory, a task, and a run that is never stopped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use job::{Failure, FailureCode, JobId, Json, Labels, Tenant};
use serde_json::Value;
use tokio::sync::watch;

use crate::{Delta, Event, Journal, Run, RunError, Session, Stop, Stopper, Task};

/// What happens at a checkpoint, given the number of checkpoints before it.
type Hook = Box<dyn Fn(usize) -> Result<(), Stop> + Send + Sync>;

/// A journal that keeps everything in memory.
pub struct MemoryJournal {
    deltas: Mutex<Vec<Delta>>,
    events: Mutex<Vec<Event>>,
    text: Mutex<String>,
    count: watch::Sender<usize>,
    hook: Hook,
    slow: Duration,
}

impl MemoryJournal {
    /// Makes a journal that takes every checkpoint at once.
    pub fn new() -> Arc<MemoryJournal> {
        MemoryJournal::with(Duration::ZERO, |_| Ok(()))
    }

    /// Makes a journal that takes the time `slow` for each checkpoint, and then asks `hook` whether to accept it.
    pub fn with(
        slow: Duration,
        hook: impl Fn(usize) -> Result<(), Stop> + Send + Sync + 'static,
    ) -> Arc<MemoryJournal> {
        let (deltas, events, text) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (count, hook) = (watch::Sender::new(0), Box::new(hook));
        Arc::new(MemoryJournal { deltas, events, text, count, hook, slow })
    }

    /// Returns the checkpoints so far.
    pub fn deltas(&self) -> Vec<Delta> {
        locked(&self.deltas).clone()
    }

    /// Returns the events so far.
    pub fn events(&self) -> Vec<Event> {
        locked(&self.events).clone()
    }

    /// Returns the text so far.
    pub fn text(&self) -> String {
        locked(&self.text).clone()
    }

    /// Resolves at the `count`-th checkpoint or event; the two are counted together.
    pub async fn reached(&self, count: usize) {
        let mut seen = self.count.subscribe();
        let reached = tokio::time::timeout(Duration::from_secs(10), seen.wait_for(|seen| *seen >= count));
        assert!(reached.await.is_ok(), "no {count} checkpoints and events after 10 s");
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn checkpoint(&self, delta: &Delta) -> Result<(), Stop> {
        let before = locked(&self.deltas).len();
        if !self.slow.is_zero() {
            tokio::time::sleep(self.slow).await;
        }
        (self.hook)(before)?;
        locked(&self.deltas).push(delta.clone());
        self.count.send_modify(|count| *count += 1);
        Ok(())
    }

    fn event(&self, event: Event) {
        locked(&self.events).push(event);
        self.count.send_modify(|count| *count += 1);
    }

    fn text(&self, text: &str) {
        locked(&self.text).push_str(text);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a first attempt at a job with this input.
pub fn task(input: Value) -> Task {
    Task {
        job_id: JobId::now(),
        tenant: Tenant::default(),
        session_id: "session-1".parse().expect("a valid name"),
        agent_id: "agent-1".parse().expect("a valid name"),
        user_id: Some("somebody".to_owned()),
        labels: Labels::default(),
        input: Json::from_value(&input).expect("input that can be kept"),
        attempt: 1,
        epoch: 7,
        traceparent: None,
        max_stalled_iterations: None,
        max_iterations: None,
        max_tokens: None,
    }
}

/// Makes a run that is never stopped, from an empty session.
pub fn run(task: &Task, journal: &Arc<MemoryJournal>) -> Run {
    Run::new(task.clone(), Session::default(), journal.clone(), Stopper::default().signal())
}

/// Returns the failure of a run that must not succeed.
#[track_caller]
pub fn failure(ended: Result<Json, RunError>) -> Failure {
    match ended {
        Err(RunError::Failed(failure)) => failure,
        other => panic!("expected a failure, got {other:?}"),
    }
}

/// Checks a failure and that its message contains `text`.
#[track_caller]
pub fn assert_failure(failure: &Failure, code: FailureCode, retryable: bool, text: &str) {
    assert_eq!((failure.code, failure.retryable), (code, retryable), "{failure}");
    assert!(failure.message.contains(text), "expected {text:?} in: {failure}");
}
