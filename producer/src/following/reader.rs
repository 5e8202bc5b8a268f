//! Reads what is followed: at once what was announced, and all of it every two seconds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use job::{JobId, SessionKey, Trouble, decode_changes, decode_text};
use queue::{Announced, Listener};
use store::{EndedJob, LiveJob, LiveSession, StepsOf, Store, StoreError};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::topics::{ENDS, Question, Reading};
use super::{Ended, Followed, Following, Missed, Seen};
use crate::pulse::Pulse;

/// How often all of it is read, and how often while no announcements come.
const EVERY: Duration = Duration::from_secs(2);
const EVERY_UNANNOUNCED: Duration = Duration::from_millis(500);
/// The pause between two questions, in which announcements gather.
const WINDOW: Duration = Duration::from_millis(10);
/// The pause is at least as long as the question took: Postgres has other work as well.
const REST: u32 = 1;
/// About so many bytes of ends are read by one question. An end that comes first may be larger.
const ENDS_BYTES: i64 = 4 << 20;
/// The bytes of checkpoints that it reads at most, as they are stored. One checkpoint may be larger.
const STEPS_BYTES: i64 = 4 << 20;
/// A question that takes longer is asked again, about each topic alone.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How often it is asked whether the keys of followers are still valid: a revoked key ends its streams within 5 s.
const KEYS_EVERY: Duration = Duration::from_secs(2);
/// How often a follower hears that nothing waits, so that a client that is gone is noticed. Followers have no clock of their own,
/// because there are thousands; a part of them hears it at a time.
const QUIET: Duration = Duration::from_secs(15);
const QUIET_PARTS: u32 = 15;
/// A job's end has the time at which its transaction began, and is seen when that is committed.
const COMMITTED_WITHIN_MS: i64 = 15_000;
/// Results of a session that are looked at for ends of which nothing was announced: the newest ones, and where there are
/// more, so many. Job ids do not say when a job has ended.
const NEWEST: i64 = 100;
const LOOKED_AT: i64 = 10_000;
/// The sessions of which one question looks at more than the newest. The others have their turn in the next one.
const LOOKED_THROUGH: usize = 4;

impl Following {
    /// Reads until `end` is cancelled.
    pub async fn run(self, store: Store, pulse: Pulse, mut listener: Listener, end: CancellationToken) {
        let listens = listener.listens();
        let hearing = async {
            while let Some((to, body)) = listener.next().await {
                self.hear(to, &body);
            }
        };
        let reading = async {
            let (mut trouble, mut swept) = (Trouble::default(), Instant::now());
            loop {
                let every = if *listens.borrow() { EVERY } else { EVERY_UNANNOUNCED };
                let rest = every.saturating_sub(swept.elapsed());
                if rest.is_zero() {
                    self.lock().sweep();
                    swept = Instant::now();
                }
                if !self.lock().is_due() {
                    let _ = timeout(rest, self.0.due.notified()).await;
                    continue;
                }
                let begun = Instant::now();
                let questions = self.lock().questions();
                self.read(&store, &pulse, questions, &mut trouble).await;
                sleep(WINDOW.max(begun.elapsed() * REST)).await;
            }
        };
        // Beside the others, so that what cannot be read in time holds up nothing else.
        let reading_apart = async {
            let mut trouble = Trouble::default();
            loop {
                let question = self.lock().question_apart();
                match question {
                    Some(question) => self.read(&store, &pulse, vec![question], &mut trouble).await,
                    None => drop(timeout(EVERY, self.0.apart.notified()).await),
                }
            }
        };
        let checking = async {
            loop {
                sleep(KEYS_EVERY).await;
                let keys = self.lock().keys();
                // While Postgres is away nothing is shown either.
                if !keys.is_empty()
                    && let Ok(Ok(live)) = timeout(ANSWER_WITHIN, store.live_keys(&keys)).await
                {
                    let gone = keys.into_iter().filter(|key| !live.contains(key)).collect::<HashSet<_>>();
                    if !gone.is_empty() {
                        self.lock().cut_off(&gone);
                    }
                }
            }
        };
        let saying_quiet = async {
            let mut clock = interval(QUIET / QUIET_PARTS);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for part in (0..u64::from(QUIET_PARTS)).cycle() {
                clock.tick().await;
                self.lock().say_quiet(|id| id % u64::from(QUIET_PARTS) == part);
            }
        };
        let all = async { tokio::join!(hearing, reading, reading_apart, checking, saying_quiet) };
        end.run_until_cancelled(all).await;
    }

    fn hear(&self, to: Announced, body: &[u8]) {
        match to {
            Announced::Changes => {
                // What cannot be read is of a later version; the next reading finds what it was about.
                let changes = decode_changes(body).unwrap_or_default();
                if self.lock().hear(changes) {
                    self.notify();
                }
            }
            Announced::Text { .. } => {
                if let Some(piece) = decode_text(body) {
                    self.lock().hear_text(piece);
                }
            }
        }
    }

    async fn read(&self, store: &Store, pulse: &Pulse, questions: Vec<Question>, trouble: &mut Trouble) {
        let now = pulse.clock().map_or_else(SystemTime::now, |clock| clock.now());
        let at = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let read = timeout(ANSWER_WITHIN, ask(store, at, &questions)).await;
        match read.unwrap_or_else(|_| Err(StoreError::unavailable("no answer in time"))) {
            Ok(readings) => {
                trouble.ends();
                let mut topics = self.lock();
                let mut read: Vec<(Question, Reading)> = questions.into_iter().zip(readings).collect();
                // Those for which nothing was left come first the next time.
                read.sort_by_key(|(_, reading)| {
                    !reading.seen.steps.is_empty() || !reading.seen.ended.is_empty()
                });
                for (question, reading) in read {
                    topics.hand_out(question, reading);
                }
            }
            Err(error) => {
                if trouble.begins() {
                    warn!(cause = error.as_dyn(), "followed jobs cannot be read, retrying");
                }
                self.lock().unread(questions, pulse.trouble().is_some());
                self.0.apart.notify_one();
                sleep(EVERY_UNANNOUNCED).await;
            }
        }
    }
}

/// Asks about all of them together. Live jobs first: one that ends in between is then found among the ended. Of what was
/// announced, both are asked at once. Of the rest, which is much more, few have ended.
async fn ask(store: &Store, at: i64, questions: &[Question]) -> Result<Vec<Reading>, StoreError> {
    let (mut jobs, mut sessions) = (Vec::new(), Vec::new());
    for question in questions {
        match &question.followed {
            Followed::Job(job_id) => jobs.push(*job_id),
            Followed::Session(session) => sessions.push(session.clone()),
        }
    }
    let mut announced: Vec<JobId> = Vec::new();
    for question in questions.iter().filter(|question| question.is_announced) {
        match &question.followed {
            Followed::Job(job_id) => announced.push(*job_id),
            // The oldest first. Those that were live have hardly ever ended without being announced.
            Followed::Session(_) => announced.extend(question.ended.iter().chain(&question.hinted)),
        }
    }
    let mut ended = Ends::default();
    let announced = ended.unasked(announced);
    let found = store.live_and_ended(&jobs, &sessions, &announced, ENDS_BYTES, ENDS as i64).await?;
    ended.add(found.ended);
    let live = found.live.into_iter().filter(|job| !ended.found.contains_key(&job.job_id));
    let live: HashMap<JobId, LiveJob> = live.map(|job| (job.job_id, job)).collect();
    let mut live_of: HashMap<SessionKey, LiveSession> = HashMap::with_capacity(sessions.len());
    for mut of in found.sessions {
        of.live.retain(|job| !ended.found.contains_key(&job.job_id));
        live_of.insert(of.session.clone(), of);
    }

    let mut missing: Vec<JobId> = Vec::new();
    for question in questions {
        match &question.followed {
            Followed::Job(id) => missing.extend(Some(*id).filter(|id| !live.contains_key(id))),
            Followed::Session(session) => {
                let live = live_of.get(session).map(|of| of.live.as_slice()).unwrap_or_default();
                let known = question.live.iter().chain(&question.hinted);
                missing.extend(known.filter(|id| !live.iter().any(|job| job.job_id == **id)));
            }
        }
    }
    ended.read(store, missing).await?;
    // Jobs may have come and gone since the last reading without an announcement that arrived.
    let mut unknown = Vec::new();
    for (number, question) in questions.iter().enumerate() {
        if let Followed::Session(session) = &question.followed {
            let version = live_of.get(session).map_or(0, |of| of.version);
            // What was counted long ago says nothing of what has come since.
            let known = ended.not_counted(session, question) as i64;
            if question.version.is_none_or(|last| version - last > known) {
                // As many as are certainly missing; unknown in a stream that goes on behind an earlier one.
                let missing = question.version.map(|last| version - last - known);
                unknown.push(Unknown { number, missing, since: (session.clone(), question.since) });
            }
        }
    }
    let mut looks = vec![Look::Whole; questions.len()];
    let mut later = vec![Vec::new(); questions.len()];
    if !unknown.is_empty() {
        let found = look_for_ends(store, unknown, &mut looks).await?;
        let (share, mut first) = (ENDS / found.len().max(1), Vec::new());
        for (number, mut jobs) in found {
            // The oldest of a session come first. The next questions read the others.
            jobs.retain(|job_id| !ended.asked.contains(job_id) && !questions[number].counts(*job_id));
            jobs.sort_unstable();
            later[number] = jobs.split_off(share.max(1).min(jobs.len()));
            first.extend(jobs);
        }
        ended.read(store, first).await?;
    }

    let mut readings = Vec::with_capacity(questions.len());
    let (mut wanted, mut steps_of) = (Vec::new(), Vec::new());
    for (number, question) in questions.iter().enumerate() {
        let mut seen = Seen { at, ..Seen::default() };
        let (mut session, mut job_id, mut version) = (None, None, None);
        let mut since = at - COMMITTED_WITHIN_MS;
        let mut left = std::mem::take(&mut later[number]);
        match &question.followed {
            Followed::Job(id) => {
                job_id = Some(*id);
                seen.live.extend(live.get(id).cloned());
                let found = ended.found.get(id);
                left.extend(ended.take(found.map(|found| found.job_id).as_slice(), &mut seen.ended));
                let begun = seen.live.first().filter(|job| job.begun).map(|job| job.session.clone());
                let worked = found.filter(|_| has_worked(&seen.ended));
                session = begun.or_else(|| worked.map(|found| found.session.clone()));
            }
            Followed::Session(key) => {
                let of = live_of.remove(key);
                version = Some(of.as_ref().map_or(0, |of| of.version));
                match looks[number] {
                    Look::Whole => {}
                    Look::Later => (version, since) = (question.version, question.since),
                    Look::Cut(missed) => seen.missed = missed,
                }
                seen.live = of.map(|of| of.live).unwrap_or_default();
                let is_new = |job_id: &JobId| !question.shown.contains(job_id);
                let found: Vec<JobId> = ended.of(key).iter().copied().filter(is_new).collect();
                left.extend(ended.take(&found, &mut seen.ended));
                if question.is_first || has_worked(&seen.ended) || seen.live.iter().any(|job| job.begun) {
                    session = Some(key.clone());
                }
            }
        }
        // One that waits for an end alone wants none.
        if let Some(session) = session.filter(|_| question.behind != store::StepPlace::END) {
            wanted.push(StepsOf { session, job_id, behind: question.behind });
            steps_of.push(number);
        }
        let looks_later = looks[number] == Look::Later;
        readings.push(Reading { seen, version, since, left, more_steps: false, looks_later });
    }
    if !wanted.is_empty() {
        for (number, steps) in steps_of.into_iter().zip(store.steps(&wanted, STEPS_BYTES).await?) {
            let reading = &mut readings[number];
            (reading.seen.steps, reading.more_steps) = (steps.steps, steps.is_more);
        }
    }
    Ok(readings)
}

/// A session of which ends may not be known.
struct Unknown {
    /// Its question.
    number: usize,
    /// How many ends are missing at least, if that is known.
    missing: Option<i64>,
    /// The session, and since when.
    since: (SessionKey, i64),
}

/// How far the look for a session's ends has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// All results were looked at.
    Whole,
    /// Its turn comes with the next question.
    Later,
    /// There are more results than are looked at.
    Cut(Missed),
}

/// Returns for each question the jobs of its session that have ended since its time, and notes how far each look has come.
async fn look_for_ends(
    store: &Store,
    unknown: Vec<Unknown>,
    looks: &mut [Look],
) -> Result<Vec<(usize, Vec<JobId>)>, StoreError> {
    let (mut found, mut through) = (Vec::new(), Vec::new());
    let of = |unknown: &[Unknown]| unknown.iter().map(|of| of.since.clone()).collect::<Vec<_>>();
    let newest = store.ended_since(&of(&unknown), NEWEST).await?;
    for (of, (ended, is_more)) in unknown.into_iter().zip(newest) {
        if !is_more {
            found.push((of.number, ended));
        } else if through.len() < LOOKED_THROUGH {
            through.push(of);
        } else {
            looks[of.number] = Look::Later;
        }
    }
    if !through.is_empty() {
        let all = store.ended_since(&of(&through), LOOKED_AT).await?;
        for (of, (ended, is_more)) in through.into_iter().zip(all) {
            if is_more {
                let is_short = |missing| (ended.len() as i64) < missing;
                looks[of.number] = match of.missing {
                    None => Look::Cut(Missed::WhileAway),
                    Some(missing) if is_short(missing) => Look::Cut(Missed::Now),
                    Some(_) => Look::Whole,
                };
            }
            found.push((of.number, ended));
        }
    }
    Ok(found)
}

/// Whether any of these jobs has checkpoints. Those of a job that left none are not looked for.
fn has_worked(ended: &[Ended]) -> bool {
    ended.iter().any(|ended| ended.view.iterations > 0)
}

/// Jobs that have ended: all that were found, those of them that were read, and what that took.
#[derive(Default)]
struct Ends {
    asked: HashSet<JobId>,
    found: HashMap<JobId, Found>,
    sessions: HashMap<SessionKey, Vec<JobId>>,
    count: i64,
    bytes: i64,
}

struct Found {
    job_id: JobId,
    session: SessionKey,
    /// In milliseconds of the Unix epoch.
    finished_ms: i64,
    /// `None` if it was left for the next reading.
    ended: Option<Ended>,
}

impl Ends {
    /// Looks which of these jobs have ended, and reads what fits into one question, in the order in which topics became
    /// due. What comes first is always read.
    async fn read(&mut self, store: &Store, jobs: Vec<JobId>) -> Result<(), StoreError> {
        let jobs = self.unasked(jobs);
        if jobs.is_empty() {
            return Ok(());
        }
        let (bytes, count) = (ENDS_BYTES - self.bytes, ENDS as i64 - self.count);
        self.add(store.ended_jobs(&jobs, bytes, count).await?);
        Ok(())
    }

    /// Returns those of these jobs that were not asked about yet. They are, from now on.
    fn unasked(&mut self, jobs: Vec<JobId>) -> Vec<JobId> {
        jobs.into_iter().filter(|job_id| self.asked.insert(*job_id)).collect()
    }

    fn add(&mut self, ended: Vec<EndedJob>) {
        for EndedJob { job_id, session, epoch, started_ms, finished_ms, bytes, view } in ended {
            if view.is_some() {
                self.count += 1;
                self.bytes += bytes;
            }
            self.sessions.entry(session.clone()).or_default().push(job_id);
            let ended = view.map(|view| Ended { view: Arc::new(view), epoch, started_ms, finished_ms });
            self.found.insert(job_id, Found { job_id, session, finished_ms, ended });
        }
    }

    /// How many of a session were found that have ended since the question's time, and that its version does not count.
    fn not_counted(&self, session: &SessionKey, question: &Question) -> usize {
        let found = self.of(session).iter().filter_map(|job_id| self.found.get(job_id));
        found.filter(|found| found.finished_ms >= question.since && !question.counts(found.job_id)).count()
    }

    /// All that were found of a session.
    fn of(&self, session: &SessionKey) -> &[JobId] {
        self.sessions.get(session).map(Vec::as_slice).unwrap_or_default()
    }

    /// Adds those of these jobs that were read. Returns those that were left.
    fn take(&self, jobs: &[JobId], read: &mut Vec<Ended>) -> Vec<JobId> {
        let found = || jobs.iter().filter_map(|job_id| self.found.get(job_id));
        read.extend(found().filter_map(|found| found.ended.clone()));
        found().filter(|found| found.ended.is_none()).map(|found| found.job_id).collect()
    }
}
