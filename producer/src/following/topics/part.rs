//! What one question takes of all that is to be read. It is bounded, and what it takes of each topic is a fair part.

use std::collections::BTreeSet;

use job::JobId;
use store::StepPlace;

use super::{Followed, Stage, Topic, Topics};

/// The topics that one question asks about at most: of those that are due, and of the rest.
pub(super) const TOGETHER: usize = 256;
/// Where it asks about so many announced jobs of sessions, it takes no further topic.
pub(super) const HINTED_TOGETHER: usize = 2_048;
/// The ends that it reads at most.
pub(in super::super) const ENDS: usize = 256;
/// A topic that could not be read so many times, alone and while Postgres answered others, is given up.
pub(super) const TRIES_ALONE: u32 = 3;

/// What is asked about one topic.
pub(in super::super) struct Question {
    pub(in super::super) followed: Followed,
    pub(in super::super) behind: StepPlace,
    /// Live when it was read last.
    pub(in super::super) live: Vec<JobId>,
    /// Jobs of a session that were announced since.
    pub(in super::super) hinted: Vec<JobId>,
    /// Ended jobs that `version` counts already: those that are asked about, the oldest first, and those that are left.
    pub(in super::super) ended: Vec<JobId>,
    pub(in super::super) left: BTreeSet<JobId>,
    /// Ends that `version` counts already and that all followers have.
    pub(in super::super) shown: Vec<JobId>,
    pub(in super::super) version: Option<i64>,
    pub(in super::super) since: i64,
    /// Whether anyone has it read for the first time.
    pub(in super::super) is_first: bool,
    /// Whether something has happened to it, as far as is known.
    pub(in super::super) is_announced: bool,
}

impl Question {
    /// Whether `version` counts this end already.
    pub(in super::super) fn counts(&self, job_id: JobId) -> bool {
        self.left.contains(&job_id)
            || self.ended.binary_search(&job_id).is_ok()
            || self.shown.contains(&job_id)
    }
}

impl Topics {
    /// Whether anything is to be read together.
    pub(in super::super) fn is_due(&self) -> bool {
        !self.due.is_empty() || !self.sweep.is_empty()
    }

    /// Lets everything be read once.
    pub(in super::super) fn sweep(&mut self) {
        if self.sweep.is_empty() {
            self.sweep.extend(self.topics.keys().cloned());
        }
    }

    /// Takes some of what is to be read: what is due, in turn, and some of the rest, which waits for no pause in that.
    pub(in super::super) fn questions(&mut self) -> Vec<Question> {
        let rest = self.part_of_sweep();
        let (mut due, mut hinted, mut catching_up) = (Vec::new(), 0, 0);
        while due.len() < TOGETHER
            && hinted < HINTED_TOGETHER
            && let Some(followed) = self.due.pop()
        {
            if let Some(topic) = self.topics.get_mut(&followed) {
                topic.turn = None;
                hinted += topic.hinted.len();
                catching_up += usize::from(!topic.left.is_empty());
            }
            due.push(followed);
        }
        let share = ENDS / catching_up.max(1);
        let mut questions = Vec::with_capacity(due.len() + rest.len());
        questions.extend(due.into_iter().filter_map(|followed| self.question(followed, share, true)));
        questions.extend(rest.into_iter().filter_map(|followed| self.question(followed, share, false)));
        questions
    }

    /// Takes some of what is swept. What is due has its turn, and what has more waits for its followers.
    fn part_of_sweep(&mut self) -> Vec<Followed> {
        let mut part = Vec::new();
        while part.len() < TOGETHER
            && let Some(followed) = self.sweep.pop()
        {
            let Some(topic) = self.topics.get(&followed) else { continue };
            if topic.has_more || topic.turn.is_some() {
                continue;
            }
            if topic.apart.is_some() {
                self.make_due(&followed);
            } else {
                part.push(followed);
            }
        }
        part
    }

    /// Takes one of those that are read apart from the others.
    pub(in super::super) fn question_apart(&mut self) -> Option<Question> {
        let followed = self.due_apart.pop()?;
        self.topics.get_mut(&followed)?.turn = None;
        self.question(followed, ENDS, true)
    }

    /// Asks about so many of the ends that are left.
    fn question(&mut self, followed: Followed, share: usize, is_announced: bool) -> Option<Question> {
        let topic = self.topics.get_mut(&followed)?;
        topic.has_more = false;
        let mut is_first = false;
        for place in topic.places.iter_mut().filter(|place| place.stage == Stage::New) {
            place.stage = Stage::Reading;
            is_first = true;
        }
        let mut left = std::mem::take(&mut topic.left);
        let mut hinted = std::mem::take(&mut topic.hinted);
        hinted.sort_unstable();
        hinted.dedup();
        hinted.retain(|job_id| !left.contains(job_id));
        let ended = std::iter::from_fn(|| left.pop_first()).take(share).collect();
        let Topic { behind, version, since, .. } = **topic;
        let (live, shown) = (topic.live.clone(), topic.shown.iter().map(|(job_id, _)| *job_id).collect());
        Some(Question {
            followed,
            behind,
            live,
            hinted,
            ended,
            left,
            shown,
            version,
            since,
            is_first,
            is_announced,
        })
    }

    /// Makes them due again, because they could not be read. If Postgres answers others, each is read alone from now on;
    /// one that cannot be read alone either, several times, is given up.
    pub(in super::super) fn unread(&mut self, questions: Vec<Question>, is_away: bool) {
        for question in questions {
            let Question { followed, hinted, ended, mut left, .. } = question;
            let Some(topic) = self.topics.get_mut(&followed) else { continue };
            for place in topic.places.iter_mut().filter(|place| place.stage == Stage::Reading) {
                place.stage = Stage::New;
            }
            topic.hinted.extend(hinted);
            left.extend(ended);
            topic.left.append(&mut left);
            if !is_away {
                // It may be due already, among the others.
                if let Some(turn) = topic.turn.take_if(|_| topic.apart.is_none()) {
                    self.due.remove(turn);
                }
                let tries = topic.apart.map_or(0, |tries| tries + 1);
                topic.apart = Some(tries);
                if tries >= TRIES_ALONE {
                    self.give_up(&followed);
                    continue;
                }
            }
            self.make_due(&followed);
        }
    }
}
