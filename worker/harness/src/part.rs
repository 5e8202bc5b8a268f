//! What a run spends its time on, for those who watch the worker. This module does not know who they are.

use std::time::{Duration, SystemTime};

/// A part of a run's work that has ended. It has no content: no text of a caller, a model or a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// What was done.
    pub work: Work,
    /// When it began.
    pub began: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Why it failed, in a word of a small set.
    pub failed: Option<&'static str>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A model was asked.
    Chat {
        /// Its provider: `anthropic`, `openai`.
        provider: &'static str,
        /// The model, as the agent names it.
        model: String,
        /// The tokens that were read and written.
        tokens: (u64, u64),
        /// How long its first words took.
        first_token: Option<Duration>,
        /// Whether an earlier attempt had paid the answer.
        is_replayed: bool,
    },
    /// A tool was called.
    Tool {
        /// Its name, if the agent has such a tool.
        name: Option<String>,
        /// The model's id of the call.
        call_id: String,
        /// How it ended, in a word of a small set.
        outcome: &'static str,
    },
    /// The conversation was made shorter.
    Compaction,
}
