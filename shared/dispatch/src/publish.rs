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
use store::{Ask, DueJob, StoreError};
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
        let (due, taken) = dispatch.store.take_due(BATCH).await?;
        if !due.is_empty() {
            dispatch.publish(due).await?;
        }
        if taken < BATCH {
            break;
        }
    }
    Ok(())
}

/// What the broker answered for jobs that were published.
#[derive(Debug, Default)]
#[must_use = "what is not noted is published again"]
pub struct Sent {
    /// What the broker has confirmed.
    pub confirmed: Vec<JobId>,
    /// What it did not take.
    pub refused: Vec<JobId>,
}

impl Sent {
    /// None of these jobs was sent: they come due again soon, for a process that has a broker.
    pub fn none_of(jobs: impl IntoIterator<Item = JobId>) -> Sent {
        Sent { confirmed: Vec::new(), refused: jobs.into_iter().collect() }
    }

    /// Adds the answers for other jobs.
    pub fn add(&mut self, other: Sent) {
        self.confirmed.extend(other.confirmed);
        self.refused.extend(other.refused);
    }

    /// How many jobs it is about.
    pub fn jobs(&self) -> usize {
        self.confirmed.len() + self.refused.len()
    }
}

impl Dispatch {
    /// Publishes jobs that are in the state `publishing`, and notes what the broker confirmed. Returns how many.
    ///
    /// Jobs that were not confirmed come due again soon. The reason is logged.
    pub async fn publish(&self, due: Vec<DueJob>) -> Result<usize, StoreError> {
        let sent = self.send_all(due).await;
        self.note(&sent).await
    }

    /// Publishes jobs that are in the state `publishing`, and asks running jobs to give way where these want that. The answers
    /// have to be noted.
    pub async fn send_all(&self, due: Vec<DueJob>) -> Sent {
        self.make_room(&due).await;
        let mut sending: FuturesUnordered<_> = due.into_iter().map(|job| self.send(job)).collect();
        let (mut sent, mut reason) = (Sent::default(), None);
        while let Some((job_id, result)) = sending.next().await {
            match result {
                Ok(()) => sent.confirmed.push(job_id),
                Err(error) => {
                    sent.refused.push(job_id);
                    reason = Some(error);
                }
            }
        }
        METRICS.published.inc_by(sent.confirmed.len() as u64);
        METRICS.refused.inc_by(sent.refused.len() as u64);
        // That refusal was logged once, as an error.
        if let Some(reason) = reason.filter(|_| !self.broker.refuses_publishing()) {
            let jobs = sent.refused.len();
            warn!(%reason, jobs, "the broker did not take all due jobs; they come due again");
        }
        sent
    }

    /// A worker asks as well when it claims such a job, but until then all workers may be busy.
    async fn make_room(&self, due: &[DueJob]) {
        let ask = |job: &DueJob| {
            // Few jobs have one, and only they are read.
            let asks = job.message.contains("\"on_busy\"");
            let spec = asks.then(|| job::decode_stored(&job.message).ok()).flatten()?;
            Some((job.job_id, Ask::of(&spec)?))
        };
        let asking: Vec<(JobId, Ask)> = due.iter().filter_map(ask).collect();
        if !asking.is_empty()
            && let Err(cause) = self.store.make_room(&asking).await
        {
            warn!(
                cause = cause.as_dyn(),
                "running jobs were not asked to give way yet; workers will ask them"
            );
        }
    }

    /// Notes the broker's answers in the ledger. Returns how many jobs were confirmed.
    pub async fn note(&self, sent: &Sent) -> Result<usize, StoreError> {
        if !sent.confirmed.is_empty() {
            self.store.confirm(&sent.confirmed).await?;
        }
        if !sent.refused.is_empty() {
            self.store.unconfirmed(&sent.refused, REFUSED_FOR).await?;
        }
        Ok(sent.confirmed.len())
    }

    async fn send(&self, job: DueJob) -> (JobId, Result<(), PublishError>) {
        let message = Message {
            message_id: Some(job.job_id.to_string()),
            ..Message::new(SCHEMA, job.message.into_bytes())
        };
        (job.job_id, self.publisher.publish(&jobs_queue(&job.pool), message).await)
    }
}
