//! A session's state and what a checkpoint adds to it.
//!
//! A checkpoint is a [`Delta`] and not a new state, because rewriting a growing context with every step would cost many
//! times the writes. Folding all deltas in order onto the stored session gives the present state. This module does not
//! know where either is stored.

mod calls;
mod kept;
#[cfg(test)]
mod tests;

use job::{Json, Usage, add_counts};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::storable;

/// The largest delta as JSON: 4 MiB. A row per step is cheap, but a row of any size is not.
pub const MAX_DELTA_BYTES: usize = 4 * 1024 * 1024;

/// The most iterations or tokens that one delta may name. Millions of such deltas still add up to less than the largest
/// `bigint`.
pub const MAX_COUNT: u64 = 1_000_000_000_000;

/// A session's state as the harness sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Session {
    /// What the agent remembers.
    pub memory: Map<String, Value>,
    /// What the model sees, oldest first. Each entry is kept to the letter: a provider may refuse an entry whose keys or
    /// numbers come back written in another way.
    #[serde(deserialize_with = "job::verbatim_list")]
    pub context_window: Vec<Json>,
    /// How far the work has come. By convention a harness keeps its progress on a job under the job's id.
    pub feature_progress: Map<String, Value>,
    /// Iterations in all jobs of the session.
    pub iteration_count: u64,
    /// What all these jobs used.
    #[serde(flatten)]
    pub usage: Usage,
}

/// What one checkpoint adds to a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Delta {
    /// A JSON merge patch (RFC 7396) on the memory: a key replaces, `null` removes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Map<String, Value>>,
    /// Entries to append to the context window.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "job::verbatim_list")]
    pub context_window: Vec<Json>,
    /// Whether the appended entries replace the old window (compaction).
    pub replace_context: bool,
    /// A JSON merge patch (RFC 7396) on the progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature_progress: Option<Map<String, Value>>,
    /// Iterations done since the last checkpoint.
    pub iterations: u64,
    /// What they used.
    #[serde(flatten)]
    pub usage: Usage,
}

impl Session {
    /// Returns for how many iterations in a row memory and progress are unchanged with this delta, if it was so for `stalled`
    /// of them before it.
    pub fn stalled(&self, stalled: u64, delta: &Delta) -> u64 {
        let changes = |state: &Map<String, Value>, patch: &Option<Map<String, Value>>| {
            patch.iter().flatten().any(|(key, value)| {
                let before = state.get_key_value(key).map(|(key, value)| (key.clone(), value.clone()));
                let mut after = Map::from_iter(before);
                merge(&mut after, &Map::from_iter([(key.clone(), value.clone())]));
                after.get(key) != state.get(key)
            })
        };
        if changes(&self.memory, &delta.memory) || changes(&self.feature_progress, &delta.feature_progress) {
            return 0;
        }
        add_counts(stalled, delta.iterations)
    }

    /// Returns the size of the state as JSON, in bytes: memory, context and progress, without the counts.
    pub fn bytes(&self) -> usize {
        let mut bytes = Bytes(0);
        for written in [
            serde_json::to_writer(&mut bytes, &self.memory),
            serde_json::to_writer(&mut bytes, &self.feature_progress),
        ] {
            written.expect("JSON values are written without errors");
        }
        // Each entry has a comma or a bracket.
        let context: usize = self.context_window.iter().map(|entry| entry.as_str().len() + 1).sum();
        bytes.0 + context.max(1) + 1
    }

    /// Folds one delta onto the state.
    pub fn apply(&mut self, delta: &Delta) {
        if let Some(patch) = &delta.memory {
            merge(&mut self.memory, patch);
        }
        if delta.replace_context {
            self.context_window.clear();
        }
        self.context_window.extend(delta.context_window.iter().cloned());
        if let Some(patch) = &delta.feature_progress {
            merge(&mut self.feature_progress, patch);
        }
        self.iteration_count = add_counts(self.iteration_count, delta.iterations);
        self.usage += delta.usage;
    }
}

/// Counts the bytes that are written to it.
struct Bytes(usize);

impl std::io::Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Delta {
    /// Returns whether it would change nothing.
    pub fn is_empty(&self) -> bool {
        let no_patch = |patch: &Option<Map<String, Value>>| patch.as_ref().is_none_or(Map::is_empty);
        no_patch(&self.memory)
            && self.context_window.is_empty()
            && !self.replace_context
            && no_patch(&self.feature_progress)
            && self.iterations == 0
            && self.usage.is_zero()
    }

    /// Refuses a delta that could not be kept, because it is too large or Postgres cannot hold it. Returns its size as
    /// JSON, in bytes. Entries of the context are not looked into: they are kept as text.
    pub fn check(&self) -> Result<usize, DeltaError> {
        for (field, count) in [
            ("iterations", self.iterations),
            ("input_tokens", self.usage.input_tokens),
            ("output_tokens", self.usage.output_tokens),
        ] {
            if count > MAX_COUNT {
                return Err(DeltaError::Unstorable(format!(
                    "{field}: got {count}, expected at most {MAX_COUNT}"
                )));
            }
        }
        let mut bytes = Bytes(0);
        serde_json::to_writer(&mut bytes, self).map_err(|error| DeltaError::Unstorable(error.to_string()))?;
        let Bytes(bytes) = bytes;
        if bytes > MAX_DELTA_BYTES {
            return Err(DeltaError::TooLarge { bytes });
        }
        for (field, patch) in [("memory", &self.memory), ("feature_progress", &self.feature_progress)] {
            if patch.as_ref().is_some_and(|patch| Json::from_value(patch).is_err()) {
                let text = json!({field: patch}).to_string();
                return Err(DeltaError::Unstorable(storable::describe(&text)));
            }
        }
        Ok(bytes)
    }
}

/// Why a delta cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// A field holds what Postgres cannot.
    #[error("{0}")]
    Unstorable(String),
    /// Larger than [`MAX_DELTA_BYTES`].
    #[error(
        "got a delta of {bytes} bytes, expected at most {MAX_DELTA_BYTES}; checkpoint more often, or less"
    )]
    TooLarge {
        /// Its size as JSON.
        bytes: usize,
    },
}

/// Applies a merge patch between two objects, as RFC 7396 does one level down.
fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            json_patch::merge(target.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}
