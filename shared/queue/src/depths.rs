//! The depths of many queues, for a caller that polls them.
//!
//! A look asks by passive declares, one after the other on one channel without waiting in between. The broker closes
//! that channel at the first queue that it cannot report on: one that does not exist, or that does not belong to us.
//! The questions behind it are asked again on the next channel. The queue itself is in doubt from then on. It is asked
//! after all others, on a separate channel, and less often, because the broker logs a line about each such question. A
//! queue that keeps the broker waiting is put in doubt as well. A quorum queue that has lost its leader does so, for
//! seconds.
//!
//! A quorum queue without a leader reports that it is empty (RabbitMQ, `rabbit_quorum_queue:stat`), and after a
//! restart a broker takes connections before its queues have elected their leaders. So an empty queue is believed only
//! once the connection is some seconds old, unless it is our first.
//!
//! Only the number of ready messages is used. A quorum queue's `consumer_count` counts consumers that are gone, and
//! leaves out others.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, pin_mut, stream};
use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use tokio::time::{Instant, timeout_at};

use crate::error::{NOT_FOUND, explain, reply_code};
use crate::link::{Link, short};
use crate::{Broker, Depth, QueueError};

/// Questions in flight at once.
const PIPELINE: usize = 64;
/// Questions per look about queues in doubt.
const PROBES: usize = 16;
/// After this time, queues have their leaders again.
const SETTLED_AFTER: Duration = Duration::from_secs(5);
/// A queue in doubt is left out of at most this many looks.
const MAX_REST: u32 = 8;

/// Queues that are looked at together. Their connection survives any question. It needs no permission on any of the
/// queues, only access to the vhost.
pub struct Depths {
    broker: Broker,
    queues: Vec<Watched>,
    /// The channel for the queues that have always answered.
    steady: Option<Channel>,
    /// The channel for those in doubt.
    probing: Option<Channel>,
}

struct Watched {
    name: String,
    /// The last answer. Before the first one, an error that says so.
    last: Result<Option<Depth>, QueueError>,
    doubt: Option<Doubt>,
}

/// The state of a queue that did not exist, or on which the broker did not report, when it was last asked.
struct Doubt {
    /// The number of looks that leave it out after an answer.
    rest: u32,
    /// The number of looks that still leave it out.
    left: u32,
    /// When it was last asked.
    asked: Instant,
}

impl Depths {
    /// Watches these queues. Asks nothing yet.
    pub fn new(broker: Broker, queues: impl IntoIterator<Item = String>) -> Depths {
        let queues = queues.into_iter().map(|name| Watched {
            last: Err(QueueError::Failed {
                doing: format!("look at queue {name}"),
                reason: "not asked yet".to_owned(),
            }),
            name,
            doubt: None,
        });
        Depths { broker, queues: queues.collect(), steady: None, probing: None }
    }

    /// Asks for all depths, and returns them in the order of the queues: `None` if there is no such queue. Takes no
    /// longer than `within`. What was not answered in time is an error. If the future is dropped, only some queues
    /// were asked.
    pub async fn look(&mut self, within: Duration) -> Vec<Result<Option<Depth>, QueueError>> {
        let deadline = Instant::now() + within;
        match self.broker.shared().live_link(within).await {
            Ok(link) => {
                self.ask_steady(&link, deadline, within).await;
                self.ask_doubtful(&link, deadline, within).await;
            }
            Err(error) => self.queues.iter_mut().for_each(|queue| {
                queue.last = Err(error.clone());
                if let Some(doubt) = &mut queue.doubt {
                    doubt.left = 0;
                }
            }),
        }
        self.queues.iter().map(|queue| queue.last.clone()).collect()
    }

    /// Asks all queues that are not in doubt. Those that do not answer are in doubt afterwards.
    async fn ask_steady(&mut self, link: &Arc<Link>, deadline: Instant, within: Duration) {
        // Queues that have answered before go first, because they are likely to answer again.
        let (known, unknown): (Vec<usize>, Vec<usize>) = (0..self.queues.len())
            .filter(|at| self.queues[*at].doubt.is_none())
            .partition(|at| matches!(self.queues[*at].last, Ok(Some(_))));
        let mut left: &[usize] = &[known, unknown].concat();
        while !left.is_empty() {
            let channel = match open(link, self.steady.take(), deadline, within).await {
                Ok(channel) => channel,
                Err(error) => {
                    return left.iter().for_each(|at| self.queues[*at].last = Err(error.clone()));
                }
            };
            let (depths, end) = self.ask_in_a_row(&channel, left, deadline).await;
            let answered = depths.len();
            for (at, depth) in left.iter().zip(depths) {
                self.queues[*at].answered(depth, link);
            }
            let Some(refusal) = end else {
                self.steady = Some(channel);
                return;
            };
            // Answers come in the order of the questions, so the first refusal is about this queue.
            let (culprit, behind) = (left[answered], &left[answered + 1..]);
            let over = match &refusal {
                Refusal::Refused(reason) if !link.is_usable() => Some(reason.clone()),
                _ if !link.is_usable() => Some(self.broker.shared().reason()),
                Refusal::Silent => Some("a queue before it keeps the broker waiting".to_owned()),
                Refusal::Missing | Refusal::Refused(_) => None,
            };
            self.queues[culprit].refused(refusal, within);
            left = behind;
            if let Some(reason) = over {
                let error = QueueError::Unavailable { reason };
                return left.iter().for_each(|at| self.queues[*at].last = Err(error.clone()));
            }
        }
    }

    /// Returns the answers up to the first refusal.
    async fn ask_in_a_row(
        &self,
        channel: &Channel,
        queues: &[usize],
        deadline: Instant,
    ) -> (Vec<Depth>, Option<Refusal>) {
        // Each asks when it is first polled, and they are polled in this order.
        let questions: Vec<_> = queues.iter().map(|at| ask(channel, &self.queues[*at].name)).collect();
        let answers = stream::iter(questions).buffered(PIPELINE);
        pin_mut!(answers);
        let mut depths = Vec::with_capacity(queues.len());
        loop {
            match timeout_at(deadline, answers.next()).await {
                Ok(Some(Ok(depth))) => depths.push(depth),
                Ok(Some(Err(refusal))) => return (depths, Some(refusal)),
                Ok(None) => return (depths, None),
                Err(_) => return (depths, Some(Refusal::Silent)),
            }
        }
    }

    /// Asks the queues in doubt whose turn it is, starting with the one that has waited longest.
    async fn ask_doubtful(&mut self, link: &Arc<Link>, deadline: Instant, within: Duration) {
        let mut due: Vec<(Instant, usize)> = Vec::new();
        for (at, queue) in self.queues.iter_mut().enumerate() {
            let Some(doubt) = &mut queue.doubt else { continue };
            match doubt.left {
                0 => due.push((doubt.asked, at)),
                _ => doubt.left -= 1,
            }
        }
        due.sort();
        for (_, at) in due.into_iter().take(PROBES) {
            let Ok(channel) = open(link, self.probing.take(), deadline, within).await else { return };
            let queue = &mut self.queues[at];
            let answer = timeout_at(deadline, ask(&channel, &queue.name)).await;
            match answer.unwrap_or(Err(Refusal::Silent)) {
                Ok(depth) => {
                    queue.answered(depth, link);
                    self.probing = Some(channel);
                }
                Err(_) if !link.is_usable() => return,
                Err(refusal) => queue.refused(refusal, within),
            }
        }
    }
}

impl Watched {
    fn answered(&mut self, depth: Depth, link: &Link) {
        self.doubt = None;
        self.last = match depth {
            Depth { ready: 0 } if link.follows_another_within(SETTLED_AFTER) => Err(QueueError::Failed {
                doing: format!("look at queue {}", self.name),
                reason: "it reports that it is empty, but may have no leader yet after the broker's return"
                    .to_owned(),
            }),
            depth => Ok(Some(depth)),
        };
    }

    /// Leaves it out of the next looks. Each further refusal leaves it out of more of them, up to a limit.
    fn refused(&mut self, refusal: Refusal, within: Duration) {
        let doing = format!("look at queue {}", self.name);
        self.last = match refusal {
            Refusal::Missing => Ok(None),
            Refusal::Refused(reason) => Err(QueueError::Failed { doing, reason }),
            Refusal::Silent => Err(QueueError::Timeout { doing, after: within }),
        };
        let rest = self.doubt.as_ref().map_or(0, |doubt| (doubt.rest * 2 + 1).min(MAX_REST));
        self.doubt = Some(Doubt { rest, left: rest, asked: Instant::now() });
    }
}

/// Why there is no depth.
enum Refusal {
    Missing,
    Refused(String),
    Silent,
}

/// Returns the channel if it still works, or else a new one.
async fn open(
    link: &Arc<Link>,
    channel: Option<Channel>,
    deadline: Instant,
    within: Duration,
) -> Result<Channel, QueueError> {
    if let Some(channel) = channel.filter(|channel| channel.status().connected()) {
        return Ok(channel);
    }
    let late = QueueError::Timeout { doing: "open a channel".to_owned(), after: within };
    timeout_at(deadline, link.channel()).await.unwrap_or(Err(late))
}

async fn ask(channel: &Channel, queue: &str) -> Result<Depth, Refusal> {
    let name: ShortString =
        short("look at a queue", queue).map_err(|error| Refusal::Refused(error.to_string()))?;
    let options = QueueDeclareOptions::durable().passive();
    match channel.queue_declare(name, options, FieldTable::default()).await {
        Ok(found) => Ok(Depth { ready: u64::from(found.message_count()) }),
        Err(error) if reply_code(&error) == Some(NOT_FOUND) => Err(Refusal::Missing),
        Err(error) => Err(Refusal::Refused(explain(&error))),
    }
}
