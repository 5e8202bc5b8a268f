//! What calls of models use.

use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

use crate::Usd;

/// What a model used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Money.
    #[serde(rename = "cost_usd")]
    pub cost: Usd,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
}

impl Usage {
    /// Returns whether nothing was used.
    pub fn is_zero(&self) -> bool {
        *self == Usage::default()
    }

    /// Returns what was used since an earlier count.
    pub fn since(self, earlier: Usage) -> Usage {
        Usage {
            cost: Usd::from_micros(self.cost.micros().saturating_sub(earlier.cost.micros())),
            input_tokens: self.input_tokens.saturating_sub(earlier.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(earlier.output_tokens),
        }
    }
}

impl Add for Usage {
    type Output = Usage;
    fn add(self, other: Usage) -> Usage {
        Usage {
            cost: self.cost + other.cost,
            input_tokens: add_counts(self.input_tokens, other.input_tokens),
            output_tokens: add_counts(self.output_tokens, other.output_tokens),
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        *self = *self + other;
    }
}

/// Adds two counts. The sum stays within `bigint`.
pub fn add_counts(a: u64, b: u64) -> u64 {
    a.saturating_add(b).min(i64::MAX as u64)
}
