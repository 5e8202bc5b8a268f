//! What is asked of this worker and of the jobs that it runs: a job may be cancelled or have to make room, and the
//! worker itself may have to drain because an autoscaler has marked it.

use std::time::Duration;

use harness::Stop;
use store::{Ask, Asked, DrainMark};
use tokio::time::sleep;
use tracing::info;

use crate::worker::Worker;

/// How often the ledger is asked, so that each job gets its signal within a second.
pub const EVERY: Duration = Duration::from_millis(500);

/// Asks the ledger once, for the n-th time. Failures are not logged here, because the heartbeat reports them.
pub async fn look(worker: &Worker, nth: u64) {
    // While nothing runs here, only a drain mark can come, and half as often is enough.
    if nth % 2 == 1 && worker.running.epochs().is_empty() && !worker.mark.is_set() {
        return;
    }
    let worker_id = worker.lease.worker();
    let Ok(Asked { drain, jobs }) = worker.store.asked(worker_id).await else { return };
    apply_mark(worker, drain).await;
    for (job_id, epoch, ask) in jobs {
        let stop = match ask {
            Ask::Cancel => Stop::Cancelled,
            Ask::Interrupt => Stop::Interrupted,
            Ask::Rollback => Stop::RolledBack,
        };
        worker.running.stop(job_id, epoch, stop);
    }
}

async fn apply_mark(worker: &Worker, drain: Option<DrainMark>) {
    let (mark, worker_id) = (&worker.mark, worker.lease.worker());
    if mark.set(drain) {
        // Postgres may still have a mark that is over by our clock.
        match drain.filter(|_| mark.is_set()) {
            Some(mark) => {
                info!(%worker_id, epoch = mark.epoch, "marked to be scaled away: takes no more jobs")
            }
            None => info!(%worker_id, "the mark is gone: takes jobs again"),
        }
    }
    if let Some(until) = mark.over() {
        // The next look tries again.
        let _ = worker.store.drop_mark(worker_id, until).await;
    }
}

/// Reports to the ledger when a marked worker holds nothing any more; `/ready` fails by then. It reports again under
/// each mark, and repeats each report until the ledger accepts it: the ledger may know of a job whose claim's reply
/// was lost. Never ends.
pub async fn confirm_drains(worker: &Worker) {
    loop {
        let epoch = worker.mark.unconfirmed().await;
        let worker_id = worker.lease.worker();
        match worker.store.confirm_drained(worker_id, epoch).await {
            Ok(true) => {
                info!(%worker_id, epoch, "drained for scale-in: holds nothing");
                worker.mark.confirmed(epoch);
            }
            Ok(false) | Err(_) => sleep(EVERY).await,
        }
    }
}
