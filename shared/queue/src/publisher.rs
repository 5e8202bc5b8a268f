//! Publishing with confirms: what a caller hands over, and what it learns.
//!
//! A call resolves when the broker has confirmed the message, when it is known that the broker has not taken it, or at
//! the timeout. Many calls run at once. One task ([`crate::confirming`]) sends them in the order of arrival. There are
//! no retries, with one exception: if a pool's queue is missing, it is declared, and the message is sent again. So a
//! job's pool may be new, and its queue may have been deleted.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use lapin::message::BasicReturnMessage;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::sync::{mpsc, oneshot};
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::shared::{Alive, Shared};
use crate::{DEAD_QUEUE, Delivery, HeldLetter, PublishError, headers, pool_of_queue};

const PERSISTENT: u8 = 2;

/// A message to publish. It is always persistent, and its content type is `application/json`.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The body.
    pub body: Vec<u8>,
    /// The AMQP property `type`, such as `harness.job.v1`.
    pub kind: &'static str,
    /// The AMQP property `message_id`: the job's id.
    pub message_id: Option<String>,
    /// The AMQP property `correlation_id`.
    pub correlation_id: Option<String>,
    /// The AMQP property `reply_to`: the queue that gets the result.
    pub reply_to: Option<String>,
    /// The header `traceparent` (W3C Trace Context).
    pub traceparent: Option<String>,
}

impl Message {
    /// Returns a message without any optional property.
    pub fn new(kind: &'static str, body: impl Into<Vec<u8>>) -> Message {
        Message { kind, body: body.into(), ..Message::default() }
    }

    fn properties(self) -> Result<(Vec<u8>, BasicProperties), PublishError> {
        let mut properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into())
            .with_type(short("type", self.kind)?);
        if let Some(id) = self.message_id {
            properties = properties.with_message_id(short("message_id", id)?);
        }
        if let Some(id) = self.correlation_id {
            properties = properties.with_correlation_id(short("correlation_id", id)?);
        }
        if let Some(queue) = self.reply_to {
            properties = properties.with_reply_to(short("reply_to", queue)?);
        }
        if let Some(trace) = self.traceparent {
            let mut table = FieldTable::default();
            table.insert(headers::TRACEPARENT.into(), AMQPValue::LongString(trace.into()));
            properties = properties.with_headers(table);
        }
        Ok((self.body, properties))
    }
}

/// Publishes with confirms. Clones share one connection and its limit of messages in flight.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    alive: Alive,
}

/// What to do if the queue is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// If it is a pool's queue, it is declared, and the message is sent again.
    Declared,
    /// As `Declared`, but only for the pools that we know, because an unknown sender may have written the name.
    Known,
    /// The message is dropped.
    Ignored,
}

/// A message on its way to the task that sends.
pub(crate) struct Request {
    pub(crate) queue: ShortString,
    /// Whether the broker must report that there is no such queue.
    pub(crate) mandatory: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) properties: BasicProperties,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// The outcome of a message that was sent.
pub(crate) enum Answer {
    Confirmed,
    Nacked,
    Returned(Box<BasicReturnMessage>),
    Lost(String),
}

impl Publisher {
    pub(crate) fn new(shared: Arc<Shared>, requests: mpsc::Sender<Request>, alive: Alive) -> Publisher {
        Publisher { shared, requests, alive }
    }

    pub(crate) fn alive(&self) -> Alive {
        self.alive.clone()
    }

    /// Puts a message into a queue. Calls keep the order in which they are first polled.
    ///
    /// If the future is dropped, the message may or may not arrive.
    pub async fn publish(&self, queue: &str, message: Message) -> Result<(), PublishError> {
        let (body, properties) = message.properties()?;
        self.send(queue, Missing::Declared, body, properties).await
    }

    /// Puts a message into a queue that is not ours. If the queue is gone, the message is lost, and that is no error.
    pub async fn reply(&self, queue: &str, message: Message) -> Result<(), PublishError> {
        let (body, properties) = message.properties()?;
        self.send(queue, Missing::Ignored, body, properties).await
    }

    /// Puts a copy of a delivery into `harness.dead`. Body and properties stay as they came. Headers are added that
    /// say why (`x-harness-reason` names the field, `x-harness-code` is a word to count by), from which queue and
    /// when. Ack the delivery after this, not before.
    pub async fn dead_letter(
        &self,
        delivery: &Delivery,
        reason: &str,
        code: &str,
    ) -> Result<(), PublishError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let properties = headers::bury(delivery.properties(), reason, code, delivery.queue(), now);
        self.send(DEAD_QUEUE, Missing::Known, delivery.body.clone(), properties).await
    }

    /// Puts a copy of a dead letter into a queue, as it was when it was first published. Remove the letter after this,
    /// not before.
    pub async fn redrive(&self, held: &HeldLetter, queue: &str) -> Result<(), PublishError> {
        self.send(queue, Missing::Known, held.letter.body.clone(), headers::redriven(&held.properties)).await
    }

    /// Puts a message that the broker dead-lettered back into its queue, marked so that this happens only once. Ack the
    /// delivery of its copy after this, not before.
    pub async fn return_once(&self, copy: &Delivery, queue: &str) -> Result<(), PublishError> {
        self.send(queue, Missing::Known, copy.body.clone(), headers::returned(copy.properties())).await
    }

    async fn send(
        &self,
        queue: &str,
        missing: Missing,
        body: Vec<u8>,
        properties: BasicProperties,
    ) -> Result<(), PublishError> {
        let mandatory = missing != Missing::Ignored;
        let name = short("queue", queue)?;
        let properties = if mandatory { identified(properties) } else { properties };
        let deadline = Instant::now() + self.shared.config.confirm_timeout;
        let unconfirmed = |reason: String| PublishError::Unconfirmed { queue: queue.to_owned(), reason };
        let (mut body, mut properties) = (body, properties);
        let mut may_declare = true;
        loop {
            let (answer, answered) = oneshot::channel();
            let request = Request { queue: name.clone(), mandatory, body, properties, answer };
            let attempt = async {
                // Unconstrained, because tokio resumes tasks that have used up their budget in reverse order.
                let handed_over = unconstrained(self.requests.send(request));
                handed_over.await.map_err(|_| PublishError::Closed)?;
                Ok(answered.await)
            };
            let returned = match timeout_at(deadline, attempt).await {
                Ok(Ok(Ok(Answer::Confirmed))) => return Ok(()),
                Ok(Ok(Ok(Answer::Nacked))) => return Err(PublishError::Nacked { queue: queue.to_owned() }),
                Ok(Ok(Ok(Answer::Returned(message)))) => message,
                Ok(Ok(Ok(Answer::Lost(reason)))) => return Err(unconfirmed(reason)),
                Ok(Ok(Err(_))) => return Err(unconfirmed("the connection ended".to_owned())),
                Ok(Err(closed)) => return Err(closed),
                Err(_) => return Err(unconfirmed(self.shared.reason())),
            };
            let reason = returned.reply_text.to_string();
            if !std::mem::take(&mut may_declare) || !self.declare_missing(queue, missing, deadline).await {
                return Err(PublishError::Returned { queue: queue.to_owned(), reason });
            }
            let delivery = returned.delivery;
            (body, properties) = (delivery.data, delivery.properties);
        }
    }

    /// Declares a missing queue if it is a pool's. Returns whether it exists now.
    async fn declare_missing(&self, queue: &str, missing: Missing, deadline: Instant) -> bool {
        let pool = match missing {
            Missing::Declared => pool_of_queue(queue).filter(|_| self.shared.config.declares),
            Missing::Known => self.shared.pool_of(queue),
            Missing::Ignored => None,
        };
        let Some(pool) = pool else { return false };
        let declaring = async {
            while let Some(link) = self.shared.next_link().await {
                match self.shared.declare_missing(&link, &pool).await {
                    Ok(()) => {
                        self.shared.keep(&pool);
                        return true;
                    }
                    Err(cause) if link.is_usable() => {
                        warn!(%cause, %pool, "the pool's queue cannot be declared");
                        return false;
                    }
                    // The link has ended meanwhile, perhaps because one of its slots consumed from that queue.
                    Err(_) => {}
                }
            }
            false
        };
        timeout_at(deadline, declaring).await.unwrap_or(false)
    }
}

fn short(field: &'static str, text: impl Into<String>) -> Result<ShortString, PublishError> {
    let text = text.into();
    let bytes = text.len();
    ShortString::try_new(text).map_err(|_| PublishError::TooLong { field, bytes })
}

/// Gives a message without an id a header, because a returned message is recognised by its id.
fn identified(properties: BasicProperties) -> BasicProperties {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if properties.message_id().is_some() {
        return properties;
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut table = properties.headers().clone().unwrap_or_default();
    table.insert(headers::PUBLISH_NUMBER.into(), AMQPValue::LongLongInt(number as i64));
    properties.with_headers(table)
}

/// Returns what distinguishes a returned message from the others in flight. Two messages of the same id in the same
/// queue are the same job, so either can stand for the other.
pub(crate) fn fingerprint(queue: &ShortString, properties: &BasicProperties) -> u64 {
    let mut hasher = DefaultHasher::new();
    queue.hash(&mut hasher);
    properties.message_id().hash(&mut hasher);
    if properties.message_id().is_none() {
        let number =
            properties.headers().as_ref().and_then(|table| table.inner().get(headers::PUBLISH_NUMBER));
        number.and_then(AMQPValue::as_long_long_int).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_that_amqp_cannot_hold_is_refused_by_name() {
        let long = "x".repeat(256);
        let message = Message { correlation_id: Some(long), ..Message::new("t", "b") };
        let refused = PublishError::TooLong { field: "correlation_id", bytes: 256 };
        assert_eq!(message.properties().unwrap_err(), refused);
        assert!(!refused.is_retryable());
    }

    #[test]
    fn messages_in_flight_have_different_fingerprints() {
        let queue = ShortString::from("q");
        let named = |id: &str| BasicProperties::default().with_message_id(id.into());
        let print = |properties: &BasicProperties| fingerprint(&queue, properties);
        assert_ne!(print(&named("a")), print(&named("b")));
        assert_eq!(print(&named("a")), print(&identified(named("a"))));
        assert_ne!(print(&named("a")), fingerprint(&"r".into(), &named("a")));
        let unnamed = || identified(BasicProperties::default());
        assert_ne!(print(&unnamed()), print(&unnamed()));
    }
}
