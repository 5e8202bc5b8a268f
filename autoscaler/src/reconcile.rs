//! Reconcile: for one pool, once a second: observe, decide, record, act.
//!
//! Every tick starts from what is observed, not from what the last tick did. Only the leader ticks. With each new term
//! the history is read back from `harness_scale_decisions`, so that windows and limits outlive a restart. A step of
//! Postgres's clock begins a new term as well, because earlier decisions are dated by another clock.
//!
//! The order within a tick matters: marks are taken back before a workload grows, and a decision is recorded in the
//! ledger, under the leader's epoch, before it is written to the workload.

mod record;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use service::with_causes;
use store::{Fenced, Leadership, MARK_FOR, Store};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::Pool;
use crate::decide::{Decision, History, Observation, Reading, Replicas, decide};
use crate::metrics::METRICS;
use crate::observe::Observer;
use crate::scale_in::{ScaleIn, plan};
use dispatch::Leader;
use record::{Written, outcome};
use waiting::Waiting;
use workload::{Event, Lowering, Target, TargetError, Wait, Workload, lowered};

/// How often a workload at rest is read.
const LOOK_AT_REST: Duration = Duration::from_secs(5);

/// No write to a workload begins with less of the lease left than this, because it must end before the lease does.
const WRITE_MARGIN: Duration = Duration::from_secs(6);

/// How long to wait before a refused request is tried again.
const REFUSED_WAIT: Duration = Duration::from_secs(10);

/// What the loops of all pools share.
#[derive(Clone)]
pub struct Shared {
    /// The ledger.
    pub store: Store,
    /// The observer of all pools.
    pub observer: Arc<Observer>,
    /// Knows whether this process decides.
    pub leader: Arc<Leader>,
    /// Bounds how many pools begin a term at once: histories are read back one after another, so that not all of them
    /// are in memory together.
    pub begins: Arc<Semaphore>,
}

/// A pool under control.
pub struct Reconciler {
    shared: Shared,
    pool: Pool,
    target: Arc<dyn Target>,
    term: Option<Term>,
}

/// The state of one leadership, which ends with it.
struct Term {
    leadership: Leadership,
    /// How often Postgres's clock had been set when the term began.
    clock_steps: u64,
    began_ms: u64,
    history: History,
    /// The workload as it was last read; `None` if it must be read again.
    seen: Option<Seen>,
    /// Whether marks may be outstanding.
    draining: bool,
    /// Whether a write may still be on its way to the workload, from an earlier leader or from a request without an
    /// answer.
    doubtful: bool,
    written: Option<Written>,
    waiting: Waiting,
}

struct Seen {
    workload: Workload,
    at_ms: u64,
    read: Instant,
}

/// A tick that ended early.
#[derive(Debug)]
pub struct Failed {
    /// The stage, as the metric names it.
    pub stage: &'static str,
    /// Why it ended.
    pub cause: anyhow::Error,
}

fn at<E: Into<anyhow::Error>>(stage: &'static str) -> impl FnOnce(E) -> Failed {
    move |cause| Failed { stage, cause: cause.into() }
}

impl Reconciler {
    /// Makes the reconciler of a pool that has not been observed yet.
    pub fn new(shared: Shared, pool: Pool, target: Arc<dyn Target>) -> Reconciler {
        METRICS.show_zeros(pool.name.as_str());
        Reconciler { shared, pool, target, term: None }
    }

    /// Ticks with each round of observations, until asked to stop. A failure that this process cannot mend (a missing
    /// right, a workload that another autoscaler scales) is reported once, also as an event of the workload, and tried
    /// less often.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut rounds = self.shared.observer.rounds();
        let mut failing = None;
        let mut rests_until = Instant::now();
        while let Some(Ok(())) = stop.run_until_cancelled(rounds.changed()).await {
            if Instant::now() < rests_until {
                continue;
            }
            // A tick is never interrupted: each of its waits has a bound. It is boxed, so that it takes no memory
            // between ticks.
            let Failed { stage, cause } = match Box::pin(self.tick()).await {
                Ok(_) => {
                    failing = None;
                    continue;
                }
                Err(failed) => failed,
            };
            METRICS.errors.with_label_values(&[self.pool.name.as_str(), stage]).inc();
            let refusal = cause.downcast_ref::<TargetError>().filter(|error| !error.is_retryable());
            if refusal.is_some() {
                rests_until = Instant::now() + REFUSED_WAIT;
            }
            if failing.replace(stage) != Some(stage) {
                warn!(pool = %self.pool.name, stage, "{}; trying again", with_causes(cause.as_ref()));
                if let Some(refusal) = refusal {
                    self.target.report(&Event::NotResized { why: refusal.to_string() }).await;
                }
            }
        }
    }

    /// Runs one round, and returns its decision once it is carried out; `None` if another autoscaler leads.
    pub async fn tick(&mut self) -> Result<Option<Decision>, Failed> {
        let Some(leadership) = self.shared.leader.leadership() else {
            self.term = None;
            return Ok(None);
        };
        let goes_on = |term: &Term| {
            term.leadership.epoch == leadership.epoch
                && term.clock_steps == self.shared.observer.clock_steps()
        };
        let mut term = match self.term.take().filter(goes_on) {
            Some(term) => Term { leadership, ..term },
            None => self.begin(leadership).await?,
        };
        let decision = self.decide(&mut term).await;
        self.term = Some(term);
        decision.map(Some)
    }

    async fn decide(&self, term: &mut Term) -> Result<Decision, Failed> {
        let observation = self.observe(term).await?;
        let decision = decide(&term.history, &observation, &self.pool.policy, self.shared.observer.now_ms());
        term.history.record(&decision);
        METRICS.show_tick(self.pool.name.as_str(), &observation, &decision, term.began_ms);
        self.carry_out(term, &observation, &decision).await?;
        Ok(decision)
    }

    /// Returns what would be decided now. Nothing is marked, recorded or resized.
    pub async fn rehearse(&self) -> Result<Decision, Failed> {
        let mut history = self.recall().await?;
        let workload = self.target.look().await.map_err(at("look"))?;
        let now_ms = self.shared.observer.now_ms();
        history.resumed(now_ms, workload.replicas);
        let observation = self.seen_with(&workload, now_ms);
        Ok(decide(&history, &observation, &self.pool.policy, now_ms))
    }

    async fn begin(&self, leadership: Leadership) -> Result<Term, Failed> {
        let _turn = self.shared.begins.acquire().await;
        let clock_steps = self.shared.observer.clock_steps();
        let (history, began_ms) = (self.recall().await?, self.shared.observer.now_ms());
        let mut term = Term {
            leadership,
            clock_steps,
            began_ms,
            history,
            seen: None,
            draining: true,
            doubtful: true,
            written: None,
            waiting: Waiting::new(self.pool.name.clone()),
        };
        let seen = self.look(&mut term).await?;
        let (at_ms, replicas) = (seen.at_ms, seen.workload.replicas);
        term.history.resumed(at_ms, replicas);
        Ok(term)
    }

    /// Reads the workload.
    async fn look<'a>(&self, term: &'a mut Term) -> Result<&'a Seen, Failed> {
        term.seen = None;
        let workload = self.target.look().await.map_err(at("look"))?;
        let at_ms = self.shared.observer.now_ms();
        Ok(term.seen.insert(Seen { workload, at_ms, read: Instant::now() }))
    }

    /// Returns what is known now. The workload is read again if it is not at rest, or was not read for a while.
    async fn observe(&self, term: &mut Term) -> Result<Observation, Failed> {
        let at_rest = !term.draining
            && term.written.is_some_and(|written| {
                term.seen.as_ref().is_some_and(|seen| Some(seen.workload.replicas) == written.desired)
            });
        let seen = match &term.seen {
            Some(seen) if at_rest && seen.read.elapsed() < LOOK_AT_REST => seen,
            _ => self.look(term).await?,
        };
        Ok(self.seen_with(&seen.workload, seen.at_ms))
    }

    fn seen_with(&self, workload: &Workload, at_ms: u64) -> Observation {
        let replicas = Replicas { wanted: workload.replicas, ready: workload.ready };
        Observation {
            replicas: Some(Reading { value: replicas, at_ms }),
            ..self.shared.observer.latest(&self.pool.name)
        }
    }

    async fn carry_out(
        &self,
        term: &mut Term,
        observation: &Observation,
        decision: &Decision,
    ) -> Result<(), Failed> {
        let (Some(Seen { workload, .. }), Some(desired)) = (&term.seen, decision.desired) else {
            return Ok(());
        };
        let mut workload = workload.clone();
        let shrinks = desired < workload.replicas;
        let (mut lowering, mut wait) = (None, None);
        if shrinks || term.draining {
            let pods = self.target.pods(&workload).await.map_err(at("look"))?;
            // Nothing is scaled in without this answer, because it says which workers are busy.
            let pool = std::slice::from_ref(&self.pool.name);
            let workers = self.shared.store.pool_workers(pool).await.map_err(at("look"))?;
            let scale_in = plan(desired, &workload, &pods, &workers);
            if self.take_back(term, &scale_in).await? {
                workload = self.look(term).await?.workload.clone();
            }
            self.mark(term, &scale_in).await?;
            METRICS.draining.with_label_values(&[self.pool.name.as_str()]).set(scale_in.mark.len() as i64);
            if shrinks {
                match lowered(&workload, &pods, &scale_in.drained, desired) {
                    Ok(lower) => lowering = Some(lower),
                    Err(why) => wait = Some(scale_in.wait.unwrap_or(why)),
                }
            }
        }
        self.report_wait(term, desired, workload.replicas, wait.as_ref()).await;
        match lowering {
            _ if desired > workload.replicas => {
                self.resize(term, observation, decision, &workload, desired, &[]).await
            }
            Some(Lowering { to, leaving }) => {
                self.resize(term, observation, decision, &workload, to, &leaving).await
            }
            None => self.write_at_rest(term, observation, decision, workload.replicas, wait.as_ref()).await,
        }
    }

    /// Shows that a scale-in waits, and after a while reports why.
    async fn report_wait(&self, term: &mut Term, desired: u32, replicas: u32, wait: Option<&Wait>) {
        if !term.waiting.is_worth_a_report(wait, replicas.saturating_sub(desired), Instant::now()) {
            return;
        }
        let Some(why) = wait else { return };
        if why.is_usual() {
            info!(pool = %self.pool.name, kind = why.kind(), "no worker can be removed yet: {why}");
        } else {
            warn!(pool = %self.pool.name, kind = why.kind(), "no worker can be removed yet: {why}");
        }
        let (why, usual) = (why.to_string(), why.is_usual());
        self.target.report(&Event::Waits { from: replicas, to: desired, why, usual }).await;
    }

    /// Lets marked workers take jobs again. If a write that would remove them may still be on its way, it is made to
    /// fail first. Then this returns true, and the workload must be read again.
    async fn take_back(&self, term: &mut Term, scale_in: &ScaleIn) -> Result<bool, Failed> {
        if scale_in.take_back.is_empty() {
            return Ok(false);
        }
        let touched = term.doubtful;
        if touched {
            self.target.touch("drained workers take jobs again").await.map_err(at("mark"))?;
            term.doubtful = false;
        }
        let (store, workers) = (&self.shared.store, &scale_in.take_back);
        let unmarked = store.unmark_drains(&term.leadership, workers).await.map_err(at("mark"))?;
        let workers = self.allowed(term, unmarked, "mark")?.len() as u32;
        if workers > 0 {
            info!(pool = %self.pool.name, workers, "draining workers take jobs again");
            let returned = || "demand returned before they were scaled away".to_owned();
            let why = scale_in.wait.as_ref().map_or_else(returned, ToString::to_string);
            self.target.report(&Event::TakenBack { workers, why }).await;
        }
        Ok(touched)
    }

    async fn mark(&self, term: &mut Term, scale_in: &ScaleIn) -> Result<(), Failed> {
        term.draining = !scale_in.mark.is_empty();
        if term.draining {
            let store = &self.shared.store;
            let marked =
                store.mark_drains(&term.leadership, &scale_in.mark, MARK_FOR).await.map_err(at("mark"))?;
            self.allowed(term, marked, "mark")?;
        }
        Ok(())
    }

    async fn resize(
        &self,
        term: &mut Term,
        observation: &Observation,
        decision: &Decision,
        workload: &Workload,
        to: u32,
        leaving: &[String],
    ) -> Result<(), Failed> {
        if term.leadership.left() < WRITE_MARGIN {
            let left = term.leadership.left();
            return Err(at("lead")(anyhow::anyhow!(
                "only {left:?} of the leader's lease is left, which is too little for a write"
            )));
        }
        let id = self.write(term, observation, decision, (workload.replicas, to)).await?;
        let result = self.target.resize(workload, to, leaving).await;
        // Whatever came of it, the workload is read again.
        term.seen = None;
        let outcome = match &result {
            Ok(()) => outcome::RESIZED,
            Err(TargetError::Unreachable { .. }) => outcome::UNKNOWN,
            Err(_) => outcome::FAILED,
        };
        if outcome != outcome::FAILED {
            term.history.resized(decision.at_ms, workload.replicas, to);
        }
        self.finish(id, outcome, result.as_ref().err().map(ToString::to_string)).await;
        let why = decision.to_string();
        match result {
            Ok(()) => {
                let direction = if to > workload.replicas { "up" } else { "down" };
                METRICS.resizes.with_label_values(&[self.pool.name.as_str(), direction]).inc();
                info!(pool = %self.pool.name, from = workload.replicas, to, "resized: {why}");
                self.target.report(&Event::Resized { from: workload.replicas, to, why }).await;
                Ok(())
            }
            Err(error @ TargetError::Conflict { .. }) => {
                debug!(pool = %self.pool.name, "{error}");
                Ok(())
            }
            Err(error) => {
                term.doubtful |= outcome == outcome::UNKNOWN;
                Err(at("resize")(error))
            }
        }
    }

    /// Returns what the ledger allowed. With a lost leadership it allows nothing.
    fn allowed<T>(&self, term: &Term, answer: Fenced<T>, stage: &'static str) -> Result<T, Failed> {
        match answer {
            Fenced::Done(value) => Ok(value),
            Fenced::Lost => {
                self.shared.leader.step_down(term.leadership.epoch);
                Err(at(stage)(anyhow::anyhow!("another autoscaler decides for this pool")))
            }
        }
    }
}
