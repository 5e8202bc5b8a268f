//! A cursor over the dead letters: reads them one by one, and removes some of them.
//!
//! The reader of a letter holds it, and no other consumer sees it meanwhile. When the cursor is closed, in whatever
//! way, letters that were not removed return to their place. After two cursors at once their order may change. A
//! cursor stops at what was the end of the queue when it was opened. Letters that come meanwhile, perhaps because of
//! it, are left to the next one.

use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};

use crate::dead::{DeadLetter, read};
use crate::error::REPLY_SUCCESS;
use crate::link::bounded;
use crate::shared::Shared;
use crate::{DEAD_QUEUE, QueueError};

/// RabbitMQ's channel defers acks when it has 32 in flight to a quorum queue (`rabbit_fifo_client`), and nothing
/// guarantees that it sends them when it is closed. So only a few are sent before the queue is asked for something. Its
/// answer comes after they are applied.
const ACKS_AT_ONCE: usize = 16;

/// A letter that we hold. Even if it is dropped, it is held until its cursor is closed.
#[derive(Debug)]
pub struct HeldLetter {
    /// Its content.
    pub letter: DeadLetter,
    pub(crate) properties: BasicProperties,
    tag: u64,
}

/// A cursor over `harness.dead`, from its oldest letter to what was its newest when the cursor was opened.
pub struct DeadLetterCursor {
    channel: Channel,
    within: Duration,
    /// The number of letters when it was opened.
    total: u64,
    left: u64,
    /// Delivery tags to remove, not yet acked.
    removed: Vec<u64>,
}

impl DeadLetterCursor {
    /// Opens one on a channel of its own.
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

    /// Returns how many letters there were when it was opened.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns the next letter, or `None` after the last one.
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

    /// Removes a letter for good, at the next step or when the cursor is closed.
    pub fn remove(&mut self, held: HeldLetter) {
        self.removed.push(held.tag);
    }

    /// Closes the cursor. When this returns, removed letters are gone and the others are back in the queue.
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
