//! An answer of a model, whole: what of it goes into the context, and what is to be done about it.

use job::{Json, JsonError};
use model::check_json;
use serde::{Deserialize, Serialize};

/// A whole answer. A stream without its own end never becomes one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    /// What goes back to the provider: a message, or the items of Responses; none if the model said nothing.
    pub entries: Vec<Json>,
    /// Its text.
    pub text: String,
    /// The tools that it calls, in its order.
    pub calls: Vec<ToolCall>,
    /// Why it ended.
    pub stop: StopReason,
    /// The model that answered, as the provider named it.
    pub model: String,
    /// What it used, as the provider counted.
    pub tokens: Tokens,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ToolCall {
    /// The provider's id of it.
    pub id: String,
    /// The tool.
    pub name: String,
    /// What it is called with, as the model wrote it.
    pub input: Result<Json, BadInput>,
}

/// Why a call's input cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadInput {
    /// The limit of output came in the middle of it.
    #[error(
        "this call was not made: the limit of output came in the middle of its input. Call again with a shorter one, \
         or in several steps"
    )]
    Torn,
    /// It is no JSON object, or one that cannot be kept.
    #[error("this call was not made: its input is no JSON object that can be kept ({0}). Call again")]
    NoObject(String),
}

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    /// Read, in all classes.
    pub input: u64,
    /// Of these, from the provider's cache.
    pub cache_read: u64,
    /// Written.
    pub output: u64,
}

impl Tokens {
    /// Returns those that were read and written.
    pub fn all(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StopReason {
    /// The model is done. So is every reason that is not known here.
    End,
    /// It waits for its tools.
    Tools,
    /// The limit of output.
    OutputLimit,
    /// The provider paused it; the same conversation goes on.
    Pause,
    /// The provider does not answer this.
    Refusal,
    /// The context window is full.
    WindowFull,
}

impl StopReason {
    /// Returns whether the rest of the answer is still to come.
    pub fn goes_on(self) -> bool {
        matches!(self, StopReason::OutputLimit | StopReason::WindowFull | StopReason::Pause)
    }
}

/// Why a stream became no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// It is not what this wire sends.
    #[error("the answer is not what this wire sends: {0}")]
    Garbage(String),
    /// The provider reported an error in the middle of it.
    #[error("the provider failed in the middle of its answer: {kind}: {message}")]
    Failed {
        /// Its kind.
        kind: String,
        /// For people.
        message: String,
    },
    /// It ended before its own end.
    #[error("the answer has no end")]
    NoEnd,
    /// It holds what cannot be kept.
    #[error("the answer cannot be kept: {0}")]
    Unstorable(String),
}

impl NoAnswer {
    /// Makes the error of something that cannot be read.
    pub fn garbage(error: impl ToString) -> NoAnswer {
        NoAnswer::Garbage(error.to_string())
    }
}

/// Returns a text without what cannot be kept. It is for what we write: what the model said goes back to the letter.
pub(crate) fn storable(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

/// Reads the input of a call: an object, to the letter. `is_cut` says that the limit of output ended it.
pub(crate) fn input(text: &str, is_cut: bool) -> Result<Json, BadInput> {
    if is_cut {
        return Err(BadInput::Torn);
    }
    match Json::parse(or_empty(text)) {
        Ok(json) if json.as_str().starts_with('{') => Ok(json),
        Ok(_) => Err(BadInput::NoObject("it is another value".to_owned())),
        Err(error) => Err(BadInput::NoObject(error.to_string())),
    }
}

/// Reads the input of a call that goes back as JSON within its message. The gateway passes on no JSON that two readers can
/// read differently, such as two equal keys, and bounds its nesting in the request.
pub(crate) fn embedded(text: &str, is_cut: bool) -> Result<Json, BadInput> {
    let json = input(text, is_cut)?;
    let checked = passed_on(json.as_str()).map_err(|error| BadInput::NoObject(without_place(&error)));
    checked.map(|()| json)
}

/// Checks whether the gateway passes on a message with this input.
fn passed_on(input: &str) -> Result<(), serde_json::Error> {
    check_json(&format!(r#"{{"messages":[{{"content":[{{"input":{input}}}]}}]}}"#))
}

/// Takes an entry into the context, if the gateway takes it back. Otherwise no later request of the session would pass.
pub(crate) fn entry(kept: Result<Json, JsonError>) -> Result<Json, NoAnswer> {
    let entry = kept.map_err(|error| NoAnswer::Unstorable(error.to_string()))?;
    let sent = format!(r#"{{"messages":[{}]}}"#, entry.as_str());
    let checked = check_json(&sent).map_err(|error| NoAnswer::Unstorable(without_place(&error)));
    checked.map(|()| entry)
}

/// Says what is wrong, but not where in a text that nobody has seen.
fn without_place(error: &serde_json::Error) -> String {
    let said = error.to_string();
    said.rsplit_once(" at line ").map_or(said.clone(), |(said, _)| said.to_owned())
}

/// As [`kept_input`], of what goes back as JSON within its message.
pub(crate) fn kept_embedded(text: &str, is_cut: bool) -> &str {
    let kept = kept_input(text, is_cut);
    if passed_on(kept).is_ok() { kept } else { "{}" }
}

/// Returns the input of a call as it goes back to the provider: to the letter, also if the call cannot be made. What is no
/// object, the provider would not take back.
pub(crate) fn kept_input(text: &str, is_cut: bool) -> &str {
    let text = or_empty(text);
    let is_object = || Json::verbatim(text).is_ok_and(|json| json.as_str().starts_with('{'));
    if is_cut || !is_object() { "{}" } else { text }
}

fn or_empty(text: &str) -> &str {
    if text.trim().is_empty() { "{}" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gateway_would_not_take_back_is_no_entry() {
        let taken = |said: &str| entry(Json::verbatim(said));
        for said in [r#"{"a":1,"a":2}"#, r#"{"n":1e400}"#, r#"{"t":"\ud800"}"#] {
            assert!(matches!(taken(said), Err(NoAnswer::Unstorable(_))), "{said}");
        }
        let fine = r#"{"b":1e5,"a":"x\u0000y","n":12345678901234567890123}"#;
        assert_eq!(taken(fine).unwrap().as_str(), fine);
    }
}
