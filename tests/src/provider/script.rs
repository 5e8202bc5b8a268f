//! What it answers, as a file says it.
//!
//! A *play* is a list of turns. A text of the user that holds `play:NAME` begins it, and the answers that followed in the
//! conversation say which turn is next: so a request that is sent again gets the same turn, whichever worker sends it.
//! Where no play is named, or it is over, `answers` come in order, and then the usual words.

use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::fault::{Fault, Rule};

/// A script.
///
/// ```json
/// {"plays": {"reads": [
///     {"times": 3, "thinking": "It goes on.", "tools": [{"name": "read", "input": {"page": 1e0}}]},
///     {"text": "Done.", "fault": {"cut_after_event": "content_block_delta"}}]},
///  "faults": [{"fault": {"fails": 500}, "every": 20, "first": 7}]}
/// ```
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// How many words an answer has that nothing else says.
    pub words: Option<u64>,
    /// How long it waits before each event.
    pub pause_ms: u64,
    /// The `Retry-After` of refusals.
    pub retry_after_s: Option<u64>,
    /// A context window below that of the models.
    pub context_window: Option<u64>,
    /// Turns by the name of their play.
    pub plays: BTreeMap<String, Vec<Turn>>,
    /// Turns in order, for all callers together.
    pub answers: VecDeque<Turn>,
    /// Faults that come again and again.
    pub faults: Vec<Rule>,
}

/// One answer. `{turn}` in its texts and inputs is its number in the play.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Turn {
    /// It is given so often in a row; once if left out.
    pub times: Option<usize>,
    /// What it thinks first, signed. It may be empty.
    pub thinking: Option<String>,
    /// A block of Messages that it says before its text, to the letter.
    pub block: Option<Box<RawValue>>,
    /// What it says.
    pub text: Option<String>,
    /// The tools that it calls.
    pub tools: Vec<ToolCall>,
    /// Why it stops, as Messages names it, if the tools do not say it.
    pub stop: Option<String>,
    /// What goes wrong, the first time in each conversation.
    pub fault: Option<Fault>,
    /// How long it waits before each event.
    pub pause_ms: Option<u64>,
}

/// A call of a tool.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// The tool.
    pub name: String,
    /// Its input, to the letter.
    pub input: Box<RawValue>,
}

impl Script {
    /// Reads a script.
    pub fn parse(text: &str) -> serde_json::Result<Script> {
        serde_json::from_str(text)
    }

    /// Returns the turn of a play.
    pub(super) fn turn(&self, play: &str, number: usize) -> Option<&Turn> {
        let mut left = number;
        self.plays.get(play)?.iter().find(|turn| {
            let times = turn.times.unwrap_or(1);
            let found = left < times;
            left = left.saturating_sub(times);
            found
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_play_goes_on_turn_by_turn_and_ends() {
        let script = r#"{"plays": {"p": [{"times": 2, "text": "a"}, {"text": "b"}]}}"#;
        let script = Script::parse(script).unwrap();
        let said = |number| script.turn("p", number).and_then(|turn| turn.text.as_deref());
        assert_eq!([said(0), said(1), said(2), said(3)], [Some("a"), Some("a"), Some("b"), None]);
        assert!(Script::parse(r#"{"plays": {"p": [{"says": "a"}]}}"#).is_err());
    }
}
