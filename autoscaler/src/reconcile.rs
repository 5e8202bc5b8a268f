//! Reconcile: one pool, once a second: look, decide, write it down, act.
//!
//! Every tick starts from what is seen, not from what the last one did. Only the leader ticks; with each new term the
//! history is read back from `harness_scale_decisions`, so that windows and limits outlive a restart. A step of Postgres's clock
//! begins a new term as well: what was decided before is dated by another clock.
//!
//! The order within a tick keeps promises: marks are taken back before a workload grows, and a decision stands in the
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

/// A workload at rest is looked at this often.
const LOOK_AT_REST: Duration = Duration::from_secs(5);

/// No write to a workload is begun with less of the leadership left: it must be over before that is.
const WRITE_MARGIN: Duration = Duration::from_secs(6);

/// What was refused is tried again after so long.
const REFUSED_WAIT: Duration = Duration::from_secs(10);

/// What all pools' loops work with.
#[derive(Clone)]
pub struct Shared {
    /// The ledger.
    pub store: Store,
    /// What is seen of all pools.
    pub observer: Arc<Observer>,
    /// Whether we decide.
    pub leader: Arc<Leader>,
    /// Pools that begin a term at once: their memories are read back one after another, not all into ours together.
    pub begins: Arc<Semaphore>,
}

/// A pool under control.
pub struct Reconciler {
    shared: Shared,
    pool: Pool,
    target: Arc<dyn Target>,
    term: Option<Term>,
}

/// What a leadership works with; nothing of it outlives that.
struct Term {
    leadership: Leadership,
    /// How often Postgres's clock had been set when it began.
    clock_steps: u64,
    began_ms: u64,
    history: History,
    /// The workload as it was last read; `None` when it has to be read anew.
    seen: Option<Seen>,
    /// Marks may be out.
    draining: bool,
    /// A write may still be on its way to the workload, by a leader before us or by a request without an answer.
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
    /// The stage, as the metric calls it.
    pub stage: &'static str,
    /// Why.
    pub cause: anyhow::Error,
}

fn at<E: Into<anyhow::Error>>(stage: &'static str) -> impl FnOnce(E) -> Failed {
    move |cause| Failed { stage, cause: cause.into() }
}

impl Reconciler {
    /// A pool that has not been looked at yet.
    pub fn new(shared: Shared, pool: Pool, target: Arc<dyn Target>) -> Reconciler {
        METRICS.show_zeros(pool.name.as_str());
        Reconciler { shared, pool, target, term: None }
    }

    /// Ticks with each round of observations, until told to stop. What only somebody else can mend (a missing right, a
    /// workload that another autoscaler has) is told once, also to those who watch the workload, and tried less often.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut rounds = self.shared.observer.rounds();
        let mut failing = None;
        let mut rests_until = Instant::now();
        while let Some(Ok(())) = stop.run_until_cancelled(rounds.changed()).await {
            if Instant::now() < rests_until {
                continue;
            }
            // A tick is never torn; each of its waits has a bound. Boxed, because between ticks it is nothing.
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
                    self.target.tell(&Event::NotResized { why: refusal.to_string() }).await;
                }
            }
        }
    }

    /// One round: the decision, carried out. `None` when another autoscaler leads.
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

    /// What would be decided now; nothing is marked, written or resized.
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

    /// All that is seen now. The workload is read anew when it is not at rest, or was not read for a while.
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
            // Who is busy must be known: without this answer nothing is scaled in.
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

    /// Shows that a scale-in waits, and after a while says why.
    async fn report_wait(&self, term: &mut Term, desired: u32, replicas: u32, wait: Option<&Wait>) {
        if !term.waiting.is_worth_a_report(wait, replicas.saturating_sub(desired), Instant::now()) {
            return;
        }
        let Some(why) = wait else { return };
        if why.is_usual() {
            info!(pool = %self.pool.name, kind = why.kind(), "no worker goes yet: {why}");
        } else {
            warn!(pool = %self.pool.name, kind = why.kind(), "no worker goes yet: {why}");
        }
        let (why, usual) = (why.to_string(), why.is_usual());
        self.target.tell(&Event::Waits { from: replicas, to: desired, why, usual }).await;
    }

    /// Lets marked workers take jobs again. Before that, a write that would remove them and is still on its way is made
    /// to fail: then it returns true, and the workload has to be looked at again.
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
            self.target.tell(&Event::TakenBack { workers, why }).await;
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
                "only {left:?} of the leader's lease are left to write in"
            )));
        }
        let id = self.write(term, observation, decision, (workload.replicas, to)).await?;
        let result = self.target.resize(workload, to, leaving).await;
        // Whatever came of it, it is read anew.
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
                self.target.tell(&Event::Resized { from: workload.replicas, to, why }).await;
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

    /// What the ledger has allowed; under a lost leadership nothing is.
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
