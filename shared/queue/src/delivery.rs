//! A message that was delivered to us, and its one settlement.
//!
//! A delivery is valid only on the connection it came on: by the time the next connection is open, the broker has
//! delivered it elsewhere. So an ack is refused here when its connection is gone. This module does not look into the
//! body.

use std::fmt;
use std::sync::Arc;

use lapin::BasicProperties;
use lapin::types::ShortString;
use tracing::debug;

use crate::dead::{self, Death};
use crate::headers;
use crate::link::{Link, Settlement};

/// The most that the headers of a job's message may take, in bytes on the wire. What the broker adds to them must also
/// fit into a frame, which holds 128 KiB.
pub const MAX_HEADER_BYTES: u64 = 120 * 1024;

/// A delivered message. If it is dropped without [`Delivery::ack`], it returns to its queue.
pub struct Delivery {
    /// The body. It may be taken out. A dead letter is made of what is here.
    pub body: Vec<u8>,
    properties: BasicProperties,
    redelivered: bool,
    queue: Arc<str>,
    receipt: Receipt,
}

/// The connection of a delivery is gone. This is harmless: the broker delivers the message again, to us or elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection of this delivery (generation {generation}) is gone; the broker delivers it again")]
pub struct StaleDelivery {
    /// The connection it came on.
    pub generation: u64,
}

impl Delivery {
    pub(crate) fn new(delivered: lapin::message::Delivery, queue: Arc<str>, link: Arc<Link>) -> Delivery {
        Delivery {
            body: delivered.data,
            properties: delivered.properties,
            redelivered: delivered.redelivered,
            queue,
            receipt: Receipt { tag: delivered.delivery_tag, link: Some(link) },
        }
    }

    /// Returns the AMQP property `message_id`.
    pub fn message_id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(ShortString::as_str)
    }

    /// Returns the AMQP property `correlation_id`.
    pub fn correlation_id(&self) -> Option<&str> {
        self.properties.correlation_id().as_ref().map(ShortString::as_str)
    }

    /// Returns the AMQP property `reply_to`.
    pub fn reply_to(&self) -> Option<&str> {
        self.properties.reply_to().as_ref().map(ShortString::as_str)
    }

    /// Returns the AMQP property `type`, such as `harness.job.v1`.
    pub fn kind(&self) -> Option<&str> {
        self.properties.kind().as_ref().map(ShortString::as_str)
    }

    /// Returns the header `traceparent` (W3C Trace Context).
    pub fn traceparent(&self) -> Option<&str> {
        headers::text(self.properties.headers().as_ref(), headers::TRACEPARENT)
    }

    /// Returns the size of its headers when it was published, in bytes on the wire. This includes headers that were
    /// removed since, because no frame can hold them together with the broker's own.
    pub fn header_bytes(&self) -> u64 {
        headers::published_bytes(self.properties.headers().as_ref())
    }

    /// Returns why the broker dead-lettered it, if it did.
    pub fn death(&self) -> Option<Death> {
        self.properties.headers().as_ref().and_then(dead::death)
    }

    /// Whether the broker may have delivered it before. This is only a hint. Attempts are counted elsewhere.
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// Returns the queue it was taken from.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Returns the generation of the connection it came on.
    pub fn generation(&self) -> u64 {
        self.receipt.generation()
    }

    /// Whether its connection is gone, so that the broker delivers it again.
    pub fn is_stale(&self) -> bool {
        self.receipt.is_stale()
    }

    pub(crate) fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    /// Acks the message, so that the broker deletes it. Does not wait, because AMQP has no answer to an ack. If the
    /// connection ends before the ack is written, the message is delivered again.
    pub async fn ack(self) -> Result<(), StaleDelivery> {
        self.receipt.settle(Settlement::Ack)
    }

    /// As [`Delivery::ack`], for a caller to which it makes no difference whether the ack comes in time.
    pub async fn settle(self) {
        if let Err(stale) = self.ack().await {
            debug!(cause = %stale, "an ack came too late");
        }
    }

    /// Returns the message to its queue, to be delivered again at once. This is for a delivery that should not have
    /// come, not for flow control: the broker counts it against the delivery limit.
    pub async fn requeue(self) -> Result<(), StaleDelivery> {
        self.receipt.settle(Settlement::Requeue)
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("queue", &self.queue)
            .field("message_id", &self.message_id())
            .field("body_bytes", &self.body.len())
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

/// The right to settle a delivery, once.
struct Receipt {
    tag: u64,
    /// `None` once the delivery is settled.
    link: Option<Arc<Link>>,
}

impl Receipt {
    fn generation(&self) -> u64 {
        self.link.as_ref().map_or(0, |link| link.generation)
    }

    fn is_stale(&self) -> bool {
        self.link.as_ref().is_none_or(|link| !link.is_usable())
    }

    fn settle(mut self, settlement: Settlement) -> Result<(), StaleDelivery> {
        let stale = StaleDelivery { generation: self.generation() };
        let settled = self.link.take().is_some_and(|link| link.settle(self.tag, settlement));
        if settled { Ok(()) } else { Err(stale) }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            link.settle(self.tag, Settlement::Requeue);
        }
    }
}
