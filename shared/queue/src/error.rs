//! What can go wrong, as errors that a caller can match.

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
        /// The error of the last attempt.
        reason: String,
    },
    /// [`crate::Broker::close`] was called, or the process is stopping.
    #[error("the connection to the broker is closed for good: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
    /// A queue or exchange exists with arguments other than ours.
    #[error("{name} exists with other arguments than this version declares ({detail}); {remedy}")]
    Mismatch {
        /// The queue or exchange.
        name: String,
        /// The broker's message.
        detail: String,
        /// What to do.
        remedy: String,
    },
    /// No answer within the timeout.
    #[error("{doing}: no answer from the broker within {} s", after.as_secs_f32())]
    Timeout {
        /// What we were doing, to which queue.
        doing: String,
        /// The timeout.
        after: Duration,
    },
    /// The broker refuses this to our user.
    #[error("{doing}: {reason}; {remedy}")]
    Refused {
        /// What we were doing, to which queue.
        doing: String,
        /// The broker's message. It names the user, the vhost and what was refused.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The broker answered with an error, or the connection ended meanwhile.
    #[error("{doing}: {reason}")]
    Failed {
        /// What we were doing, to which queue.
        doing: String,
        /// The broker's message.
        reason: String,
    },
}

impl QueueError {
    /// Whether the same call may succeed later without a change of any setting.
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
    /// No queue has that name, so the broker returned the message. It is in no queue.
    #[error("queue {queue} does not exist; the message was returned ({reason})")]
    Returned {
        /// The queue.
        queue: String,
        /// The broker's message.
        reason: String,
    },
    /// The queue refused it, because it is full (`reject-publish`) or has no leader. Some replicas may hold it.
    #[error("queue {queue} refused the message: it is full or has no leader")]
    Nacked {
        /// The queue.
        queue: String,
    },
    /// No confirm came, because the connection ended or is stuck. The message may or may not have arrived.
    #[error("no confirm for a message to queue {queue}: {reason}")]
    Unconfirmed {
        /// The queue.
        queue: String,
        /// What happened instead.
        reason: String,
    },
    /// A property or a queue's name is longer than AMQP's 255 bytes. The message was not sent.
    #[error("{field}: got {bytes} bytes, expected at most 255")]
    TooLong {
        /// The property.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// [`crate::Broker::close`] was called, or the process is stopping. The message was not sent.
    #[error("the connection to the broker is closed for good")]
    Closed,
}

impl PublishError {
    /// Whether the same message may be accepted later without a change of any setting.
    pub fn is_retryable(&self) -> bool {
        match self {
            PublishError::Nacked { .. } | PublishError::Unconfirmed { .. } => true,
            PublishError::Returned { .. } | PublishError::TooLong { .. } | PublishError::Closed => false,
        }
    }
}

const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;

/// The permissions that our user needs with the fleet's default names.
const PERMISSIONS: &str = "the user needs the permissions configure, write and read on harness.* in this vhost, and write on \
                           amq.default (rabbitmqctl set_permissions)";
const LOGIN: &str = "check user, password and vhost in AMQP_URL";

/// Converts an error of lapin's. `doing` says what we were doing.
pub(crate) fn failed(doing: &str, error: &lapin::Error) -> QueueError {
    let (doing, reason) = (doing.to_owned(), explain(error));
    match reply_code(error) {
        Some(ACCESS_REFUSED) if reason.contains("Login was refused") => {
            QueueError::Refused { doing, reason, remedy: LOGIN }
        }
        Some(ACCESS_REFUSED) => QueueError::Refused { doing, reason, remedy: PERMISSIONS },
        // The broker also answers this when there are too many connections, which is temporary.
        Some(NOT_ALLOWED) if !reason.contains("limit") => {
            QueueError::Refused { doing, reason, remedy: LOGIN }
        }
        _ => QueueError::Failed { doing, reason },
    }
}

/// Whether this is the broker's message for a refusal.
pub(crate) fn is_refusal(words: &str) -> bool {
    words.contains("ACCESS_REFUSED")
}

/// Returns the broker's own message if there is one, else lapin's. Neither ever holds credentials.
pub(crate) fn explain(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => match error.to_string() {
            // The second kind occurs if another authority has the same name, such as an older one.
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

/// Returns the AMQP reply code of an error that the broker sent, such as 404.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}
