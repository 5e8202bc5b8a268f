//! The list of what is followed, and by whom. It asks nothing itself.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use job::{Change, JobId, TextPiece};
use store::{LiveJob, STEPS, StepPlace};
use tokio::sync::mpsc;
use tracing::debug;

use super::{Followed, News, Seen, Wish};

/// What waits for one follower: so many readings and pieces of text, and so many bytes of text.
const WAITING: usize = 128;
const WAITING_BYTES: usize = 1 << 20;
/// What is asked about at once: of what is due, and of the rest.
const TOGETHER: usize = 1_000;
const SWEPT: usize = 500;
/// Jobs of a session that are remembered from announcements between two readings.
const HINTED: usize = 256;

#[derive(Default)]
pub(super) struct Topics {
    topics: HashMap<Followed, Topic>,
    /// What is to be read again, because it was announced or has a new follower.
    due: HashSet<Followed>,
    /// What is to be read again, because that was long ago.
    sweep: Vec<Followed>,
    next_id: u64,
    /// Followers that want the text of each shard.
    shards: HashMap<u8, usize>,
}

/// What is followed, as it was read last.
#[derive(Default)]
struct Topic {
    places: Vec<Place>,
    /// Checkpoints behind this place were not read yet.
    behind: StepPlace,
    live: Vec<LiveJob>,
    /// Jobs of a session that were announced since.
    hinted: Vec<JobId>,
    /// The session's version. `None` if ends since `since` are to be looked for.
    version: Option<i64>,
    since: i64,
}

/// A follower's place in the list.
struct Place {
    id: u64,
    news: mpsc::Sender<News>,
    waiting: Arc<AtomicUsize>,
    text: Option<u8>,
    key_id: String,
    stage: Stage,
}

/// How far a follower is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It waits for the next reading.
    New,
    /// The reading under way is its first.
    Reading,
    /// It has what was read.
    Current,
}

/// What is asked about one topic.
pub(super) struct Question {
    pub(super) followed: Followed,
    pub(super) behind: StepPlace,
    /// Live when it was read last, or announced since.
    pub(super) known: Vec<JobId>,
    pub(super) version: Option<i64>,
    pub(super) since: i64,
    /// Whether anyone has it read for the first time.
    pub(super) is_first: bool,
}

/// What was answered.
pub(super) struct Reading {
    pub(super) seen: Seen,
    pub(super) version: Option<i64>,
    pub(super) since: i64,
}

impl Topics {
    /// Enters a follower. Returns its id, what it receives, and the shards that are wanted now.
    pub(super) fn enter(
        &mut self,
        wish: Wish,
        waiting: Arc<AtomicUsize>,
    ) -> (u64, mpsc::Receiver<News>, u64) {
        let Wish { followed, behind, since, text, key_id } = wish;
        let (sender, news) = mpsc::channel(WAITING);
        self.next_id += 1;
        let id = self.next_id;
        let is_new = !self.topics.contains_key(&followed);
        let topic = self.topics.entry(followed.clone()).or_default();
        topic.behind = if is_new { behind } else { topic.behind.min(behind) };
        if let Some(since) = since {
            topic.since = if is_new { since } else { topic.since.min(since) };
            topic.version = None;
        }
        topic.places.push(Place { id, news: sender, waiting, text, key_id, stage: Stage::New });
        if let Some(shard) = text {
            *self.shards.entry(shard).or_default() += 1;
        }
        self.due.insert(followed);
        (id, news, self.wanted())
    }

    /// Takes a follower out. Returns the shards that are wanted now.
    pub(super) fn leave(&mut self, followed: &Followed, id: u64) -> u64 {
        if let Some(topic) = self.topics.get_mut(followed) {
            let gone = topic.places.extract_if(.., |place| place.id == id);
            release(&mut self.shards, gone);
            if topic.places.is_empty() {
                self.topics.remove(followed);
                self.due.remove(followed);
            }
        }
        self.wanted()
    }

    fn wanted(&self) -> u64 {
        self.shards.keys().fold(0, |wanted, shard| wanted | 1 << (shard % 64))
    }

    /// Notes what was announced. Returns whether any of it is followed.
    pub(super) fn hear(&mut self, changes: Vec<Change>) -> bool {
        let before = self.due.len();
        for change in changes {
            let job = Followed::Job(change.job_id());
            if self.topics.contains_key(&job) {
                self.due.insert(job);
            }
            let session = Followed::Session(change.session().clone());
            if let Some(topic) = self.topics.get_mut(&session) {
                if topic.hinted.len() < HINTED && !topic.hinted.contains(&change.job_id()) {
                    topic.hinted.push(change.job_id());
                }
                self.due.insert(session);
            }
        }
        self.due.len() > before
    }

    /// Hands text to those who want it.
    pub(super) fn hear_text(&mut self, piece: TextPiece) {
        let topics = [Followed::Job(piece.job_id), Followed::Session(piece.session.clone())];
        let piece = Arc::new(piece);
        for followed in topics {
            let Some(topic) = self.topics.get_mut(&followed) else { continue };
            let slow = topic.places.extract_if(.., |place| {
                if place.text.is_none() {
                    return false;
                }
                let bytes = piece.text.len();
                let waits = place.waiting.fetch_add(bytes, Ordering::Relaxed);
                waits + bytes > WAITING_BYTES || place.news.try_send(News::Text(piece.clone())).is_err()
            });
            release(&mut self.shards, slow);
        }
    }

    /// Whether anything is to be read.
    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty() || !self.sweep.is_empty()
    }

    /// Lets everything be read once.
    pub(super) fn sweep(&mut self) {
        if self.sweep.is_empty() {
            self.sweep.extend(self.topics.keys().cloned());
        }
    }

    /// Takes some of what is to be read. What was announced comes first.
    pub(super) fn questions(&mut self) -> Vec<Question> {
        let mut due: Vec<Followed> = self.due.iter().take(TOGETHER).cloned().collect();
        if due.is_empty() {
            due.extend(self.sweep.drain(self.sweep.len().saturating_sub(SWEPT)..));
        }
        let mut questions = Vec::with_capacity(due.len());
        for followed in due {
            self.due.remove(&followed);
            let Some(topic) = self.topics.get_mut(&followed) else { continue };
            let mut is_first = false;
            for place in topic.places.iter_mut().filter(|place| place.stage == Stage::New) {
                place.stage = Stage::Reading;
                is_first = true;
            }
            let mut known: Vec<JobId> = topic.live.iter().map(|job| job.job_id).collect();
            known.append(&mut topic.hinted);
            known.sort_unstable();
            known.dedup();
            let Topic { behind, version, since, .. } = *topic;
            questions.push(Question { followed, behind, known, version, since, is_first });
        }
        questions
    }

    /// Makes them due again, because they could not be read.
    pub(super) fn unread(&mut self, questions: Vec<Question>) {
        for question in questions {
            let Some(topic) = self.topics.get_mut(&question.followed) else { continue };
            for place in topic.places.iter_mut().filter(|place| place.stage == Stage::Reading) {
                place.stage = Stage::New;
            }
            topic.hinted.extend(question.known);
            self.due.insert(question.followed);
        }
    }

    /// Hands what was read to those to whom it is new.
    pub(super) fn hand_out(&mut self, question: Question, reading: Reading) {
        let Question { followed, behind, .. } = question;
        let Reading { mut seen, version, since } = reading;
        let Some(topic) = self.topics.get_mut(&followed) else { return };
        // An end comes behind the last checkpoint.
        let is_more = seen.steps.len() >= STEPS;
        if is_more {
            topic.hinted.extend(seen.ended.drain(..).map(|view| view.job_id));
        }
        let is_whole = topic.places.iter().all(|place| place.stage != Stage::New);
        if topic.behind == behind && is_whole {
            topic.behind = seen.steps.last().map_or(behind, |step| step.place);
        }
        if is_whole {
            (topic.version, topic.since) = (version, since);
        }
        let is_news = !seen.steps.is_empty() || !seen.ended.is_empty() || topic.live != seen.live;
        let is_over = matches!(followed, Followed::Job(_)) && !seen.ended.is_empty();
        topic.live = seen.live.clone();
        let news = News::Seen(Arc::new(seen));
        let gone = topic.places.extract_if(.., |place| match place.stage {
            Stage::New => false,
            Stage::Current if !is_news => false,
            Stage::Current | Stage::Reading => {
                place.stage = Stage::Current;
                let is_slow = place.news.try_send(news.clone()).is_err();
                if is_slow {
                    debug!("a follower that did not keep up was cut off");
                }
                is_slow || is_over
            }
        });
        release(&mut self.shards, gone);
        if topic.places.is_empty() {
            self.topics.remove(&followed);
            self.due.remove(&followed);
        } else if is_more {
            self.due.insert(followed);
        }
    }

    /// Returns the keys that followers have shown.
    pub(super) fn keys(&self) -> Vec<String> {
        let places = self.topics.values().flat_map(|topic| &topic.places);
        let keys: HashSet<&String> = places.map(|place| &place.key_id).filter(|id| !id.is_empty()).collect();
        keys.into_iter().cloned().collect()
    }

    /// Cuts off the followers whose key is among these.
    pub(super) fn cut_off(&mut self, keys: &HashSet<String>) {
        for topic in self.topics.values_mut() {
            let gone = topic.places.extract_if(.., |place| keys.contains(&place.key_id));
            release(&mut self.shards, gone);
        }
        self.topics.retain(|_, topic| !topic.places.is_empty());
    }
}

/// Drops places, and with them the wish for text.
fn release(shards: &mut HashMap<u8, usize>, gone: impl Iterator<Item = Place>) {
    for shard in gone.filter_map(|place| place.text) {
        if let Some(count) = shards.get_mut(&shard) {
            *count -= 1;
            if *count == 0 {
                shards.remove(&shard);
            }
        }
    }
}
