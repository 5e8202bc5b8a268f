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
use crate::error::REPLY_SUCCESS;
use crate::link::bounded;
use crate::shared::Shared;
use crate::{DEAD_QUEUE, QueueError};

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
pub struct DeadLetterCursor {
    channel: Channel,
    within: Duration,
    /// Letters when it began.
    total: u64,
    left: u64,
    /// To be taken away, and not yet acked.
    removed: Vec<u64>,
}

impl DeadLetterCursor {
    /// Begins one on a channel of its own.
    pub(crate) async fn begin(shared: &Shared) -> Result<DeadLetterCursor, QueueError> {
        let within = shared.config.operation_timeout;
        let link = shared.live_link(within).await?;
        let channel = link.channel().await?;
        let options = QueueDeclareOptions::durable().passive();
        let declaring = channel.queue_declare(DEAD_QUEUE.into(), options, FieldTable::default());
        let queue = bounded(within, "look at queue harness.dead", declaring).await?;
        let total = u64::from(queue.message_count());
        Ok(DeadLetterCursor { channel, within, total, left: total, removed: Vec::new() })
    }

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
