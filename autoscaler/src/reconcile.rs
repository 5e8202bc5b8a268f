//! Reconcile: one pool, once a second: look, decide, write it down, act.
//!
//! Every tick starts from what is seen, not from what the last one did. Only the leader ticks; with each new term the
//! history is read back from `harness_scale_decisions`, so that windows and limits outlive a restart.
//!
//! The order within a tick keeps promises: marks are taken back before a workload grows, and a decision stands in the
//! ledger, under the leader's epoch, before it is written to the workload.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use store::{Fenced, NewDecision, Store, WorkerView};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::apply::{Change, Target, TargetError, Workload};
use crate::config::Pool;
use crate::decide::{CompiledPolicy, Decision, History, Observation, Reading, Replicas, decide};
use crate::leader::{Leader, Term};
use crate::metrics::METRICS;
use crate::observe::Observer;
use crate::scale_in::{ScaleIn, plan};

/// A workload at rest is looked at this often.
const LOOK_AT_REST: Duration = Duration::from_secs(5);

/// How long a mark holds unless it is renewed, which each tick does.
const MARK_FOR: Duration = Duration::from_secs(30);

/// No write to a workload is begun with less of the term left: it must be over before the term is.
const TERM_MARGIN: Duration = Duration::from_secs(6);

/// A decision that changes nothing is still written down this often.
const WRITE_AT_REST_MS: u64 = 60_000;

/// What each pool's loop works with.
#[derive(Clone)]
pub struct Shared {
    /// The ledger.
    pub store: Store,
    /// What is seen of all pools.
    pub observer: Arc<Observer>,
    /// Whether we decide.
    pub leader: Arc<Leader>,
    /// Decides, but neither marks nor resizes.
    pub dry_run: bool,
}

/// A pool under control.
pub struct Reconciler {
    shared: Shared,
    pool: Pool,
    policy: CompiledPolicy,
    target: Arc<dyn Target>,
    /// What the present term works with.
    term: Option<TermState>,
}

/// Nothing of it outlives a term.
struct TermState {
    epoch: i64,
    history: History,
    workload: Option<Seen>,
    /// Whether marks may be out.
    draining: bool,
    written: Option<Written>,
}

/// The workload as it was read.
struct Seen {
    workload: Workload,
    at_ms: u64,
    read: Instant,
}

/// What was last written into the ledger.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Written {
    at_ms: u64,
    recommended: Option<u32>,
    desired: u32,
    reason: &'static str,
}

/// A tick that ended early: at which stage, and why.
#[derive(Debug)]
pub struct Failed {
    /// The stage, as the metric calls it.
    pub stage: &'static str,
    /// Why.
    pub cause: anyhow::Error,
}

/// Names the stage of an error.
fn at<E: Into<anyhow::Error>>(stage: &'static str) -> impl FnOnce(E) -> Failed {
    move |cause| Failed { stage, cause: cause.into() }
}

impl Reconciler {
    /// A pool that has not been looked at yet.
    pub fn new(shared: Shared, pool: Pool, target: Arc<dyn Target>) -> Result<Reconciler, Vec<String>> {
        let policy = pool.policy.compile()?;
        Ok(Reconciler { shared, pool, policy, target, term: None })
    }

    /// Ticks with each round of observations, until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut rounds = self.shared.observer.rounds();
        let mut failing = None;
        while let Some(Ok(())) = stop.run_until_cancelled(rounds.changed()).await {
            // A tick is not torn: each of its waits has a bound.
            match self.tick().await {
                Ok(_) => failing = None,
                Err(Failed { stage, cause }) => {
                    METRICS.errors.with_label_values(&[self.pool.name.as_str(), stage]).inc();
                    if failing.replace(stage) != Some(stage) {
                        warn!(pool = %self.pool.name, stage, "{cause:#}; the pool keeps its size, trying again");
                    }
                }
            }
        }
    }

    /// One round, if we lead: the decision.
    pub async fn tick(&mut self) -> Result<Option<Decision>, Failed> {
        let Some(term) = self.shared.leader.term() else {
            self.term = None;
            return Ok(None);
        };
        let mut state = match self.term.take() {
            Some(state) if state.epoch == term.epoch => state,
            _ => self.begin(term).await?,
        };
        let decision = self.decide_and_act(&mut state, term).await;
        self.term = Some(state);
        decision.map(Some)
    }

    /// A new term: what was decided before is read back. The present size counts as recommended now, as HPA has it, so that
    /// a gap in what is remembered lowers nothing.
    async fn begin(&self, term: Term) -> Result<TermState, Failed> {
        let since = Duration::from_secs(self.policy.memory_s());
        let rows = self.shared.store.decisions_since(&self.pool.name, since).await.map_err(at("record"))?;
        let mut history = History::default();
        for row in rows {
            history.recall(row.at_ms, row.recommended, row.resized.then_some((row.from, row.to)));
        }
        let mut state = TermState { epoch: term.epoch, history, workload: None, doubtful: true, draining: true, written: None };
        self.look(&mut state).await?;
        Ok(state)
    }

    async fn look(&self, state: &mut TermState) -> Result<(), Failed> {
        let workload = self.target.look().await.map_err(at("look"))?;
        let at_ms = self.shared.observer.now_ms();
        state.workload = Some(Seen { workload, at_ms, read: Instant::now() });
        Ok(())
    }
}
