//! How long a program has said nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use harness::Meter;
use tokio::time::{Instant, sleep_until};

/// Since when we have been waiting for a line. The count pauses while a line is handled: our slowness is not the
/// program's silence.
#[derive(Default)]
pub struct Silence {
    since: Mutex<Option<Instant>>,
}

impl Silence {
    /// Notes that a line is awaited.
    pub fn begin(&self) {
        self.set(Some(Instant::now()));
    }

    /// Notes that a line is handled.
    pub fn end(&self) {
        self.set(None);
    }

    /// Returns whether no line is being handled.
    pub fn is_on(&self) -> bool {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Resolves when the silence has lasted for `limit`, counted from `from` at the earliest.
    pub async fn lasts(&self, limit: Duration, from: Instant) {
        loop {
            let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let due = since.map_or(now, |since| since.max(from)) + limit;
            if due <= now {
                return;
            }
            sleep_until(due).await;
        }
    }

    fn set(&self, since: Option<Instant>) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = since;
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
