//! Drain marks: which workers are to take no more jobs, so that they can be scaled away.
//!
//! A mark carries its leader's epoch and an expiry by Postgres's clock. The worker itself goes by how much
//! time was left when it saw the mark, so that a step of the clock neither ends a mark nor prolongs it. A
//! marked worker takes no new job. When it holds none, it confirms that it is drained, and from then on none
//! of its claims is granted while the mark is valid. One lock keeps confirmations and claims apart: a
//! transaction that marks or confirms locks the worker's row against the claims under way, as a claim locks
//! it against them. So a drained worker holds nothing, whatever the network delivers late.

use std::time::{Duration, SystemTime};

use job::{JobId, WorkerId};
use tokio_postgres::Row;
use uuid::Uuid;

use super::leader::Leadership;
use crate::database::{
    BEAT_BOUND, LOCK_LEADERSHIP, LOCK_OUT_WORKER, LOCK_OUT_WORKERS, Tx, leads, millis, query_within,
    read_job_id, read_millis, uuids,
};
use crate::jobs::Ask;
use crate::{Fenced, Store, StoreError};

/// How long a mark holds unless it is renewed.
pub const MARK_FOR: Duration = Duration::from_secs(30);

/// What is asked of a worker and of its jobs.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The mark by which the worker is to drain, or by which it drained if the mark has lapsed.
    pub drain: Option<DrainMark>,
    /// Its jobs that are to stop, with their epochs.
    pub jobs: Vec<(JobId, i64, Ask)>,
}

/// A drain mark that was not taken back, as its worker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainMark {
    /// The leader that marked or renewed it last.
    pub epoch: i64,
    /// Whether the worker is drained, according to the ledger.
    pub drained: bool,
    /// Its end, by Postgres's clock. A different end means that the mark was renewed.
    pub until: SystemTime,
    /// How far away that is; zero if the mark has lapsed.
    pub left: Duration,
}

/// A drained worker stays drained if its mark never lapsed. Otherwise it may hold jobs again, and has to
/// confirm anew.
const MARK: &str = concat!(
    "
    UPDATE harness_workers
       SET drain_epoch = $3, drain_until = clock_timestamp() + $5 * interval '1 millisecond',
           drained_at = CASE WHEN drain_until > clock_timestamp() THEN drained_at END
     WHERE worker_id = ANY($4) AND state = 'alive' AND coalesce(drain_epoch, 0) <= $3 AND ",
    leads!(),
    " RETURNING worker_id"
);

/// The epoch stays, so that marks of an older one are refused.
const UNMARK: &str = concat!(
    "
    UPDATE harness_workers SET drain_epoch = $3, drain_until = NULL, drained_at = NULL
     WHERE worker_id = ANY($4) AND drain_until IS NOT NULL AND coalesce(drain_epoch, 0) <= $3 AND ",
    leads!(),
    " RETURNING worker_id"
);

const CONFIRM: &str = "
    UPDATE harness_workers SET drained_at = coalesce(drained_at, clock_timestamp())
     WHERE worker_id = $1 AND state = 'alive' AND drain_epoch = $2 AND drain_until > clock_timestamp()
       AND NOT EXISTS (SELECT FROM harness_jobs j WHERE j.worker_id = $1)
    RETURNING worker_id";

const READ_ASKED: &str = "
    SELECT drain_epoch, drained_at IS NOT NULL, NULL, NULL, NULL, drain_until,
           (extract(epoch FROM drain_until - clock_timestamp()) * 1000)::bigint FROM harness_workers
     WHERE worker_id = $1 AND drain_until IS NOT NULL AND state <> 'dead'
    UNION ALL
    SELECT NULL, NULL, job_id, epoch, asked, NULL, NULL FROM harness_jobs WHERE worker_id = $1 AND asked IS NOT NULL";

const DROP_MARK: &str = "
    UPDATE harness_workers SET drain_until = NULL, drained_at = NULL WHERE worker_id = $1 AND drain_until = $2
    RETURNING worker_id";

impl Store {
    /// Marks workers to drain, or renews their marks, for this long from now. Returns those that are marked.
    /// A worker is not marked if it has ended, drains on a signal, or was last marked under a higher epoch.
    /// Returns `Lost` if the leadership is over.
    pub async fn mark_drains(
        &self,
        leadership: &Leadership,
        workers: &[WorkerId],
        valid_for: Duration,
    ) -> Result<Fenced<Vec<WorkerId>>, StoreError> {
        let ids = uuids(workers);
        let Leadership { name, holder, epoch, .. } = leadership;
        let tx = Tx::prepare(&self.pool, "mark_drains", [LOCK_LEADERSHIP, LOCK_OUT_WORKERS, MARK]).await?;
        let valid_ms = millis(valid_for);
        let [leads, _, marked] =
            tx.run([&[name, holder, epoch], &[&ids], &[name, holder, epoch, &ids, &valid_ms]]).await?;
        Ok(fenced(&leads, &marked))
    }

    /// Takes marks back: the workers take jobs again within about a second. Returns those that were marked
    /// and no longer are. Returns `Lost` if the leadership is over.
    pub async fn unmark_drains(
        &self,
        leadership: &Leadership,
        workers: &[WorkerId],
    ) -> Result<Fenced<Vec<WorkerId>>, StoreError> {
        let ids = uuids(workers);
        let Leadership { name, holder, epoch, .. } = leadership;
        let tx =
            Tx::prepare(&self.pool, "unmark_drains", [LOCK_LEADERSHIP, LOCK_OUT_WORKERS, UNMARK]).await?;
        let [leads, _, unmarked] =
            tx.run([&[name, holder, epoch], &[&ids], &[name, holder, epoch, &ids]]).await?;
        Ok(fenced(&leads, &unmarked))
    }

    /// Confirms that a worker is drained. It was asked to drain by the mark of this epoch, and takes and
    /// holds nothing any more. Returns whether the ledger agrees: not without a valid mark of that epoch, nor
    /// while it knows of a job that runs there.
    pub async fn confirm_drained(&self, worker: WorkerId, epoch: i64) -> Result<bool, StoreError> {
        let id = Uuid::from(worker);
        let tx = Tx::prepare(&self.pool, "confirm_drained", [LOCK_OUT_WORKER, CONFIRM]).await?;
        let [_, confirmed] = tx.run([&[&id], &[&id, &epoch]]).await?;
        Ok(!confirmed.is_empty())
    }

    /// Returns what is asked of a worker, and of the jobs that it runs.
    pub async fn asked(&self, worker: WorkerId) -> Result<Asked, StoreError> {
        let rows = query_within(BEAT_BOUND, &self.beats, "asked", READ_ASKED, &[&Uuid::from(worker)]).await?;
        let (marks, jobs): (Vec<_>, Vec<_>) =
            rows.iter().partition(|row| row.get::<_, Option<i64>>(0).is_some());
        let mark = |row: &&Row| DrainMark {
            epoch: row.get(0),
            drained: row.get(1),
            until: row.get(5),
            left: read_millis(row, 6).unwrap_or_default(),
        };
        let job = |row: &&Row| Some((read_job_id(row, 2), row.get(3), Ask::parse(row.get(4))?));
        Ok(Asked { drain: marks.first().map(mark), jobs: jobs.iter().filter_map(job).collect() })
    }

    /// Takes back the mark with this end, which is over by the worker's own clock: Postgres's clock went
    /// back, and no leader renews the mark.
    pub async fn drop_mark(&self, worker: WorkerId, until: SystemTime) -> Result<(), StoreError> {
        query_within(BEAT_BOUND, &self.beats, "drop_mark", DROP_MARK, &[&Uuid::from(worker), &until]).await?;
        Ok(())
    }
}

fn fenced(leads: &[Row], workers: &[Row]) -> Fenced<Vec<WorkerId>> {
    if leads.is_empty() {
        Fenced::Lost
    } else {
        Fenced::Done(workers.iter().map(|row| row.get::<_, Uuid>(0).into()).collect())
    }
}
