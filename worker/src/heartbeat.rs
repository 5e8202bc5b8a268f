//! The heartbeat: keeps the lease for as long as the process lives, and checks in between what is asked of its jobs.

use std::collections::HashMap;

use job::Trouble;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::asked;
use crate::worker::Worker;

/// Keeps the lease until it is asked to stop, and stops what runs if the lease could not be kept.
pub async fn keep(worker: &Worker, stop: CancellationToken) {
    let watching = async {
        tokio::join!(worker.lease.watch(), asked::confirm_drains(worker));
    };
    tokio::join!(renew(worker, &stop), stop.run_until_cancelled(watching));
}

/// Beats five times a lease, and checks more often what is asked of the jobs. The two take turns on one connection.
async fn renew(worker: &Worker, stop: &CancellationToken) {
    let (mut beat, mut look) = (interval(worker.lease.duration() / 5), interval(asked::EVERY));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unknown_jobs = HashMap::new();
    let (mut trouble, mut looks) = (Trouble::default(), 0);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
            _ = look.tick() => {
                asked::look(worker, looks).await;
                looks += 1;
                continue;
            }
        }
        match worker.lease.beat(&mut unknown_jobs).await {
            Ok(()) => {
                if trouble.ends() {
                    info!("heartbeats reach Postgres again");
                }
            }
            Err(error) => {
                if trouble.begins() {
                    warn!(
                        cause = error.as_dyn(),
                        "the heartbeat does not reach Postgres; running jobs go on until the lease is over"
                    );
                }
            }
        }
    }
}
