//! The ledger: rows, and the transactions that change them.
//!
//! A transaction is one step here. In Postgres, "lock first, decide second" guarantees that. Replaying walks of the
//! model on the real SQL ties the two together.

use job::{JobState, POISON_DEATHS};

use super::broken::Broken;
use super::call::{Answer, Call, Cancelled, Conclusion, Decision, End, Reply, Run};
use super::promise::{Marks, Promise};
use super::row::{Ended, JOBS, Job, Lease, Row, SESSION_OF, SESSIONS, Session, WORKERS, WorkerId};

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
            Call::Accept(job) => Reply::Accepted(self.accept(job)),
            Call::Claim { worker, job, seen } => Reply::Answer(self.claim(broken, worker, job, seen)),
            Call::Checkpoint { worker, job, epoch, ordinal } => {
                Reply::Stands(self.checkpoint(broken, worker, job, epoch, ordinal))
            }
            Call::Conclude(conclusion) => {
                let recorded = self.conclude(broken, conclusion);
                let taker = conclusion.take_next.then_some(conclusion.worker);
                let next = self.release_next(broken, SESSION_OF[usize::from(conclusion.job)], taker);
                Reply::Concluded { recorded, next }
            }
            Call::TakeDue => self.each(|row| {
                let takes = row.state == JobState::Scheduled && row.due;
                takes.then(|| row.state = JobState::Publishing)
            }),
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

    fn insert(&mut self, job: Job, state: JobState) -> &mut Row {
        let seq = match std::mem::take(&mut self.numbers[usize::from(job)]) {
            0 => self.next_number(job),
            taken => taken,
        };
        self.rows[usize::from(job)].insert(Row {
            state,
            due: true,
            seq,
            epoch: 0,
            worker: None,
            attempts: 0,
            deaths: 0,
            asked: false,
            landed: 0,
            failures: 0,
            killed: 0,
            left: None,
        })
    }

    fn accept(&mut self, job: Job) -> bool {
        let new = !self.knows(job);
        if new {
            self.insert(job, JobState::Publishing);
        }
        new
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
            None => Decision::Insert { free: self.others(job).count() == 0 },
            Some(row) if !row.may_be_claimed(broken, worker) => Decision::Leave,
            Some(row) => Decision::Take {
                free: row.epoch > 0
                    || !self.others(job).any(|other| {
                        other.keeps_its_turn(broken)
                            || (other.seq < row.seq && broken != Broken::ClaimOutOfTurn)
                    }),
            },
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
                if self.rows[at].is_some_and(|row| row.may_be_claimed(broken, worker)) =>
            {
                Some(free)
            }
            Decision::Insert { .. } | Decision::Take { .. } | Decision::Leave => None,
        };
        if free == Some(true) && seen.is_some() && self.others(job).any(|other| other.epoch > 0) {
            return Answer::Refused;
        }
        if free.is_some() && self.rows[at].is_none() {
            self.insert(job, JobState::Blocked);
        }
        match (free, &mut self.rows[at]) {
            (_, None) => Answer::Finished,
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
        (row.state, row.worker, row.landed, row.left) = (JobState::Running, Some(worker), 0, None);
        let before = session.folded + unfolded;
        let (attempts, deaths) = (row.attempts, row.deaths);
        Run { job, worker, epoch: row.epoch, attempts, deaths, before, resumed: unfolded > 0, own: 0 }
    }

    /// Returns the row, if a run's write may change it.
    fn fenced(&self, broken: Broken, worker: WorkerId, job: Job, epoch: u8) -> Option<Row> {
        let row = self.rows[usize::from(job)].filter(|row| row.worker == Some(worker))?;
        (row.epoch == epoch || broken == Broken::NoEpochCheck).then_some(row)
    }

    fn checkpoint(&mut self, broken: Broken, worker: WorkerId, job: Job, epoch: u8, ordinal: u8) -> bool {
        let Some(row) = self.fenced(broken, worker, job, epoch) else { return false };
        let repeated = row.landed & 1 << ordinal != 0;
        if !repeated || broken == Broken::CheckpointAppendedAgain {
            self.deltas[usize::from(job)] += 1;
        }
        let newest = self.sessions[SESSION_OF[usize::from(job)]].epoch;
        self.marks.mark(Promise::OneWriter, epoch < newest);
        self.marks.mark(Promise::CountedOnce, repeated && broken == Broken::CheckpointAppendedAgain);
        self.rows[usize::from(job)] = Some(Row { landed: row.landed | 1 << ordinal, ..row });
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
                let iterations = self.deltas[at];
                self.ends[at] = Some(Ended { end, epoch, worker: Some(worker), attempts, iterations });
                self.rows[at] = None;
                if let Some(fold) = fold {
                    let total = self.sessions[session].folded + self.unfolded(session);
                    self.marks.mark(Promise::CountedOnce, fold != total);
                    self.sessions[session].folded = fold;
                    (0..JOBS).filter(|job| SESSION_OF[*job] == session).for_each(|job| self.deltas[job] = 0);
                }
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
        match taker.filter(|worker| self.may_take(broken, *worker)) {
            Some(worker) => Some(self.grant(broken, worker, head as Job)),
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
                row.landed = 0;
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
        let Some(Row { epoch, attempts, .. }) = self.rows[job].take() else { return };
        self.marks.mark(Promise::OneEnd, self.ends[job].is_some());
        let iterations = self.deltas[job];
        self.ends[job] = Some(Ended { end: End::Cancelled, epoch, worker: None, attempts, iterations });
        self.release_next(broken, SESSION_OF[job], None);
    }
}
