//! The lease: one heartbeat for all jobs of this process.
//!
//! Every beat renews it and compares the ledger's list of our jobs with the running table. A run that the ledger no
//! longer lists is stopped. A job that the ledger believes to run here, but does not, is handed back. A worker that was
//! declared dead stops everything and goes on under a new id: death is final, and an id is never used again.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use harness::Stop;
use job::{Failure, FailureCode, JobId, WorkerId};
use store::{Beat, Claim, Clock, Conclusion, End, Store, StoreError, WorkerRegistration};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::metrics::METRICS;
use crate::running::Running;
use crate::throughput::ThroughputWindow;

/// How long a job waits until it is due again if its end could not be recorded.
const UNRECORDED_WAIT: Duration = Duration::from_secs(5);

/// The process's present id, and when its lease was last renewed.
pub struct Lease {
    store: Store,
    running: Running,
    throughput: ThroughputWindow,
    registration: Mutex<WorkerRegistration>,
    renewed: Mutex<Instant>,
    clock: Mutex<Clock>,
    duration: Duration,
}

impl Lease {
    /// Registers the worker; the lease starts with it.
    pub async fn register(
        store: Store,
        running: Running,
        throughput: ThroughputWindow,
        registration: WorkerRegistration,
    ) -> Result<Lease, StoreError> {
        let sent = Instant::now();
        store.register_worker(&registration).await?;
        let clock = Mutex::new(store.clock().await?);
        let duration = registration.lease;
        let (registration, renewed) = (Mutex::new(registration), Mutex::new(sent));
        Ok(Lease { store, running, throughput, registration, renewed, clock, duration })
    }

    /// Returns the id under which jobs are claimed now.
    pub fn worker(&self) -> WorkerId {
        self.registration.lock().unwrap_or_else(PoisonError::into_inner).worker
    }

    /// Returns the present Unix time in milliseconds by Postgres's clock, because this host's clock may be wrong.
    pub fn now_unix_ms(&self) -> u64 {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).now_unix_ms()
    }

    /// Returns how long the lease is.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Returns whether the last renewal is younger than the lease.
    pub fn is_fresh(&self) -> bool {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < self.duration
    }

    /// Resolves when the lease is over, because nothing has renewed it for as long as it lasts.
    pub async fn over(&self) {
        loop {
            let since = self.renewed.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            match self.duration.checked_sub(since) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }

    /// Waits for what needs the ledger, for as long as the lease lasts. Returns `None` when the lease is over first:
    /// other workers may then do what this one cannot.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.over() => None,
            done = work => Some(done),
        }
    }

    /// Sleeps long enough for a heartbeat to notice that this worker was declared dead.
    pub async fn sleep_one_beat(&self) {
        tokio::time::sleep(self.duration / 5).await;
    }

    /// Stops what runs at the moment when the lease is over, even if a heartbeat still waits for its answer. As long as
    /// the lease stays over, it also stops what has begun meanwhile. A rescuer may already be giving our jobs to other
    /// workers, so nothing runs here without a lease. What was stopped is handed back with the next heartbeats, without
    /// spending an attempt. Never ends.
    pub async fn watch(&self) {
        loop {
            self.over().await;
            error!(
                "the lease is over: no heartbeat has reached Postgres for that long; running jobs are stopped, and no job is taken"
            );
            while !self.is_fresh() {
                self.running.stop_present(&Stop::LeaseLost);
                self.sleep_one_beat().await;
            }
            info!("there is a lease again: jobs are taken");
        }
    }

    /// Renews the lease. `unknown_jobs` are those that the last beat found.
    pub async fn beat(&self, unknown_jobs: &mut HashMap<JobId, i64>) -> Result<(), StoreError> {
        let worker_id = self.worker();
        // Taken before the ledger's list is read: a job that begins in between is only in that list.
        let mine = self.running.epochs();
        // Postgres counts from when the heartbeat reaches it. We count from before that, so the lease is over here
        // first.
        let sent = Instant::now();
        match self.store.beat(worker_id, &self.throughput.measure()).await? {
            Beat::Alive { held, clock } => {
                *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = clock;
                *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = sent;
                let listed: Vec<_> = held.iter().map(|claim| (claim.job_id(), claim.epoch())).collect();
                self.running.listed(&listed, sent);
                self.stop_lost(&mine, &listed);
                self.running.keep_unrecorded(&listed);
                self.return_unknown_jobs(held, unknown_jobs).await;
                Ok(())
            }
            Beat::Dead => self.register_anew(worker_id).await,
        }
    }

    /// Stops the runs that the ledger has taken from us.
    fn stop_lost(&self, mine: &[(JobId, i64)], listed: &[(JobId, i64)]) {
        let listed: HashSet<_> = listed.iter().collect();
        for lost in mine.iter().filter(|run| !listed.contains(run)) {
            // A run that has just ended is not listed either; then there is nothing to stop.
            self.running.stop(lost.0, lost.1, Stop::LeaseLost);
        }
    }

    /// Hands back jobs that the ledger gave us in a reply that never came. A job is handed back when two beats in a row
    /// have found it under the same epoch while nothing here runs or claims it.
    async fn return_unknown_jobs(&self, held: Vec<Claim>, unknown_jobs: &mut HashMap<JobId, i64>) {
        let unknown = held.into_iter().filter(|claim| !self.running.contains(claim.job_id()));
        let mut met = HashMap::new();
        for claim in unknown {
            let (job_id, epoch) = (claim.job_id(), claim.epoch());
            met.insert(job_id, epoch);
            let was_run = self.running.was_run(job_id, epoch);
            if unknown_jobs.get(&job_id) == Some(&epoch)
                && let Err(cause) = hand_back(&self.store, claim, was_run).await
            {
                warn!(%job_id, cause = cause.as_dyn(), "the job could not be handed back, trying again with the next beat");
            }
        }
        *unknown_jobs = met;
    }

    async fn register_anew(&self, dead_worker: WorkerId) -> Result<(), StoreError> {
        error!(worker_id = %dead_worker, "declared dead: no heartbeat arrived for longer than the lease; all runs are stopped");
        METRICS.leases_lost.inc();
        self.running.stop_present(&Stop::LeaseLost);
        let fresh = WorkerRegistration {
            worker: WorkerId::random(),
            ..self.registration.lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        // The clock is read anew, because a machine that slept has not counted the time.
        let clock = self.store.clock().await?;
        let sent = Instant::now();
        // The successor inherits a drain mark: it is in the same pod, which may be scaled away at any moment.
        self.store.register_successor(&fresh, dead_worker).await?;
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = clock;
        info!(worker_id = %fresh.worker, "goes on under a new id");
        *self.registration.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = sent;
        Ok(())
    }
}

/// Hands back a job that the ledger gave to this worker without the worker's knowledge, or a job that was run but whose
/// end the ledger does not take. In the second case the attempt is spent.
async fn hand_back(store: &Store, claim: Claim, was_run: bool) -> Result<(), StoreError> {
    let Some(view) = store.jobs(&[claim.job_id()]).await?.into_iter().next() else { return Ok(()) };
    let why = if was_run { "the end of a job was refused" } else { "the reply to a claim was lost" };
    let (tenant, session_id) = claim.session();
    warn!(job_id = %claim.job_id(), %session_id, tenant = tenant.unless_default(), trace_id = %view.trace_id, attempt = view.attempts + 1,
          worker_id = %claim.worker(), "{why}; the job is handed back");
    let attempts = view.attempts.unsigned_abs() + u32::from(was_run);
    let delay = if was_run { UNRECORDED_WAIT } else { Duration::ZERO };
    let end = if was_run {
        End::Retry { failure: Failure::retryable(FailureCode::Unstorable, why), delay }
    } else {
        End::HandBack { delay }
    };
    store.conclude(Conclusion { claim, end, attempts, fold: None, take_next: false }).await?;
    Ok(())
}
