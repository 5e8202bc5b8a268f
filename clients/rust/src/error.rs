//! Why a call failed.

use std::fmt;

use job::JobId;
use serde::Deserialize;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused it, for the reasons of its problem document.
    #[error("{0}")]
    Refused(Problem),
    /// No answer came, however often it was tried. A job that was tried may have been accepted all the same.
    #[error("{url} gives no answer")]
    Unreachable {
        /// Where the API should be.
        url: String,
        /// Why the last try failed.
        source: reqwest::Error,
    },
    /// A stream ended, or was silent, before its job had ended, however often it was tried.
    #[error("{url} cuts the stream off")]
    CutOff {
        /// Where the API should be.
        url: String,
    },
    /// An answer came that is not the API's, or that of another release.
    #[error("the answer of {url} cannot be read")]
    Unreadable {
        /// Where it came from.
        url: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl Error {
    /// The HTTP status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Error::Refused(problem) => Some(problem.status),
            Error::Unreachable { .. } | Error::CutOff { .. } | Error::Unreadable { .. } => None,
        }
    }

    /// Whether there is no such thing, at least not for this key.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }
}

/// A problem document (RFC 9457).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// `urn:harness:` and a word, such as `invalid`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was given, and what would be right.
    pub detail: String,
    /// The field, header or parameter that is wrong.
    pub field: Option<String>,
    /// The job that was tried. After a 503 it may have been accepted.
    pub job_id: Option<JobId>,
}

impl Problem {
    /// Reads an answer. A proxy's answer is no problem document, and one is made of it.
    pub(crate) fn read(status: u16, body: &[u8]) -> Problem {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) if !problem.title.is_empty() => Problem { status, ..problem },
            Ok(_) | Err(_) => {
                let body = String::from_utf8_lossy(body);
                let detail = job::shown(&body).chars().take(200).collect();
                Problem {
                    status,
                    title: "The answer is no problem document".to_owned(),
                    detail,
                    ..Problem::default()
                }
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        write!(f, "{} ({}: {})", self.detail, self.status, self.title)
    }
}
