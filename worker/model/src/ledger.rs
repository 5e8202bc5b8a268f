//! What the gateway asks of the accounts, and gives them. One [`Ledger`] belongs to one attempt at a job: its
//! implementation knows which job calls, and which limits apply.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use job::{Usage, Usd};
use uuid::Uuid;

use crate::provider::Provider;
use crate::usage::Outcome;
use crate::wire::{Bound, Wire};

/// The most that a call may cost, a million dollars: the accounts take no more, and none costs nearly as much.
pub const MOST_OF_A_CALL: Usd = Usd::from_micros(1_000_000_000_000);

/// One HTTP attempt at a model, and its reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Made by the gateway, so that a reservation whose reply was lost can be settled all the same.
    pub id: Uuid,
    /// Who bills it.
    pub provider: Provider,
    /// How it is asked.
    pub wire: Wire,
    /// The model that the request names.
    pub model: String,
    /// The most that it can use and cost.
    pub bound: Bound,
    /// Under which its answer is stored and found again.
    pub request: RequestKey,
    /// Under which other jobs find its answer. `None` if the request alone does not say what is answered, or if another one
    /// is sent than its program asked for.
    pub cache_key: Option<[u8; 32]>,
}

/// Something else that costs, and its reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purchase {
    /// Made by the gateway.
    pub id: Uuid,
    /// What it is, by the program's name.
    pub what: String,
    /// The most that it can cost.
    pub most: Usd,
}

/// The n-th time that an attempt sends the same request since its last checkpoint. An attempt that begins again at that checkpoint
/// sends it for the n-th time, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// Equal for equal requests.
    pub hash: [u8; 32],
    /// How many answers to it the attempt had before which no checkpoint covers.
    pub nth: u32,
}

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checkpoints {
    /// How many checkpoints it has written.
    pub written: u32,
    /// How many it had written with the last one that covers answers: it covers those that were settled when fewer were written.
    pub covering: u32,
}

/// A request for which there was no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WithoutRoom {
    /// The hash of the request; `None` for a [`Purchase`].
    pub request: Option<[u8; 32]>,
    /// What it could have cost.
    pub most: Usd,
    /// What it could have cost with the lowest limit of output that its agent allows.
    pub least: Usd,
}

/// An answer that was paid before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// What was answered.
    pub answer: Answer,
    /// Whether another job has paid it; else an earlier attempt at this one.
    pub cached: bool,
    /// What an earlier attempt has paid for it and could not say in a checkpoint.
    pub paid: Usage,
}

/// The answer to a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// Its answer was paid before. Nothing is held.
    Answered(Given),
    /// The amount is held. The call may be sent, and must be settled.
    Granted,
    /// It would fit if what others hold were settled. Nothing is held.
    Busy {
        /// The limit, by a name. Requests that it holds up wait in one line.
        behind: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// A rate limit is reached. Nothing is held.
    Later {
        /// When to ask again.
        retry_after: Duration,
    },
    /// What is settled leaves no room for it. Nothing is held.
    Spent {
        /// The limit and its window, for people who read why the job stopped.
        limit: String,
        /// The most that a call may cost which would fit if others settled for nothing.
        room: Usd,
    },
}

/// A whole answer, as the program got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its `Content-Type`.
    pub content_type: String,
    /// Its bytes: JSON, or a stream of events to its own end.
    pub body: Bytes,
}

/// What a provider's answer says of the rate limits of the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learnt {
    /// The limits for this model, as far as the answer names them.
    pub limits: RateLimits,
    /// Set if the provider takes no call with this key now.
    pub refused: Option<KeyRefused>,
}

/// What a key may use in a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests.
    pub requests: Option<u64>,
    /// Tokens of input, where they are counted by themselves.
    pub input_tokens: Option<u64>,
    /// Tokens of output, where they are counted by themselves.
    pub output_tokens: Option<u64>,
    /// Tokens of input and output together.
    pub tokens: Option<u64>,
}

/// A refusal that is about the key, not about the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRefused {
    /// Why.
    pub why: RefusedFor,
    /// How long to wait, if the provider says so.
    pub retry_after: Option<Duration>,
}

/// Why a provider takes no call with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedFor {
    /// A rate limit is reached.
    RateLimit,
    /// The provider has too much to do.
    Overloaded,
    /// The account has no credit left.
    Quota,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// What became of the reservation.
    pub outcome: Outcome,
    /// The id by which the provider finds the call, if it gave one.
    pub provider_request_id: Option<String>,
    /// The answer, to be stored in the same transaction; only if it was whole.
    pub answer: Option<Answer>,
    /// How many checkpoints were written before it.
    pub after_checkpoints: u32,
    /// Whether other jobs may be given the answer: it refuses nothing.
    pub is_shareable: bool,
    /// What the answer says of the key's rate limits.
    pub learnt: Learnt,
    /// Set if the run takes the answer into its session itself, in the same transaction.
    pub taken: Option<TakenAs>,
}

/// How a run takes an answer into its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenAs {
    /// The number that the run has given its call.
    pub number: u64,
    /// How many bytes of the answer it was passed: all but the last event.
    pub passed: usize,
}

/// The ledger did not answer, or refused. Whether it did what it was asked is not known.
#[derive(Debug, thiserror::Error)]
#[error("the ledger: {0}")]
pub struct Unavailable(pub String);

/// The accounts, as one attempt at a job sees them.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Waits until the lines that the program wrote before are durable: a checkpoint covers the answers before it. If the
    /// attempt ends meanwhile, that may be never.
    async fn until_durable(&self);

    /// Holds the most that a call can cost, before it is sent, or returns the answer that an earlier attempt at this job got
    /// to the same request, unless a checkpoint covers it, or else another job. After an error the gateway does not send the call, and
    /// settles it as [`Outcome::Free`]: a settlement must win over a reservation that arrives after it.
    async fn reserve(&self, call: &Call) -> Result<Reserve, Unavailable>;

    /// Returns whether each call of this attempt counts in the limit of this name ([`Reserve::Busy`]). It then waits behind
    /// those that the limit holds up.
    fn counts_in(&self, limit: &str) -> bool;

    /// Returns how far the attempt has come. Without checkpoints no answer is covered.
    fn checkpoints(&self) -> Checkpoints {
        Checkpoints::default()
    }

    /// Notes that a request was refused, because a limit is spent. It is called only where the gateway could not make it cost
    /// less. The program may still ask another model.
    fn note_spent(&self, refused: &WithoutRoom);

    /// Notes that the wait of a request for room was over, and that its program was asked to try again later.
    fn note_busy(&self, _refused: &WithoutRoom) {}

    /// Records what became of a call, once, and stores its answer, unless the run takes it into its session in the same
    /// transaction. It must work after the attempt's lease is lost, and after its end. Until it returns, the program does not see
    /// the end of the answer.
    async fn settle(&self, call: &Call, settlement: Settlement) -> Result<(), Unavailable>;

    /// As [`Ledger::reserve`], for something else.
    async fn reserve_purchase(&self, purchase: &Purchase) -> Result<Reserve, Unavailable>;

    /// As [`Ledger::settle`], for something else.
    async fn settle_purchase(&self, purchase: &Purchase, outcome: Outcome) -> Result<(), Unavailable>;

    /// Returns the answer that [`Ledger::reserve`] would return, for a call that has to wait for its turn to reserve.
    async fn look_up(&self, call: &Call) -> Result<Option<Given>, Unavailable>;
}
