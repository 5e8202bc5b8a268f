//! What time it is, by the one clock that counts: Postgres's. A host's may be wrong by weeks.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::tx::query;
use crate::{Store, StoreError};

pub(crate) const NOW: &str = "SELECT clock_timestamp()";

/// Postgres's clock as it was read once, and the time since, which every host can measure.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    then: SystemTime,
    read: Instant,
}

impl Clock {
    /// The present.
    pub fn now(&self) -> SystemTime {
        self.then + self.read.elapsed()
    }

    /// The same as Unix time in milliseconds.
    pub fn now_unix_ms(&self) -> u64 {
        unix_ms(self.now())
    }
}

pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Store {
    /// Reads Postgres's clock. A machine that sleeps afterwards has to read it again.
    pub async fn clock(&self) -> Result<Clock, StoreError> {
        let rows = query(&self.pool, "clock", NOW, &[]).await?;
        Ok(Clock { then: rows.first().expect("one row").get(0), read: Instant::now() })
    }
}
