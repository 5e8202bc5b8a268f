//! What the broker refuses to our user. A refusal is logged once, as an error, and can be queried until it is granted.
//!
//! A refusal ends no process. The operation is tried again, as after any other error of the broker. The remedy is a
//! grant at the broker, after which everything continues by itself. A process that ended would take its running jobs
//! with it, and meet the same refusal after its restart. Moreover, often only one of many things is refused, such as
//! the queue of one pool, while the others work. `/ready` fails meanwhile, so that a rollout waits.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{error, info};

use crate::QueueError;

/// The subject of a refusal to publish.
pub(crate) const PUBLISHING: &str = "publish";

/// The present refusals, by their subject.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<String, String>>);

impl Refusals {
    /// Records the result of an operation.
    pub(crate) fn heard<T>(&self, about: &str, result: &Result<T, QueueError>) {
        match result {
            Ok(_) => {
                if self.standing().remove(about).is_some() {
                    info!(about, "the broker does not refuse this any more");
                }
            }
            Err(error @ QueueError::Refused { .. }) => {
                let cause = error.to_string();
                let before = self.standing().insert(about.to_owned(), cause.clone());
                if before.as_ref() != Some(&cause) {
                    error!(about, cause, "the broker refuses this; trying again until it is granted");
                }
            }
            // The error does not show whether it would be granted.
            Err(_) => {}
        }
    }

    /// Returns one of them, if there is any.
    pub(crate) fn any(&self) -> Option<String> {
        self.standing().values().next().cloned()
    }

    /// Whether this is refused, as far as we know.
    pub(crate) fn has(&self, about: &str) -> bool {
        self.standing().contains_key(about)
    }

    fn standing(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
