//! A walk over the dead letters: looking at them one by one, and taking some of them away.
//!
//! A letter is held by whoever looks at it, and nobody else sees it meanwhile. When the walk ends, in whatever way,
//! what was not taken away goes back to its place; after two walks at once the order may be another. A walk ends where
//! the queue ended when it began: letters that come meanwhile, perhaps because of it, are left to the next one.

use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};

use crate::dead::{DeadLetter, read};
use crate::link::{REPLY_SUCCESS, bounded};
use crate::{Broker, DEAD_QUEUE, QueueError};

/// No more than this is taken into memory at once, whatever the limit.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// RabbitMQ's channel puts acks by when it has 32 under way to a quorum queue (`rabbit_fifo_client`), and nothing
/// promises that it sends them when it is closed. So only a few go out before the queue is asked for something: its
/// answer comes after their work is done.
const ACKS_AT_ONCE: usize = 16;

/// A letter in our hands. Dropped, it is still held until its walk ends.
#[derive(Debug)]
pub struct HeldLetter {
    /// What it tells.
    pub letter: DeadLetter,
    pub(crate) properties: BasicProperties,
    tag: u64,
}

/// A walk over `harness.dead`, from its oldest letter to what was its newest when the walk began.
pub struct DeadWalk {
    channel: Channel,
    within: Duration,
    /// Letters when it began.
    total: u64,
    left: u64,
    /// To be taken away, and not yet acked.
    removed: Vec<u64>,
}

impl DeadWalk {
    /// How many letters there were when it began.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The next letter; `None` behind the last one.
    pub async fn next(&mut self) -> Result<Option<HeldLetter>, QueueError> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some(message) = self.get().await? else {
            self.left = 0;
            return Ok(None);
        };
        self.left -= 1;
        let tag = message.delivery_tag;
        let (letter, properties) = read(message);
        Ok(Some(HeldLetter { letter, properties, tag }))
    }

    /// Takes a letter away for good, at the next step or at the end of the walk.
    pub fn remove(&mut self, held: HeldLetter) {
        self.removed.push(held.tag);
    }

    /// Ends the walk: what was removed is gone when this returns, and the rest is back.
    pub async fn close(mut self) -> Result<(), QueueError> {
        while !self.removed.is_empty() {
            self.get().await?;
        }
        bounded(self.within, "close a channel", self.channel.close(REPLY_SUCCESS, "done".into())).await
    }

    /// Sends a few acks, then asks for a letter.
    async fn get(&mut self) -> Result<Option<lapin::message::Delivery>, QueueError> {
        let some = self.removed.len().min(ACKS_AT_ONCE);
        let asking = async {
            for tag in &self.removed[..some] {
                self.channel.basic_ack(*tag, BasicAckOptions::default()).await?;
            }
            self.channel.basic_get(DEAD_QUEUE.into(), BasicGetOptions { no_ack: false }).await
        };
        let got = bounded(self.within, "look at the dead letters", asking).await?;
        self.removed.drain(..some);
        Ok(got.map(|message| message.delivery))
    }
}

impl Broker {
    /// Starts a walk over the dead letters, on a channel of its own: when that is closed, or dropped with the walk,
    /// they go back.
    pub async fn walk_dead_letters(&self) -> Result<DeadWalk, QueueError> {
        let within = self.shared().config.operation_timeout;
        let link = self.shared().live_link(within).await?;
        let channel = link.channel().await?;
        let options = QueueDeclareOptions::durable().passive();
        let declaring = channel.queue_declare(DEAD_QUEUE.into(), options, FieldTable::default());
        let queue = bounded(within, "look at queue harness.dead", declaring).await?;
        let total = u64::from(queue.message_count());
        Ok(DeadWalk { channel, within, total, left: total, removed: Vec::new() })
    }

    /// The oldest dead letters, at most `limit`, and at most 64 MiB of them. They stay where they are; while this
    /// runs, nobody else sees them.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, QueueError> {
        let mut walk = self.walk_dead_letters().await?;
        let mut letters = Vec::new();
        let mut bytes = 0;
        while letters.len() < limit && bytes < MAX_BYTES {
            let Some(HeldLetter { letter, .. }) = walk.next().await? else { break };
            bytes += letter.body.len();
            letters.push(letter);
        }
        walk.close().await?;
        Ok(letters)
    }

    /// How many dead letters there are.
    pub async fn dead_letter_count(&self) -> Result<u64, QueueError> {
        Ok(self.depth(DEAD_QUEUE).await?.map_or(0, |depth| depth.ready))
    }
}
