//! Announcements: transient messages for the processes that listen. They are sent without confirms, and may get lost.
//!
//! ```text
//! changes of jobs ──▶ harness.events (fanout) ───────────────▶ the queue of each process that listens
//! streamed text   ──▶ harness.text (direct, shard of session) ──▶ the same queue, if it wants that shard
//! ```
//!
//! A sender never waits. What cannot be sent at once is dropped and counted: there is no connection, the broker blocks
//! it, or too much waits. The exchanges are declared on the channel that uses them, whenever one is opened, because
//! they do not outlast the broker. They have a channel of their own: what the broker refuses there closes no other
//! channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, ExchangeKind};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::QueueError;
use crate::error::{REPLY_SUCCESS, failed};
use crate::link::{Link, bounded};
use crate::shared::Shared;

/// The exchange for the changes of jobs.
pub const EVENTS_EXCHANGE: &str = "harness.events";
/// The exchange for the text that jobs stream. The routing key is the shard.
pub const TEXT_EXCHANGE: &str = "harness.text";

const TRANSIENT: u8 = 1;
/// Announcements that wait to be sent.
const WAITING: usize = 512;
/// A write that takes longer is given up, and the channel with it.
const SENT_WITHIN: Duration = Duration::from_secs(2);
/// The pause before another channel is opened.
const PAUSE: Duration = Duration::from_secs(1);

/// Where an announcement goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// To all that listen.
    Changes,
    /// To those that want this shard.
    Text {
        /// From 0 to 63.
        shard: u8,
    },
}

struct Announcement {
    to: Announced,
    kind: &'static str,
    body: Vec<u8>,
}

/// Sends announcements; clones share one channel.
#[derive(Clone)]
pub struct Announcer {
    shared: Arc<Shared>,
    announcements: mpsc::Sender<Announcement>,
    dropped: Arc<AtomicU64>,
}

impl Announcer {
    /// Starts the task that sends.
    pub(crate) fn start(shared: &Arc<Shared>) -> Announcer {
        let (announcements, waiting) = mpsc::channel(WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        shared.announcing.spawn(run(shared.clone(), waiting, dropped.clone()));
        Announcer { shared: shared.clone(), announcements, dropped }
    }

    /// Sends an announcement, or drops it. `kind` is the AMQP property `type`.
    pub fn announce(&self, to: Announced, kind: &'static str, body: Vec<u8>) {
        // Without a connection it would be old when it is sent.
        let can_send = self.shared.is_connected() && !self.shared.is_blocked();
        if !can_send || self.announcements.try_send(Announcement { to, kind, body }).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns how many announcements were dropped since the last call.
    pub fn dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

/// Declares the exchanges. They are not durable: they hold nothing, and are declared anew where they are used.
pub(crate) async fn declare(channel: &Channel) -> Result<(), QueueError> {
    for (name, kind) in [(EVENTS_EXCHANGE, ExchangeKind::Fanout), (TEXT_EXCHANGE, ExchangeKind::Direct)] {
        let options = ExchangeDeclareOptions::default();
        let declared = channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await;
        declared.map_err(|error| failed(&format!("declare exchange {name}"), &error))?;
    }
    Ok(())
}

/// Opens a channel of its own with the exchanges declared.
pub(crate) async fn open(link: &Link) -> Result<Channel, QueueError> {
    let channel = link.channel().await?;
    match timeout(link.operation_timeout(), declare(&channel)).await {
        Ok(declared) => declared.map(|()| channel),
        Err(_) => Err(QueueError::Timeout {
            doing: "declare exchanges".to_owned(),
            after: link.operation_timeout(),
        }),
    }
}

/// Closes a channel in order. If it were dropped, lapin would close it a moment later, perhaps while the connection is
/// being closed, which would then never complete.
pub(crate) async fn close(channel: &Channel, link: &Link) {
    let closing = channel.close(REPLY_SUCCESS, "done".into());
    let _ = bounded(SENT_WITHIN.min(link.operation_timeout()), "close a channel", closing).await;
}

/// Sends what waits, on one link after the other, until the broker is closed.
async fn run(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Announcement>, dropped: Arc<AtomicU64>) {
    let mut refused = false;
    // A process that announces nothing opens no channel.
    while let Some(first) = next(&shared, &mut waiting).await {
        let Some(link) = shared.link.borrow().clone().filter(|link| link.is_usable()) else {
            dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        match open(&link).await {
            Ok(channel) => {
                refused = false;
                let lost = serve(&shared, &link, &channel, first, &mut waiting).await;
                dropped.fetch_add(lost, Ordering::Relaxed);
                close(&channel, &link).await;
            }
            Err(cause) => {
                dropped.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut refused, true) && link.is_usable() {
                    warn!(%cause, "changes of jobs are not announced; those who follow jobs see them later");
                }
            }
        }
        let _ = shared.stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }
}

/// The next announcement; those that wait when the broker is closed are still sent.
async fn next(shared: &Shared, waiting: &mut mpsc::Receiver<Announcement>) -> Option<Announcement> {
    tokio::select! {
        biased;
        announcement = waiting.recv() => announcement,
        () = shared.stop.cancelled() => None,
    }
}

/// Sends on one channel until it ends. Returns how many announcements were lost at its end.
async fn serve(
    shared: &Shared,
    link: &Link,
    channel: &Channel,
    first: Announcement,
    waiting: &mut mpsc::Receiver<Announcement>,
) -> u64 {
    let mut announcement = first;
    loop {
        let sent = timeout(SENT_WITHIN, send(channel, announcement)).await;
        if !matches!(sent, Ok(Ok(()))) || !channel.status().connected() {
            debug!("the channel for announcements ended; opening another");
            return 1;
        }
        let next = tokio::select! {
            biased;
            _ = link.failure() => return 0,
            next = next(shared, waiting) => next,
        };
        match next {
            Some(next) => announcement = next,
            None => return 0,
        }
    }
}

/// Hands it to the socket.
async fn send(channel: &Channel, announcement: Announcement) -> Result<(), lapin::Error> {
    let Announcement { to, kind, body } = announcement;
    let (exchange, key) = match to {
        Announced::Changes => (EVENTS_EXCHANGE, ShortString::default()),
        Announced::Text { shard } => (TEXT_EXCHANGE, shard.to_string().into()),
    };
    let properties = BasicProperties::default().with_delivery_mode(TRANSIENT).with_type(kind.into());
    channel.basic_publish(exchange.into(), key, BasicPublishOptions::default(), &body, properties).await?;
    Ok(())
}
