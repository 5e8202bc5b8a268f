//! Listening to announcements: one queue for each process, which ends with its connection.
//!
//! The queue is exclusive and bounded, and drops its oldest messages. One queue takes both kinds, so that text which
//! was sent before a change comes before it. Little is on its way to us at a time, so that a process that is slow has
//! its messages in that queue, and not in its memory.
//!
//! An exchange that is deleted takes its bindings with it, and the broker does not report it: the queue stays, and
//! stays empty. So exchanges and bindings are declared again every few seconds, which changes nothing where they exist.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tracing::{debug, warn};

use crate::QueueError;
use crate::announcing::{self, Announced, EVENTS_EXCHANGE, TEXT_EXCHANGE};
use crate::error::failed;
use crate::link::Link;
use crate::shared::{Alive, Shared};

/// The most bytes that wait in the queue.
const MAX_BYTES: i64 = 16 * 1024 * 1024;
/// Messages on their way to us.
const PREFETCH: u16 = 64;
/// The pause before another attempt to listen.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the bindings are made again. A listener hears nothing for at most so long after an exchange was deleted.
const BIND_EVERY: Duration = Duration::from_secs(5);

/// Receives announcements. Dropping it ends its queue.
pub struct Listener {
    heard: mpsc::Receiver<(Announced, Vec<u8>)>,
    shards: Shards,
    listens: watch::Receiver<bool>,
    _alive: Alive,
}

/// Which shards of text a listener wants, as a set of bits; clones share it.
#[derive(Clone)]
pub struct Shards {
    wanted: watch::Sender<u64>,
    bound: watch::Receiver<u64>,
    listens: watch::Receiver<bool>,
}

impl Shards {
    /// Wants these from now on, and no others.
    pub fn want(&self, shards: u64) {
        self.wanted.send_if_modified(|wanted| std::mem::replace(wanted, shards) != shards);
    }

    /// Waits until this shard's text comes, but no longer than this, and not while nothing comes at all.
    pub async fn comes(&self, shard: u8, within: Duration) {
        if !*self.listens.borrow() {
            return;
        }
        let mut bound = self.bound.clone();
        let _ = timeout(within, bound.wait_for(|bound| bound & (1 << shard) != 0)).await;
    }
}

impl Listener {
    pub(crate) fn start(shared: &Arc<Shared>, alive: Alive) -> Listener {
        let (sender, heard) = mpsc::channel(usize::from(PREFETCH));
        let (wanted, wants) = watch::channel(0);
        let (binds, bound) = watch::channel(0);
        let (says, listens) = watch::channel(false);
        let task = Task { shared: shared.clone(), sender, wants, binds, says };
        shared.announcing.spawn(task.run());
        let shards = Shards { wanted, bound, listens: listens.clone() };
        Listener { heard, shards, listens, _alive: alive }
    }

    /// Waits for the next announcement; `None` when the broker was closed.
    pub async fn next(&mut self) -> Option<(Announced, Vec<u8>)> {
        self.heard.recv().await
    }

    /// Returns the set of shards that it wants.
    pub fn shards(&self) -> Shards {
        self.shards.clone()
    }

    /// Returns whether announcements come at present.
    pub fn listens(&self) -> watch::Receiver<bool> {
        self.listens.clone()
    }
}

struct Task {
    shared: Arc<Shared>,
    sender: mpsc::Sender<(Announced, Vec<u8>)>,
    wants: watch::Receiver<u64>,
    binds: watch::Sender<u64>,
    says: watch::Sender<bool>,
}

impl Task {
    /// Listens on one link after the other.
    async fn run(mut self) {
        let mut refused = false;
        while let Some(link) = self.shared.next_link().await {
            if self.sender.is_closed() {
                return;
            }
            if let Err(cause) = self.listen(&link).await
                && link.is_usable()
            {
                if !std::mem::replace(&mut refused, true) {
                    warn!(%cause, "cannot listen to the changes of jobs; trying again until it works");
                }
            } else {
                refused = false;
            }
            let _ = self.shared.stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
        }
    }

    /// Listens on this link until it ends, or this side does.
    async fn listen(&mut self, link: &Link) -> Result<(), QueueError> {
        let channel = announcing::open(link).await?;
        let served = self.serve(link, &channel).await;
        self.says.send_replace(false);
        self.binds.send_replace(0);
        announcing::close(&channel, link).await;
        served
    }

    async fn serve(&mut self, link: &Link, channel: &Channel) -> Result<(), QueueError> {
        let broken = |error: lapin::Error| failed("listen to the changes of jobs", &error);
        // A name that no other process has: the last connection's queue may not be gone yet.
        let queue = ShortString::from(format!("harness.events.{:016x}", RandomState::new().hash_one(0)));
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let arguments = FieldTable::from(BTreeMap::from([
            ("x-max-length-bytes".into(), AMQPValue::LongLongInt(MAX_BYTES)),
            ("x-overflow".into(), AMQPValue::LongString("drop-head".into())),
        ]));
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(broken)?;
        channel.queue_declare(queue.clone(), options, arguments).await.map_err(broken)?;
        bind(channel, &queue, EVENTS_EXCHANGE, "").await.map_err(broken)?;
        let (tag, options) = ("".into(), BasicConsumeOptions::default());
        let consuming = channel.basic_consume(queue.clone(), tag, options, FieldTable::default());
        let mut consumer = consuming.await.map_err(broken)?;
        self.says.send_replace(true);
        self.wants.mark_changed();
        let mut again = interval_at(Instant::now() + BIND_EVERY, BIND_EVERY);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let delivered = tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return Ok(()),
                () = self.sender.closed() => return Ok(()),
                _ = link.failure() => return Ok(()),
                Ok(()) = self.wants.changed() => {
                    self.bind_wanted(channel, &queue).await.map_err(broken)?;
                    continue;
                }
                _ = again.tick() => {
                    self.bind_again(channel, &queue).await?;
                    continue;
                }
                delivered = consumer.next() => delivered,
            };
            let Some(delivered) = delivered else {
                debug!("the queue for the changes of jobs is gone; declaring another");
                return Ok(());
            };
            let delivered = delivered.map_err(broken)?;
            let announced = announced(delivered.exchange.as_str(), delivered.routing_key.as_str());
            if let Some(announced) = announced {
                let _ = self.sender.send((announced, delivered.data)).await;
            }
            // lapin queues it when it is first polled; the rest only waits for the socket.
            let _ = channel.basic_ack(delivered.delivery_tag, BasicAckOptions::default()).now_or_never();
        }
    }

    /// Binds the shards that are wanted now, and no others.
    async fn bind_wanted(&mut self, channel: &Channel, queue: &ShortString) -> Result<(), lapin::Error> {
        let (wanted, bound) = (*self.wants.borrow_and_update(), *self.binds.borrow());
        for shard in shards(wanted ^ bound) {
            if wanted & (1 << shard) != 0 {
                bind(channel, queue, TEXT_EXCHANGE, &shard.to_string()).await?;
            } else {
                let (exchange, key) = (TEXT_EXCHANGE.into(), shard.to_string().into());
                channel.queue_unbind(queue.clone(), exchange, key, FieldTable::default()).await?;
            }
        }
        self.binds.send_replace(wanted);
        Ok(())
    }

    /// Declares the exchanges and all bindings once more, in case an exchange was deleted.
    async fn bind_again(&self, channel: &Channel, queue: &ShortString) -> Result<(), QueueError> {
        announcing::declare(channel).await?;
        let bound = async {
            bind(channel, queue, EVENTS_EXCHANGE, "").await?;
            let bound = *self.binds.borrow();
            for shard in shards(bound) {
                bind(channel, queue, TEXT_EXCHANGE, &shard.to_string()).await?;
            }
            Ok(())
        };
        bound.await.map_err(|error: lapin::Error| failed("listen to the changes of jobs", &error))
    }
}

async fn bind(channel: &Channel, queue: &ShortString, exchange: &str, key: &str) -> Result<(), lapin::Error> {
    let (exchange, key) = (exchange.into(), key.into());
    channel.queue_bind(queue.clone(), exchange, key, QueueBindOptions::default(), FieldTable::default()).await
}

/// The shards of this set of bits.
fn shards(set: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |shard| set & (1 << shard) != 0)
}

fn announced(exchange: &str, key: &str) -> Option<Announced> {
    match exchange {
        EVENTS_EXCHANGE => Some(Announced::Changes),
        TEXT_EXCHANGE => key.parse().ok().map(|shard| Announced::Text { shard }),
        _ => None,
    }
}
