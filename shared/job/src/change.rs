//! What travels to those who follow jobs: that a job has changed, and what it streams: text and notes.
//!
//! A [`Change`] is a hint. It says which job to read again; what is shown is read from the ledger. So it may get lost
//! or come twice, and it carries no cost or progress, which would be a second truth. A [`TextPiece`] is in no ledger:
//! what gets lost is gone.
//!
//! Many changes share one message: a JSON array of `[job_id, session_key, state]`.

use serde::{Deserialize, Serialize};

use crate::{JobId, JobState, Json, SessionKey};

/// The AMQP property `type` of a message with changes.
pub const CHANGES: &str = "harness.changes.v1";
/// The AMQP property `type` of a message with text.
pub const TEXT: &str = "harness.text.v1";

/// A committed transaction has changed this job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change(JobId, SessionKey, JobState);

impl Change {
    /// This job is in this state now, or has gone on in it.
    pub fn new(job_id: JobId, session: SessionKey, state: JobState) -> Change {
        Change(job_id, session, state)
    }

    /// The job.
    pub fn job_id(&self) -> JobId {
        self.0
    }

    /// The key of its session, which says its tenant.
    pub fn session(&self) -> &SessionKey {
        &self.1
    }

    /// Its state when the transaction was committed.
    pub fn state(&self) -> JobState {
        self.2
    }
}

/// A piece of what a running job streams: text, or a note.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextPiece {
    /// The job.
    pub job_id: JobId,
    /// The key of its session.
    pub session: SessionKey,
    /// What it wrote since the last piece.
    pub text: String,
    /// What it notes instead. A reader of an older release takes it for no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Note>,
}

/// What a job's harness shows beside its text, such as a call of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// What happened, in the harness's own words.
    pub name: String,
    /// Details, in the harness's own shape.
    pub data: Json,
}

impl TextPiece {
    /// Returns how many bytes of text and notes it has.
    pub fn bytes(&self) -> usize {
        let note = self.note.as_ref().map_or(0, |note| note.name.len() + note.data.as_str().len());
        self.text.len() + note
    }
}

/// Writes the body of a message with changes.
pub fn encode_changes(changes: &[Change]) -> Vec<u8> {
    serde_json::to_vec(changes).expect("ids, keys and states are plain text")
}

/// Reads it; `None` if it is something else, such as a message of a later version.
pub fn decode_changes(body: &[u8]) -> Option<Vec<Change>> {
    serde_json::from_slice(body).ok()
}

/// Writes the body of a message with text.
pub fn encode_text(piece: &TextPiece) -> Vec<u8> {
    serde_json::to_vec(piece).expect("ids, keys and text are plain text")
}

/// Reads it; `None` if it is something else.
pub fn decode_text(body: &[u8]) -> Option<TextPiece> {
    serde_json::from_slice(body).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn changes_and_text_read_back_and_are_compact() {
        let job_id: JobId = "0198c0de-7a00-7000-8000-000000000001".parse().unwrap();
        let session = SessionKey::of_ledger("~acme/s-1");
        let changes = vec![Change::new(job_id, session.clone(), JobState::Running); 2];
        let body = encode_changes(&changes);
        assert_eq!(
            String::from_utf8_lossy(&body[..64]),
            "[[\"0198c0de-7a00-7000-8000-000000000001\",\"~acme/s-1\",\"running\"],"
        );
        assert_eq!(decode_changes(&body), Some(changes));
        let text = TextPiece { job_id, session, text: "\u{1f600}\n".to_owned(), note: None };
        assert!(!String::from_utf8_lossy(&encode_text(&text)).contains("note"));
        let note = Note { name: "tool_call".to_owned(), data: Json::parse(r#"{"b":1e5,"a":[]}"#).unwrap() };
        let note = TextPiece { text: String::new(), note: Some(note), ..text.clone() };
        for piece in [text, note] {
            assert_eq!(decode_text(&encode_text(&piece)), Some(piece));
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decode_changes(&body).is_some(), body == b"[]");
            let _ = decode_text(&body);
        }
    }
}
