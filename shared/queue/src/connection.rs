//! The supervisor: keeps one connection to the broker alive, and announces which one is current.
//!
//! It alone connects, waits between attempts (jittered, capped) and decides that a connection is over. Slots and
//! publishers wait for its next link. It logs one line per change, with the broker's address without the password.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use lapin::Event;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::address::Address;
use crate::announcing::Announcer;
use crate::declarations::DELETION_TIME;
use crate::error::{explain, is_refusal};
use crate::link::Link;
use crate::listening::Listener;
use crate::refusals::PUBLISHING;
use crate::refusals::Refusals;
use crate::shared::{BrokerStatus, Shared, jitter};
use crate::{
    BrokerConfig, DEAD_QUEUE, DeadLetter, DeadLetterCursor, Depth, HeldLetter, Publisher, QueueError, Slot,
    confirming, topology,
};

/// The most that one call reads into memory, whatever its limit.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// A handle on one supervised connection. Clones share it. When the last clone is dropped (publishers and slots count),
/// the connection is closed.
#[derive(Clone)]
pub struct Broker {
    shared: Arc<Shared>,
    publisher: Publisher,
}

impl Broker {
    /// Starts a task and returns at once. The task connects, and connects again whenever the connection ends, until
    /// `stop` is cancelled or [`Broker::close`] is called. Cancel `stop` after the last ack, not before.
    ///
    /// Panics outside of a tokio runtime.
    pub fn start(config: BrokerConfig, stop: CancellationToken) -> Broker {
        let (requests, incoming) = mpsc::channel(config.max_in_flight.max(1));
        let shared = Arc::new(Shared {
            stop: stop.child_token(),
            runtime: tokio::runtime::Handle::current(),
            answered: CancellationToken::new(),
            announcing: TaskTracker::new(),
            pools: Mutex::new(config.pools.clone()),
            redeclared: watch::Sender::default(),
            status: watch::Sender::new(BrokerStatus::Connecting { reason: None }),
            blocked: watch::Sender::new(None),
            link: watch::Sender::new(None),
            config,
            refusals: Refusals::default(),
            seeking: AtomicUsize::new(0),
        });
        let publishing = tokio::spawn(confirming::run(shared.clone(), incoming));
        let supervising = tokio::spawn(supervise(shared.clone()));
        tokio::spawn(close_on_task_end(shared.clone(), supervising, publishing));
        let alive = Arc::new(shared.stop.clone().drop_guard());
        let publisher = Publisher::new(shared.clone(), requests, alive);
        Broker { shared, publisher }
    }

    /// Returns a receiver of the supervisor's status, now and from now on.
    pub fn status(&self) -> watch::Receiver<BrokerStatus> {
        self.shared.status.subscribe()
    }

    /// Waits until the supervisor has given up for good, and returns the reason.
    pub async fn closed(&self) -> String {
        let mut status = self.status();
        match status.wait_for(|status| matches!(status, BrokerStatus::Closed { .. })).await.as_deref() {
            Ok(BrokerStatus::Closed { reason }) => reason.clone(),
            Ok(_) | Err(_) => "its supervisor is gone".to_owned(),
        }
    }

    /// Returns the broker's reason while it blocks this connection (memory or disk alarm), else `None`. Publishes then
    /// wait, and so do acks if this connection also publishes.
    pub fn blocked(&self) -> watch::Receiver<Option<String>> {
        self.shared.blocked.subscribe()
    }

    /// Returns why nothing can be published now, if so: no connection, a block by the broker, or a refusal.
    pub fn held_up(&self) -> Option<String> {
        let held_up = !self.shared.is_connected() || self.shared.is_blocked();
        self.refused().or_else(|| held_up.then(|| self.shared.reason()))
    }

    /// Returns what the broker refuses to our user, if anything, until it is granted.
    pub fn refused(&self) -> Option<String> {
        self.shared.refusals.any()
    }

    /// Whether the broker refuses to let our user publish, as far as we know. The refusal has been logged.
    pub fn refuses_publishing(&self) -> bool {
        self.shared.refusals.has(PUBLISHING)
    }

    /// Waits for a connection. Returns its generation.
    pub async fn ready(&self, within: Duration) -> Result<u64, QueueError> {
        self.shared.live_link(within).await.map(|link| link.generation)
    }

    /// Returns a publisher on this connection. All publishers of one broker share its limit of messages in flight.
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Returns what sends announcements, on a channel of its own.
    pub fn announcer(&self) -> Announcer {
        Announcer::start(&self.shared)
    }

    /// Returns what receives the announcements of all processes, on a channel and from a queue of its own.
    pub fn listener(&self) -> Listener {
        Listener::start(&self.shared, self.publisher.alive())
    }

    /// Returns a slot that takes from `queue`. Its consumer tags begin with `prefix` and show in the management UI.
    pub fn slot(&self, queue: &str, prefix: &str) -> Slot {
        Slot::new(self.shared.clone(), self.publisher.alive(), queue, prefix)
    }

    /// Whether every slot that wants to consume does so.
    pub fn is_consuming(&self) -> bool {
        self.shared.seeking.load(Ordering::Relaxed) == 0
    }

    /// Returns how many messages wait in a queue, or `None` if there is no such queue.
    pub async fn depth(&self, queue: &str) -> Result<Option<Depth>, QueueError> {
        self.shared.live_link(self.shared.config.operation_timeout).await?.depth(queue).await
    }

    /// Opens a cursor over the dead letters, on a channel of its own. When that channel is closed, or dropped with the
    /// cursor, the letters return to the queue.
    pub async fn dead_letter_cursor(&self) -> Result<DeadLetterCursor, QueueError> {
        DeadLetterCursor::begin(&self.shared).await
    }

    /// Returns the oldest dead letters, at most `limit` and at most 64 MiB of them. They stay in the queue. While this
    /// runs, no other consumer sees them.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, QueueError> {
        let mut cursor = self.dead_letter_cursor().await?;
        let mut letters = Vec::new();
        let mut bytes = 0;
        while letters.len() < limit && bytes < MAX_BYTES {
            let Some(HeldLetter { letter, .. }) = cursor.next().await? else { break };
            bytes += letter.body.len();
            letters.push(letter);
        }
        cursor.close().await?;
        Ok(letters)
    }

    /// Returns the number of dead letters.
    pub async fn dead_letter_count(&self) -> Result<u64, QueueError> {
        Ok(self.depth(DEAD_QUEUE).await?.map_or(0, |depth| depth.ready))
    }

    /// Waits until the queue of any pool is declared anew because it was deleted or missing. Returns each such pool
    /// once. What was published to the old queue is lost, even if the broker confirmed it: when a quorum queue is
    /// deleted, RabbitMQ confirms what was in flight to it.
    pub async fn redeclared_queues(&self) -> BTreeMap<job::Name, Instant> {
        let mut redeclared = self.shared.redeclared.subscribe();
        // This cannot fail, because the sender lives in `shared`.
        let _ = redeclared.wait_for(|pools| !pools.is_empty()).await;
        self.shared.redeclared.send_replace(BTreeMap::new())
    }

    /// Declares a pool's queue, even if it exists, because it may be of another kind. From now on it is declared at
    /// every connect if it is missing.
    pub async fn declare_pool(&self, pool: &job::Name) -> Result<(), QueueError> {
        let link = self.shared.live_link(self.shared.config.operation_timeout).await?;
        match link.depth(&topology::jobs_queue(pool)).await? {
            Some(_) => link.declare_now(pool).await?,
            None => self.shared.declare_missing(&link, pool).await?,
        }
        self.shared.keep(pool);
        Ok(())
    }

    /// Waits for the confirms of what is being published, then closes the connection. Each may take `close_timeout`.
    /// Deliveries that are not acked by then return to their queues.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        let mut status = self.shared.status.subscribe();
        let closed = status.wait_for(|status| matches!(status, BrokerStatus::Closed { .. }));
        let _ = timeout(self.shared.config.close_timeout * 2, closed).await;
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// Announces the end when one of the tasks ends, whatever the cause, including a panic.
async fn close_on_task_end(
    shared: Arc<Shared>,
    mut supervising: JoinHandle<String>,
    publishing: JoinHandle<()>,
) {
    let reason = tokio::select! {
        ended = &mut supervising => ended.unwrap_or_else(|error| format!("the supervisor died: {error}")),
        Err(error) = publishing => {
            shared.stop.cancel();
            let _ = supervising.await;
            format!("the sending task died: {error}")
        }
    };
    shared.stop.cancel();
    shared.link.send_replace(None);
    shared.status.send_replace(BrokerStatus::Closed { reason });
}

/// Keeps the broker connected. Returns why that ended.
async fn supervise(shared: Arc<Shared>) -> String {
    match shared.config.address() {
        Ok(address) => {
            Supervision::new(&shared, &address).keep_connected().await;
            info!(broker = address.shown(), "connection to the broker closed");
            "closed by this process".to_owned()
        }
        Err(error) => error.to_string(),
    }
}

/// State that outlives a connection.
struct Supervision<'a> {
    shared: &'a Shared,
    address: &'a Address,
    generation: u64,
    /// Failed attempts in a row.
    failures: u32,
    /// Whether the last connection ended because of a refusal.
    is_refused: bool,
    /// Queues whose deletion the last connection saw, and when.
    deleted: BTreeMap<String, Instant>,
    /// Pools whose queue was missing at a connect, and until when.
    redeclared: BTreeMap<job::Name, Instant>,
}

impl<'a> Supervision<'a> {
    fn new(shared: &'a Shared, address: &'a Address) -> Supervision<'a> {
        Supervision {
            shared,
            address,
            generation: 0,
            failures: 0,
            is_refused: false,
            deleted: BTreeMap::new(),
            redeclared: BTreeMap::new(),
        }
    }

    async fn keep_connected(&mut self) {
        let shared = self.shared;
        while !shared.stop.is_cancelled() {
            let pools = shared.pools().clone();
            let opened = tokio::select! {
                opened = self.open(&pools) => opened,
                () = shared.stop.cancelled() => return,
            };
            shared.refusals.heard("connect", &opened);
            let reason = match opened {
                Ok(link) => match self.live(Arc::new(link), pools).await {
                    Some(reason) => reason,
                    None => return,
                },
                Err(error) => self.failed(&error),
            };
            shared.status.send_replace(BrokerStatus::Connecting { reason: Some(reason) });
            self.failures += 1;
            if shared.stop.run_until_cancelled(sleep(self.pause())).await.is_none() {
                return;
            }
        }
    }

    async fn open(&mut self, pools: &[job::Name]) -> Result<Link, QueueError> {
        let deleted = self.deleted.values().max().copied();
        let (config, redeclared) = (&self.shared.config, &mut self.redeclared);
        Link::open_and_declare(self.address, config, pools, deleted, redeclared, self.generation + 1).await
    }

    /// Serves one connection from its first to its last moment. Returns why it ended, or `None` if we are to stop.
    async fn live(&mut self, link: Arc<Link>, pools: Vec<job::Name>) -> Option<String> {
        self.generation += 1;
        let (shared, config, since) = (self.shared, &self.shared.config, Instant::now());
        let (broker, generation) = (self.address.shown(), self.generation);
        if self.is_refused {
            debug!(broker, generation, "connected to the broker again");
        } else {
            info!(broker, generation, "connected to the broker");
        }
        self.note_redeclared(pools);
        shared.link.send_replace(Some(link.clone()));
        shared.status.send_replace(BrokerStatus::Ready { generation });
        let Some(reason) = watch_over(shared, &link).await else {
            // On a stop, wait for the confirms first. Acks that were sent already precede the close on the wire.
            shared.announcing.close();
            let ended = async { tokio::join!(shared.answered.cancelled(), shared.announcing.wait()) };
            let _ = timeout(config.close_timeout, ended).await;
            shared.link.send_replace(None);
            link.close(config.close_timeout).await;
            return None;
        };
        // A connection that lasted was no failure. One that ends at once counts as a failure.
        let has_lasted = since.elapsed() > config.max_backoff;
        // A refusal ends the connection at each try, whether or not the broker gives it as the reason. It was logged
        // once, or is about to be.
        self.is_refused = is_refusal(&reason) || (!has_lasted && shared.refusals.any().is_some());
        if self.is_refused {
            debug!(broker, generation, reason, "gave up a connection");
        } else {
            warn!(broker, generation, reason, "lost the connection to the broker");
        }
        shared.link.send_replace(None);
        shared.blocked.send_replace(None);
        self.deleted = link.deleted_queues();
        let goodbye = config.close_timeout;
        tokio::spawn(async move { link.close(goodbye).await });
        if has_lasted {
            self.failures = 0;
        }
        Some(reason)
    }

    /// Notes the pools whose queue is there again. Another client may have declared it, but only after `DELETION_TIME`.
    fn note_redeclared(&mut self, pools: Vec<job::Name>) {
        for pool in pools {
            if let Some(deleted) = self.deleted.get(&topology::jobs_queue(&pool)) {
                self.redeclared.entry(pool).or_insert(*deleted + DELETION_TIME);
            }
        }
        self.shared.note_redeclared(std::mem::take(&mut self.redeclared));
    }

    /// Logs why there is no connection. Returns the reason.
    fn failed(&self, error: &QueueError) -> String {
        let (broker, failures, reason) = (self.address.shown(), self.failures, error.to_string());
        let before = self.shared.status.borrow().clone();
        let is_news = before != (BrokerStatus::Connecting { reason: Some(reason.clone()) });
        if is_news && !matches!(error, QueueError::Refused { .. }) {
            warn!(broker, reason, "cannot connect to the broker; trying again until it works");
        } else {
            debug!(broker, reason, failures, "still cannot connect to the broker");
        }
        reason
    }

    /// Returns how long to wait before the next try.
    fn pause(&self) -> Duration {
        let pause = self.shared.config.backoff().next_delay(self.failures, jitter());
        if self.deleted.is_empty() { pause } else { pause.max(DELETION_TIME) }
    }
}

/// Watches one link until it ends. Returns the reason, or `None` if we are to stop.
async fn watch_over(shared: &Shared, link: &Link) -> Option<String> {
    let mut events = Box::pin(link.events());
    // Some ways to end emit no event, so the link is polled, too.
    let mut look = interval(Duration::from_secs(1));
    let mut reason = None;
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return None,
            failure = link.failure() => return Some(failure),
            Some(event) = events.next() => match event {
                Event::ConnectionBlocked(reason) => {
                    warn!(reason, "the broker blocks our publishing");
                    shared.blocked.send_replace(Some(reason));
                }
                Event::ConnectionUnblocked => {
                    info!("the broker takes our messages again");
                    shared.blocked.send_replace(None);
                }
                // This event also reports the end of channels that are opened anew where they are used.
                Event::Error(error) => reason = Some(explain(&error)),
                _ => {}
            },
            _ = look.tick() => {}
        }
        if !link.is_usable() {
            let reason = reason.unwrap_or_else(|| "the broker closed the connection".to_owned());
            link.fail(&reason);
            return Some(reason);
        }
    }
}
