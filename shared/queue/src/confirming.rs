//! The task that sends a broker's messages and matches the broker's confirms to them.
//!
//! There is one task per broker, for two reasons that lie in lapin 4.12. It numbers a message and queues its frames
//! under two different locks, so concurrent publishes on one channel can swap their confirms. And it attaches a
//! returned message to *some* confirm that resolves with or before the right one. If the broker confirms several
//! messages at once (`multiple`), that is an arbitrary one of them. So no caller is answered before all confirms that
//! resolved together have been looked at, and a returned message is matched by its content, not by the confirm it came
//! with.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tracing::{debug, warn};

use crate::error::{REPLY_SUCCESS, failed};
use crate::headers;
use crate::link::{Link, bounded};
use crate::publisher::{Answer, Request, fingerprint};
use crate::refusals::PUBLISHING;
use crate::shared::Shared;
use crate::{BrokerConfig, QueueError};

/// No queue has this name.
const NOWHERE: &str = "harness.nowhere";

/// A message whose outcome is known.
struct Done {
    fingerprint: u64,
    bytes: usize,
    /// The period in which it was sent.
    period: u64,
    answer: oneshot::Sender<Answer>,
    outcome: lapin::Result<Confirmation>,
}

/// Notices a message whose confirm never comes. RabbitMQ's channel numbers what it sends to a quorum queue. If that
/// queue is deleted and declared anew meanwhile, the new one waits for numbers that went to the old one, and neither
/// takes nor refuses anything from that channel. Time is counted in periods of `confirm_timeout`, since a timer for
/// each message would cost more than the message.
struct Overdue {
    ends: Interval,
    period: u64,
    /// Messages in flight that were sent in this period, and those that were sent before it.
    now: usize,
    before: usize,
}

impl Overdue {
    fn new(confirm_timeout: Duration) -> Overdue {
        let mut ends = interval_at(Instant::now() + confirm_timeout, confirm_timeout);
        ends.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Overdue { ends, period: 0, now: 0, before: 0 }
    }

    fn sent(&mut self) -> u64 {
        self.now += 1;
        self.period
    }

    fn done(&mut self, period: u64) {
        if period == self.period { self.now -= 1 } else { self.before -= 1 }
    }

    /// Waits until the period ends. Returns whether any message has waited for a whole period.
    async fn period_ends(&mut self) -> bool {
        self.ends.tick().await;
        let missed = self.before > 0;
        self.before += std::mem::take(&mut self.now);
        self.period += 1;
        missed
    }
}

/// Messages whose outcome is not known yet. `F` is the future of one outcome.
struct InFlight<F> {
    sends: FuturesUnordered<F>,
    bytes: usize,
    overdue: Overdue,
}

impl<F: Future<Output = Done>> InFlight<F> {
    fn new(confirm_timeout: Duration) -> InFlight<F> {
        InFlight { sends: FuturesUnordered::new(), bytes: 0, overdue: Overdue::new(confirm_timeout) }
    }

    fn has_room(&self, config: &BrokerConfig) -> bool {
        self.sends.len() < config.max_in_flight && self.bytes < config.max_in_flight_bytes
    }

    /// Adds a message. `begin` gets the period in which it is sent.
    fn add(&mut self, request: Request, begin: impl Fn(Request, u64) -> F) {
        self.bytes += request.body.len();
        self.sends.push(begin(request, self.overdue.sent()));
    }

    /// Takes the messages that have resolved by now as well, and removes all of them from the count.
    fn take_resolved(&mut self, resolved: &mut Vec<Done>) {
        while let Some(Some(done)) = self.sends.next().now_or_never() {
            resolved.push(done);
        }
        for done in resolved.iter() {
            self.bytes -= done.bytes;
            self.overdue.done(done.period);
        }
    }
}

/// Why nothing more can be sent on a channel.
enum End {
    Channel,
    Link,
    Stopped,
}

/// Sends incoming messages, on one link after the other, until the broker is closed.
pub(crate) async fn run(shared: Arc<Shared>, mut requests: mpsc::Receiver<Request>) {
    let _all_answered = shared.answered.clone().drop_guard();
    while let Some(link) = shared.next_link().await {
        match open(&link).await {
            Ok(channel) => {
                let channel = Arc::new(channel);
                match serve(&shared, &link, channel.clone(), &mut requests).await {
                    End::Stopped => return close_channel(&channel, shared.config.close_timeout).await,
                    End::Link => continue,
                    End::Channel => debug!("the publishing channel ended; opening another"),
                }
            }
            Err(error) => link.suspect(&error),
        }
        // What closes one channel may close the next one, so this must not be a tight loop.
        let is_refused = shared.refusals.has(PUBLISHING);
        let pause = if is_refused { shared.config.max_backoff } else { Duration::from_millis(200) };
        let _ = shared.stop.run_until_cancelled(timeout(pause, link.failure())).await;
    }
}

async fn open(link: &Link) -> Result<Channel, QueueError> {
    let channel = link.channel().await?;
    let selecting = channel.confirm_select(ConfirmSelectOptions::default());
    bounded(link.operation_timeout(), "switch confirms on", selecting).await?;
    Ok(channel)
}

/// Closes the channel and waits for the broker's answer. lapin closes a dropped channel by itself, a moment later. The
/// connection is closed next, and if the two closes overlap, lapin 4.12 ends the connection with an error and never
/// completes its close.
async fn close_channel(channel: &Channel, within: Duration) {
    let _ = timeout(within, channel.close(REPLY_SUCCESS, "done".into())).await;
}

async fn serve(
    shared: &Shared,
    link: &Link,
    channel: Arc<Channel>,
    requests: &mut mpsc::Receiver<Request>,
) -> End {
    let config = &shared.config;
    let mut in_flight = InFlight::new(config.confirm_timeout);
    let begin = |request, period| send(channel.clone(), request, link.frame_max(), period);
    let mut resolved = Vec::new();
    let mut returned = Vec::new();
    if shared.refusals.has(PUBLISHING) && !shared.stop.is_cancelled() {
        in_flight.add(question(), &begin);
    }
    loop {
        // Take all waiting requests first, so that many are written at once.
        while in_flight.has_room(config)
            && let Ok(request) = requests.try_recv()
        {
            // A caller that has given up meanwhile publishes again, or no longer wants to.
            if !request.answer.is_closed() {
                in_flight.add(request, &begin);
            }
        }
        // Nothing more comes once it is closed. What came before is still sent.
        if requests.is_closed() && requests.is_empty() && in_flight.sends.is_empty() {
            return End::Stopped;
        }
        tokio::select! {
            biased;
            Some(done) = in_flight.sends.next() => resolved.push(done),
            Some(request) = requests.recv(), if in_flight.has_room(config) => {
                in_flight.add(request, &begin);
                continue;
            }
            _ = link.failure() => return End::Link,
            // A broker that blocks us reads nothing, on any channel.
            missed = in_flight.overdue.period_ends() => {
                if missed && !shared.is_blocked() {
                    return unconfirmed_in_time();
                }
                continue;
            }
            () = shared.stop.cancelled(), if !requests.is_closed() => {
                requests.close();
                continue;
            }
        }
        // Take the rest of what the broker confirmed along with it.
        returned.extend(barrier(&channel));
        in_flight.take_resolved(&mut resolved);
        settle(shared, &mut resolved, &mut returned);
        if !channel.status().connected() {
            // Futures that still wait are dropped. Their callers learn that the outcome is unknown.
            return if link.is_usable() { End::Channel } else { End::Link };
        }
    }
}

fn unconfirmed_in_time() -> End {
    warn!("a message was not confirmed in time, although others may be; opening another channel");
    End::Channel
}

/// Returns a message that asks whether we may publish. It has no queue, so the broker confirms and drops it. Without
/// it, a refusal would remain recorded until there is something to publish.
fn question() -> Request {
    let (answer, _) = oneshot::channel();
    let properties = BasicProperties::default();
    Request { queue: NOWHERE.into(), mandatory: false, body: Vec::new(), properties, answer }
}

/// Publishes one message. One task polls these futures first in the order of `push`, so numbers and frames stay in
/// step.
async fn send(channel: Arc<Channel>, request: Request, frame_max: usize, period: u64) -> Done {
    let Request { queue, mandatory, body, properties, answer } = request;
    // RabbitMQ closes the connection on a frame that is larger.
    let properties = headers::fitted(properties, frame_max);
    let fingerprint = if mandatory { fingerprint(&queue, &properties) } else { 0 };
    let bytes = body.len();
    let options = BasicPublishOptions { mandatory, immediate: false };
    let outcome = match channel.basic_publish("".into(), queue, options, &body, properties).await {
        Ok(confirm) => {
            drop(body);
            confirm.await
        }
        Err(error) => Err(error),
    };
    Done { fingerprint, bytes, period, answer, outcome }
}

/// Waits until lapin has handled the whole of the present confirm frame. Asking for the last confirm takes the lock
/// that lapin holds meanwhile. Also returns the returned messages whose futures were dropped.
fn barrier(channel: &Channel) -> Vec<BasicReturnMessage> {
    match pin!(channel.wait_for_confirms()).now_or_never() {
        Some(Ok(messages)) => messages,
        _ => Vec::new(),
    }
}

/// Answers every request whose outcome is known.
fn settle(shared: &Shared, resolved: &mut Vec<Done>, returned: &mut Vec<BasicReturnMessage>) {
    let mut answers = Vec::with_capacity(resolved.len());
    for Done { fingerprint, answer, outcome, .. } in resolved.drain(..) {
        let outcome = outcome.map_err(|error| failed(PUBLISHING, &error));
        shared.refusals.heard(PUBLISHING, &outcome);
        let outcome = match outcome {
            Ok(Confirmation::Ack(message)) => {
                returned.extend(message);
                Answer::Confirmed
            }
            Ok(Confirmation::Nack(message)) => {
                returned.extend(message);
                Answer::Nacked
            }
            Ok(Confirmation::NotRequested) => Answer::Lost("confirms are off".to_owned()),
            Err(QueueError::Failed { reason, .. }) => Answer::Lost(reason),
            Err(error) => Answer::Lost(error.to_string()),
        };
        answers.push((fingerprint, answer, outcome));
    }
    for (own, answer, outcome) in answers {
        let place = returned.iter().position(|m| fingerprint(&m.routing_key, &m.properties) == own);
        let outcome = match place {
            Some(place) => Answer::Returned(Box::new(returned.swap_remove(place))),
            None => outcome,
        };
        // A caller that has stopped waiting already knows that the outcome is unknown.
        let _ = answer.send(outcome);
    }
}
