//! The loops that keep jobs moving. They run side by side until asked to stop.

use std::sync::LazyLock;

use tokio_util::sync::CancellationToken;

use crate::metrics::METRICS;
use crate::{Dispatch, InboxRules, dead, inbox, line, lost, publish, rescue, sweep, taken_keys, upkeep};

/// Publishes what is due, takes jobs from the inbox, rescues dead workers' jobs, and sweeps up what was forgotten.
pub struct Relay {
    dispatch: Dispatch,
    rules: InboxRules,
}

impl Relay {
    /// Makes a relay that has not begun. Results are kept for the retention of the rules.
    pub fn new(dispatch: Dispatch, rules: InboxRules) -> Relay {
        Relay { dispatch, rules }
    }

    /// Works until asked to stop. Failures of Postgres or the broker are logged, and the work goes on after
    /// them.
    pub async fn run(self, stop: CancellationToken) {
        let Relay { dispatch, rules } = &self;
        // The counters are shown as 0 before anything happens, because a counter that appears at 1 has no
        // rate.
        LazyLock::force(&METRICS);
        tokio::join!(
            publish::run(dispatch, &stop),
            sweep::run(dispatch, &stop),
            dead::run(dispatch, &stop),
            lost::return_lost(&dispatch.store, &dispatch.broker, &stop),
            rescue::run(&dispatch.store, &stop),
            upkeep::run(&dispatch.store, rules.retention, &stop),
            taken_keys::run(&dispatch.store, &stop),
            inbox::run(dispatch, rules, &stop),
            line::run(dispatch, &stop)
        );
    }
}
