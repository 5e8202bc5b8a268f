//! How long a program has said nothing.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use harness::Meter;
use tokio::time::{Instant, sleep_until};

/// Since when we have been waiting for a line. The count pauses while a line is handled: our slowness is not the
/// program's silence.
#[derive(Default)]
pub struct Silence(Mutex<State>);

#[derive(Default)]
struct State {
    since: Option<Instant>,
    /// We are looking for a line, and may hold one that is not handled yet.
    looking: bool,
}

impl Silence {
    /// Notes that nothing is handled, and that something is awaited.
    pub fn begin(&self) {
        *self.state() = State { since: Some(Instant::now()), looking: false };
    }

    /// Awaits the program's next line. The silence ends with it.
    pub(crate) async fn until<T>(&self, line: impl Future<Output = T>) -> T {
        let mut line = pin!(line);
        *self.state() = State { since: Some(Instant::now()), looking: true };
        let line = poll_fn(|context| {
            self.state().looking = true;
            let polled = line.as_mut().poll(context);
            self.state().looking = polled.is_ready();
            polled
        })
        .await;
        self.state().since = None;
        line
    }

    /// Returns whether no line is in our hands. If the program's pipe was seen to be empty before, all that was in it is handled.
    pub fn is_on(&self) -> bool {
        let state = self.state();
        state.since.is_some() && !state.looking
    }

    /// Resolves when the silence has lasted for `limit`, counted from `from` at the earliest.
    pub async fn lasts(&self, limit: Duration, from: Instant) {
        loop {
            let since = self.state().since;
            let now = Instant::now();
            let due = since.map_or(now, |since| since.max(from)) + limit;
            if due <= now {
                return;
            }
            sleep_until(due).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves when the program has neither written a line nor called a model for this long.
pub async fn idle(silence: &Silence, meter: Option<&dyn Meter>, limit: Duration) {
    let mut from = Instant::now();
    loop {
        silence.lasts(limit, from).await;
        match meter.map(Meter::idle) {
            Some(idle) if idle < limit => from = Instant::now() - idle,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn it_is_off_while_a_line_may_have_been_taken_that_is_not_handled() {
        let silence = Silence::default();
        let looks = |found: Poll<()>| {
            let silence = &silence;
            poll_fn(move |_| {
                assert!(!silence.is_on(), "a line may be in our hands");
                found
            })
        };
        let mut context = Context::from_waker(Waker::noop());
        {
            let mut line = pin!(silence.until(looks(Poll::Pending)));
            assert!(line.as_mut().poll(&mut context).is_pending());
            assert!(silence.is_on(), "there was none");
        }
        assert!(silence.is_on(), "the look is over");
        assert!(pin!(silence.until(looks(Poll::Ready(())))).poll(&mut context).is_ready());
        assert!(!silence.is_on(), "it is handled now");
        silence.begin();
        assert!(silence.is_on());
    }
}
