//! One live connection: its channels, what it has seen of the topology, and how it ends.
//!
//! A link is never repaired. Whoever notices that it is broken calls [`Link::fail`]; the supervisor then closes
//! it and builds the next. It knows nothing of slots, publishers or backoff.

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
use crate::declaring::Declarations;
use crate::error::{failed, reply_code};
use crate::{BrokerConfig, QueueError, socket};

pub(crate) const NOT_FOUND: u16 = 404;
pub(crate) const REPLY_SUCCESS: u16 = 200;

/// What stands in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Messages that wait for a consumer; those with a consumer are not among them.
    pub ready: u64,
}

/// How a delivery ends.
#[derive(Clone, Copy)]
pub(crate) enum Settlement {
    Ack,
    Requeue,
}

pub(crate) struct Link {
    /// Counts the connections of one broker, from 1.
    pub(crate) generation: u64,
    /// The channel all slots share.
    pub(crate) consuming: Channel,
    connection: Connection,
    since: Instant,
    /// Ends the connection without a word; see [`socket`].
    cut: CancellationToken,
    _cut_when_dropped: DropGuard,
    /// For declarations; a refused one closes it, so it is opened anew when needed.
    control: tokio::sync::Mutex<Option<Channel>>,
    pub(crate) declarations: Declarations,
    /// Queues that the broker has deleted under a consumer of this link, and when it said so.
    deleted: Mutex<BTreeMap<String, std::time::Instant>>,
    failure: OnceLock<String>,
    failed: CancellationToken,
    operation_timeout: Duration,
}

impl Link {
    /// Connects, declares the topology and opens the channel of the slots. `settled`: what is missing has been missing for
    /// [`crate::declaring::DELETION_TIME`]. `redeclared` gets the pools whose queue was missing, and until when, also where something fails later.
    pub(crate) async fn open(
        address: &Address,
        config: &BrokerConfig,
        pools: &[job::Name],
        settled: bool,
        redeclared: &mut BTreeMap<job::Name, std::time::Instant>,
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
            // For every consumer started from here on, each by itself (global: false).
            consuming.basic_qos(1, BasicQosOptions { global: false }).await?;
            Ok(consuming)
        };
        let link = Link {
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
        };
        let declared = match config.declares {
            true => link.declare(pools, settled, redeclared).await,
            false => Ok(()),
        };
        match declared {
            Ok(()) => Ok(link),
            Err(error) => {
                link.close(config.close_timeout).await;
                Err(error)
            }
        }
    }

    /// The broker has cancelled a consumer, which it does when the queue is deleted. That ends the link: what the broker's
    /// channels still know of the old queue goes with them ([`crate::declaring::DELETION_TIME`]).
    pub(crate) fn queue_deleted(&self, queue: &str) {
        self.deleted().entry(queue.to_owned()).or_insert_with(std::time::Instant::now);
        self.fail(format_args!("the broker has cancelled the consumers of queue {queue}: it was deleted"));
    }

    /// Queues that were deleted under a consumer of this link.
    pub(crate) fn deleted_queues(&self) -> BTreeMap<String, std::time::Instant> {
        self.deleted().clone()
    }

    /// How many messages wait in a queue; `None` when there is no such queue.
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
            // Taken out while in use: should this future be dropped, the channel goes with it.
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

    /// Hands a settlement to lapin, which queues it when first polled; the rest of its future only waits for the
    /// socket. (lapin's own acker spawns a task for each. One frame for many acks was tried and gained nothing:
    /// the broker settles each consumer by itself.) Whether the channel was still there.
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

    /// Whether the broker may be about to come up: the connection before this one has ended, and this one is younger than
    /// so long.
    pub(crate) fn follows_another_within(&self, within: Duration) -> bool {
        self.generation > 1 && self.since.elapsed() < within
    }

    /// Whether it stands, as far as lapin knows.
    pub(crate) fn is_usable(&self) -> bool {
        !self.has_failed() && self.connection.status().connected() && self.consuming.status().connected()
    }

    /// A channel of the caller's own.
    pub(crate) async fn channel(&self) -> Result<Channel, QueueError> {
        bounded(self.operation_timeout, "open a channel", self.connection.create_channel()).await
    }

    /// The largest frame that either side may send.
    pub(crate) fn frame_max(&self) -> usize {
        self.connection.configuration().frame_max() as usize
    }

    pub(crate) fn operation_timeout(&self) -> Duration {
        self.operation_timeout
    }

    pub(crate) fn events(&self) -> impl futures::Stream<Item = lapin::Event> + Send {
        self.connection.events_listener()
    }

    /// Gives the link up; the first reason is kept.
    pub(crate) fn fail(&self, reason: impl Display) {
        let _ = self.failure.set(reason.to_string());
        self.failed.cancel();
    }

    /// Gives the link up because something on it failed, unless it has ended already: then its own reason counts.
    pub(crate) fn suspect(&self, error: &QueueError) {
        if self.is_usable() {
            self.fail(error);
        }
    }

    fn has_failed(&self) -> bool {
        self.failed.is_cancelled()
    }

    /// Resolves when somebody has given the link up, with the reason.
    pub(crate) async fn failure(&self) -> String {
        self.failed.cancelled().await;
        self.failure.get().cloned().unwrap_or_default()
    }

    /// Says goodbye to the broker, within a bound. Unacked deliveries go back to their queues.
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

/// A name for the wire; lapin panics at a longer one.
pub(crate) fn short(doing: &str, name: &str) -> Result<ShortString, QueueError> {
    ShortString::try_new(name).map_err(|_| {
        let reason = format!("the name has {} bytes, expected at most 255", name.len());
        QueueError::Failed { doing: doing.to_owned(), reason }
    })
}

/// Gives up on an answer that does not come.
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
