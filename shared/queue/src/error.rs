//! What can go wrong, in words a caller can match.

use std::time::Duration;

use lapin::ErrorKind;

use crate::ConfigError;

/// An operation on the broker failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The address is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no connection at the moment.
    #[error("the broker is not reachable: {reason}")]
    Unavailable {
        /// What the last attempt failed with.
        reason: String,
    },
    /// [`crate::Broker::close`] was called, or the process stops.
    #[error("the connection to the broker is closed for good: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
    /// A queue or exchange exists with other arguments than ours.
    #[error("{name} exists with other arguments than this version declares ({detail}); {remedy}")]
    Mismatch {
        /// The queue or exchange.
        name: String,
        /// The broker's words.
        detail: String,
        /// What to do.
        remedy: String,
    },
    /// No answer within the bound.
    #[error("{doing}: no answer from the broker within {} s", after.as_secs_f32())]
    Timeout {
        /// What we were doing, to which queue.
        doing: String,
        /// The bound.
        after: Duration,
    },
    /// The broker refuses this to our user.
    #[error("{doing}: {reason}; {remedy}")]
    Refused {
        /// What we were doing, to which queue.
        doing: String,
        /// The broker's words, which name the user, the vhost and what it was refused.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The broker's answer was an error, or the connection ended meanwhile.
    #[error("{doing}: {reason}")]
    Failed {
        /// What we were doing, to which queue.
        doing: String,
        /// The broker's words.
        reason: String,
    },
}

impl QueueError {
    /// Whether the same call may succeed later without anybody changing a setting.
    pub fn is_retryable(&self) -> bool {
        match self {
            QueueError::Unavailable { .. }
            | QueueError::Timeout { .. }
            | QueueError::Refused { .. }
            | QueueError::Failed { .. } => true,
            QueueError::Config(_) | QueueError::Closed { .. } | QueueError::Mismatch { .. } => false,
        }
    }
}

/// A message is not known to be in its queue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue of that name: the broker gave the message back. It is nowhere.
    #[error("queue {queue} does not exist; the message was returned ({reason})")]
    Returned {
        /// The queue.
        queue: String,
        /// The broker's words.
        reason: String,
    },
    /// The queue refused it, being full (`reject-publish`) or without a leader. It may be in the queue of some replicas.
    #[error("queue {queue} refused the message: it is full or has no leader")]
    Nacked {
        /// The queue.
        queue: String,
    },
    /// No confirm: the connection ended or is stuck. The message may or may not have arrived.
    #[error("no confirm for a message to queue {queue}: {reason}")]
    Unconfirmed {
        /// The queue.
        queue: String,
        /// What happened instead.
        reason: String,
    },
    /// A property or a queue's name is longer than AMQP's 255 bytes. It was not sent.
    #[error("{field}: got {bytes} bytes, expected at most 255")]
    TooLong {
        /// The property.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// [`crate::Broker::close`] was called, or the process stops. It was not sent.
    #[error("the connection to the broker is closed for good")]
    Closed,
}

impl PublishError {
    /// Whether the same message may be accepted later without anybody changing something.
    pub fn is_retryable(&self) -> bool {
        match self {
            PublishError::Nacked { .. } | PublishError::Unconfirmed { .. } => true,
            PublishError::Returned { .. } | PublishError::TooLong { .. } | PublishError::Closed => false,
        }
    }
}

const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;

/// What an account of ours needs, as the fleet's default names are.
const PERMISSIONS: &str = "the user needs the permissions configure, write and read on harness.* in this vhost, and write on \
                           amq.default (rabbitmqctl set_permissions)";
const LOGIN: &str = "look at user, password and vhost in AMQP_URL";

/// The error of something that was answered with one.
pub(crate) fn failed(doing: &str, error: &lapin::Error) -> QueueError {
    let (doing, reason) = (doing.to_owned(), explain(error));
    match reply_code(error) {
        Some(ACCESS_REFUSED) if reason.contains("Login was refused") => {
            QueueError::Refused { doing, reason, remedy: LOGIN }
        }
        Some(ACCESS_REFUSED) => QueueError::Refused { doing, reason, remedy: PERMISSIONS },
        // Also the answer where there are too many connections, which passes.
        Some(NOT_ALLOWED) if !reason.contains("limit") => {
            QueueError::Refused { doing, reason, remedy: LOGIN }
        }
        _ => QueueError::Failed { doing, reason },
    }
}

/// Whether these are the broker's words for something that it refuses.
pub(crate) fn is_refusal(words: &str) -> bool {
    words.contains("ACCESS_REFUSED")
}

/// lapin's error in the broker's own words where it has any. Credentials are never part of them.
pub(crate) fn explain(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => match error.to_string() {
            // The second where another authority has the same name, such as an older one.
            text if ["UnknownIssuer", "BadSignature"].iter().any(|kind| text.contains(kind)) => {
                format!(
                    "{text}: expected TLS_CA_FILE (or cacertfile in AMQP_URL) to name the file of its authority"
                )
            }
            text => text,
        },
        _ => error.to_string(),
    }
}

/// Reply codes (AMQP 0-9-1, section 1.2).
pub(crate) const NOT_FOUND: u16 = 404;
pub(crate) const REPLY_SUCCESS: u16 = 200;

/// The AMQP reply code of an error the broker sent, such as 404.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}
