//! What an agent may call, one call, and what came of it.

use std::fmt::{self, Write as _};

use job::{JobId, Json};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// A tool, as it is described to a model.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Its name: 1 to 64 letters, digits, `_` and `-`, which is what every provider allows.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// The JSON schema of its input, an object.
    pub input_schema: Json,
    /// Whether a call without a result may run again.
    pub repeat: Repeat,
    /// Whether it may run beside other calls of the same answer.
    pub side_by_side: bool,
    /// Whether a person must approve each call first.
    pub approve: bool,
}

/// Whether a call may run again whose result is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repeat {
    /// It may: a second run does no harm, or the tool recognises the call by its key.
    Safe,
    /// It may not: the model is told that the call may have taken effect.
    #[default]
    Unsafe,
}

/// One call, as the model made it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The name of the tool.
    pub name: &'a str,
    /// The input: text that should be a JSON object.
    pub input: &'a str,
    /// What names the call for the tool, in each attempt.
    pub key: &'a CallKey,
}

/// What names a call, in every attempt at its job: a tool that is given the same key twice can tell that it is the
/// same call. At most 200 visible ASCII characters, so that it fits a variable and a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallKey(String);

/// The longest id of a call that is used as it is. Providers make ids of about 30 characters.
const LONGEST_ID: usize = 128;

impl CallKey {
    /// Makes the key of a call: its job, and an id that no other call of the job has.
    pub fn new(job: JobId, call_id: &str) -> CallKey {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let plain = (1..=LONGEST_ID).contains(&call_id.len()) && call_id.chars().all(is_plain);
        let id = if plain { call_id.to_owned() } else { digest(call_id) };
        CallKey(format!("{job}.{id}"))
    }

    /// Returns the key. It can name a file: another job of the session may number its calls alike.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn digest(text: &str) -> String {
    let mut hex = String::from("sha256-");
    for byte in Sha256::digest(text.as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// What came of a call. It can be stored and sent as it is: its texts are valid UTF-8 without NUL, redacted, and within the
/// tool's `max_output_bytes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The result, or what is wrong.
    pub content: Vec<Content>,
    /// Whether the call failed.
    pub is_error: bool,
    /// How it ended, for metrics.
    pub ended: Ended,
}

/// A piece of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Text.
    Text(String),
    /// A picture of a type that providers take.
    Image {
        /// `image/png`, `image/jpeg`, `image/gif` or `image/webp`.
        media_type: String,
        /// Base64.
        data: String,
    },
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With its result.
    Done,
    /// There is no such tool.
    Unknown,
    /// Its input is no JSON or breaks the schema. The tool was not started.
    BadInput,
    /// The tool reported an error.
    Failed,
    /// It took longer than its `timeout_ms`.
    TimedOut,
    /// The tool could not be started or reached, or died.
    Broken,
}

impl Ended {
    /// All of them.
    pub const ALL: [Ended; 6] =
        [Ended::Done, Ended::Unknown, Ended::BadInput, Ended::Failed, Ended::TimedOut, Ended::Broken];

    /// Returns its name, for a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Ended::Done => "done",
            Ended::Unknown => "unknown",
            Ended::BadInput => "bad_input",
            Ended::Failed => "failed",
            Ended::TimedOut => "timed_out",
            Ended::Broken => "broken",
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call that has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was stopped. It may have taken effect.
    #[error("the call was stopped")]
    Stopped,
    /// The machine lacks what it takes to start a program, such as free processes. The call did not begin.
    #[error("{0}")]
    Shortage(String),
}

impl Output {
    /// Makes the result of a call that failed, of a text that is clean and redacted.
    pub(crate) fn failed(ended: Ended, text: impl Into<String>) -> Output {
        Output { content: vec![Content::Text(text.into())], is_error: true, ended }
    }

    /// Makes a result of a text that is clean and redacted.
    pub(crate) fn done(text: impl Into<String>) -> Output {
        Output { content: vec![Content::Text(text.into())], is_error: false, ended: Ended::Done }
    }

    /// Returns all its text.
    pub fn text(&self) -> String {
        let text = |content: &Content| match content {
            Content::Text(text) => Some(text.clone()),
            Content::Image { .. } => None,
        };
        self.content.iter().filter_map(text).collect::<Vec<_>>().join("\n")
    }
}

/// Returns whether every provider takes a tool of this name.
pub(crate) fn is_tool_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_fits_a_header_and_a_file_name_whatever_the_id_is() {
        let job = JobId::now();
        assert_eq!(CallKey::new(job, "toolu_01-A").as_str(), format!("{job}.toolu_01-A"));
        let odd = ["", "../../etc/passwd", "a\nb", "é", &"x".repeat(1_000)];
        let keys: Vec<CallKey> = odd.iter().map(|id| CallKey::new(job, id)).collect();
        for (at, key) in keys.iter().enumerate() {
            assert!(key.as_str().len() <= 200 && key.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
            assert!(!key.as_str().contains('/') && !key.as_str().starts_with('.'), "{key:?}");
            assert!(keys[..at].iter().all(|other| other != key));
            assert_eq!(*key, CallKey::new(job, odd[at]));
        }
    }
}
