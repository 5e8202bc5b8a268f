//! Identifiers: job ids that carry their own time, and the names of sessions, agents and pools.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A job id: a UUIDv7 (RFC 9562, section 5.7), whose first 48 bits are Unix time in milliseconds.
///
/// The time inside the id places its result in a partition, so an id is only accepted between
/// `now - retention` and `now + 1 day` (see [`JobId::check_window`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "Uuid")]
pub struct JobId(Uuid);

/// How far ahead of our clock the time in a job id may be, because the clocks of hosts differ.
const FUTURE_MS: u64 = 24 * 60 * 60 * 1000;

impl JobId {
    /// Returns a new id for the present moment. Ids made in one process increase.
    pub fn now() -> Self {
        JobId(Uuid::now_v7())
    }

    /// An id as the ledger has it. A row that was written by hand may have one of another version: it is read like any
    /// other, and what it is about is not found.
    pub fn of_ledger(id: Uuid) -> Self {
        JobId(id)
    }

    /// Returns the Unix time inside the id, in milliseconds.
    pub fn unix_ms(self) -> u64 {
        (self.0.as_u128() >> 80) as u64
    }

    /// Refuses an id whose time is outside the span that the ledger keeps.
    pub fn check_window(self, now_unix_ms: u64, retention: Duration) -> Result<(), IdError> {
        let oldest = now_unix_ms.saturating_sub(retention.as_millis() as u64);
        let at = self.unix_ms();
        if at < oldest {
            return Err(IdError::TooOld { id: self, days: retention.as_secs() / 86_400 });
        }
        if at > now_unix_ms + FUTURE_MS {
            return Err(IdError::InTheFuture { id: self });
        }
        Ok(())
    }
}

impl TryFrom<Uuid> for JobId {
    type Error = IdError;
    fn try_from(id: Uuid) -> Result<Self, IdError> {
        if id.get_version_num() == 7 { Ok(JobId(id)) } else { Err(IdError::NotV7(id)) }
    }
}

impl TryFrom<String> for JobId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<JobId> for Uuid {
    fn from(id: JobId) -> Uuid {
        id.0
    }
}

impl FromStr for JobId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Uuid::from_str(text).map_err(|_| IdError::NotUuid(clip(text)))?.try_into()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One boot of one worker process. It is never a host name: a process that was taken for dead returns under a new id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(Uuid);

impl WorkerId {
    /// Returns a new id.
    pub fn random() -> Self {
        WorkerId(Uuid::new_v4())
    }
}

impl From<Uuid> for WorkerId {
    fn from(id: Uuid) -> Self {
        WorkerId(id)
    }
}

impl From<WorkerId> for Uuid {
    fn from(id: WorkerId) -> Uuid {
        id.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a session, an agent or a pool: 1 to 128 characters of `A–Z a–z 0–9 . _ : @ -`, the first not a dot.
///
/// Such a name is safe as the name of a folder, as part of a queue's name and in a log line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns a name that was checked before it was written to where it comes from.
    pub(crate) fn unchecked(text: &str) -> Name {
        Name(text.to_owned())
    }
}

impl Default for Name {
    /// `default`, the pool of a job that names none.
    fn default() -> Self {
        Name("default".to_owned())
    }
}

impl TryFrom<String> for Name {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:@-".contains(&b);
        if text.is_empty() || text.len() > 128 || text.starts_with('.') || !text.bytes().all(allowed) {
            return Err(IdError::BadName(clip(&text)));
        }
        Ok(Name(text))
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.to_owned().try_into()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why an id or a name is refused. The text says what was given and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a UUID at all.
    #[error("got \"{0}\", expected a UUID of version 7 such as 0198c0de-7a00-7000-8000-000000000001")]
    NotUuid(String),
    /// A UUID of another version.
    #[error("got {0}, a UUID of another version, expected version 7 (time-ordered)")]
    NotV7(Uuid),
    /// Older than the oldest result that is kept.
    #[error("got {id}, whose time is more than {days} days ago, expected an id made within the retention")]
    TooOld {
        /// The id that was given.
        id: JobId,
        /// The retention it exceeds.
        days: u64,
    },
    /// More than a day in the future.
    #[error("got {id}, whose time is more than a day ahead, expected an id made by a clock that is right")]
    InTheFuture {
        /// The id that was given.
        id: JobId,
    },
    /// Not a name.
    #[error(
        "got \"{0}\", expected 1 to 128 characters of A-Z a-z 0-9 . _ : @ - that do not start with a dot"
    )]
    BadName(String),
    /// Not the name of a tenant.
    #[error("got \"{0}\", expected 1 to 64 characters of A-Z a-z 0-9 . _ : @ - that do not start with a dot")]
    BadTenant(String),
}

/// Returns the beginning of a user's text, short enough for an error message.
pub(crate) fn clip(text: &str) -> String {
    const KEEP: usize = 60;
    match text.char_indices().nth(KEEP) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_id_lies_in_its_window() {
        let id = JobId::now();
        let now = id.unix_ms();
        let week = Duration::from_secs(7 * 86_400);
        assert_eq!(id.check_window(now, week), Ok(()));
        assert!(matches!(id.check_window(now + 8 * 86_400_000, week), Err(IdError::TooOld { days: 7, .. })));
        assert!(matches!(id.check_window(now - 2 * 86_400_000, week), Err(IdError::InTheFuture { .. })));
    }

    #[test]
    fn other_uuid_versions_are_refused_by_their_version() {
        let error = Uuid::new_v4().to_string().parse::<JobId>().unwrap_err();
        assert!(error.to_string().contains("version 7"), "{error}");
    }

    #[test]
    fn names_that_would_escape_a_folder_are_refused() {
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "é", &"x".repeat(129)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for good in ["a", "user-42:thread_7@eu.west", &"x".repeat(128)] {
            assert!(good.parse::<Name>().is_ok(), "{good:?}");
        }
    }
}
