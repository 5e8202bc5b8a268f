//! Wait: until jobs have ended.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use job::JobId;
use store::{JobView, Store, StoreError};
use tokio_util::sync::CancellationToken;

/// Jobs that are asked for at once.
const CHUNK: usize = 5_000;
/// The pauses between two looks.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(500);

/// Waits until these jobs have ended, the time is over or the stop comes; says each time how many more have ended. Returns those that have
/// not. A job that the ledger does not know yet is waited for as well: its message may still be on its way.
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

/// Where these jobs stand, however many they are; those that the ledger does not know are missing.
pub async fn job_views(store: &Store, jobs: &[JobId]) -> Result<Vec<JobView>, StoreError> {
    let mut views = Vec::with_capacity(jobs.len());
    for chunk in jobs.chunks(CHUNK) {
        views.extend(store.jobs(chunk).await?);
    }
    Ok(views)
}
