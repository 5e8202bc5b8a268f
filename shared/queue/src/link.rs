//! One live connection: its channels, what it has seen of the topology, and how it ends.
//!
//! A link is never repaired. A task that notices that it is broken calls [`Link::fail`]. The supervisor then closes it
//! and builds the next one. A link knows nothing of slots, publishers or backoff.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::address::Address;
use crate::declarations::Declarations;
use crate::error::{NOT_FOUND, REPLY_SUCCESS, failed, reply_code};
use crate::{BrokerConfig, QueueError, socket};

/// How many messages a queue holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Messages that wait for a consumer. Those that a consumer holds are not counted.
    pub ready: u64,
}

/// How a delivery is settled.
#[derive(Clone, Copy)]
pub(crate) enum Settlement {
    Ack,
    Requeue,
}

pub(crate) struct Link {
    /// Counts the connections of one broker, from 1.
    pub(crate) generation: u64,
    /// The channel that all slots share.
    pub(crate) consuming: Channel,
    connection: Connection,
    since: Instant,
    /// Ends the connection without a closing handshake; see [`socket`].
    cut: CancellationToken,
    _cut_when_dropped: DropGuard,
    /// The channel for declarations. A refused one closes it, so it is opened anew when needed.
    control: tokio::sync::Mutex<Option<Channel>>,
    pub(crate) declarations: Declarations,
    /// Queues that the broker deleted under a consumer of this link, and when it reported that.
    deleted: Mutex<BTreeMap<String, std::time::Instant>>,
    failure: OnceLock<String>,
    failed: CancellationToken,
    operation_timeout: Duration,
}

impl Link {
    /// Connects and opens the channel of the slots.
    pub(crate) async fn open(
        address: &Address,
        config: &BrokerConfig,
        generation: u64,
    ) -> Result<Link, QueueError> {
        let doing = format!("connect to {}", address.shown());
        let properties = ConnectionProperties::default().with_connection_name(config.name.as_str().into());
        let cut = CancellationToken::new();
        let guard = cut.clone().drop_guard();
        let connecting = socket::connect(address.uri(), address.own_authorities(), properties, cut.clone());
        let connection = bounded(config.connect_timeout, &doing, connecting).await?;
        let opening = async {
            let consuming = connection.create_channel().await?;
            // This holds for every consumer that starts from here on, each one separately (global: false).
            consuming.basic_qos(1, BasicQosOptions { global: false }).await?;
            Ok(consuming)
        };
        Ok(Link {
            generation,
            consuming: bounded(config.operation_timeout, "open a channel", opening).await?,
            connection,
            since: Instant::now(),
            cut,
            _cut_when_dropped: guard,
            control: tokio::sync::Mutex::default(),
            declarations: Declarations::default(),
            deleted: Mutex::default(),
            failure: OnceLock::new(),
            failed: CancellationToken::new(),
            operation_timeout: config.operation_timeout,
        })
    }

    /// Handles the broker's cancelling of a consumer, which it does when the queue is deleted. That ends the link, and
    /// with it everything the broker's channels still know of the old queue ([`crate::declarations::DELETION_TIME`]).
    pub(crate) fn queue_deleted(&self, queue: &str) {
        self.deleted().entry(queue.to_owned()).or_insert_with(std::time::Instant::now);
        self.fail(format_args!("the broker has cancelled the consumers of queue {queue}: it was deleted"));
    }

    /// Returns the queues that were deleted under a consumer of this link.
    pub(crate) fn deleted_queues(&self) -> BTreeMap<String, std::time::Instant> {
        self.deleted().clone()
    }

    /// Returns how many messages wait in a queue, or `None` if there is no such queue.
    pub(crate) async fn depth(&self, queue: &str) -> Result<Option<Depth>, QueueError> {
        let doing = format!("look at queue {queue}");
        let name = short(&doing, queue)?;
        let depth = self.on_control(&doing, async |channel| {
            let options = QueueDeclareOptions::durable().passive();
            match channel.queue_declare(name, options, FieldTable::default()).await {
                Ok(found) => Ok(Some(Depth { ready: u64::from(found.message_count()) })),
                Err(error) if reply_code(&error) == Some(NOT_FOUND) => Ok(None),
                Err(error) => Err(failed(&doing, &error)),
            }
        });
        let depth = depth.await?;
        if depth.is_some() {
            self.declarations.note(queue);
        }
        Ok(depth)
    }

    /// Works on the control channel, which the broker closes when it refuses something.
    pub(crate) async fn on_control<T>(
        &self,
        doing: &str,
        work: impl AsyncFnOnce(&Channel) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let attempt = async {
            let mut control = self.control.lock().await;
            // The channel is taken out while in use. If this future is dropped, the channel is dropped with it.
            let channel = match control.take().filter(|channel| channel.status().connected()) {
                Some(channel) => channel,
                None => self.channel().await?,
            };
            let result = work(&channel).await;
            *control = Some(channel).filter(|channel| channel.status().connected());
            result
        };
        match timeout(self.operation_timeout, attempt).await {
            Ok(result) => result,
            Err(_) => Err(QueueError::Timeout { doing: doing.to_owned(), after: self.operation_timeout }),
        }
    }

    /// Hands a settlement to lapin, which queues it when first polled. The rest of its future only waits for the
    /// socket. Returns whether the channel was still open. (lapin's own acker spawns a task for each. One frame for
    /// many acks was tried and gained nothing, because the broker settles each consumer separately.)
    pub(crate) fn settle(&self, tag: u64, settlement: Settlement) -> bool {
        if self.has_failed() {
            return false;
        }
        let sent = match settlement {
            Settlement::Ack => self.consuming.basic_ack(tag, BasicAckOptions::default()).now_or_never(),
            Settlement::Requeue => {
                let options = BasicNackOptions { requeue: true, ..Default::default() };
                self.consuming.basic_nack(tag, options).now_or_never()
            }
        };
        !matches!(sent, Some(Err(_)))
    }

    /// Whether the broker may still be starting: the connection before this one has ended, and this one is younger than
    /// `within`.
    pub(crate) fn follows_another_within(&self, within: Duration) -> bool {
        self.generation > 1 && self.since.elapsed() < within
    }

    /// Whether it is open, as far as lapin knows.
    pub(crate) fn is_usable(&self) -> bool {
        !self.has_failed() && self.connection.status().connected() && self.consuming.status().connected()
    }

    /// Opens a channel for the caller alone.
    pub(crate) async fn channel(&self) -> Result<Channel, QueueError> {
        bounded(self.operation_timeout, "open a channel", self.connection.create_channel()).await
    }

    /// Returns the largest frame that either side may send.
    pub(crate) fn frame_max(&self) -> usize {
        self.connection.configuration().frame_max() as usize
    }

    pub(crate) fn operation_timeout(&self) -> Duration {
        self.operation_timeout
    }

    pub(crate) fn events(&self) -> impl futures::Stream<Item = lapin::Event> + Send {
        self.connection.events_listener()
    }

    /// Gives the link up. The first reason is kept.
    pub(crate) fn fail(&self, reason: impl Display) {
        let _ = self.failure.set(reason.to_string());
        self.failed.cancel();
    }

    /// Gives the link up because something on it failed. If it has ended already, its own reason is kept.
    pub(crate) fn suspect(&self, error: &QueueError) {
        if self.is_usable() {
            self.fail(error);
        }
    }

    fn has_failed(&self) -> bool {
        self.failed.is_cancelled()
    }

    /// Waits until the link is given up, and returns the reason.
    pub(crate) async fn failure(&self) -> String {
        self.failed.cancelled().await;
        self.failure.get().cloned().unwrap_or_default()
    }

    /// Closes the connection in order, within a timeout. Unacked deliveries return to their queues.
    pub(crate) async fn close(&self, within: Duration) {
        self.fail("closed");
        if self.connection.status().connected() {
            let _ = timeout(within, self.connection.close(REPLY_SUCCESS, "closing".into())).await;
        }
        self.cut.cancel();
    }

    fn deleted(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, std::time::Instant>> {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a name for the wire. lapin panics at a longer one.
pub(crate) fn short(doing: &str, name: &str) -> Result<ShortString, QueueError> {
    ShortString::try_new(name).map_err(|_| {
        let reason = format!("the name has {} bytes, expected at most 255", name.len());
        QueueError::Failed { doing: doing.to_owned(), reason }
    })
}

/// Waits for an answer, up to a timeout.
pub(crate) async fn bounded<T>(
    after: Duration,
    doing: &str,
    asking: impl Future<Output = lapin::Result<T>>,
) -> Result<T, QueueError> {
    match timeout(after, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failed(doing, &error)),
        Err(_) => Err(QueueError::Timeout { doing: doing.to_owned(), after }),
    }
}
