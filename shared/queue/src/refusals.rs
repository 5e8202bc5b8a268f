//! What the broker refuses to our user: said once, as an error, and known to whoever asks until it is granted.
//!
//! A refusal ends no process; it is tried again, like whatever else the broker says no to. It is mended at the broker, by a grant, and from then on all
//! goes on by itself. A process that ended would take its running jobs along, and meet the same refusal after its restart; and what is refused is often
//! one of many things, such as the queue of another pool, while the others work. `/ready` fails meanwhile, so that a rollout waits.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{error, info};

use crate::QueueError;

/// What a refusal to publish is about.
pub(crate) const PUBLISHING: &str = "publish";

/// What stands refused, by what it is about.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<String, String>>);

impl Refusals {
    /// Takes note of how something went.
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
            // Whether it would be granted is not known.
            Err(_) => {}
        }
    }

    /// One of them in words, if there is any.
    pub(crate) fn any(&self) -> Option<String> {
        self.standing().values().next().cloned()
    }

    /// Whether this is refused, as far as was heard.
    pub(crate) fn has(&self, about: &str) -> bool {
        self.standing().contains_key(about)
    }

    fn standing(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
