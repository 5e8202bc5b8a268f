//! The loop that sends deliveries, in the one producer that leads.
//!
//! A delivery is taken for a while, sent, and given a result. A process that dies in between leaves it due again, under
//! the same id: an end is sent at least once. Each webhook has a few places, and a few bytes of large bodies (`bytes`), so
//! that a slow one holds up no other.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use dispatch::Leader;
use job::Trouble;
use prometheus::{IntCounter, IntCounterVec, register_int_counter, register_int_counter_vec};
use store::{DeliveryResult, DisabledBy, DueDelivery, Sent, Store, StoreError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::bytes::Bytes;
use super::client::{ANSWERED_WITHIN, Outbound};
use super::event;

/// The lease under which one process sends.
pub const LEASE_NAME: &str = "webhooks";
/// How often due deliveries are looked for.
const EVERY: Duration = Duration::from_millis(250);
/// How often old deliveries are removed.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// How long a process leads after its last sign of life.
const LEASE: Duration = Duration::from_secs(10);
/// How long a delivery is one process's: as long as an attempt may take, with what the ledger needs before and after.
const TAKEN_FOR: Duration = Duration::from_secs(60);
/// How many deliveries of a webhook are under way at a time.
const PLACES: u32 = 8;
/// How many are under way in all. Each is a connection, and a body in memory; `bytes` bounds the large ones.
const PLACES_IN_ALL: usize = 256;
/// How many of one tenant's, so that slow receivers of one leave places for the others.
const PLACES_OF_TENANT: u32 = 64;
/// How many attempts ask the ledger at a time.
const ASKING_AT_ONCE: usize = 2;
/// How long an attempt waits for the bytes of its body. It leaves enough time to send it.
const BYTES_WITHIN: Duration = Duration::from_secs(20);
/// How long attempts that are under way have after SIGTERM. The others are made again by the next one to lead.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How long every attempt must fail until a webhook is disabled.
const DISABLED_AFTER: Duration = Duration::from_secs(5 * 86_400);

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// The waits before the second attempt and those after it: a day in all.
const WAITS: [Duration; 7] =
    [Duration::from_secs(5), minutes(5), minutes(30), minutes(120), minutes(300), minutes(600), minutes(360)];

/// Returns the wait after so many attempts; `None` if there is no other. `jitter` is drawn evenly from 0 to 1 and
/// changes it by up to a tenth.
fn wait(attempts: u32, jitter: f64) -> Option<Duration> {
    let wait = WAITS.get(usize::try_from(attempts).ok()?.checked_sub(1)?)?;
    Some(wait.mul_f64(0.9 + jitter.clamp(0.0, 1.0) / 5.0))
}

struct Metrics {
    deliveries: IntCounterVec,
    disabled: IntCounter,
}

static METRICS: LazyLock<Metrics> =
    LazyLock::new(|| register().expect("the metrics' names are unique, so registering cannot fail"));

fn register() -> prometheus::Result<Metrics> {
    let metrics = Metrics {
        deliveries: register_int_counter_vec!(
            "harness_webhook_deliveries_total",
            "Attempts to deliver an end to a webhook, by outcome: delivered, retried, failed (given up)",
            &["outcome"]
        )?,
        disabled: register_int_counter!(
            "harness_webhooks_disabled_total",
            "Webhooks that were disabled because every attempt had failed for five days, or because they are gone"
        )?,
    };
    for outcome in ["delivered", "retried", "failed"] {
        metrics.deliveries.with_label_values(&[outcome]);
    }
    Ok(metrics)
}

/// Sends what is due.
pub struct Sending {
    store: Store,
    outbound: Arc<Outbound>,
    /// This boot of this process.
    sender: Uuid,
    /// A place for each attempt that asks the ledger: an API in the same process needs its connections, too.
    asking: Semaphore,
    bytes: Bytes,
}

impl Sending {
    /// Sends what this ledger has.
    pub fn new(store: Store, outbound: Arc<Outbound>) -> Sending {
        LazyLock::force(&METRICS);
        let (asking, bytes) = (Semaphore::new(ASKING_AT_ONCE), Bytes::new());
        Sending { store, outbound, sender: Uuid::new_v4(), asking, bytes }
    }

    /// Sends while this process leads, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let leader = Leader::new(LEASE_NAME.to_owned(), LEASE, |_| {});
        let this = Arc::new(self);
        tokio::join!(leader.keep(&this.store, &stop), this.clone().send(&leader, &stop));
    }

    async fn send(self: Arc<Self>, leader: &Leader, stop: &CancellationToken) {
        let mut clock = interval(EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut forgotten = Instant::now();
        let mut under_way: HashMap<String, u32> = HashMap::new();
        let mut attempts: JoinSet<String> = JoinSet::new();
        let mut trouble = Trouble::default();
        // Whether the last look took any: then there may be more as soon as a place is free.
        let mut more = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = attempts.join_next() => {
                    free(&mut under_way, ended);
                    while let Some(ended) = attempts.try_join_next() {
                        free(&mut under_way, ended);
                    }
                    if !more {
                        continue;
                    }
                }
                _ = clock.tick() => {}
            }
            if leader.leadership().is_none() {
                continue;
            }
            match self.take(&under_way, PLACES_IN_ALL - attempts.len().min(PLACES_IN_ALL)).await {
                Ok(due) => {
                    trouble.ends();
                    more = !due.is_empty();
                    for delivery in due {
                        *under_way.entry(delivery.webhook_id.clone()).or_default() += 1;
                        attempts.spawn(self.clone().attempt(delivery));
                    }
                }
                Err(cause) => {
                    if trouble.begins() {
                        warn!(cause = cause.as_dyn(), "due deliveries to webhooks cannot be read, retrying");
                    }
                }
            }
            if forgotten.elapsed() >= FORGET_EVERY {
                forgotten = Instant::now();
                self.forget(stop).await;
            }
        }
        let finishing = async { while attempts.join_next().await.is_some() {} };
        // What is not done by then is due again soon.
        let _ = timeout(STOP_WITHIN, finishing).await;
    }

    async fn take(
        &self,
        under_way: &HashMap<String, u32>,
        most: usize,
    ) -> Result<Vec<DueDelivery>, StoreError> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let under_way: Vec<(String, u32)> = under_way.iter().map(|(id, n)| (id.clone(), *n)).collect();
        self.store.take_deliveries(self.sender, &under_way, [PLACES, PLACES_OF_TENANT], most, TAKEN_FOR).await
    }

    /// Makes one attempt; returns the webhook whose place is free again.
    async fn attempt(self: Arc<Self>, delivery: DueDelivery) -> String {
        let webhook = delivery.webhook_id.clone();
        // Without an answer from the ledger nothing is recorded, and the delivery is due again when its time is over.
        match timeout(TAKEN_FOR - ANSWERED_WITHIN, self.try_once(&delivery)).await {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => {
                warn!(cause = cause.as_dyn(), webhook, job_id = %delivery.job_id, "a delivery was not recorded; it is sent again");
            }
            Err(_) => {
                warn!(webhook, job_id = %delivery.job_id, "a delivery took too long; it is sent again");
            }
        }
        webhook
    }

    async fn try_once(&self, delivery: &DueDelivery) -> Result<(), StoreError> {
        // Without what was said a body is small.
        let bytes = if delivery.content {
            let _place = self.asking.acquire().await;
            self.store.said_bytes(delivery.job_id).await?
        } else {
            0
        };
        let taking = self.bytes.take(&delivery.tenant, &delivery.webhook_id, bytes);
        let Ok(_bytes) = timeout(BYTES_WITHIN, taking).await else {
            // It is due again when its time is over, behind those that wait now.
            debug!(webhook = %delivery.webhook_id, job_id = %delivery.job_id, bytes, "no room for a large delivery yet");
            return Ok(());
        };
        let place = self.asking.acquire().await;
        let body = event::body(&self.store, delivery).await?;
        drop(place);
        let result = match body {
            Some(body) => {
                let id = event::message_id(delivery);
                let answer = self.outbound.post(&delivery.url, &id, &delivery.keys, body).await;
                let sent = match answer.problem {
                    None => Sent::Delivered,
                    Some(problem) => Sent::Failed {
                        problem,
                        retry_in: wait(delivery.attempts + 1, fastrand::f64()),
                        gone: answer.status == Some(410),
                    },
                };
                DeliveryResult { status: answer.status, sent }
            }
            None => {
                let problem = "the job's end is not kept any longer".to_owned();
                let sent = Sent::Failed { problem, retry_in: None, gone: false };
                DeliveryResult { status: None, sent }
            }
        };
        let _place = self.asking.acquire().await;
        let disabled = self.store.record_delivery(self.sender, delivery, &result, DISABLED_AFTER).await?;
        self.note(delivery, &result, disabled);
        Ok(())
    }

    fn note(&self, delivery: &DueDelivery, result: &DeliveryResult, disabled: Option<DisabledBy>) {
        let (webhook, job_id) = (delivery.webhook_id.as_str(), delivery.job_id);
        let outcome = match &result.sent {
            Sent::Delivered => "delivered",
            Sent::Failed { retry_in: Some(_), .. } => "retried",
            Sent::Failed { retry_in: None, problem, .. } => {
                warn!(webhook, %job_id, problem, "a delivery to a webhook was given up");
                "failed"
            }
        };
        METRICS.deliveries.with_label_values(&[outcome]).inc();
        if let Some(by) = disabled {
            METRICS.disabled.inc();
            warn!(webhook, ?by, "a webhook was disabled; `producer webhooks enable` takes it back");
        }
    }

    async fn forget(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            match self.store.forget_deliveries().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(cause) => {
                    info!(cause = cause.as_dyn(), "old deliveries were not removed, trying again later");
                    return;
                }
            }
        }
    }
}

fn free(under_way: &mut HashMap<String, u32>, ended: Result<String, tokio::task::JoinError>) {
    // An attempt does not panic. If one did, its webhook would have a place less until the next start.
    let Ok(webhook) = ended else { return };
    if let Some(count) = under_way.get_mut(&webhook) {
        *count -= 1;
        if *count == 0 {
            under_way.remove(&webhook);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_go_on_for_a_day_and_end() {
        for jitter in [0.0, 0.5, 1.0] {
            let waits: Vec<Duration> = (1..).map_while(|attempts| wait(attempts, jitter)).collect();
            assert_eq!(waits.len(), 7);
            let hours = waits.iter().sum::<Duration>().as_secs_f64() / 3_600.0;
            assert!((21.0..27.0).contains(&hours), "{hours} h with {jitter}");
        }
        assert_eq!(wait(0, 0.5), None);
        assert_eq!(wait(1, 0.5), Some(Duration::from_secs(5)));
    }
}
