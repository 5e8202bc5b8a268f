//! What a program of the user's says, and what it is given: the JSON lines of `harness.command.v1`, whatever carries them.
//!
//! [`order`] is the one line that it is given. [`Listener`] takes the lines that it writes, one after the other, up to its
//! last word, and [`verdict`] decides what that means for the attempt. This crate knows neither processes nor HTTP.

mod lines;
mod contract;
mod silence;
mod listener;
mod verdict;

pub use contract::order;
pub use lines::Lines;
pub use listener::{LastMessage, Listener};
pub use silence::{Silence, idle};
pub use verdict::{Asked, Limits, verdict};
