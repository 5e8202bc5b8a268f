//! Publishes due rows to the broker.
//!
//! `scheduled → publishing` is committed first. The publishing holds no lock, and `publishing → queued` is
//! noted for what the broker confirmed. A relay that dies in between leaves rows in `publishing`. They come
//! due again and are published twice at worst, which the claim makes harmless.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use job::{JobId, SCHEMA};
use queue::{Message, PublishError, jobs_queue};
use store::{DueJob, StoreError};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Dispatch;
use crate::metrics::METRICS;
use crate::tick::while_connected;

/// How often due rows are looked for, while there are none.
const POLL: Duration = Duration::from_millis(200);
/// Rows per transaction.
const BATCH: i64 = 512;
/// After how long a job that the broker did not take comes due again.
const REFUSED_FOR: Duration = Duration::from_secs(1);

pub(crate) async fn run(dispatch: &Dispatch, stop: &CancellationToken) {
    let cannot = "due jobs cannot be read from Postgres";
    while_connected(dispatch, stop, POLL, cannot, || publish_due(dispatch, stop)).await;
}

async fn publish_due(dispatch: &Dispatch, stop: &CancellationToken) -> Result<(), StoreError> {
    while !stop.is_cancelled() {
        let due = dispatch.store.take_due(BATCH).await?;
        let full = due.len() as i64 == BATCH;
        if !due.is_empty() {
            dispatch.publish(due).await?;
        }
        if !full {
            break;
        }
    }
    Ok(())
}

impl Dispatch {
    /// Publishes jobs that are in the state `publishing`, and notes what the broker confirmed. Returns how many.
    ///
    /// Jobs that were not confirmed come due again soon. The reason is logged.
    pub async fn publish(&self, due: Vec<DueJob>) -> Result<usize, StoreError> {
        let mut sending: FuturesUnordered<_> = due.into_iter().map(|job| self.send(job)).collect();
        let mut confirmed = Vec::with_capacity(sending.len());
        let mut refused = Vec::new();
        let mut reason = None;
        while let Some((job_id, result)) = sending.next().await {
            match result {
                Ok(()) => confirmed.push(job_id),
                Err(error) => {
                    refused.push(job_id);
                    reason = Some(error);
                }
            }
        }
        if !confirmed.is_empty() {
            METRICS.published.inc_by(confirmed.len() as u64);
            self.store.confirm(&confirmed).await?;
        }
        if let Some(reason) = reason {
            METRICS.refused.inc_by(refused.len() as u64);
            // That refusal was logged once, as an error.
            if !self.broker.refuses_publishing() {
                warn!(%reason, jobs = refused.len(), "the broker did not take all due jobs; they come due again");
            }
            self.store.unconfirmed(&refused, REFUSED_FOR).await?;
        }
        Ok(confirmed.len())
    }

    async fn send(&self, job: DueJob) -> (JobId, Result<(), PublishError>) {
        let message = Message {
            message_id: Some(job.job_id.to_string()),
            ..Message::new(SCHEMA, job.message.into_bytes())
        };
        (job.job_id, self.publisher.publish(&jobs_queue(&job.pool), message).await)
    }
}
