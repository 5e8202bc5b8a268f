//! The autoscaler: how many workers a pool should have, and why.
//!
//! It sees a pool through two windows, the broker's ready messages and the ledger's running and waiting jobs, and never
//! talks to a worker. So far it observes: `autoscaler observe` prints what a decision would be made from. Deciding and
//! applying get rooms of their own beside `observe`.

mod observe;
pub mod decide;
pub mod apply;
pub mod simulate;
mod cli;

pub use cli::Args;
pub use observe::{Observation, observe};
