//! What was read, as events in order. Each event that can be resumed from has an id that rises. Pure.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use job::{CallId, JobId, JobState};
use store::{JobView, LiveJob, Step, StepPlace};

use super::{Ended, Missed, Seen};

/// Ended jobs that a session's stream remembers, so that it shows no end twice.
const REMEMBERED: usize = 256;
/// A job that was not seen before and ended so long before the last reading was shown in an earlier one: it is read again
/// for another stream, which goes on from further back.
const SHOWN_BEFORE_MS: i64 = 60_000;

/// How far a stream has come, as the id of its last event. It holds all that is needed to go on at any door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Rises with each event: at least the time at which its state was read, in milliseconds of the Unix epoch.
    pub at: i64,
    /// The last checkpoint that was shown.
    pub place: StepPlace,
    /// Iterations of the job that were shown or are known to be gone; -1 if the job was joined in the middle.
    pub shown: i64,
    /// The job that is meant by `shown`, in a session's stream.
    pub job_id: Option<JobId>,
}

/// Something that a stream shows.
#[derive(Clone, Debug)]
pub enum Event {
    /// A job's state.
    State(LiveJob),
    /// A checkpoint.
    Iteration(Step),
    /// So many iterations of a job cannot be shown any more.
    Gap(JobId, i64),
    /// Ends of the session may not have been found.
    EndsGap,
    /// A job's end.
    End(Arc<JobView>),
}

/// The events of one stream.
pub struct Sequence {
    position: Position,
    /// The job that the stream is about; `None` if it is about a session.
    job_id: Option<JobId>,
    /// What was shown last: state, attempts, and the calls that persons are asked to answer.
    states: SmallMap<(JobState, i32, Vec<CallId>)>,
    shown: SmallMap<i64>,
    ended: VecDeque<JobId>,
    /// Whether jobs that run at the first reading are joined in the middle.
    joins: bool,
    /// Whether it goes on behind an earlier stream, and not all that ended in between was read yet.
    catches_up: bool,
    /// Where it begins: a job whose runs are all behind this has no iteration that was shown before.
    begins: (i64, i64),
    /// Ends before this time were shown, in a session's stream.
    ends_since: i64,
}

/// What is known of some jobs. Most streams are about one, and a map has room for three at least: that is a quarter of a
/// kilobyte for each of thousands of streams.
struct SmallMap<T>(Vec<(JobId, T)>);

impl<T> SmallMap<T> {
    fn get(&self, job_id: JobId) -> Option<&T> {
        self.0.iter().find(|(id, _)| *id == job_id).map(|(_, of)| of)
    }

    fn has(&self, job_id: JobId) -> bool {
        self.get(job_id).is_some()
    }

    fn set(&mut self, job_id: JobId, of: T) {
        match self.0.iter_mut().find(|(id, _)| *id == job_id) {
            Some((_, known)) => *known = of,
            None => {
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.push((job_id, of));
            }
        }
    }

    fn forget(&mut self, job_id: JobId) {
        self.0.retain(|(id, _)| *id != job_id);
    }
}

impl Position {
    /// Before everything.
    pub const START: Position = Position { at: 0, place: StepPlace::START, shown: 0, job_id: None };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { at, place: StepPlace { epoch, ordinal }, shown, job_id } = self;
        write!(f, "{at}.{epoch}.{ordinal}.{shown}")?;
        job_id.map_or(Ok(()), |job_id| write!(f, ".{job_id}"))
    }
}

impl FromStr for Position {
    type Err = String;
    fn from_str(text: &str) -> Result<Position, String> {
        let read = || {
            let mut parts = text.split('.');
            let position = Position {
                at: parts.next()?.parse().ok()?,
                place: StepPlace { epoch: parts.next()?.parse().ok()?, ordinal: parts.next()?.parse().ok()? },
                shown: parts.next()?.parse().ok()?,
                job_id: parts.next().map(|id| id.parse().ok()).map_or(Some(None), |id| id.map(Some))?,
            };
            // A time of which milliseconds and microseconds can be made, and that leaves room for events.
            let fits = (0..=1 << 52).contains(&position.at) && parts.next().is_none();
            fits.then_some(position)
        };
        read().ok_or_else(|| format!("got \"{}\", expected the id of an event of a stream", job::shown(text)))
    }
}

impl Sequence {
    /// The events of a job's stream behind this position.
    pub fn of_job(job_id: JobId, from: Position) -> Sequence {
        Sequence { job_id: Some(job_id), ..Sequence::new(from, false) }
    }

    /// The events of a session's stream behind this position. With `joins` it begins now.
    pub fn of_session(from: Position, joins: bool) -> Sequence {
        Sequence::new(from, joins)
    }

    fn new(position: Position, joins: bool) -> Sequence {
        let shown = SmallMap(position.job_id.map(|job_id| (job_id, position.shown)).into_iter().collect());
        let (states, ended) = (SmallMap(Vec::new()), VecDeque::new());
        let (begins, ends_since) = ((position.at, position.place.epoch), position.at - SHOWN_BEFORE_MS);
        let catches_up = !joins;
        Sequence { position, job_id: None, states, shown, ended, joins, catches_up, begins, ends_since }
    }

    /// Returns the job that the stream is about, if it is about one alone.
    pub fn job_id(&self) -> Option<JobId> {
        self.job_id
    }

    /// Returns what is new in a reading.
    pub fn events(&mut self, seen: &Seen) -> Vec<(Position, Event)> {
        let mut events = Vec::new();
        if std::mem::take(&mut self.joins) {
            seen.live.iter().filter(|job| job.begun).for_each(|job| self.shown.set(job.job_id, -1));
        }
        let changed: Vec<&LiveJob> = seen.live.iter().filter(|job| self.is_news(job)).collect();
        // A run begins before its checkpoints, and whatever comes after a run comes behind them.
        let (begins, others): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|job| job.state == JobState::Running);
        for job in begins {
            events.push((self.next(), Event::State(job.clone())));
        }
        for step in seen.steps.iter().filter(|step| step.place > self.position.place).collect::<Vec<_>>() {
            self.position.place = step.place;
            self.count(step.job_id, step.iterations);
            events.push((self.next(), Event::Iteration(step.clone())));
        }
        for job in others {
            events.push((self.next(), Event::State(job.clone())));
        }
        let is_short = match seen.missed {
            Missed::Nothing => false,
            Missed::WhileAway => self.catches_up,
            Missed::Now => true,
        };
        if is_short {
            events.push((self.next(), Event::EndsGap));
        }
        for ended in seen.ended.iter().filter(|ended| !self.was_shown(ended)).collect::<Vec<_>>() {
            let (view, gone) = (&ended.view, self.gone(ended));
            if gone > 0 {
                self.count(view.job_id, gone);
                events.push((self.next(), Event::Gap(view.job_id, gone)));
            }
            events.push((self.next(), Event::End(view.clone())));
            self.forget(view.job_id);
        }
        // Only behind the last one has all of the reading been shown: a stream that is cut before it begins from further back.
        if let Some((last, _)) = events.last_mut() {
            self.position.at = seen.at.max(self.position.at);
            last.at = self.position.at;
        }
        // Of a part of what there is, `at` is 0.
        self.catches_up &= seen.at == 0;
        self.ends_since = self.ends_since.max(seen.at - SHOWN_BEFORE_MS);
        let live: HashSet<JobId> = seen.live.iter().map(|job| job.job_id).collect();
        if self.states.0.len() > live.len() + REMEMBERED {
            self.states.0.retain(|(job_id, _)| live.contains(job_id));
        }
        events
    }

    /// Notes a job's state; false if it was shown before.
    fn is_news(&mut self, job: &LiveJob) -> bool {
        let asked = job.questions.iter().map(|question| question.call_id.clone()).collect();
        let now = (job.state, job.attempts, asked);
        if self.states.get(job.job_id) == Some(&now) {
            return false;
        }
        self.states.set(job.job_id, now);
        true
    }

    fn count(&mut self, job_id: JobId, iterations: i64) {
        let mut shown = match self.job_id {
            Some(_) => self.position.shown,
            None => self.shown.get(job_id).copied().unwrap_or_default(),
        };
        if shown >= 0 {
            shown = shown.saturating_add(iterations);
        }
        self.position.shown = shown;
        if self.job_id.is_none() {
            self.position.job_id = Some(job_id);
            self.shown.set(job_id, shown);
        }
    }

    /// Whether a job's end was shown before.
    fn was_shown(&self, Ended { view, finished_ms, .. }: &Ended) -> bool {
        let is_old = self.job_id.is_none() && !self.is_known(view.job_id) && *finished_ms < self.ends_since;
        is_old || self.ended.contains(&view.job_id)
    }

    fn is_known(&self, job_id: JobId) -> bool {
        self.states.has(job_id) || self.shown.has(job_id)
    }

    /// Iterations of an ended job that were neither shown nor can be.
    fn gone(&self, Ended { view, epoch, started_ms, .. }: &Ended) -> i64 {
        let (from, after_run) = self.begins;
        let shown = match self.job_id {
            Some(_) => self.position.shown,
            // A job that came and went while no stream was there. An event may have a time before that of its reading, so
            // that both are compared.
            None if !self.is_known(view.job_id) => {
                if *epoch > after_run && started_ms.is_some_and(|at| at >= from) { 0 } else { -1 }
            }
            None => self.shown.get(view.job_id).copied().unwrap_or(0),
        };
        if shown < 0 { 0 } else { view.iterations.saturating_sub(shown) }
    }

    fn forget(&mut self, job_id: JobId) {
        self.states.forget(job_id);
        self.shown.forget(job_id);
        self.ended.push_back(job_id);
        if self.ended.len() > REMEMBERED {
            self.ended.pop_front();
        }
    }

    fn next(&mut self) -> Position {
        self.position.at += 1;
        self.position
    }
}

#[cfg(test)]
pub(super) mod tests {
    use job::{SessionKey, Tenant, Usd};

    use super::*;

    fn id(number: u8) -> JobId {
        format!("0198c0de-7a00-7000-8000-0000000000{number:02x}").parse().unwrap()
    }

    fn live(number: u8, state: JobState) -> LiveJob {
        let session = SessionKey::of_ledger("s");
        let begun = state == JobState::Running;
        let questions = Vec::new();
        LiveJob { job_id: id(number), session, state, attempts: 0, begun, code: None, questions }
    }

    fn step(number: u8, epoch: i64, ordinal: i32) -> Step {
        let (cost, place) = (Usd::ZERO, StepPlace { epoch, ordinal });
        let (input_tokens, output_tokens, progress) = (0, 0, None);
        Step { place, job_id: id(number), iterations: 1, cost, input_tokens, output_tokens, progress }
    }

    /// A job that ran in this epoch and began at this time.
    fn ran(number: u8, iterations: i64, epoch: i64, started_ms: i64) -> Ended {
        Ended { epoch, started_ms: Some(started_ms), ..end(number, iterations) }
    }

    pub(in crate::following) fn end(number: u8, iterations: i64) -> Ended {
        let view = JobView {
            job_id: id(number),
            trace_id: id(number).into(),
            tenant: Tenant::default(),
            session_id: "s".to_owned(),
            agent_id: "a".to_owned(),
            pool: "default".to_owned(),
            labels: Default::default(),
            state: JobState::Succeeded,
            attempts: 1,
            iterations,
            cost_usd: Usd::ZERO,
            input_tokens: 0,
            output_tokens: 0,
            worker_id: None,
            accepted_at: String::new(),
            started_at: None,
            finished_at: None,
            questions: Vec::new(),
            failure: None,
            output: None,
        };
        Ended { view: Arc::new(view), epoch: 0, started_ms: None, finished_ms: 0 }
    }

    fn seen(at: i64, live: Vec<LiveJob>, steps: Vec<Step>, ended: Vec<Ended>) -> Seen {
        Seen { at, live, steps, ended, missed: Missed::Nothing }
    }

    fn shown(events: &[(Position, Event)]) -> Vec<String> {
        let text = |event: &Event| match event {
            Event::State(job) => job.state.to_string(),
            Event::Iteration(step) => format!("{}.{}", step.place.epoch, step.place.ordinal),
            Event::Gap(_, iterations) => format!("gap {iterations}"),
            Event::EndsGap => "gap of ends".to_owned(),
            Event::End(view) => format!("end {}", view.state),
        };
        events.iter().map(|(_, event)| text(event)).collect()
    }

    #[test]
    fn a_job_is_shown_in_order_with_ids_that_rise_and_nothing_twice() {
        let mut job = Sequence::of_job(id(1), Position::START);
        let queued = job.events(&seen(50, vec![live(1, JobState::Queued)], vec![], vec![]));
        let running = vec![live(1, JobState::Running)];
        let steps = vec![step(1, 7, 0), step(1, 7, 1)];
        let runs = job.events(&seen(50, running.clone(), steps.clone(), vec![]));
        let again = job.events(&seen(60, running, steps, vec![]));
        let ended = job.events(&seen(60, vec![], vec![step(1, 7, 2)], vec![end(1, 3)]));
        assert_eq!(shown(&queued), ["queued"]);
        assert_eq!(shown(&runs), ["running", "7.0", "7.1"]);
        assert!(again.is_empty());
        assert_eq!(shown(&ended), ["7.2", "end succeeded"]);
        let ids: Vec<i64> = [queued, runs, ended].concat().iter().map(|(position, _)| position.at).collect();
        assert!(ids.is_sorted_by(|one, other| one < other), "{ids:?}");
    }

    #[test]
    fn a_stream_goes_on_behind_its_last_event_and_says_what_is_gone() {
        let mut first = Sequence::of_job(id(1), Position::START);
        let running = vec![live(1, JobState::Running)];
        let events = first.events(&seen(50, running, vec![step(1, 7, 0), step(1, 7, 1)], vec![]));
        let last: Position = events[1].0.to_string().parse().unwrap();
        assert_eq!((last, last.shown), (events[1].0, 1));
        // Everything is still there.
        let mut kept = Sequence::of_job(id(1), last);
        let all = vec![step(1, 7, 0), step(1, 7, 1), step(1, 7, 2)];
        assert_eq!(
            shown(&kept.events(&seen(60, vec![], all, vec![end(1, 3)]))),
            ["7.1", "7.2", "end succeeded"]
        );
        // The session was folded.
        let mut folded = Sequence::of_job(id(1), last);
        assert_eq!(
            shown(&folded.events(&seen(60, vec![], vec![], vec![end(1, 3)]))),
            ["gap 2", "end succeeded"]
        );
    }

    #[test]
    fn a_session_shows_each_of_its_jobs_and_each_end_once() {
        let from = Position { place: StepPlace { epoch: 7, ordinal: 4 }, ..Position::START };
        let mut session = Sequence::of_session(from, true);
        let both = vec![live(1, JobState::Running), live(2, JobState::Blocked)];
        let begun = session.events(&seen(50, both, vec![step(1, 7, 4), step(1, 7, 5)], vec![]));
        assert_eq!(shown(&begun), ["running", "7.5", "blocked"]);
        // It was joined in the middle, so that what came before is no gap.
        let next = session.events(&seen(60, vec![live(2, JobState::Running)], vec![], vec![end(1, 6)]));
        assert_eq!(shown(&next), ["running", "end succeeded"]);
        let last = session.events(&seen(70, vec![], vec![], vec![end(1, 6), end(2, 2)]));
        assert_eq!(shown(&last), ["gap 2", "end succeeded"]);
        let resumed: Position = last[1].0.to_string().parse().unwrap();
        assert_eq!(resumed.job_id, Some(id(2)));
        // Ends near the last event may come again; jobs that were not seen have no gap.
        let mut resumed = Sequence::of_session(resumed, false);
        assert_eq!(shown(&resumed.events(&seen(80, vec![], vec![], vec![end(3, 9)]))), ["end succeeded"]);
    }

    #[test]
    fn a_job_that_came_and_went_while_the_client_was_away_has_a_gap_and_no_other_has_one() {
        let from = Position { at: 50, place: StepPlace { epoch: 7, ordinal: 1 }, ..Position::START };
        let came = |ended: Ended, steps: Vec<Step>| {
            shown(&Sequence::of_session(from, false).events(&seen(90, vec![], steps, vec![ended])))
        };
        assert_eq!(came(ran(1, 3, 8, 60), vec![]), ["gap 3", "end succeeded"]);
        // Its checkpoints are still there.
        assert_eq!(came(ran(1, 1, 8, 60), vec![step(1, 8, 0)]), ["8.0", "end succeeded"]);
        // The earlier stream may have shown of it.
        assert_eq!(came(ran(1, 3, 8, 40), vec![]), ["end succeeded"]);
        assert_eq!(came(ran(1, 3, 7, 60), vec![]), ["end succeeded"]);
        assert_eq!(came(end(1, 0), vec![]), ["end succeeded"]);
    }

    #[test]
    fn a_stream_that_catches_up_keeps_its_time_until_all_is_read_and_says_that_ends_may_be_missing() {
        let from = Position { at: 1_000_000, ..Position::START };
        let mut resumed = Sequence::of_session(from, false);
        let ended = |number| Ended { finished_ms: 1_000_001, ..end(number, 0) };
        let part = resumed.events(&seen(0, vec![], vec![], vec![ended(1)]));
        // The next stream looks for what ended since then, too.
        assert_eq!((shown(&part), part[0].0.at), (vec!["end succeeded".to_owned()], 1_000_001));
        let short = Seen { missed: Missed::WhileAway, ..seen(2_000_000, vec![], vec![], vec![ended(2)]) };
        let rest = resumed.events(&short);
        assert_eq!(shown(&rest), ["gap of ends", "end succeeded"]);
        assert_eq!((rest[0].0.at, rest[1].0.at), (1_000_002, 2_000_000));
        // What is read for a stream that comes later is neither new here nor a gap.
        let again = Seen { missed: Missed::WhileAway, ..seen(2_000_100, vec![], vec![], vec![ended(3)]) };
        assert!(resumed.events(&again).is_empty());
        let now = Seen { missed: Missed::Now, ..seen(2_000_200, vec![], vec![], vec![]) };
        assert_eq!(shown(&resumed.events(&now)), ["gap of ends"]);
        let mut joined = Sequence::of_session(from, true);
        assert!(joined.events(&again).iter().all(|(_, event)| matches!(event, Event::End(_))));
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for wrong in
            ["", "1", "1.2.3", "1.2.3.4.x", "-1.2.3.4", "1.2.3.4.5", "99999999999999999999.1.1.1", "é"]
        {
            assert!(wrong.parse::<Position>().is_err(), "{wrong}");
        }
        let whole = format!("5.7.-1.0.{}", id(1));
        assert!(whole.parse::<Position>().is_ok() && format!("{whole}.1").parse::<Position>().is_err());
    }
}
