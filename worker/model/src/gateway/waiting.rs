//! Waits until a request has room. A request that is busy or too early is not refused at once: SDKs give up after two
//! retries, and the room that is missing is usually there a moment later.
//!
//! Nothing is held meanwhile: no reservation, no connection to the ledger. The wait ends when there is room, when the
//! program hangs up, when the attempt ends, or after the time that the settings name.

use std::sync::Arc;
use std::time::Duration;

use job::Usd;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::attempt::Shared;
use super::lines::{Lines, Ticket};
use super::places::{Places, Slot};
use super::refusal::Refusal;
use crate::ledger::{Given, Reserve, Unavailable};
use crate::provider::Provider;

/// How the wait for room has ended.
pub(super) enum Room {
    /// The amount is held.
    Granted,
    /// Its answer was paid before.
    Answered(Given),
    /// What is settled leaves no room. The limit, for people.
    Spent {
        limit: String,
        /// The most that a call may cost which would fit if others settled for nothing.
        room: Usd,
    },
    /// It took too long.
    Over(Refusal),
    /// The attempt has ended, or the ledger cannot be asked.
    Refused(Refusal),
    /// The program has hung up.
    Gone,
    /// The ledger did not answer. The amount may be held.
    Unavailable(Unavailable),
}

/// One request's wait, over all its turns.
pub(super) struct Waiting {
    lines: Arc<Lines>,
    attempt: Arc<Shared>,
    settlements: watch::Receiver<()>,
    until: Instant,
    /// Its place, and when to ask again.
    place: Option<(Ticket, Duration)>,
    /// What the program is answered if the time is over.
    refusal: Refusal,
}

impl Waiting {
    /// Begins for a request that a limit of this name would hold up, too. Those that wait already are before it.
    pub fn begin(inner: &Inner, attempt: &Arc<Shared>, rates: &str) -> Waiting {
        let lines = inner.lines.clone();
        let in_the_way = |line: &str| line == rates || attempt.attempt.ledger.counts_in(line);
        let place = lines.join_any(attempt.id(), in_the_way).map(|ticket| (ticket, ASK_AGAIN));
        let (settlements, until) = (lines.settlements(), Instant::now() + inner.settings.wait);
        Waiting { lines, attempt: attempt.clone(), settlements, until, place, refusal: busy(ASK_AGAIN) }
    }

    /// Returns whether others wait before it.
    pub fn has_others_before(&self) -> bool {
        self.place.is_some()
    }

    /// Waits until what its program wrote before is durable. Returns how the wait has ended, if it has.
    pub async fn durable<T>(&self, reply: &mut oneshot::Sender<T>) -> Option<Room> {
        tokio::select! {
            biased;
            () = self.attempt.attempt.ledger.until_durable() => None,
            () = reply.closed() => Some(Room::Gone),
            () = self.attempt.ended.cancelled() => Some(Room::Refused(Refusal::dead_token())),
        }
    }

    /// Waits for its turn to ask, if there is a line before it. Returns how the wait has ended, if it has.
    pub async fn turn<T>(&mut self, reply: &mut oneshot::Sender<T>) -> Option<Room> {
        let end = match &self.place {
            None => None,
            Some((ticket, again)) => {
                let _waits = self.attempt.waits();
                tokio::select! {
                    () = ticket.turn(&mut self.settlements, *again) => None,
                    () = reply.closed() => Some(Room::Gone),
                    () = self.attempt.ended.cancelled() => Some(Room::Refused(Refusal::dead_token())),
                    () = sleep_until(self.until) => Some(Room::Over(self.refusal.clone())),
                }
            }
        };
        self.settlements.borrow_and_update();
        end
    }

    /// Waits for one of the provider's places, behind those that came before. Returns how the wait has ended, if it has.
    pub async fn slot<T>(
        &self,
        of: (Provider, &Arc<Places>),
        reply: &mut oneshot::Sender<T>,
    ) -> Result<Option<Slot>, Room> {
        tokio::select! {
            biased;
            slot = slot(&self.attempt, of, self.until) => slot.map_err(Room::Over),
            () = reply.closed() => Err(Room::Gone),
        }
    }

    /// Takes the answer to a reservation; `rates` names the limits of the key for this model. Returns how the wait has
    /// ended, if it has. Else it goes on.
    pub fn answered(&mut self, answer: Result<Reserve, Unavailable>, rates: &str) -> Option<Room> {
        let (line, again) = match answer {
            Ok(Reserve::Granted) => return Some(Room::Granted),
            Ok(Reserve::Answered(given)) => return Some(Room::Answered(given)),
            Ok(Reserve::Spent { limit, room }) => {
                // If it can be made to cost less, it asks at once.
                self.place = None;
                return Some(Room::Spent { limit, room });
            }
            Err(error) => return Some(Room::Unavailable(error)),
            Ok(Reserve::Busy { behind, retry_after }) => {
                self.refusal = busy(retry_after);
                (behind, retry_after)
            }
            Ok(Reserve::Later { retry_after }) => {
                let message = "a rate limit is reached: try again";
                self.refusal = Refusal::wait("rate_limit", message, retry_after);
                (rates.to_owned(), retry_after)
            }
        };
        let ticket = match self.place.take() {
            Some((ticket, _)) if ticket.line() == line => ticket,
            _ => self.lines.join(line, self.attempt.id()),
        };
        self.place = Some((ticket, again));
        None
    }
}

/// Waits for one of the provider's places, behind those that came before, until this time at most.
pub(super) async fn slot(
    attempt: &Arc<Shared>,
    (provider, places): (Provider, &Arc<Places>),
    until: Instant,
) -> Result<Option<Slot>, Refusal> {
    let _waits = attempt.waits();
    // Of an attempt one request waits among those of others, so that a thousand of its requests are not before theirs.
    let taken = async {
        let _turn = attempt.turn(provider).lock().await;
        places.take().await
    };
    tokio::select! {
        biased;
        slot = taken => Ok(slot),
        () = attempt.ended.cancelled() => Err(Refusal::dead_token()),
        () = sleep_until(until) => {
            let message = "this worker has as many calls under way as the provider takes: try again";
            Err(Refusal::wait("provider_busy", message, ASK_AGAIN))
        }
    }
}

/// When a request asks that found others waiting.
const ASK_AGAIN: Duration = Duration::from_secs(1);

fn busy(retry_after: Duration) -> Refusal {
    let message = "what other calls hold leaves no room for this one: try again";
    Refusal::wait("budget_busy", message, retry_after)
}
