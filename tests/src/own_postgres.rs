//! A private Postgres whose clock can be set.

use crate::clock::SetClock;
use crate::keeper::Keeper;

/// The server; it is stopped when this is dropped.
pub struct OwnPostgres {
    /// Its address.
    pub url: String,
    /// Its clock.
    pub clock: SetClock,
    _keeper: Keeper,
}

impl OwnPostgres {
    /// Starts a server whose clock is this many seconds ahead.
    pub async fn with_clock(ahead_s: i64) -> OwnPostgres {
        let clock = SetClock::new(ahead_s);
        let environment = clock.environment().map(|(name, value)| format!("{name}={value}")).join(" ");
        let keeper = Keeper::start(&["DATABASE_URL"], &[("HARNESS_DEV_POSTGRES_ENV", environment)]).await;
        OwnPostgres { url: keeper.url.clone(), clock, _keeper: keeper }
    }
}
