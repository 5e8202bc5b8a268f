//! What a provider of language models is: what a call costs, what it can cost at most, and how it is metered.
//!
//! [`Prices`] is a dated table, [`Wire`] reads what a request can cost at most, [`Meter`] reads what an answer has cost.
//! None of them does I/O. [`Gateway`] is the server through which programs call models, and [`Ledger`] is what it asks of the
//! accounts. This crate has never heard of RabbitMQ, SQL or sessions.

mod provider;
mod prices;
mod json;
mod wire;
mod frames;
mod usage;
mod ledger;
mod gateway;

pub use frames::{Frame, Frames, Oversized};
pub use gateway::{
    Attempt, GATEWAY_VARIABLES, Gateway, GatewayError, GatewaySettings, Load, Loads, Metered, Opened,
    Upstream,
};
pub use json::check_json;
pub use ledger::{
    Answer, Call, Checkpoints, Given, KeyRefused, Learnt, Ledger, MOST_OF_A_CALL, Purchase, RateLimits,
    RefusedFor, RequestKey, Reserve, Settlement, TakenAs, Unavailable, WithoutRoom,
};
pub use prices::{BadPrices, CacheWrites, Factor, Fees, LongContext, Price, Prices, Rates, Tokens, Unpriced};
pub use provider::Provider;
pub use usage::{Meter, NoUsage, Outcome, Seen, Settled, refused_before_work};
pub use wire::{Ask, Bound, Counted, HostedCaps, MAX_REQUEST_BYTES, Refused, Wire};
