//! A pool's decisions in the ledger: they are recorded before they are carried out, and the next leader reads them
//! back.
use std::time::Duration;

use store::{Fenced, NewDecision};
use tracing::warn;
use workload::Wait;

use super::{Failed, Reconciler, Term, at};
use crate::decide::{Decision, History, MAX_WINDOW_S, Observation};
use crate::metrics::METRICS;

/// How often a decision that changes nothing is still recorded, so that the windows find it.
const WRITE_AT_REST_MS: u64 = 60_000;

/// The most decisions that are read back: more than one a second over the longest window.
const MEMORY: u32 = 10_000;

/// What came of a decision, in the ledger.
pub mod outcome {
    /// The workload has the wanted size.
    pub const RESIZED: &str = "resized";
    /// Nothing had to be done.
    pub const KEPT: &str = "kept";
    /// There are more replicas than wanted, and none can be removed yet; the detail says why.
    pub const WAITING: &str = "waiting";
    /// The workload was not changed.
    pub const FAILED: &str = "failed";
    /// It is unknown whether the workload was changed.
    pub const UNKNOWN: &str = "unknown";
}

/// The decision that was last recorded in the ledger.
#[derive(Clone, Copy)]
pub(super) struct Written {
    at_ms: u64,
    recommended: Option<u32>,
    pub desired: Option<u32>,
    reason: &'static str,
    waits: Option<&'static str>,
}

impl Reconciler {
    /// Reads back what was decided before, by any autoscaler. A decision dated in the future was made before Postgres's
    /// clock was set back. It counts as made now: for one more window, and no longer.
    pub(super) async fn recall(&self) -> Result<History, Failed> {
        let (store, pool) = (&self.shared.store, std::slice::from_ref(&self.pool.name));
        let past = Duration::from_secs(MAX_WINDOW_S);
        let rows = store.decisions_since(pool, past, MEMORY).await.map_err(at("recall"))?;
        let now_ms = self.shared.observer.now_ms();
        let mut history = History::default();
        for row in rows {
            // An older program may have written it. A decision that cannot be read is skipped.
            let Ok(mut decision) = serde_json::from_str::<Decision>(&row.made.decision) else { continue };
            decision.at_ms = decision.at_ms.min(now_ms);
            history.record(&decision);
            // A decision without an outcome may have been carried out, so it counts towards the limits.
            let outcome = row.outcome.as_ref().map_or(outcome::UNKNOWN, |it| it.outcome.as_str());
            if matches!(outcome, outcome::RESIZED | outcome::UNKNOWN) {
                history.resized(row.made.at_ms.min(now_ms), row.made.from, row.made.desired);
            }
        }
        Ok(history)
    }

    /// Records a decision before it is carried out. If the ledger refuses it, this process decides nothing more.
    pub(super) async fn write(
        &self,
        term: &mut Term,
        observation: &Observation,
        decision: &Decision,
        (from, desired): (u32, u32),
    ) -> Result<i64, Failed> {
        let new = NewDecision {
            pool: self.pool.name.clone(),
            at_ms: decision.at_ms,
            from,
            recommended: decision.recommended,
            desired,
            reason: decision.reason.as_str().to_owned(),
            inputs: serde_json::to_string(observation).map_err(at("record"))?,
            decision: serde_json::to_string(decision).map_err(at("record"))?,
        };
        let written = self.shared.store.decide(&term.leadership, &[new]).await.map_err(at("record"))?;
        let written = written.into_iter().next().unwrap_or(Fenced::Lost);
        let id = self.allowed(term, written, "record")?;
        term.written = Some(Written {
            at_ms: decision.at_ms,
            recommended: decision.recommended,
            desired: decision.desired,
            reason: decision.reason.as_str(),
            waits: None,
        });
        Ok(id)
    }

    /// Records a decision that changes nothing if it differs from the last one, if it waits for something else, or if
    /// the last record is old.
    pub(super) async fn write_at_rest(
        &self,
        term: &mut Term,
        observation: &Observation,
        decision: &Decision,
        replicas: u32,
        wait: Option<&Wait>,
    ) -> Result<(), Failed> {
        let kind = wait.map(Wait::kind);
        let same = term.written.is_some_and(|written| {
            (written.recommended, written.desired, written.reason, written.waits)
                == (decision.recommended, decision.desired, decision.reason.as_str(), kind)
                && decision.at_ms < written.at_ms + WRITE_AT_REST_MS
        });
        if !same {
            let id = self.write(term, observation, decision, (replicas, replicas)).await?;
            if let Some(written) = &mut term.written {
                written.waits = kind;
            }
            let outcome = if wait.is_some() { outcome::WAITING } else { outcome::KEPT };
            self.finish(id, outcome, wait.map(ToString::to_string)).await;
        }
        Ok(())
    }

    /// Records the outcome. A failure does not fail the tick, because a decision without an outcome counts as one that
    /// may have been carried out.
    pub(super) async fn finish(&self, id: i64, outcome: &'static str, detail: Option<String>) {
        if let Err(cause) = self.shared.store.finish_decision(id, outcome, detail.as_deref()).await {
            METRICS.errors.with_label_values(&[self.pool.name.as_str(), "record"]).inc();
            warn!(pool = %self.pool.name, cause = cause.as_dyn(), "the outcome of decision {id} could not be recorded");
        }
    }
}
