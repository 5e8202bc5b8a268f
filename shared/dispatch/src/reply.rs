//! The reply: a `harness.result.v1` message for a caller that named a queue, and a `harness.question.v1` message before
//! it each time that the job begins to wait for a person.
//!
//! The name comes from a stranger, so it is used where it can hurt nothing else: on connections and in tasks
//! of their own, which are bounded in number. RabbitMQ up to 4.1 closes a connection that writes to a client
//! at a node that does not exist (see [`job::ReplyRule`]), and then it is not known which of the messages
//! under way caused that. So clients at a node that no reply has reached yet get their replies one by one, on
//! a second connection.
//!
//! A worker sends the reply after the end is in the ledger, and acks the delivery when the reply is out. If
//! it dies in between, the message stays with the broker, and the worker that gets it next finds the job
//! ended and replies (again).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use job::{JobId, JobSpec, JobState, ReplyRule, ReplyTo, TraceParent};
use queue::{Broker, BrokerConfig, Message, PublishError};
use serde::Serialize;
use store::{JobView, Store};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, debug, warn};

/// The version of the reply of a job that waits for a person.
const QUESTION_SCHEMA: &str = "harness.question.v1";
/// The version of the reply, in its field `schema` and in the AMQP property `type`.
const SCHEMA: &str = "harness.result.v1";
/// How many replies are on their way at once, to queues and to clients at nodes that were reached before.
const AT_ONCE: usize = 256;
/// How many can wait for that, without their results; those on their way count as well. Any beyond are not sent.
const WAITING: usize = 20_000;
/// How many can wait for clients at nodes that were not reached before.
const UNKNOWN_WAITING: usize = 64;
/// How many times a reply is tried if its connection ends before the broker has taken it.
const TRIES: u32 = 3;
/// How many nodes are remembered. A cluster has a few.
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
    unknown: Lane,
    /// Nodes of the broker's cluster, by the hashes of their names.
    nodes: Mutex<HashSet<u32>>,
    sending: TaskTracker,
    /// Cancelled by [`crate::Dispatch::close_replies`] when it waits no longer.
    given_up: CancellationToken,
}

/// A connection, and how many replies can use it or wait for it.
struct Lane {
    config: BrokerConfig,
    broker: OnceLock<Broker>,
    at_once: Semaphore,
    waiting: Arc<Semaphore>,
}

/// A reply on its way.
pub struct Sending {
    task: tokio::task::JoinHandle<bool>,
    /// Whether it is out soon if nothing is wrong. If not, it is for a client that can lose it in any case,
    /// by losing its channel, so nothing waits for it.
    pub prompt: bool,
}

impl Sending {
    /// Waits until the reply is out, or given up. Returns false if it was given up only because
    /// [`crate::Dispatch::close_replies`] waits no longer, so that another process may still send it. Can be
    /// dropped at any time.
    pub async fn done(&mut self) -> bool {
        // If the task panicked, that is in the log.
        (&mut self.task).await.unwrap_or(true)
    }
}

impl Replies {
    /// Makes a sender of replies that keep to this rule, through the broker of this configuration.
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
            unknown: lane(", replying to strangers", 1, UNKNOWN_WAITING),
            nodes: Mutex::default(),
            sending: TaskTracker::new(),
            given_up: CancellationToken::new(),
        };
        Replies { shared: Arc::new(shared) }
    }

    /// See [`crate::Dispatch::reply`].
    pub(crate) fn send(&self, spec: &JobSpec, place: Option<TraceParent>) -> Option<Sending> {
        let queue = spec.reply_to.clone()?;
        // The name is checked again, because the job may be older than the rule, or was accepted by a program
        // with another rule.
        let to = match self.shared.rule.check(&queue) {
            Ok(to) => to,
            Err(problem) => {
                warn!(reason = %format_args!("reply_to: {problem}"), "the reply was not sent");
                return None;
            }
        };
        let lane = self.shared.lane(to);
        let Ok(place_in_line) = lane.waiting.clone().try_acquire_owned() else {
            warn!(queue, "the reply was not sent: too many others are waiting");
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
        let Shared { sending, given_up, known, unknown, .. } = &*self.shared;
        sending.close();
        if tokio::time::timeout(within, sending.wait()).await.is_err() {
            given_up.cancel();
            warn!(replies = sending.len(), "replies are given up because this process stops");
            // The tasks notice at once. They end before the connections are closed, which would look like any
            // other failure.
            sending.wait().await;
        }
        for lane in [known, unknown] {
            if let Some(broker) = lane.broker.get() {
                broker.close().await;
            }
        }
    }
}

/// Returns the version of the reply of a job in this state; none of one that goes on by itself.
fn schema(state: JobState) -> Option<&'static str> {
    match state {
        JobState::AwaitingInput => Some(QUESTION_SCHEMA),
        end => end.is_end().then_some(SCHEMA),
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
            ReplyTo::Client { node } if !self.nodes().contains(&node) => &self.unknown,
            ReplyTo::Client { .. } | ReplyTo::Queue => &self.known,
        }
    }

    async fn send(&self, addressed: Addressed) {
        let Addressed { job_id, queue, to, .. } = &addressed;
        for attempt in 1..=TRIES {
            let lane = self.lane(*to);
            // The semaphore is never closed, so there will be a place.
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
            let Some((schema, view)) = view.and_then(|view| Some((schema(view.state)?, view))) else {
                return;
            };
            let body = match serde_json::to_vec(&Reply { schema, job: &view }) {
                Ok(body) => body,
                Err(error) => {
                    return warn!(cause = %error, "the reply was not sent: the result cannot be written");
                }
            };
            let message = Message {
                message_id: Some(job_id.to_string()),
                correlation_id: Some(addressed.correlation_id.clone()),
                traceparent: addressed.traceparent.clone(),
                ..Message::new(schema, body)
            };
            match lane.publisher().reply(queue, message).await {
                Ok(()) => {
                    self.reached(*to);
                    return debug!(queue, "replied");
                }
                // The name of another reply may have ended the connection, or the name of this one.
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

    /// Forgets a client's node, because it may have left the cluster.
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
