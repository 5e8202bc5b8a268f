//! Progress that is worth showing. This module does not know who watches it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Something that a harness wants to show while it works. It changes no state, may get lost, and is not kept for ever.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What happened, in the harness's own words, such as `tool_call`.
    pub name: String,
    /// Details, in the harness's own shape.
    #[serde(default)]
    pub data: Value,
}

impl Event {
    /// Makes an event with this name.
    pub fn new(name: impl Into<String>, data: Value) -> Event {
        Event { name: name.into(), data }
    }
}
