//! Waits until jobs have ended.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use job::JobId;
use store::{JobView, Store, StoreError};
use tokio_util::sync::CancellationToken;

/// Jobs per query.
const CHUNK: usize = 5_000;
/// The shortest and the longest pause between two queries.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(500);

/// Waits until these jobs have ended, the deadline has passed or `stop` comes. Calls `ended` with the number of jobs
/// that have ended since the last call. Returns the jobs that have not ended. A job that the ledger does not know yet
/// counts as not ended: its message may still be on its way.
pub async fn wait(
    store: &Store,
    jobs: &[JobId],
    deadline: Instant,
    stop: &CancellationToken,
    mut ended: impl FnMut(u64),
) -> Result<HashSet<JobId>, StoreError> {
    let mut open: HashSet<JobId> = jobs.iter().copied().collect();
    let mut pause = SHORTEST;
    loop {
        let asked: Vec<JobId> = open.iter().copied().collect();
        for chunk in asked.chunks(CHUNK) {
            let found = store.ended_among(chunk).await?;
            ended(found.len() as u64);
            for (id, _) in found {
                open.remove(&id);
            }
        }
        if open.is_empty() || Instant::now() >= deadline || stop.is_cancelled() {
            return Ok(open);
        }
        tokio::select! {
            () = tokio::time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))) => {}
            () = stop.cancelled() => {}
        }
        pause = (pause * 2).min(LONGEST);
    }
}

/// Returns the state of these jobs, however many there are. Jobs that the ledger does not know are missing.
pub async fn job_views(store: &Store, jobs: &[JobId]) -> Result<Vec<JobView>, StoreError> {
    let mut views = Vec::with_capacity(jobs.len());
    for chunk in jobs.chunks(CHUNK) {
        views.extend(store.jobs(chunk).await?);
    }
    Ok(views)
}
