//! What a provider of language models is: what a call costs, what it can cost at most, and how it is metered.
//!
//! [`Prices`] is a dated table. This crate has never heard of RabbitMQ, SQL or sessions.

mod money;
mod prices;

pub use money::{BadDollars, Microdollars};
pub use prices::{BadPrices, CacheWrites, Factor, Fees, LongContext, Price, Prices, Rates, Tokens, Unpriced};
