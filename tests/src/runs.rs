//! A worker's part in the ledger, without a process: for promises that SQL alone must keep.

use std::time::Duration;

use job::{JobSpec, Json, Name, WorkerId};
use service::retry;
use store::{
    Answer, CheckpointRow, ClaimRequest, Claimed, Concluded, Conclusion, End, Fenced, Fold, Leadership,
    RunFold, Store, StoreError, WorkerRegistration,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A worker that claims, checkpoints and concludes.
#[derive(Clone)]
pub struct Runner {
    /// The ledger.
    pub store: Store,
    /// The id under which it does so.
    pub worker: WorkerId,
}

/// Declares workers dead whose lease has expired, as a worker that has watched them for ever.
pub async fn declare_dead(store: &Store) -> Vec<WorkerId> {
    let clock = store.clock().await.expect("an answer");
    store.declare_dead(Duration::MAX, &clock).await.expect("an answer")
}

/// Returns the statement that puts a worker of a release with this schema into the list, on the host `old-host`.
pub fn older_worker(schema: i64) -> String {
    format!(
        "INSERT INTO harness_workers (worker_id, host, pool, slots, state, lease_ms, schema_version)
         VALUES (gen_random_uuid(), 'old-host', 'default', 4, 'alive', 3600000, {schema})"
    )
}

impl Runner {
    /// Registers with a lease that outlasts every test.
    pub async fn register(store: &Store) -> Runner {
        Runner::with_lease(store, Duration::from_secs(3_600)).await
    }

    /// Registers with this lease.
    pub async fn with_lease(store: &Store, lease: Duration) -> Runner {
        let worker = WorkerId::random();
        let registration = WorkerRegistration {
            worker,
            host: "test".to_owned(),
            pod_name: None,
            pool: Name::default(),
            slots: 1,
            lease,
            schema: migrations::newest(),
        };
        // As a worker does: again, while Postgres is slow to answer. It counts once.
        let stop = CancellationToken::new();
        let register = || store.register_worker(&registration);
        let registered = retry("registering a worker", &stop, StoreError::is_retryable, register);
        timeout(Duration::from_secs(60), registered).await.expect("Postgres answers").expect("registered");
        Runner { store: store.clone(), worker }
    }

    /// Claims a job that it does not run yet, as a delivery of the job's message would.
    pub async fn claim(&self, spec: &JobSpec) -> Result<Answer, StoreError> {
        self.store.claim(ClaimRequest { worker: self.worker, spec: spec.clone() }).await
    }

    /// Appends one iteration.
    pub async fn checkpoint(&self, run: &Claimed, ordinal: i32) -> Result<Fenced<()>, StoreError> {
        self.store.checkpoint(self.iteration(run, ordinal)).await
    }

    /// One iteration, as a checkpoint.
    pub fn iteration(&self, run: &Claimed, ordinal: i32) -> CheckpointRow {
        CheckpointRow {
            claim: run.claim.clone(),
            ordinal,
            delta: "{}".to_owned(),
            entries: None,
            iterations: 1,
            cost: job::Usd::from_micros(7),
            input_tokens: 1,
            output_tokens: 1,
        }
    }

    /// Folds the session within a run, up to this checkpoint.
    pub async fn fold(&self, run: &Claimed, ordinal: i32, fold: Fold) -> Result<Fenced<()>, StoreError> {
        let before = (!run.session.folded_within).then(|| folded(0).state);
        self.store.fold(RunFold { claim: run.claim.clone(), ordinal, fold, before }).await
    }

    /// Returns a conclusion that does not fold the session's deltas.
    pub fn conclusion(&self, run: &Claimed, end: End) -> Conclusion {
        let spent = match end {
            End::HandBack { .. } | End::Asks(_) => run.attempts,
            End::Succeeded(_) | End::Failed(_) | End::Cancelled(_) | End::Retry { .. } => run.attempts + 1,
        };
        Conclusion { claim: run.claim.clone(), end, attempts: spent, fold: None, take_next: true }
    }

    /// Ends a run with success, and takes the session's next job if there is one.
    pub async fn succeed(&self, run: &Claimed) -> Result<Concluded, StoreError> {
        self.store.conclude(self.conclusion(run, End::Succeeded(Json::null()))).await
    }
}

/// Returns the state of a session with this many checkpointed iterations, as a worker folds it.
pub fn folded(iterations: u64) -> Fold {
    Fold {
        state: ["{}".to_owned(), "[]".to_owned(), "{}".to_owned()],
        iteration_count: iterations,
        cost: job::Usd::from_micros(7 * iterations),
        input_tokens: iterations,
        output_tokens: iterations,
        undone: false,
        blobs: Vec::new(),
    }
}

/// Takes a leadership that outlasts every test, over pools that have no other leader.
pub async fn leading(store: &Store) -> Leadership {
    let leads = store.lead("test", "leader", Duration::from_secs(3_600)).await.expect("an answer");
    leads.expect("no other leader")
}

/// Returns the result of a fenced write that must have succeeded.
pub fn done<T>(answer: Fenced<T>) -> T {
    match answer {
        Fenced::Done(value) => value,
        Fenced::Lost => panic!("the write was refused"),
    }
}

/// Returns the job that an answer hands over.
pub fn claimed(answer: Answer) -> Claimed {
    match answer {
        Answer::Claimed(run) => *run,
        other => panic!("expected a claimed job, got {other:?}"),
    }
}
