//! A handle on the ledger: its connections, and the calls that share transactions. All other calls are in the
//! module of their subject.

use std::sync::Arc;

use deadpool_postgres::Pool;
use postgres::SetBy;
use tokio::time::Instant;

use crate::Fenced;
use crate::database::{
    Batcher, ChangeReceiver, Changes, Clock, NOW, StoreConfig, StoreError, Switches, alone_in_its_batch,
    query,
};
use crate::jobs::{Acceptance, Answer, Append, CheckpointRow, ClaimRequest, Concluded, Conclusion, Taken};
use crate::spend::{CacheHealth, Reservation, Settling};

/// A handle on the ledger; clones share its connections and batches.
#[derive(Clone)]
pub struct Store {
    pub(crate) pool: Pool,
    /// A pool for heartbeats alone: they must not wait behind work, or find every connection taken by work.
    pub(crate) beats: Pool,
    /// How our sessions get their settings, and so whether a setting made on a connection is kept.
    pub(crate) set_by: SetBy,
    /// What was changed, for those who follow jobs.
    pub(crate) changes: Changes,
    acceptances: Batcher<Acceptance>,
    claims: Batcher<ClaimRequest>,
    checkpoints: Batcher<Append>,
    conclusions: Batcher<Conclusion>,
    pub(crate) reservations: Batcher<Reservation>,
    pub(crate) settlements: Batcher<Settling>,
    /// What may be written that older workers could not read.
    pub(crate) switches: Arc<Switches>,
    /// How the cache of answers fares.
    pub(crate) cache: Arc<CacheHealth>,
}

impl Store {
    /// Makes a handle and opens nothing yet: connections are made when they are needed, and replaced when
    /// they break.
    ///
    /// Must be called within a tokio runtime; the batches run as tasks until the last clone is dropped.
    pub fn new(config: &StoreConfig) -> Store {
        let (pool, beats) = config.pools();
        let changes = Changes::default();
        Store {
            acceptances: Batcher::start(pool.clone(), changes.clone()),
            claims: Batcher::start(pool.clone(), changes.clone()),
            checkpoints: Batcher::start(pool.clone(), changes.clone()),
            conclusions: Batcher::start(pool.clone(), changes.clone()),
            reservations: Batcher::start(pool.clone(), changes.clone()),
            settlements: Batcher::start(pool.clone(), changes.clone()),
            switches: Arc::default(),
            cache: Arc::default(),
            changes,
            set_by: config.address().set_by(),
            beats,
            pool,
        }
    }

    /// Returns what receives which jobs this process's transactions change; `None` at every call but the first one.
    pub fn changes(&self) -> Option<ChangeReceiver> {
        self.changes.receiver()
    }

    /// Checks that Postgres answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let client = self.pool.get().await?;
        client.simple_query("SELECT 1").await.map_err(|error| StoreError::from_pg("ping", error))?;
        Ok(())
    }

    /// Reads Postgres's clock. After this machine has slept, the clock has to be read again.
    pub async fn clock(&self) -> Result<Clock, StoreError> {
        let asked = Instant::now();
        let rows = query(&self.pool, "clock", NOW, &[]).await?;
        Ok(Clock::new(rows.first().expect("one row").get(0), asked, Instant::now()))
    }

    /// Takes one job into the ledger, as already being published, together with those that arrive meanwhile. Safe to
    /// repeat after a lost reply.
    pub async fn take(&self, job: Acceptance) -> Result<Taken, StoreError> {
        self.acceptances.call(job).await
    }

    /// Claims a job. Safe to repeat after a lost reply.
    pub async fn claim(&self, request: ClaimRequest) -> Result<Answer, StoreError> {
        self.claims.call(request).await
    }

    /// Appends one delta; it is durable when this returns `Done`. Safe to repeat after a lost reply.
    pub async fn checkpoint(&self, row: CheckpointRow) -> Result<Fenced<()>, StoreError> {
        self.checkpoints.call(Append::of(row, self.switches.schema_26())).await
    }

    /// Records the end of an attempt; it is durable when this returns. Safe to repeat after a lost reply, but
    /// a `next` that the lost reply had claimed is not returned again: the heartbeat's comparison finds it.
    pub async fn conclude(&self, mut conclusion: Conclusion) -> Result<Concluded, StoreError> {
        self.refer(&mut conclusion).await?;
        self.conclusions.call(conclusion).await
    }

    /// As [`Store::conclude`], but in a transaction of its own: for a conclusion that was too much for
    /// Postgres, so that it does not hold up others.
    pub async fn conclude_alone(&self, mut conclusion: Conclusion) -> Result<Concluded, StoreError> {
        self.refer(&mut conclusion).await?;
        alone_in_its_batch(&self.pool, &self.changes, &conclusion).await
    }

    /// Writes references into the state that a conclusion folds.
    async fn refer(&self, conclusion: &mut Conclusion) -> Result<(), StoreError> {
        match &mut conclusion.fold {
            Some(fold) => self.refer_in_fold(conclusion.claim.session_key(), fold).await,
            None => Ok(()),
        }
    }

    /// Closes all connections; calls under way finish, later ones fail.
    pub fn close(&self) {
        self.pool.close();
        self.beats.close();
    }
}
