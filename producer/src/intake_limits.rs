//! What jobs are measured by when they are taken in: the same as at the other end of the queue.

use std::time::Duration;

use job::{Limits, ReplyRule};
use store::Clock;

/// The window of jobs' ids is that of the workers, by Postgres's clock.
pub struct IntakeLimits {
    clock: Clock,
    max_bytes: usize,
    retention: Duration,
    replies: ReplyRule,
}

impl IntakeLimits {
    /// By this look at Postgres's clock.
    pub fn new(clock: Clock, max_bytes: usize, retention: Duration, replies: ReplyRule) -> IntakeLimits {
        IntakeLimits { clock, max_bytes, retention, replies }
    }

    /// The limits at this moment.
    pub fn current(&self) -> Limits {
        let IntakeLimits { clock, max_bytes, retention, ref replies } = *self;
        Limits { max_bytes, retention, now_unix_ms: clock.now_unix_ms(), replies: replies.clone() }
    }
}
