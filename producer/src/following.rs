//! Following jobs and sessions: there is one way for all that wait for an end or watch a stream, and one question to
//! Postgres for all of them.
//!
//! The fleet's processes announce which jobs their transactions have changed. An announcement is a hint that a job is to
//! be read again; what is shown is read from the ledger. All that is followed is read every two seconds in any case, so
//! that an end comes although its announcement was lost, or RabbitMQ is away.
//!
//! A follower costs a place in a list and a bounded queue: no connection, query or binding of its own. It is
//! registered first, and what it follows is read after that, so that no change is missed in between. A follower that
//! does not keep up is cut off.
//!
//! No follower holds up the others. A question is bounded in topics, in announced jobs, in ends and in bytes, and streams
//! that catch up share its ends; what is left comes behind what the others wait for. Each question takes some of what is
//! due and some of the rest, so that neither waits for the other. An end that all followers of a topic have is not read
//! again. Topics that could not be read together are read one by one, beside all others, until they
//! can be read; a topic that still cannot be read is given up, and its followers know that.
//!
//! What waits for followers is bounded: 1 MiB for each, and 64 MiB for all ([`topics::HELD`]). Beside that, a stream
//! holds the part of a reading that it is sending.

mod mailbox;
mod queue_of_topics;
mod reader;
mod sequence;
mod topics;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use job::{JobId, SessionKey, TextPiece};
use queue::Shards;
use store::{JobView, LiveJob, Step, StepPlace};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use mailbox::{Counted, Mailbox};
pub use sequence::{Event, Position, Sequence};
use topics::Topics;

/// How long a stream waits at its beginning until the text of its shard comes.
const TEXT_COMES_WITHIN: Duration = Duration::from_secs(1);

/// What is followed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Followed {
    /// A job.
    Job(JobId),
    /// All jobs of a session.
    Session(SessionKey),
}

/// What a follower wants, and on whose behalf.
#[derive(Clone, Debug)]
pub struct Wish {
    /// What is followed.
    pub followed: Followed,
    /// Checkpoints behind this place.
    pub behind: StepPlace,
    /// Ends since this time, in milliseconds of the Unix epoch; of sessions.
    pub since: Option<i64>,
    /// The shard of the text that it wants, if any.
    pub text: Option<u8>,
    /// The key that has to stay valid; empty where there are no keys.
    pub key_id: String,
}

/// What was read at one time.
#[derive(Debug, Default)]
pub struct Seen {
    /// When, by Postgres's clock, in milliseconds of the Unix epoch; 0 if more of what there was at that time is still to be
    /// read. A stream that goes on behind an event of it looks from the time before.
    pub at: i64,
    /// The jobs that have not ended.
    pub live: Vec<LiveJob>,
    /// Checkpoints, in order. Some may have been seen before.
    pub steps: Vec<Step>,
    /// Jobs that have ended. Some may have been seen before.
    pub ended: Vec<Ended>,
    /// Whether ends of a session may not have been found.
    pub missed: Missed,
}

/// A job that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The job.
    pub view: Arc<JobView>,
    /// Its last run; 0 if it has never run.
    pub epoch: i64,
    /// When its first run began, in milliseconds of the Unix epoch.
    pub started_ms: Option<i64>,
    /// When it ended, in milliseconds of the Unix epoch.
    pub finished_ms: i64,
}

/// Whether ends of a session may not have been found, because it has more results than are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missed {
    /// All were found.
    #[default]
    Nothing,
    /// Ends from before the stream, for streams that go on behind an earlier one.
    WhileAway,
    /// Ends since the last reading.
    Now,
}

/// What comes to a follower.
#[derive(Clone, Debug)]
pub enum News {
    /// What was read.
    Seen(Arc<Counted<Seen>>),
    /// Text that a job streams.
    Text(Arc<Counted<TextPiece>>),
    /// Nothing waits. It comes every 15 s.
    Quiet,
    /// What is followed cannot be read, again and again. Nothing comes behind this.
    Unreadable,
    /// This process stops. Nothing comes behind this.
    Stopping,
}

/// All that is followed in this process; clones share it.
#[derive(Clone)]
pub struct Following(Arc<Inner>);

struct Inner {
    topics: Mutex<Topics>,
    due: Notify,
    /// Topics that are read apart from the others may be due.
    apart: Notify,
    shards: Shards,
}

/// One follower. Dropping it ends the following.
pub struct Follower {
    following: Following,
    followed: Followed,
    id: u64,
    news: Arc<Mailbox>,
}

impl Following {
    /// Nothing is followed yet. The text of these shards can be had.
    pub fn new(shards: Shards) -> Following {
        let (due, apart) = (Notify::new(), Notify::new());
        Following(Arc::new(Inner { topics: Mutex::default(), due, apart, shards }))
    }

    /// Follows from now on. What there is comes first.
    pub async fn follow(&self, wish: Wish) -> Follower {
        let (followed, text) = (wish.followed.clone(), wish.text);
        let (id, news, wanted) = self.lock().enter(wish);
        // From here on its end takes it out of the list again.
        let follower = Follower { following: self.clone(), followed, id, news };
        if let Some(shard) = text {
            self.0.shards.want(wanted);
            self.0.shards.comes(shard, TEXT_COMES_WITHIN).await;
        }
        self.notify();
        follower
    }

    /// Something may be due.
    fn notify(&self) {
        self.0.due.notify_one();
        self.0.apart.notify_one();
    }

    /// Waits until this job has ended, but not longer than this, nor beyond the stop; `None` when it has not. A job that the
    /// ledger does not know yet is waited for as well.
    pub async fn end_of(&self, job_id: JobId, until: Instant) -> Option<Arc<JobView>> {
        let wish = Wish {
            followed: Followed::Job(job_id),
            behind: StepPlace::END,
            since: None,
            text: None,
            key_id: String::new(),
        };
        let mut follower = self.follow(wish).await;
        loop {
            match timeout_at(until, follower.next()).await.ok()?? {
                News::Seen(seen) => {
                    if let Some(ended) = seen.ended.first() {
                        return Some(ended.view.clone());
                    }
                }
                News::Text(_) | News::Quiet => {}
                News::Unreadable | News::Stopping => return None,
            }
        }
    }

    /// Ends all followers, and those that come from now on.
    pub fn stop(&self) {
        self.lock().stop();
    }

    fn lock(&self) -> MutexGuard<'_, Topics> {
        self.0.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// Returns its number, which no other one of this process has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits for what comes next; `None` when it was cut off, or nothing comes any more.
    pub async fn next(&mut self) -> Option<News> {
        if self.news.is_empty() && self.following.lock().taken(&self.followed) {
            self.following.notify();
        }
        self.news.next().await
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let wanted = self.following.lock().leave(&self.followed, self.id);
        self.following.0.shards.want(wanted);
    }
}
