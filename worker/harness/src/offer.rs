//! How a run takes a model's answer: what it adds to its session is written in one transaction with the call's settlement.
//!
//! The meter has the whole answer before the run sees its end. It offers what is left of it, the run says what it adds to
//! its session, the meter writes both, and the run learns that they are durable. A run that does not take an offer sees
//! the end of the answer once the answer itself is stored, for a later attempt.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::{Delta, Stop, Usage};

/// How long a run has to say what it adds to its session. It has read nearly all of the answer, and waits for nothing.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// A whole answer, of which the run was passed all but the last event.
pub struct Offer {
    /// How many of its bytes the run was passed.
    pub passed: usize,
    /// The bytes behind these.
    pub last: Vec<u8>,
    /// What its call has used.
    pub usage: Usage,
    /// Takes what the run adds to its session. If it is dropped, the answer is stored.
    pub taken: oneshot::Sender<Taken>,
}

/// What a run adds to its session for an answer.
pub struct Taken {
    /// It counts what the call has used.
    pub delta: Delta,
    /// Learns that it is durable, or why the run must stop. It is dropped if the delta is certainly not written and the
    /// answer is stored instead, or if the process ends.
    pub durable: oneshot::Sender<Result<(), Stop>>,
}

/// Where the answer to a run's next call is offered.
#[derive(Default)]
pub struct Offers(Mutex<Option<(u64, oneshot::Sender<Offer>)>>);

impl Offers {
    /// Expects the answer to the call of this number. A run makes one after the other.
    pub fn expect(&self, call: u64) -> oneshot::Receiver<Offer> {
        let (offered, offer) = oneshot::channel();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((call, offered));
        offer
    }

    /// Offers the answer to a call, of which the run was passed so many bytes. Returns what the run adds to its session, if it
    /// takes the answer.
    pub async fn offer(&self, call: u64, answer: &[u8], passed: usize, usage: Usage) -> Option<Taken> {
        let expected = {
            let mut expected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            expected.take_if(|(number, _)| *number == call)
        };
        let (_, offered) = expected?;
        let (taken, is_taken) = oneshot::channel();
        let last = answer.get(passed..)?.to_vec();
        offered.send(Offer { passed, last, usage, taken }).ok()?;
        timeout(TAKEN_WITHIN, is_taken).await.ok()?.ok()
    }
}
