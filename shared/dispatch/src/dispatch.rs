//! The ledger and the broker side by side, as entry points and workers use them.

use std::time::Duration;

use job::{JobSpec, ReplyRule, TraceParent};
use queue::{Announcer, Broker, BrokerConfig, Publisher};
use store::Store;

use crate::changes;
use crate::reply::{Replies, Sending};

/// A ledger, a broker, and the replies to callers. Clones share connections.
///
/// It announces which jobs the ledger's transactions change, for those who follow jobs.
///
/// Its methods are in files by what they do: `publish`, `unwanted` ([`Dispatch::cancel`],
/// [`Dispatch::end_waiting`]) and `dead`.
#[derive(Clone)]
pub struct Dispatch {
    /// The ledger.
    pub store: Store,
    /// A connection for publishing.
    pub broker: Broker,
    /// Its confirming publisher.
    pub publisher: Publisher,
    pub(crate) announcer: Announcer,
    replies: Replies,
}

impl Dispatch {
    /// Joins a ledger and a broker. Replies keep to this rule. They go on connections of their own with this
    /// configuration, which are made when the first reply is due.
    pub fn new(store: Store, broker: Broker, replying: &BrokerConfig, rule: ReplyRule) -> Dispatch {
        let replies = Replies::new(store.clone(), replying, rule);
        let announcer = broker.announcer();
        // Of several on one ledger the first one sends.
        if let Some(changed) = store.changes() {
            tokio::spawn(changes::send(changed, announcer.clone()));
        }
        Dispatch { store, publisher: broker.publisher(), broker, announcer, replies }
    }

    /// Sends the reply to an ended job, from this place in its trace. Returns `None` if its caller wants no
    /// reply or is not allowed one, or if too many other replies are waiting. A caller whose queue is gone can
    /// still read the result from the ledger: a reply never holds up anything.
    pub fn reply(&self, spec: &JobSpec, place: Option<TraceParent>) -> Option<Sending> {
        self.replies.send(spec, place)
    }

    /// Waits within a bound for the replies that are still to be sent. None is sent afterwards.
    pub async fn close_replies(&self, within: Duration) {
        self.replies.close(within).await;
    }

    /// As [`Dispatch::close_replies`], and closes the broker's connection.
    pub async fn close(&self, within: Duration) {
        self.close_replies(within).await;
        self.broker.close().await;
    }
}
