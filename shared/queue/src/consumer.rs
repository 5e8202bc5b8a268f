//! A slot: one consumer with prefetch 1, on the channel that all slots of a connection share.
//!
//! A slot holds at most one unacked delivery, so the broker never hands a worker more than it can run, and a worker's
//! capacity is its number of slots. The slot itself starts consuming again, whatever ended its consumer. It knows
//! nothing of jobs.
//!
//! ```text
//! Idle ──next──▶ Starting ──▶ Consuming ──pause──▶ Stopping ──▶ Idle
//!   ▲                             │ connection lost, channel error, cancelled by the broker
//!   └─────────────────────────────┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use job::{Backoff, Trouble};
use lapin::options::{BasicCancelOptions, BasicConsumeOptions};
use lapin::types::FieldTable;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::error::explain;
use crate::link::{Link, Settlement, bounded, short};
use crate::shared::{Alive, Shared, jitter};
use crate::{Delivery, QueueError};

/// The waits between attempts to consume.
const REST: Backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5) };

/// Tags are never used twice, so a late frame of an old consumer cannot be mistaken for a new one's.
static NEXT_TAG: AtomicU64 = AtomicU64::new(1);

/// Takes one message at a time from a queue.
pub struct Slot {
    shared: Arc<Shared>,
    queue: Arc<str>,
    prefix: String,
    state: State,
    trouble: Trouble,
    /// Whether it wants to consume and does not do so yet.
    seeking: bool,
    _alive: Alive,
}

enum State {
    Idle,
    /// Kept here, not in the future of `next`, so that dropping that future loses nothing.
    Starting(BoxFuture<'static, Result<Subscription, QueueError>>),
    Consuming(Subscription),
    Stopping(BoxFuture<'static, ()>),
}

struct Subscription {
    link: Arc<Link>,
    consumer: lapin::Consumer,
}

impl Slot {
    pub(crate) fn new(shared: Arc<Shared>, alive: Alive, queue: &str, prefix: &str) -> Slot {
        let (queue, prefix) = (queue.into(), prefix.to_owned());
        let (state, trouble) = (State::Idle, Trouble::default());
        let mut slot = Slot { shared, queue, prefix, state, trouble, seeking: false, _alive: alive };
        slot.seek(true);
        slot
    }

    /// Returns the next delivery. None comes while the last one is neither acked nor requeued. Whatever ends the
    /// consumer, this starts it again. Returns `None` only when the broker was closed.
    ///
    /// The future may be dropped at any time: the next call returns what it had not returned.
    pub async fn next(&mut self) -> Option<Delivery> {
        loop {
            self.seek(!matches!(self.state, State::Consuming(_)));
            match &mut self.state {
                State::Consuming(subscription) => match subscription.consumer.next().await {
                    Some(Ok(delivered)) => {
                        self.trouble.ends();
                        let delivery =
                            Delivery::new(delivered, self.queue.clone(), subscription.link.clone());
                        // It came before the connection ended, but is looked at only now. The broker delivers it
                        // again, here or elsewhere.
                        if !delivery.is_stale() {
                            return Some(delivery);
                        }
                    }
                    Some(Err(error)) => {
                        let reason = explain(&error);
                        debug!(queue = &*self.queue, reason, "a consumer ended; consuming again");
                        self.state = State::Idle;
                    }
                    None => {
                        // A consumer also ends this way with its connection.
                        if subscription.link.is_usable() {
                            subscription.link.queue_deleted(&self.queue);
                        }
                        self.state = State::Idle;
                    }
                },
                State::Idle => {
                    let link = self.shared.next_link().await?;
                    self.state = State::Starting(Box::pin(self.start(link)));
                }
                State::Starting(starting) => {
                    let started = starting.await;
                    self.shared.refusals.heard(&self.queue, &started);
                    match started {
                        Ok(subscription) => self.state = State::Consuming(subscription),
                        Err(error) => {
                            self.state = State::Idle;
                            self.rest(error).await;
                        }
                    }
                }
                State::Stopping(stopping) => {
                    stopping.await;
                    self.state = State::Idle;
                }
            }
        }
    }

    /// Stops consuming until `next` is called again. A delivery that this slot has returned stays unacked with its
    /// owner. One that was on its way here returns to the queue. So `pause`, then `ack`, settles a job early without
    /// taking another.
    pub async fn pause(&mut self) {
        self.seek(false);
        self.state = match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => return,
            State::Starting(starting) => State::Stopping(Box::pin(async {
                if let Ok(subscription) = starting.await {
                    subscription.stop().await;
                }
            })),
            State::Consuming(subscription) => State::Stopping(Box::pin(subscription.stop())),
            stopping @ State::Stopping(_) => stopping,
        };
        if let State::Stopping(stopping) = &mut self.state {
            stopping.await;
            self.state = State::Idle;
        }
    }

    fn seek(&mut self, seeking: bool) {
        if seeking && !self.seeking {
            self.shared.seeking.fetch_add(1, Ordering::Relaxed);
        }
        if !seeking && self.seeking {
            self.shared.seeking.fetch_sub(1, Ordering::Relaxed);
        }
        self.seeking = seeking;
    }

    fn start(&self, link: Arc<Link>) -> impl Future<Output = Result<Subscription, QueueError>> + use<> {
        let (queue, shared) = (self.queue.clone(), self.shared.clone());
        let tag = format!("{}.{}", self.prefix, NEXT_TAG.fetch_add(1, Ordering::Relaxed));
        async move {
            let pool = shared.pool_of(&queue);
            if link.ensure(&queue, pool.as_ref()).await? {
                shared.note_redeclared(pool.map(|pool| (pool, std::time::Instant::now())));
            }
            let doing = format!("consume from queue {queue}");
            let (name, tag) = (short(&doing, &queue)?, short(&doing, &tag)?);
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            let consuming = link.consuming.basic_consume(name, tag, options, arguments);
            match bounded(link.operation_timeout(), &doing, consuming).await {
                Ok(consumer) => Ok(Subscription { link, consumer }),
                Err(error) => {
                    // Either it was refused, and the channel of all slots is closed, or there was no answer at all.
                    link.suspect(&error);
                    Err(error)
                }
            }
        }
    }

    /// Waits after a failure, so that the next attempt does not follow at once.
    async fn rest(&mut self, error: QueueError) {
        // If the connection has ended, its supervisor logs that.
        let is_said = matches!(error, QueueError::Refused { .. }) || !self.shared.is_connected();
        if self.trouble.begins() && !is_said {
            warn!(queue = &*self.queue, cause = %error, "cannot consume; trying again until it works");
        }
        let pause = REST.next_delay(self.trouble.failures(), jitter());
        let _ = timeout(pause, self.shared.stop.cancelled()).await;
    }
}

impl Subscription {
    async fn stop(mut self) {
        let within = self.link.operation_timeout();
        let cancelling = async {
            let tag = self.consumer.tag();
            self.link.consuming.basic_cancel(tag, BasicCancelOptions::default()).await?;
            // The stream ends with the consumer. What it still holds was never looked at.
            while let Some(delivered) = self.consumer.next().await {
                self.link.settle(delivered?.delivery_tag, Settlement::Requeue);
            }
            Ok(())
        };
        if let Err(error) = bounded(within, "cancel a consumer", cancelling).await {
            // A consumer that nothing reads would keep its delivery for ever.
            self.link.suspect(&error);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.seek(false);
        let stopping: BoxFuture<'static, ()> = match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => return,
            State::Consuming(subscription) => Box::pin(subscription.stop()),
            State::Stopping(stopping) => stopping,
            State::Starting(starting) => Box::pin(async {
                if let Ok(subscription) = starting.await {
                    subscription.stop().await;
                }
            }),
        };
        self.shared.runtime.spawn(stopping);
    }
}
