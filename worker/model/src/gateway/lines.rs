//! Lines of requests that wait for room: first come first served among attempts, each with one request after the other. An
//! attempt that sends a thousand requests at a time is not before one that sends its first.
//!
//! Requests that the same limit holds up are in one line. When a call of this worker is settled, the first of each line
//! asks again; when it gets its room, the next one asks. What other workers settle is found by asking now and then, and
//! further back in a line more rarely. Those behind the first ask too, because a request may need less than the first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::lock;

/// How rarely the first of a line asks: other workers may give back what they have taken.
const MOST_PAUSE: Duration = Duration::from_secs(5);
/// How many places of a line make a wait longer.
const MOST_PLACES: u32 = 10;

/// All lines of a gateway.
pub(super) struct Lines {
    state: Mutex<State>,
    settled: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    lines: HashMap<String, VecDeque<Waiter>>,
    tickets: u64,
}

struct Waiter {
    number: u64,
    /// The attempt that asks.
    owner: Owner,
    /// How many of its attempt waited when it came.
    rank: usize,
    is_first: Arc<Notify>,
}

/// A number that no other open attempt has.
pub(super) type Owner = usize;

/// A place in a line. It is free when this is dropped.
pub(super) struct Ticket {
    lines: Arc<Lines>,
    line: String,
    number: u64,
    is_first: Arc<Notify>,
}

impl Lines {
    pub fn new() -> Arc<Lines> {
        Arc::new(Lines { state: Mutex::default(), settled: watch::Sender::new(()) })
    }

    /// Notes that a call is settled, so there may be room.
    pub fn note_settled(&self) {
        self.settled.send_replace(());
    }

    /// Returns what changes whenever a call is settled.
    pub fn settlements(&self) -> watch::Receiver<()> {
        self.settled.subscribe()
    }

    /// Returns how many requests wait.
    pub fn waiting(&self) -> usize {
        lock(&self.state).lines.values().map(VecDeque::len).sum()
    }

    /// Takes a place in a line: the last one of its turn.
    pub fn join(self: &Arc<Lines>, line: String, owner: Owner) -> Ticket {
        self.enter(&mut lock(&self.state), line, owner)
    }

    /// As [`Lines::join`], of a line that stands and is in the request's way, if there is one.
    pub fn join_any(self: &Arc<Lines>, owner: Owner, is_in_the_way: impl Fn(&str) -> bool) -> Option<Ticket> {
        let mut state = lock(&self.state);
        let line = state.lines.keys().find(|line| is_in_the_way(line))?.clone();
        Some(self.enter(&mut state, line, owner))
    }

    fn enter(self: &Arc<Lines>, state: &mut State, line: String, owner: Owner) -> Ticket {
        state.tickets += 1;
        let (number, is_first) = (state.tickets, Arc::new(Notify::new()));
        let waiters = state.lines.entry(line.clone()).or_default();
        let rank = waiters.iter().filter(|waiter| waiter.owner == owner).count();
        let at = waiters.iter().position(|waiter| waiter.rank > rank).unwrap_or(waiters.len());
        waiters.insert(at, Waiter { number, owner, rank, is_first: is_first.clone() });
        Ticket { lines: self.clone(), line, number, is_first }
    }
}

impl Ticket {
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Returns when it is time to ask again: there may be room, or `again` has passed.
    pub async fn turn(&self, settlements: &mut watch::Receiver<()>, again: Duration) {
        let place = self.place();
        tokio::select! {
            // It has become the first, because the one before it has gone.
            () = self.is_first.notified() => {}
            // The sender lives as long as the lines.
            _changed = settlements.changed(), if place == 0 => {}
            () = sleep(pause(again, place)) => {}
        }
    }

    fn place(&self) -> u32 {
        let state = lock(&self.lines.state);
        let line = state.lines.get(&self.line);
        let place = line.and_then(|line| line.iter().position(|waiter| waiter.number == self.number));
        place.map_or(0, |place| u32::try_from(place).unwrap_or(u32::MAX))
    }
}

/// Returns how long the one at a place of its line waits before it asks by itself.
fn pause(again: Duration, place: u32) -> Duration {
    spread(again.min(MOST_PAUSE)) * place.saturating_add(1).min(MOST_PLACES)
}

/// Makes a wait up to a quarter longer. Requests that are refused together are told the same time, and would come back together.
pub(super) fn spread(wait: Duration) -> Duration {
    wait.mul_f64(1.0 + fastrand::f64() / 4.0)
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = lock(&self.lines.state);
        let Some(line) = state.lines.get_mut(&self.line) else { return };
        let was_first = line.front().is_some_and(|waiter| waiter.number == self.number);
        line.retain(|waiter| waiter.number != self.number);
        match line.front() {
            Some(next) if was_first => next.is_first.notify_one(),
            Some(_) => {}
            None => drop(state.lines.remove(&self.line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn the_first_of_a_line_is_asked_at_each_settlement_and_the_next_when_it_has_gone() {
        let lines = Lines::new();
        let (first, second, other) =
            (lines.join("a".into(), 1), lines.join("a".into(), 2), lines.join("b".into(), 3));
        let [mut of_first, mut of_second, mut of_other] = [(); 3].map(|()| lines.settlements());
        lines.note_settled();
        first.turn(&mut of_first, LONG).await;
        other.turn(&mut of_other, LONG).await;
        let mut waiting = Box::pin(second.turn(&mut of_second, LONG));
        assert!(futures::poll!(&mut waiting).is_pending(), "the first is still there");
        drop(first);
        assert!(futures::poll!(&mut waiting).is_ready());
        drop(waiting);
        assert!(lines.join_any(1, |line| line == "c").is_none());
        drop((second, other));
        assert!(lines.join_any(1, |_| true).is_none(), "an empty line does not stand");
    }

    #[tokio::test]
    async fn an_attempt_with_many_requests_is_not_before_one_with_few() {
        let lines = Lines::new();
        let join = |owner| lines.join("a".into(), owner);
        let greedy: Vec<_> = (0..5).map(|_| join(1)).collect();
        let modest = [join(2), join(2), join(3)];
        let places = |tickets: &[Ticket]| tickets.iter().map(Ticket::place).collect::<Vec<_>>();
        assert_eq!(places(&greedy), [0, 3, 5, 6, 7]);
        assert_eq!(places(&modest), [1, 4, 2]);
        drop(greedy);
        assert_eq!(places(&modest), [0, 2, 1]);
    }

    #[test]
    fn all_of_a_line_ask_now_and_then_and_the_last_more_rarely() {
        for (again_s, place, least_s) in [(1, 0, 1.0), (1, 1, 2.0), (1, 99, 10.0), (60, 0, 5.0)] {
            let pause = pause(Duration::from_secs(again_s), place).as_secs_f64();
            assert!((least_s..=least_s * 1.25).contains(&pause), "{again_s} {place}: {pause}");
        }
    }
}
