//! What a relay counts, in any process. Across all processes each event is counted once, by the relay that
//! caused it.

use std::sync::LazyLock;

use prometheus::{IntCounter, register_int_counter};

/// The metrics of this process's relay.
pub(crate) struct Metrics {
    /// Messages that the broker confirmed.
    pub published: IntCounter,
    /// Messages that the broker did not take; their jobs come due again.
    pub refused: IntCounter,
    /// Workers that were declared dead.
    pub workers_dead: IntCounter,
    /// Jobs of dead workers that were made due again.
    pub rescued: IntCounter,
}

/// What this process has announced to no one.
pub(crate) static ANNOUNCEMENTS_DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "harness_announcements_dropped_total",
        "Messages for those who follow jobs that were not sent: the broker was away, or too much came at once"
    )
    .expect("every metric has a name of its own, so that registering cannot fail")
});

/// The one set of them, registered at first use.
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    register().expect("every metric has a name of its own, so that registering cannot fail")
});

fn register() -> prometheus::Result<Metrics> {
    Ok(Metrics {
        published: register_int_counter!(
            "harness_relay_published_total",
            "Messages of due jobs that the broker confirmed"
        )?,
        refused: register_int_counter!(
            "harness_relay_refused_total",
            "Messages of due jobs that the broker did not take"
        )?,
        workers_dead: register_int_counter!(
            "harness_workers_dead_total",
            "Workers declared dead because their lease had run out"
        )?,
        rescued: register_int_counter!(
            "harness_jobs_rescued_total",
            "Jobs of dead workers that were made due again"
        )?,
    })
}
