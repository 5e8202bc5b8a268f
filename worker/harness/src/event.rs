//! Progress worth showing. It knows nothing of who looks on.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Something a harness wants seen while it works. It changes no state, may get lost, and is not kept for ever.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What kind of thing happened, in the harness's own words, such as `tool_call`.
    pub name: String,
    /// Whatever belongs to it.
    #[serde(default)]
    pub data: Value,
}

impl Event {
    /// An event of this name.
    pub fn new(name: impl Into<String>, data: Value) -> Event {
        Event { name: name.into(), data }
    }
}
