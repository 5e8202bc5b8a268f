//! The reply: a `harness.result.v1` message for a caller that named a queue.
//!
//! The name is a stranger's, so it is used where it can hurt nobody else: on a connection of its own, by tasks of their own,
//! bounded in number. RabbitMQ up to 4.1 closes the connection of who writes to a client at a node that is not there (see
//! [`job::ReplyRule`]), and then nobody can say which of the messages under way it was. Clients at a node that no reply has
//! reached yet therefore get theirs one by one, on a second connection.
//!
//! A worker sends it after the end is in the ledger, and acks the delivery when it is out: if it dies in between, the message
//! stays with the broker, and whoever gets it next finds the job ended and replies (again).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use job::{JobId, JobSpec, ReplyRule, ReplyTo, TraceParent};
use queue::{Broker, BrokerConfig, Message, PublishError};
use serde::Serialize;
use store::{JobView, Store};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, debug, warn};

/// The version of the reply, in its field `schema` and in the AMQP property `type`.
const SCHEMA: &str = "harness.result.v1";
/// Replies on their way at once, to queues and to clients at nodes that were reached before.
const AT_ONCE: usize = 256;
/// Those that may wait for that, without their results; what comes then is not sent.
const WAITING: usize = 20_000;
/// The same for clients at nodes that were not.
const STRANGERS_WAITING: usize = 64;
/// How often one is sent whose connection ended before the broker had taken it.
const TRIES: u32 = 3;
/// Nodes that are remembered; a cluster has a few.
const MAX_NODES: usize = 64;

#[derive(Serialize)]
struct Reply<'a> {
    schema: &'static str,
    #[serde(flatten)]
    job: &'a JobView,
}

/// Sends replies. Clones share connections, which are made when the first reply is due.
#[derive(Clone)]
pub(crate) struct Replies {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    rule: ReplyRule,
    known: Lane,
    strangers: Lane,
    /// Nodes of the broker's cluster, by the hashes of their names.
    nodes: Mutex<HashSet<u32>>,
    sending: TaskTracker,
    /// Cancelled by [`crate::Dispatch::close_replies`] when it waits no longer.
    given_up: CancellationToken,
}

/// A connection, and who may use it when.
struct Lane {
    config: BrokerConfig,
    broker: OnceLock<Broker>,
    at_once: Semaphore,
    waiting: Arc<Semaphore>,
}

/// A reply on its way.
pub struct Sending {
    task: tokio::task::JoinHandle<bool>,
    /// Whether it is soon out if nothing is wrong. One that is not is a client's who can lose it in any case, by losing his
    /// channel: nothing waits for it.
    pub prompt: bool,
}

impl Sending {
    /// Resolves when it is out, or given up: false if only because [`crate::Dispatch::close_replies`] waits no longer, so that another process
    /// may send it yet. May be dropped at any time.
    pub async fn done(&mut self) -> bool {
        // That it panicked is in the log.
        (&mut self.task).await.unwrap_or(true)
    }
}

impl Replies {
    /// Replies within this rule, through the broker of this configuration.
    pub(crate) fn new(store: Store, config: &BrokerConfig, rule: ReplyRule) -> Replies {
        let lane = |name: &str, at_once, waiting| Lane {
            // Nothing is declared here, and results go in as many small frames as they need.
            config: BrokerConfig {
                name: format!("{}{name}", config.name),
                pools: Vec::new(),
                ..config.clone()
            }
            .only_looking(),
            broker: OnceLock::new(),
            at_once: Semaphore::new(at_once),
            waiting: Arc::new(Semaphore::new(waiting)),
        };
        let shared = Shared {
            store,
            rule,
            known: lane(", replying", AT_ONCE, WAITING),
            strangers: lane(", replying to strangers", 1, STRANGERS_WAITING),
            nodes: Mutex::default(),
            sending: TaskTracker::new(),
            given_up: CancellationToken::new(),
        };
        Replies { shared: Arc::new(shared) }
    }

    /// See [`crate::Dispatch::reply`].
    pub(crate) fn send(&self, spec: &JobSpec, place: Option<TraceParent>) -> Option<Sending> {
        let queue = spec.reply_to.clone()?;
        // Again: the job may be older than the rule, or was taken in by a program with another one.
        let to = match self.shared.rule.check(&queue) {
            Ok(to) => to,
            Err(problem) => {
                warn!(reason = %format_args!("reply_to: {problem}"), "the reply was not sent");
                return None;
            }
        };
        let lane = self.shared.lane(to);
        let Ok(place_in_line) = lane.waiting.clone().try_acquire_owned() else {
            warn!(queue, "the reply was not sent: too many others wait to be");
            return None;
        };
        let prompt = std::ptr::eq(lane, &self.shared.known);
        let shared = self.shared.clone();
        let addressed = Addressed {
            job_id: spec.job_id,
            to,
            correlation_id: spec.correlation_id.clone().unwrap_or_else(|| spec.job_id.to_string()),
            traceparent: place.map(|place| place.to_string()),
            queue,
        };
        let sending = async move {
            let sent = shared.given_up.run_until_cancelled(shared.send(addressed)).await;
            drop(place_in_line);
            sent.is_some()
        };
        let task = self.shared.sending.spawn(sending.instrument(Span::current()));
        Some(Sending { task, prompt })
    }

    /// Waits for what is on its way, within a bound, and closes the connections.
    pub(crate) async fn close(&self, within: Duration) {
        let Shared { sending, given_up, known, strangers, .. } = &*self.shared;
        sending.close();
        if tokio::time::timeout(within, sending.wait()).await.is_err() {
            given_up.cancel();
            warn!(replies = sending.len(), "replies are given up: this process stops");
            // They notice at once. Before the connections are closed, which would look like any other failure.
            sending.wait().await;
        }
        for lane in [known, strangers] {
            if let Some(broker) = lane.broker.get() {
                broker.close().await;
            }
        }
    }
}

/// A reply without the result.
struct Addressed {
    job_id: JobId,
    queue: String,
    to: ReplyTo,
    correlation_id: String,
    traceparent: Option<String>,
}

impl Shared {
    fn lane(&self, to: ReplyTo) -> &Lane {
        match to {
            ReplyTo::Client { node } if !self.nodes().contains(&node) => &self.strangers,
            ReplyTo::Client { .. } | ReplyTo::Queue => &self.known,
        }
    }

    async fn send(&self, addressed: Addressed) {
        let Addressed { job_id, queue, to, .. } = &addressed;
        for attempt in 1..=TRIES {
            let lane = self.lane(*to);
            // Never closed, so there will be a place.
            let _place = lane.at_once.acquire().await;
            let view = match self.store.jobs(&[*job_id]).await {
                Ok(views) => views.into_iter().next(),
                Err(cause) => {
                    return warn!(
                        cause = cause.as_dyn(),
                        "the reply was not sent: the result cannot be read"
                    );
                }
            };
            let Some(view) = view.filter(|view| view.state.is_end()) else { return };
            let body = match serde_json::to_vec(&Reply { schema: SCHEMA, job: &view }) {
                Ok(body) => body,
                Err(error) => {
                    return warn!(cause = %error, "the reply was not sent: the result cannot be written");
                }
            };
            let message = Message {
                message_id: Some(job_id.to_string()),
                correlation_id: Some(addressed.correlation_id.clone()),
                traceparent: addressed.traceparent.clone(),
                ..Message::new(SCHEMA, body)
            };
            match lane.publisher().reply(queue, message).await {
                Ok(()) => {
                    self.reached(*to);
                    return debug!(queue, "replied");
                }
                // Another's name may have ended the connection, or this one.
                Err(PublishError::Unconfirmed { .. })
                    if attempt < TRIES && std::ptr::eq(lane, &self.known) =>
                {
                    self.lost(*to);
                }
                Err(error) => return warn!(queue, cause = %error, "the reply was not sent"),
            }
        }
    }

    fn reached(&self, to: ReplyTo) {
        let ReplyTo::Client { node } = to else { return };
        let mut nodes = self.nodes();
        if nodes.len() < MAX_NODES {
            nodes.insert(node);
        }
    }

    /// Its node may have left the cluster.
    fn lost(&self, to: ReplyTo) {
        if let ReplyTo::Client { node } = to {
            self.nodes().remove(&node);
        }
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, HashSet<u32>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    fn publisher(&self) -> queue::Publisher {
        let broker = self.broker.get_or_init(|| Broker::start(self.config.clone(), CancellationToken::new()));
        broker.publisher()
    }
}
