//! The ledger: rows, and the transactions that change them.
//!
//! A transaction is one step here. In Postgres, "lock first, decide second" guarantees that. Replaying walks of the
//! model on the real SQL ties the two together.

use job::{JobState, POISON_DEATHS};

use super::broken::Broken;
use super::call::{Answer, Call, Cancelled, Conclusion, Decision, End, Heard, Reply, Run};
use super::promise::{Marks, Promise};
use super::row::{
    Ended, Input, JOBS, Job, Lease, NO_PLACE, Row, SESSION_OF, SESSIONS, Session, WORKERS, WorkerId,
};

mod line;

/// The tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// Live jobs.
    pub rows: [Option<Row>; JOBS],
    /// Ended jobs.
    pub ends: [Option<Ended>; JOBS],
    /// Sessions.
    pub sessions: [Session; SESSIONS],
    /// Checkpoints that are not folded, by job.
    pub deltas: [u8; JOBS],
    /// Places in the order of acceptance that uncommitted insertions have taken; 0 for none.
    pub numbers: [u8; JOBS],
    /// The jobs that say that they start later, as bits.
    pub later: u8,
    /// Whether jobs wait in a line.
    pub line: bool,
    /// The jobs with the limit key, of which one may have a place; as bits.
    pub keyed: u8,
    /// The epoch of who admits from the line. A new leader gets the next one.
    pub leadership: u8,
    /// Whether jobs wait in the line, as the leader has last written down.
    pub noted: bool,
    /// Whether the leader grants, as it has last written down, that a new job is published while no message is on its way.
    pub grants: bool,
    /// What jobs ask persons.
    pub inputs: [Input; JOBS],
    /// Workers.
    pub leases: [Lease; WORKERS],
    /// The workers that were asked to end, as bits.
    pub noticed: u8,
    /// The promises that a step has broken.
    pub marks: Marks,
}

impl Ledger {
    /// Executes one transaction.
    pub fn call(&mut self, broken: Broken, call: Call) -> Reply {
        match call {
            Call::Register(worker) => {
                self.leases[usize::from(worker)] = Lease::Alive;
                Reply::Done
            }
            Call::TakeNumber(job) => {
                self.numbers[usize::from(job)] = self.next_number(job);
                Reply::Done
            }
            Call::Accept(job) => Reply::Accepted(self.accept(broken, job)),
            Call::Claim { worker, job, seen } => Reply::Answer(self.claim(broken, worker, job, seen)),
            Call::Checkpoint { worker, job, epoch, ordinal } => {
                Reply::Stands(self.checkpoint(broken, worker, job, epoch, ordinal))
            }
            Call::Fold { worker, job, epoch, ordinal, total } => {
                Reply::Stands(self.fold(broken, (worker, job, epoch), ordinal, total))
            }
            Call::Conclude(conclusion) => {
                let recorded = self.conclude(broken, conclusion);
                let taker = conclusion.take_next.then_some(conclusion.worker);
                let next = self.release_next(broken, SESSION_OF[usize::from(conclusion.job)], taker);
                Reply::Concluded { recorded, next }
            }
            Call::TakeDue => Reply::Jobs(self.take_due()),
            Call::Admit(job) => Reply::Jobs(self.admit(broken, job)),
            Call::Block(job) => {
                self.block(broken, job);
                Reply::Done
            }
            Call::Confirm(job) => {
                let row = self.rows[usize::from(job)].as_mut();
                if let Some(row) = row.filter(|row| row.state == JobState::Publishing) {
                    row.state = JobState::Queued;
                }
                Reply::Done
            }
            Call::ReturnStuck => self.each(|row| (row.state == JobState::Publishing).then(|| row.come_due())),
            Call::ReturnVanished => self.each(|row| (row.state == JobState::Queued).then(|| row.come_due())),
            Call::Clear { worker, job, epoch } => {
                let held = self.fenced(broken, worker, job, epoch);
                if let Some(row) = held {
                    self.rows[usize::from(job)] = Some(Row { deaths: 0, ..row });
                }
                Reply::Stands(held.is_some())
            }
            Call::Notice(worker) => {
                if matches!(self.leases[usize::from(worker)], Lease::Alive | Lease::Overdue) {
                    self.noticed |= 1 << worker;
                }
                Reply::Done
            }
            Call::Beat(worker) => Reply::Beat(self.beat(broken, worker)),
            Call::Stop(worker) => {
                let lease = self.leases[usize::from(worker)];
                if lease != Lease::Dead && !self.rows.iter().flatten().any(|row| row.worker == Some(worker)) {
                    self.leases[usize::from(worker)] = Lease::Stopped;
                    self.noticed &= !(1 << worker);
                }
                Reply::Done
            }
            Call::DeclareDead => {
                let mut dead_workers = 0;
                for (worker, lease) in self.leases.iter_mut().enumerate() {
                    if *lease == Lease::Overdue {
                        *lease = Lease::Dead;
                        dead_workers |= 1 << worker;
                    }
                }
                Reply::Workers(dead_workers)
            }
            Call::Rescue => self.rescue(broken),
            Call::Cancel(job) => Reply::Cancelled(self.cancel(broken, job)),
            Call::EndUnwanted => {
                let ended = (0..JOBS).filter(|job| {
                    let unwanted =
                        self.rows[*job].is_some_and(|row| row.asked && row.state != JobState::Running);
                    if unwanted {
                        self.end_waiting(broken, *job);
                    }
                    unwanted
                });
                Reply::Jobs(ended.fold(0, |jobs, job| jobs | 1 << job))
            }
            Call::Answer(job) => Reply::Heard(self.answer(broken, usize::from(job))),
            Call::TimeOut(job) => Reply::Jobs(self.time_out(broken, usize::from(job))),
            Call::LeaseRunsOut(worker) => {
                self.leases[usize::from(worker)] = Lease::Overdue;
                Reply::Done
            }
            Call::ComeDue(job) => {
                if let Some(row) = &mut self.rows[usize::from(job)] {
                    row.due = true;
                }
                Reply::Done
            }
        }
    }

    /// Makes all live jobs suspects, as if each had killed two workers.
    pub fn suspect_all(&mut self) {
        self.rows.iter_mut().flatten().for_each(|row| row.deaths = POISON_DEATHS as u8 - 1);
    }

    /// The live jobs of a session.
    pub fn of(&self, session: usize) -> impl Iterator<Item = (usize, &Row)> {
        let rows = self.rows.iter().enumerate().filter(move |(job, _)| SESSION_OF[*job] == session);
        rows.filter_map(|(job, row)| Some((job, row.as_ref()?)))
    }

    /// The other live jobs of a job's session.
    fn others(&self, job: Job) -> impl Iterator<Item = &Row> {
        let others = self.of(SESSION_OF[usize::from(job)]);
        others.filter(move |(other, _)| *other != usize::from(job)).map(|(_, row)| row)
    }

    /// Whether the ledger knows a job, live or ended.
    pub fn knows(&self, job: Job) -> bool {
        self.rows[usize::from(job)].is_some() || self.ends[usize::from(job)].is_some()
    }

    /// The iterations of a session that are not folded.
    fn unfolded(&self, session: usize) -> u8 {
        (0..JOBS).filter(|job| SESSION_OF[*job] == session).map(|job| self.deltas[job]).sum()
    }

    fn each(&mut self, mut change: impl FnMut(&mut Row) -> Option<()>) -> Reply {
        let mut jobs = 0;
        for (job, row) in self.rows.iter_mut().enumerate() {
            if row.as_mut().and_then(&mut change).is_some() {
                jobs |= 1 << job;
            }
        }
        Reply::Jobs(jobs)
    }

    fn next_number(&mut self, job: Job) -> u8 {
        let session = &mut self.sessions[SESSION_OF[usize::from(job)]];
        session.seq += 1;
        session.seq
    }

    /// Inserts a job in this state, unless it starts later.
    fn insert(&mut self, broken: Broken, job: Job, state: JobState) {
        let later = self.is_later(job);
        let seq = match std::mem::take(&mut self.numbers[usize::from(job)]) {
            _ if later && broken != Broken::PlaceBeforeDue => NO_PLACE,
            0 => self.next_number(job),
            taken => taken,
        };
        self.rows[usize::from(job)] = Some(Row {
            state: if later { JobState::Scheduled } else { state },
            due: !later,
            seq,
            epoch: 0,
            worker: None,
            attempts: 0,
            deaths: 0,
            asked: false,
            landed: 0,
            place: 0,
            folded: 0,
            failures: 0,
            killed: 0,
            left: None,
        });
    }

    fn is_later(&self, job: Job) -> bool {
        self.later & 1 << job != 0
    }

    fn accept(&mut self, broken: Broken, job: Job) -> bool {
        let new = !self.knows(job);
        if new {
            let at_once = !self.line || self.is_granted(broken, job);
            self.marks.mark(Promise::NonePassesTheLine, self.line && at_once && self.noted);
            self.insert(broken, job, if at_once { JobState::Publishing } else { JobState::Waiting });
        }
        new
    }

    /// Whether it is a job's turn in its session.
    fn has_its_turn(&self, broken: Broken, job: Job, row: &Row) -> bool {
        let earlier = |other: &Row| {
            other.keeps_its_turn(broken) || (other.seq < row.seq && broken != Broken::ClaimOutOfTurn)
        };
        row.epoch > 0 || !self.others(job).any(earlier)
    }

    /// Takes what is due: to be published, or into the line. What is due for the first time gets its place.
    fn take_due(&mut self) -> u8 {
        let mut jobs = 0;
        for job in 0..JOBS as Job {
            let Some(row) =
                self.rows[usize::from(job)].filter(|row| row.state == JobState::Scheduled && row.due)
            else {
                continue;
            };
            let seq = if row.seq == NO_PLACE { self.next_number(job) } else { row.seq };
            let state = if self.line { JobState::Waiting } else { JobState::Publishing };
            self.rows[usize::from(job)] = Some(Row { state, seq, ..row });
            jobs |= u8::from(!self.line) << job;
        }
        jobs
    }

    /// Whether a worker may get jobs. One whose lease has expired may, until a rescuer has noticed.
    fn may_take(&self, broken: Broken, worker: WorkerId) -> bool {
        match self.leases[usize::from(worker)] {
            Lease::Alive | Lease::Overdue => true,
            Lease::Stopped => broken == Broken::StoppedMayClaim,
            Lease::Dead => broken == Broken::DeathNotFinal,
            Lease::Unknown => false,
        }
    }

    /// Returns the decision of a claim.
    pub fn decide(&self, broken: Broken, worker: WorkerId, job: Job) -> Decision {
        match &self.rows[usize::from(job)] {
            None if self.ends[usize::from(job)].is_some() => Decision::Leave,
            None => Decision::Insert {
                free: !self.is_later(job) && self.others(job).all(|other| other.seq == NO_PLACE),
            },
            Some(row) if !row.may_be_claimed(broken, worker, self.line) => Decision::Leave,
            Some(row) => Decision::Take { free: self.has_its_turn(broken, job, row) },
        }
    }

    fn claim(&mut self, broken: Broken, worker: WorkerId, job: Job, seen: Option<Decision>) -> Answer {
        if !self.may_take(broken, worker) {
            return Answer::LeaseLost;
        }
        let at = usize::from(job);
        let decision = seen.unwrap_or_else(|| self.decide(broken, worker, job));
        // Postgres checks again what was seen before the wait for the lock: the job's own row, and the index.
        let free = match decision {
            Decision::Insert { free } if self.rows[at].is_none() => Some(free),
            Decision::Take { free }
                if self.rows[at].is_some_and(|row| row.may_be_claimed(broken, worker, self.line)) =>
            {
                Some(free)
            }
            Decision::Insert { .. } | Decision::Take { .. } | Decision::Leave => None,
        };
        if free == Some(true) && seen.is_some() && self.others(job).any(|other| other.epoch > 0) {
            return Answer::Refused;
        }
        if free.is_some() && self.rows[at].is_none() {
            self.insert(broken, job, JobState::Blocked);
        }
        match (free, &mut self.rows[at]) {
            (_, None) => Answer::Finished,
            (Some(false), Some(row)) if row.is_later() => Answer::NotDue,
            (Some(true), _) => Answer::Claimed(self.grant(broken, worker, job)),
            (Some(false), Some(row)) => {
                row.state = JobState::Blocked;
                Answer::Blocked
            }
            (None, Some(Row { state: JobState::Running, .. })) => Answer::Held,
            (None, Some(Row { state: JobState::Blocked, .. })) => Answer::Blocked,
            (None, Some(_)) => Answer::NotDue,
        }
    }

    fn grant(&mut self, broken: Broken, worker: WorkerId, job: Job) -> Run {
        let at = SESSION_OF[usize::from(job)];
        let first = self.of(at).map(|(_, row)| row.seq).min();
        let (unfolded, session) = (self.unfolded(at), &mut self.sessions[at]);
        let row = self.rows[usize::from(job)].as_mut().expect("the row that was decided on");
        self.marks.mark(Promise::InOrder, row.epoch == 0 && first < Some(row.seq));
        row.epoch = if broken == Broken::EpochPerJob { row.epoch } else { session.epoch } + 1;
        self.marks.mark(Promise::EpochsGrow, row.epoch <= session.epoch);
        session.epoch = session.epoch.max(row.epoch);
        (row.state, row.worker, row.left) = (JobState::Running, Some(worker), None);
        (row.landed, row.place) = (0, 0);
        let before = session.folded + unfolded;
        let (attempts, deaths) = (row.attempts, row.deaths);
        let told = matches!(self.inputs[usize::from(job)], Input::Answered | Input::TimedOut);
        let (epoch, resumed) = (row.epoch, unfolded > 0);
        Run { job, worker, epoch, attempts, deaths, before, resumed, own: 0, folded: 0, told }
    }

    /// Returns the row, if a run's write may change it.
    fn fenced(&self, broken: Broken, worker: WorkerId, job: Job, epoch: u8) -> Option<Row> {
        let row = self.rows[usize::from(job)].filter(|row| row.worker == Some(worker))?;
        (row.epoch == epoch || broken == Broken::NoEpochCheck).then_some(row)
    }

    fn checkpoint(&mut self, broken: Broken, worker: WorkerId, job: Job, epoch: u8, ordinal: u8) -> bool {
        let Some(row) = self.fenced(broken, worker, job, epoch) else { return false };
        // Or it comes before one that was folded; then it is no checkpoint of this run.
        let folded = ordinal < row.place && broken != Broken::FoldForgotten;
        let repeated = row.landed & 1 << ordinal != 0 || folded;
        if !repeated || broken == Broken::CheckpointAppendedAgain {
            self.deltas[usize::from(job)] += 1;
        }
        let newest = self.sessions[SESSION_OF[usize::from(job)]].epoch;
        self.marks.mark(Promise::OneWriter, epoch < newest);
        self.marks.mark(Promise::CountedOnce, repeated && broken == Broken::CheckpointAppendedAgain);
        let landed = row.landed | u8::from(!folded) << ordinal;
        self.rows[usize::from(job)] = Some(Row { landed, ..row });
        true
    }

    /// Writes a session whole within a run, up to one of its checkpoints, unless that was done before.
    fn fold(&mut self, broken: Broken, run: (WorkerId, Job, u8), ordinal: u8, total: u8) -> bool {
        let (worker, job, epoch) = run;
        let (at, session) = (usize::from(job), SESSION_OF[usize::from(job)]);
        let Some(row) = self.fenced(broken, worker, job, epoch) else { return false };
        if row.landed & 1 << ordinal == 0 || ordinal < row.place {
            return true;
        }
        self.marks.mark(Promise::OneWriter, epoch < self.sessions[session].epoch);
        // Those behind it are left.
        let left = (row.landed >> (ordinal + 1)).count_ones() as u8;
        let folded = row.folded + self.deltas[at] - left;
        (0..JOBS).filter(|job| SESSION_OF[*job] == session).for_each(|job| self.deltas[job] = 0);
        self.deltas[at] = left;
        self.sessions[session].folded = total;
        let landed = if broken == Broken::FoldForgotten { 0 } else { row.landed };
        self.rows[at] = Some(Row { landed, place: ordinal + 1, folded, ..row });
        true
    }

    /// Records the end of a run. Returns whether it is recorded, by this call or by an earlier one.
    fn conclude(&mut self, broken: Broken, conclusion: Conclusion) -> bool {
        let Conclusion { worker, job, epoch, end, attempts, fold, .. } = conclusion;
        let (at, session) = (usize::from(job), SESSION_OF[usize::from(job)]);
        let held = self.fenced(broken, worker, job, epoch);
        if let Some(row) = held {
            self.marks.mark(Promise::OneWriter, epoch < self.sessions[session].epoch);
            if end.is_end() {
                self.marks.mark(Promise::OneEnd, self.ends[at].is_some());
                let iterations = self.deltas[at] + row.folded;
                self.ends[at] = Some(Ended { end, epoch, worker: Some(worker), attempts, iterations });
                self.rows[at] = None;
                if let Some(fold) = fold {
                    let total = self.sessions[session].folded + self.unfolded(session);
                    self.marks.mark(Promise::CountedOnce, fold != total);
                    self.sessions[session].folded = fold;
                    (0..JOBS).filter(|job| SESSION_OF[*job] == session).for_each(|job| self.deltas[job] = 0);
                }
            } else if end == End::Ask {
                self.inputs[at] = match self.inputs[at] {
                    Input::None => Input::Open,
                    Input::Early => Input::Answered,
                    asked => asked,
                };
                let waits = self.inputs[at] == Input::Open || broken == Broken::AskWithoutLook;
                let state = if waits { JobState::AwaitingInput } else { JobState::Scheduled };
                self.rows[at] = Some(Row { worker: None, state, due: true, left: Some(end), ..row });
            } else {
                let (worker, state, due) = (None, JobState::Scheduled, end == End::HandBack);
                let failures = row.failures + u8::from(end == End::Retry);
                let left = Some(end);
                self.rows[at] = Some(Row { worker, state, due, attempts, failures, left, ..row });
            }
        }
        let recorded = match broken {
            Broken::EndNotRecognised => held.is_some(),
            _ => {
                self.ends[at].is_some_and(|it| it.epoch == epoch && it.worker == Some(worker))
                    || self.rows[at].is_some_and(|row| row.epoch == epoch && row.state != JobState::Running)
            }
        };
        let ended =
            self.ends[at].is_some_and(|it| (it.epoch, it.worker, it.end) == (epoch, Some(worker), end));
        let left = self.rows[at].is_some_and(|row| (row.epoch, row.left) == (epoch, Some(end)));
        self.marks.mark(Promise::AnswersAreTrue, recorded != (ended || left));
        recorded
    }

    /// Gives the first job of a session, if none has begun, to a worker or to the relay.
    fn release_next(&mut self, broken: Broken, session: usize, taker: Option<WorkerId>) -> Option<Run> {
        if broken == Broken::NextForgotten || self.of(session).any(|(_, row)| row.keeps_its_turn(broken)) {
            return None;
        }
        let (head, row) = self.of(session).min_by_key(|(_, row)| row.seq)?;
        if row.state != JobState::Blocked {
            return None;
        }
        let waits = self.waits_its_turn(broken, head as Job);
        match taker.filter(|worker| !waits && self.may_take(broken, *worker)) {
            Some(worker) => {
                self.marks.mark(Promise::NonePassesTheLine, self.line && self.noted);
                Some(self.grant(broken, worker, head as Job))
            }
            None => {
                self.rows[head].as_mut()?.come_due();
                None
            }
        }
    }

    fn beat(&mut self, broken: Broken, worker: WorkerId) -> Option<[Option<u8>; JOBS]> {
        if self.leases[usize::from(worker)] != Lease::Stopped && !self.may_take(broken, worker) {
            return None;
        }
        let lease = &mut self.leases[usize::from(worker)];
        if *lease == Lease::Overdue {
            *lease = Lease::Alive;
        }
        Some(self.rows.map(|row| row.filter(|row| row.worker == Some(worker)).map(|row| row.epoch)))
    }

    fn rescue(&mut self, broken: Broken) -> Reply {
        let mut jobs = 0;
        let noticed = |worker: WorkerId| self.noticed & 1 << worker != 0;
        // The suspects that each worker was given.
        let mut suspects = [0_u8; WORKERS];
        for row in self.rows.iter().flatten().filter(|row| row.is_suspect()) {
            if let Some(worker) = row.worker.filter(|worker| !noticed(*worker)) {
                suspects[usize::from(worker)] += 1;
            }
        }
        let mut turns = [0_u8; WORKERS];
        for (job, row) in self.rows.iter_mut().enumerate() {
            let Some(row) = row else { continue };
            let Some(worker) = row.worker else { continue };
            let at = usize::from(worker);
            if self.leases[at] != Lease::Dead {
                continue;
            }
            let noticed = self.noticed & 1 << worker != 0;
            let shared = row.is_suspect() && !noticed && suspects[at] > 1;
            let charged = match broken {
                Broken::NoticeIgnored => !shared,
                Broken::SuspectsChargedTogether => !noticed,
                _ => !noticed && !shared,
            };
            if charged {
                self.marks.mark(Promise::CertainCulprit, shared);
                row.killed |= u8::from(!noticed) << worker;
                row.attempts += 1;
                row.deaths += 1;
            }
            let waits = shared && turns[at] > 0;
            turns[at] += u8::from(shared);
            if broken != Broken::RescueWithoutBump {
                let session = &mut self.sessions[SESSION_OF[job]];
                session.epoch += 1;
                row.epoch = session.epoch;
                (row.landed, row.place) = (0, 0);
            }
            row.worker = None;
            row.left = None;
            row.come_due();
            row.due = !waits;
            jobs |= 1 << job;
        }
        // A dead worker gets no more jobs.
        for worker in (0..WORKERS).filter(|worker| self.leases[*worker] == Lease::Dead) {
            self.noticed &= !(1 << worker);
        }
        Reply::Jobs(jobs)
    }

    fn answer(&mut self, broken: Broken, job: usize) -> Heard {
        let Some(row) = &mut self.rows[job] else { return Heard::Refused };
        match self.inputs[job] {
            Input::None => {
                self.inputs[job] = Input::Early;
                Heard::Early
            }
            Input::Open => {
                self.inputs[job] = Input::Answered;
                if row.state == JobState::AwaitingInput && broken != Broken::AnswerWakesNobody {
                    row.come_due();
                }
                Heard::Counts
            }
            Input::TimedOut if broken == Broken::AnsweredAgain => {
                self.inputs[job] = Input::Answered;
                self.marks.mark(Promise::AnsweredOnce, true);
                Heard::Counts
            }
            Input::Early | Input::Answered | Input::TimedOut | Input::Left => Heard::Refused,
        }
    }

    fn time_out(&mut self, broken: Broken, job: usize) -> u8 {
        let Some(row) = &mut self.rows[job] else { return 0 };
        let answered = self.inputs[job] == Input::Answered && broken == Broken::TimeOutWithoutLook;
        if self.inputs[job] != Input::Open && !answered {
            return 0;
        }
        self.marks.mark(Promise::AnsweredOnce, answered);
        self.inputs[job] = Input::TimedOut;
        if row.state != JobState::AwaitingInput {
            return 0;
        }
        row.come_due();
        1 << job
    }

    fn cancel(&mut self, broken: Broken, job: Job) -> Cancelled {
        let at = usize::from(job);
        match &mut self.rows[at] {
            _ if self.ends[at].is_some() => Cancelled::Before,
            None => {
                let end = Ended { end: End::Cancelled, epoch: 0, worker: None, attempts: 0, iterations: 0 };
                self.ends[at] = Some(end);
                Cancelled::Unseen
            }
            Some(row) if row.state == JobState::Running => {
                row.asked = true;
                Cancelled::Stopping
            }
            Some(_) => {
                self.end_waiting(broken, at);
                Cancelled::Now
            }
        }
    }

    fn end_waiting(&mut self, broken: Broken, job: usize) {
        let Some(Row { epoch, attempts, folded, .. }) = self.rows[job].take() else { return };
        self.marks.mark(Promise::OneEnd, self.ends[job].is_some());
        if self.inputs[job] == Input::Open {
            self.inputs[job] = Input::Left;
        }
        let iterations = self.deltas[job] + folded;
        self.ends[job] = Some(Ended { end: End::Cancelled, epoch, worker: None, attempts, iterations });
        self.release_next(broken, SESSION_OF[job], None);
    }
}
