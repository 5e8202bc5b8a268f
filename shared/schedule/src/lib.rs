//! When a schedule fires: its instants, what is done about those that nobody fired in time, and the id of the job of
//! each. Pure: `now` is always an argument, and times are Unix times in milliseconds.

mod rule;
mod when;
mod look;
mod firing;
#[cfg(test)]
mod tests;

pub use firing::{delay_ms, firing_id};
pub use look::{CatchUp, Head, IN_TIME_MS, Kept, Look, Overlap, Plan};
pub use rule::Rule;
pub use when::{When, write_moment};

/// Why something is no schedule: the field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Wrong {
    /// The field.
    pub field: &'static str,
    /// What was given and what would be right.
    pub problem: String,
}

impl Wrong {
    fn new(field: &'static str, got: &str, problem: impl std::fmt::Display) -> Wrong {
        let got: String = got.chars().take(100).flat_map(char::escape_default).collect();
        Wrong { field, problem: format!("got \"{got}\"{problem}") }
    }
}
