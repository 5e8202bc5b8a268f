//! The limits that jobs must keep when they are accepted: the same that workers check.

use std::time::Duration;

use job::{Limits, ReplyRule};
use store::Clock;

/// The limits for jobs' ids, sizes and replies. The window of ids follows Postgres's clock, as it does in workers.
pub struct IntakeLimits {
    clock: Clock,
    max_bytes: usize,
    retention: Duration,
    replies: ReplyRule,
}

impl IntakeLimits {
    /// `clock` is a reading of Postgres's clock.
    pub fn new(clock: Clock, max_bytes: usize, retention: Duration, replies: ReplyRule) -> IntakeLimits {
        IntakeLimits { clock, max_bytes, retention, replies }
    }

    /// Returns the limits at this moment.
    pub fn current(&self) -> Limits {
        let IntakeLimits { clock, max_bytes, retention, ref replies } = *self;
        Limits { max_bytes, retention, now_unix_ms: clock.now_unix_ms(), replies: replies.clone() }
    }
}
