//! The list of what is followed, and by whom. It asks nothing itself.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use job::{Change, JobId, TextPiece};
use store::{LiveJob, STEPS, StepPlace};
use tracing::{debug, warn};

use super::mailbox::{Counted, Mailbox};
use super::queue_of_topics::{TopicQueue, Turn};
use super::{Ended, Followed, Missed, News, Seen, Wish};

mod part;
#[cfg(test)]
mod tests;

pub(super) use part::{ENDS, Question};

/// What waits for all followers, in bytes. Beyond it, those for which most waits are cut off.
pub(super) const HELD: usize = 64 << 20;
/// Topics that were given up and are remembered: a new follower of one is read apart from the others at once.
const REMEMBERED: usize = 1_000;
/// Jobs of a session that are remembered from announcements between two readings.
const HINTED: usize = 256;
/// Ends of a session that are remembered as shown.
const SHOWN: usize = 256;

#[derive(Default)]
pub(super) struct Topics {
    /// Boxed, because nearly half of the table's places may be empty.
    topics: HashMap<Followed, Box<Topic>>,
    /// What is to be read again, because it was announced or has a new follower.
    due: TopicQueue,
    /// The same of those that are read apart from the others.
    due_apart: TopicQueue,
    /// What is to be read again, because that was long ago.
    sweep: Vec<Followed>,
    given_up: HashSet<Followed>,
    next_id: u64,
    /// Followers that want the text of each shard.
    shards: HashMap<u8, usize>,
    /// Bytes that wait for all followers.
    held: Arc<AtomicUsize>,
    is_stopping: bool,
}

/// What is followed, as it was read last.
#[derive(Default)]
struct Topic {
    places: Vec<Place>,
    /// Its place among what is due.
    turn: Option<Turn>,
    /// Whether more of it is to be read as soon as a follower has taken what was read.
    has_more: bool,
    /// How many times it could not be read alone; `None` if it is read together with others.
    apart: Option<u32>,
    /// Checkpoints behind this place were not read yet.
    behind: StepPlace,
    /// The jobs that were live, and a hash of their states. What was read is not kept: there are thousands of idle topics.
    live: Vec<JobId>,
    live_hash: u64,
    /// Jobs of a session that were announced since.
    hinted: Vec<JobId>,
    /// Ended jobs that are still to be read, the oldest first: `version` counts them already.
    left: BTreeSet<JobId>,
    /// The last ends of a session since `since` that all its followers have, and when they were: they are neither read nor
    /// counted again.
    shown: VecDeque<(JobId, i64)>,
    /// The session's version. `None` if ends since `since` are to be looked for.
    version: Option<i64>,
    since: i64,
}

/// A follower's place in the list. When it is dropped, nothing more comes to the follower.
struct Place {
    id: u64,
    news: Arc<Mailbox>,
    text: Option<u8>,
    key_id: String,
    stage: Stage,
}

impl Topic {
    /// Remembers ends that are handed out.
    fn remember(&mut self, ended: &[Ended]) {
        self.shown.extend(ended.iter().map(|ended| (ended.view.job_id, ended.finished_ms)));
        let many = self.shown.len().saturating_sub(SHOWN);
        self.shown.drain(..many);
        self.shown.retain(|(_, finished_ms)| *finished_ms >= self.since);
        if self.shown.is_empty() {
            // Thousands are idle.
            self.shown = VecDeque::new();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.news.close();
    }
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

/// What was answered.
pub(super) struct Reading {
    pub(super) seen: Seen,
    pub(super) version: Option<i64>,
    pub(super) since: i64,
    /// Ends that were left for the next reading.
    pub(super) left: Vec<JobId>,
    /// Whether checkpoints were left for the next reading.
    pub(super) more_steps: bool,
    /// Whether the look for ends since `since` was left for the next reading.
    pub(super) looks_later: bool,
}

impl Topics {
    /// Enters a follower. Returns its id, what it receives, and the shards that are wanted now.
    pub(super) fn enter(&mut self, wish: Wish) -> (u64, Arc<Mailbox>, u64) {
        let Wish { followed, behind, since, text, key_id } = wish;
        let news = Arc::<Mailbox>::default();
        self.next_id += 1;
        let id = self.next_id;
        if self.is_stopping {
            news.cut_off_with(News::Stopping);
            return (id, news, self.wanted());
        }
        let is_new = !self.topics.contains_key(&followed);
        let topic = self.topics.entry(followed.clone()).or_default();
        topic.behind = if is_new { behind } else { topic.behind.min(behind) };
        if is_new && self.given_up.contains(&followed) {
            topic.apart = Some(0);
        }
        if let Some(since) = since {
            topic.since = if is_new { since } else { topic.since.min(since) };
            topic.version = None;
            topic.shown.clear();
        }
        // Most are followed by one alone, and there are thousands. The second one makes room for more.
        if is_new {
            topic.places.reserve_exact(1);
        }
        topic.places.push(Place { id, news: news.clone(), text, key_id, stage: Stage::New });
        if let Some(shard) = text {
            *self.shards.entry(shard).or_default() += 1;
        }
        self.make_due(&followed);
        (id, news, self.wanted())
    }

    /// Takes a follower out. Returns the shards that are wanted now.
    pub(super) fn leave(&mut self, followed: &Followed, id: u64) -> u64 {
        if let Some(topic) = self.topics.get_mut(followed) {
            let gone = topic.places.extract_if(.., |place| place.id == id);
            release(&mut self.shards, gone);
            if topic.places.is_empty() {
                self.remove(followed);
            } else {
                self.taken(followed);
            }
        }
        self.wanted()
    }

    /// A follower of this has taken all that was read. Returns whether more of it is due now.
    pub(super) fn taken(&mut self, followed: &Followed) -> bool {
        let has_more = self.topics.get_mut(followed).is_some_and(|topic| std::mem::take(&mut topic.has_more));
        if has_more {
            self.make_due(followed);
        }
        has_more
    }

    /// Lets a topic be read again, behind all that is due. What is left of it waits until a follower has taken what
    /// was read.
    fn make_due(&mut self, followed: &Followed) {
        let is_due = |topic: &&mut Box<Topic>| {
            topic.turn.is_none()
                && (!topic.has_more || topic.places.iter().any(|place| place.stage == Stage::New))
        };
        let Some(topic) = self.topics.get_mut(followed).filter(is_due) else { return };
        let queue = if topic.apart.is_some() { &mut self.due_apart } else { &mut self.due };
        topic.turn = Some(queue.push(followed.clone()));
    }

    fn remove(&mut self, followed: &Followed) -> Option<Box<Topic>> {
        let topic = self.topics.remove(followed)?;
        if let Some(turn) = topic.turn {
            let queue = if topic.apart.is_some() { &mut self.due_apart } else { &mut self.due };
            queue.remove(turn);
        }
        Some(topic)
    }

    fn wanted(&self) -> u64 {
        self.shards.keys().fold(0, |wanted, shard| wanted | 1 << (shard % 64))
    }

    /// Notes what was announced. Returns whether any of it is followed.
    pub(super) fn hear(&mut self, changes: Vec<Change>) -> bool {
        let mut is_followed = false;
        for change in changes {
            let job = Followed::Job(change.job_id());
            is_followed |= self.topics.contains_key(&job);
            self.make_due(&job);
            let session = Followed::Session(change.session().clone());
            if let Some(topic) = self.topics.get_mut(&session) {
                let job_id = change.job_id();
                if topic.shown.iter().any(|(shown, _)| *shown == job_id) || topic.left.contains(&job_id) {
                    continue;
                }
                if topic.hinted.len() < HINTED && !topic.hinted.contains(&job_id) {
                    topic.hinted.push(job_id);
                }
                is_followed = true;
                self.make_due(&session);
            }
        }
        is_followed
    }

    /// Hands text to those who want it.
    pub(super) fn hear_text(&mut self, piece: TextPiece) {
        let topics = [Followed::Job(piece.job_id), Followed::Session(piece.session.clone())];
        let bytes = size_of::<TextPiece>() + piece.bytes();
        let news = News::Text(Arc::new(Counted::new(piece, bytes, &self.held)));
        for followed in topics {
            let Some(topic) = self.topics.get_mut(&followed) else { continue };
            let slow = topic.places.extract_if(.., |place| place.text.is_some() && !deliver(place, &news));
            release(&mut self.shards, slow);
        }
        self.keep_within(HELD);
    }

    /// Cuts off the followers for which most waits, until no more waits than this.
    fn keep_within(&mut self, most: usize) {
        if self.held.load(Ordering::Relaxed) <= most {
            return;
        }
        let places = self.topics.values().flat_map(|topic| &topic.places);
        let mut waiting: Vec<(usize, u64, Arc<Mailbox>)> = places
            .map(|place| (place.news.bytes(), place.id, place.news.clone()))
            .filter(|(bytes, ..)| *bytes > 0)
            .collect();
        waiting.sort_unstable_by_key(|(bytes, id, _)| (*bytes, *id));
        let mut slow = HashSet::new();
        while let Some((_, id, news)) = waiting.pop() {
            if self.held.load(Ordering::Relaxed) <= most {
                break;
            }
            news.cut_off();
            slow.insert(id);
        }
        warn!(followers = slow.len(), "too much waited for followers: those with most were cut off");
        self.cut_off_places(|place| slow.contains(&place.id));
    }

    /// Says to those of these followers for whom nothing waits that this is so.
    pub(super) fn say_quiet(&self, is_meant: impl Fn(u64) -> bool) {
        let places = self.topics.values().flat_map(|topic| &topic.places);
        places.filter(|place| is_meant(place.id)).for_each(|place| place.news.say_quiet());
    }

    /// Ends all followers, and those that come from now on.
    pub(super) fn stop(&mut self) {
        self.is_stopping = true;
        for place in self.topics.values().flat_map(|topic| &topic.places) {
            place.news.cut_off_with(News::Stopping);
        }
        self.cut_off_places(|_| true);
    }

    /// Ends the followers of a topic that cannot be read.
    fn give_up(&mut self, followed: &Followed) {
        let Some(mut topic) = self.remove(followed) else { return };
        warn!(
            ?followed,
            followers = topic.places.len(),
            "what is followed cannot be read, its followers are ended"
        );
        for place in &topic.places {
            place.news.cut_off_with(News::Unreadable);
        }
        release(&mut self.shards, topic.places.drain(..));
        if self.given_up.len() >= REMEMBERED {
            self.given_up.clear();
        }
        self.given_up.insert(followed.clone());
    }

    /// Hands what was read to those to whom it is new.
    pub(super) fn hand_out(&mut self, question: Question, reading: Reading) {
        let Question { followed, behind, left: mut rest, .. } = question;
        let Reading { mut seen, version, since, left, more_steps, looks_later } = reading;
        self.given_up.remove(&followed);
        let Some(topic) = self.topics.get_mut(&followed) else { return };
        if topic.apart.is_some() {
            // It can be read. If it has become due meanwhile, it is due among the others.
            topic.apart = None;
            if let Some(turn) = topic.turn.take() {
                self.due_apart.remove(turn);
                topic.turn = Some(self.due.push(followed.clone()));
            }
        }
        rest.extend(left);
        for ended in &seen.ended {
            rest.remove(&ended.view.job_id);
        }
        // An end comes behind the last checkpoint, and behind those of older jobs.
        let more_steps = more_steps || seen.steps.len() >= STEPS;
        let first = rest.first().copied();
        let waits = |ended: &mut Ended| more_steps || first.is_some_and(|first| first < ended.view.job_id);
        rest.extend(seen.ended.extract_if(.., waits).map(|ended| ended.view.job_id));
        let is_more = looks_later || more_steps || !rest.is_empty();
        topic.left.append(&mut rest);
        if is_more {
            seen.at = 0;
        }
        let is_whole = topic.places.iter().all(|place| place.stage != Stage::New);
        if topic.behind == behind && is_whole {
            topic.behind = seen.steps.last().map_or(behind, |step| step.place);
        }
        if is_whole {
            (topic.version, topic.since) = (version, since);
            if matches!(followed, Followed::Session(_)) {
                topic.remember(&seen.ended);
            }
        }
        let live_hash = hash(&seen.live);
        let is_news = !seen.steps.is_empty()
            || !seen.ended.is_empty()
            || topic.live_hash != live_hash
            || seen.missed != Missed::Nothing;
        let is_over = matches!(followed, Followed::Job(_)) && !seen.ended.is_empty();
        topic.live = seen.live.iter().map(|job| job.job_id).collect();
        topic.live_hash = live_hash;
        let bytes = seen.bytes();
        let news = News::Seen(Arc::new(Counted::new(seen, bytes, &self.held)));
        let mut is_handed_out = false;
        let gone = topic.places.extract_if(.., |place| match place.stage {
            Stage::New => false,
            Stage::Current if !is_news => false,
            Stage::Current | Stage::Reading => {
                place.stage = Stage::Current;
                let keeps_up = deliver(place, &news);
                is_handed_out |= keeps_up;
                !keeps_up || is_over
            }
        });
        release(&mut self.shards, gone);
        if topic.places.is_empty() {
            self.remove(&followed);
        } else if is_more && is_handed_out {
            topic.has_more = true;
        } else if is_more {
            self.make_due(&followed);
        }
        drop(news);
        self.keep_within(HELD);
    }

    /// Returns the keys that followers have shown.
    pub(super) fn keys(&self) -> Vec<String> {
        let places = self.topics.values().flat_map(|topic| &topic.places);
        let keys: HashSet<&String> = places.map(|place| &place.key_id).filter(|id| !id.is_empty()).collect();
        keys.into_iter().cloned().collect()
    }

    /// Cuts off the followers whose key is among these.
    pub(super) fn cut_off(&mut self, keys: &HashSet<String>) {
        self.cut_off_places(|place| keys.contains(&place.key_id));
    }

    fn cut_off_places(&mut self, is_gone: impl Fn(&Place) -> bool) {
        let mut empty = Vec::new();
        for (followed, topic) in &mut self.topics {
            release(&mut self.shards, topic.places.extract_if(.., |place| is_gone(place)));
            if topic.places.is_empty() {
                empty.push(followed.clone());
            }
        }
        for followed in empty {
            self.remove(&followed);
        }
    }
}

impl Seen {
    /// Its size in memory, about.
    fn bytes(&self) -> usize {
        let steps = self.steps.iter().map(|step| {
            size_of::<store::Step>() + step.progress.as_ref().map_or(0, |progress| progress.as_str().len())
        });
        let ended = self.ended.iter().map(|ended| size_of::<Ended>() + ended.view.bytes());
        size_of::<Seen>() + size_of::<LiveJob>() * self.live.len() + steps.chain(ended).sum::<usize>()
    }
}

/// What differs where one of these jobs has changed.
fn hash(live: &[LiveJob]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for LiveJob { job_id, session: _, state, attempts, begun, code, questions } in live {
        (job_id, state, attempts, begun, code).hash(&mut hasher);
        questions.iter().for_each(|open| open.call_id.hash(&mut hasher));
        questions.len().hash(&mut hasher);
    }
    hasher.finish()
}

/// Hands news to a follower, or cuts it off if it does not keep up. Returns whether it does.
fn deliver(place: &Place, news: &News) -> bool {
    let keeps_up = place.news.offer(news.clone());
    if !keeps_up {
        debug!("a follower that did not keep up was cut off");
        place.news.cut_off();
    }
    keeps_up
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
