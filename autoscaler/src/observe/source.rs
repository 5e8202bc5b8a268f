//! A source of readings: a question that is asked again and again, each time in its own task.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::SourceHealth;
use crate::decide::Reading;

/// An answer, dated by when the question was asked, because its content may be as old as that.
pub(super) struct Answer<T> {
    pub(super) value: T,
    pub(super) asked: Instant,
}

pub(super) struct Source<T> {
    name: &'static str,
    every: Duration,
    question: Box<dyn Fn() -> BoxFuture<'static, Result<T, String>> + Send + Sync>,
    /// Returns what is wrong with an answer, if anything is.
    complaint: fn(&T) -> Option<String>,
    /// When it was asked last.
    asked: Option<Instant>,
    asking: Option<JoinHandle<Result<T, String>>>,
    health: SourceHealth,
}

impl<T: Clone> Answer<T> {
    pub(super) fn reading(&self, now_ms: u64) -> Reading<T> {
        let age_ms = self.asked.elapsed().as_millis() as u64;
        Reading { value: self.value.clone(), at_ms: now_ms.saturating_sub(age_ms) }
    }
}

impl<T: Send + 'static> Source<T> {
    /// Makes a source that is asked no more often than `every`. The question itself must have a bound.
    pub(super) fn new<F>(
        name: &'static str,
        every: Duration,
        question: impl Fn() -> F + Send + Sync + 'static,
    ) -> Source<T>
    where
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        let question = Box::new(move || question().boxed());
        let health = SourceHealth::default();
        Source { name, every, question, complaint: |_| None, asked: None, asking: None, health }
    }

    /// Also reports answers that are good only in part, as `complaint` judges them.
    pub(super) fn judged_by(self, complaint: fn(&T) -> Option<String>) -> Source<T> {
        Source { complaint, ..self }
    }

    /// Asks if the source is due and no question is open, and waits for the answer until the deadline. A question
    /// without an answer stays open, and a later call finds its answer.
    pub(super) async fn read(&mut self, deadline: Instant) -> Option<Answer<T>> {
        let is_due = self.asked.is_none_or(|asked| asked.elapsed() >= self.every);
        if self.asking.is_none() && is_due {
            self.asked = Some(Instant::now());
            self.asking = Some(tokio::spawn((self.question)()));
        }
        let (asking, asked) = (self.asking.as_mut()?, self.asked?);
        let Ok(ended) = timeout_at(deadline, asking).await else {
            self.trouble(format!("no answer yet, after {:.1} s", asked.elapsed().as_secs_f64()));
            return None;
        };
        self.asking = None;
        match ended.unwrap_or_else(|panic| Err(panic.to_string())) {
            Ok(value) => {
                match (self.complaint)(&value) {
                    Some(error) => self.failed(error),
                    None if self.health.error.take().is_some() => info!("{} can be read again", self.name),
                    None => {}
                }
                Some(Answer { value, asked })
            }
            Err(error) => {
                self.failed(error);
                None
            }
        }
    }

    pub(super) fn health(&self) -> SourceHealth {
        self.health.clone()
    }

    /// Counts a question that has failed, in part or as a whole.
    fn failed(&mut self, error: String) {
        self.health.failures += 1;
        self.trouble(error);
    }

    /// Records the error. It is logged when the trouble begins, not in every round.
    fn trouble(&mut self, error: String) {
        if self.health.error.is_none() {
            warn!(cause = error, "{} cannot be read", self.name);
        }
        self.health.error = Some(error);
    }
}
