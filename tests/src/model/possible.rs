//! The actions that are possible in a state.

use job::JobState;

use super::action::{Action, Luck};
use super::broken::Broken;
use super::call::{End, Run};
use super::fleet::{ADMITTERS, Fleet, Relay};
use super::process::{MAX_ATTEMPTS, Process, Work};
use super::row::{JOBS, Job, Lease, WorkerId};
use super::scope::Scope;

/// The most iterations that one run finishes.
const ITERATIONS: u8 = 1;
/// The broker duplicates a message only while fewer copies than this are in the queue.
const COPIES: u8 = 2;

impl Fleet {
    /// Collects every action that is possible in this state within a scope.
    pub fn possible(&self, broken: Broken, scope: &Scope, actions: &mut Vec<Action>) {
        for &job in scope.jobs {
            if scope.slow && !self.accepted[usize::from(job)] && self.ledger.numbers[usize::from(job)] == 0 {
                actions.push(Action::TakeNumber(job));
            }
            self.possible_for_job(job, scope.direct.contains(&job), actions);
            if self.may_pick(broken, job) {
                actions.push(Action::Pick(self.leader(), job));
            }
            if scope.asks.contains(&job) {
                self.possible_for_input(job, actions);
            }
        }
        self.possible_upkeep(broken, actions);
        if scope.line {
            self.possible_for_admitters(actions);
        }
        for (at, process) in self.processes.iter().enumerate() {
            self.possible_for_process(broken, at, process, scope, actions);
        }
    }

    /// The possible fates of a call.
    fn lucks(&self) -> impl Iterator<Item = Luck> {
        let (mishap, late) = (self.mishaps > 0, self.late.is_none());
        let lost = mishap.then_some(Luck::ReplyLost);
        [Luck::Heard].into_iter().chain(lost).chain((mishap && late).then_some(Luck::Late))
    }

    fn possible_for_job(&self, job: Job, direct: bool, actions: &mut Vec<Action>) {
        let at = usize::from(job);
        match self.accepted[at] {
            false if direct => actions.push(Action::PublishDirectly(job)),
            false => actions.push(Action::Accept(job)),
            true => {}
        }
        match self.relays[at] {
            Relay::Idle => {}
            Relay::Publishes => actions.push(Action::Publish(job)),
            Relay::Confirms => actions.push(Action::Confirm(job)),
        }
        if self.ledger.rows[at].is_some_and(|row| !row.due) {
            actions.push(Action::ComeDue(job));
        }
        if self.mishaps == 0 {
            return;
        }
        if self.relays[at] != Relay::Idle {
            actions.push(Action::LoseRelay(job));
        }
        if self.accepted[at] && self.queue[at] < COPIES {
            actions.push(Action::Duplicate(job));
        }
        if self.ledger.ends[at].is_none() {
            actions.push(Action::Cancel(job));
        }
    }

    /// Whether the admitter that leads may choose a job next.
    pub fn may_pick(&self, broken: Broken, job: Job) -> bool {
        let is_free = self.picks[self.leader()].is_none() && self.seen_busy.is_none();
        is_free && self.ledger.may_admit(broken, job)
    }

    fn possible_for_admitters(&self, actions: &mut Vec<Action>) {
        actions.extend((0..ADMITTERS).filter(|at| self.picks[*at].is_some()).map(Action::Admit));
        actions.extend(self.seen_busy.map(Action::Block));
        if self.ledger.is_news() {
            actions.push(Action::Note);
        }
        // One that has chosen nothing loses nothing with it.
        if self.mishaps > 0 && self.picks[self.leader()].is_some() {
            actions.push(Action::LoseLead);
        }
    }

    /// A person answers whenever the job is there, and a question waits for any time.
    fn possible_for_input(&self, job: Job, actions: &mut Vec<Action>) {
        let lucks = || self.lucks().filter(|luck| *luck != Luck::ReplyLost);
        if self.ledger.rows[usize::from(job)].is_some() {
            actions.extend(lucks().map(|luck| Action::Answer(job, luck)));
        }
        if self.is_open(usize::from(job)) {
            actions.extend(lucks().map(|luck| Action::TimeOut(job, luck)));
        }
    }

    fn possible_upkeep(&self, broken: Broken, actions: &mut Vec<Action>) {
        if (0..JOBS).any(|job| self.is(job, JobState::Scheduled)) {
            actions.push(Action::TakeDue);
        }
        if self.is_stuck() && broken != Broken::PublishingKept {
            actions.push(Action::ReturnStuck);
        }
        if self.has_vanished() {
            actions.push(Action::ReturnVanished);
        }
        if self.ledger.leases.contains(&Lease::Overdue) {
            actions.push(Action::DeclareDead);
        }
        if self.has_lost() {
            actions.push(Action::Rescue);
        }
        if self.has_unwanted() {
            actions.push(Action::EndUnwanted);
        }
        if self.late.is_some() {
            actions.push(Action::ArriveLate);
        }
        for (id, lease) in self.ledger.leases.iter().enumerate() {
            let id = id as WorkerId;
            // The lease of a process that is gone is certain to expire; that matters if it holds jobs.
            let may = if self.goes_by(id) { self.mishaps > 0 } else { self.holds_jobs(id) };
            if *lease == Lease::Alive && may {
                actions.push(Action::LeaseRunsOut(id));
            }
        }
    }

    fn possible_for_process(
        &self,
        broken: Broken,
        at: usize,
        process: &Process,
        scope: &Scope,
        actions: &mut Vec<Action>,
    ) {
        let lease = self.ledger.leases[usize::from(process.id)];
        let mishap = self.mishaps > 0;
        if lease != Lease::Dead || process.may_boot_again() {
            actions.push(Action::Beat(at));
        }
        for &job in scope.jobs {
            if self.has_unknown_job(broken, process, job) {
                actions.extend(self.lucks().map(|luck| Action::HandBack(at, job, luck)));
            }
            if process.work == Work::Idle && !process.draining && self.queue[usize::from(job)] > 0 {
                actions.push(Action::Deliver(at, job));
            }
        }
        match process.work {
            Work::Idle => {}
            Work::Claims(_) if broken == Broken::OneStatementClaim => actions.push(Action::Read(at)),
            Work::Claims(_) => actions.extend(self.lucks().map(|luck| Action::Claim(at, luck))),
            Work::Waits(..) => actions.push(Action::Claim(at, Luck::Heard)),
            Work::Runs(run) => {
                if !run.told && !run.is_hopeless() && scope.asks.contains(&run.job) {
                    actions.extend(self.lucks().map(|luck| Action::Conclude(at, End::Ask, luck)));
                }
                if run.folded < run.own && scope.folds.contains(&run.job) {
                    actions.extend(self.lucks().map(|luck| Action::Fold(at, luck)));
                }
                self.possible_for_run(at, process, run, actions);
            }
            Work::Appends(_) => actions.extend(self.lucks().map(|luck| Action::Checkpoint(at, luck))),
            Work::Folds(_) => actions.extend(self.lucks().map(|luck| Action::Fold(at, luck))),
            Work::Concludes(_, end) => {
                actions.extend(self.lucks().map(|luck| Action::Conclude(at, end, luck)));
            }
        }
        if process.runs().is_some() && matches!(lease, Lease::Overdue | Lease::Dead) {
            actions.push(Action::StopWithoutLease(at));
        }
        // There are enough boots for every scope; walks stop booting when the table is full.
        if !process.may_boot_again() {
            return;
        }
        if mishap {
            actions.push(Action::Crash(at));
            if !process.draining {
                actions.push(Action::Drain(at));
            }
        }
        if process.draining && matches!(process.work, Work::Idle | Work::Claims(_)) {
            actions.push(Action::Leave(at));
        }
    }

    fn possible_for_run(&self, at: usize, process: &Process, run: Run, actions: &mut Vec<Action>) {
        let mut end = |end| actions.extend(self.lucks().map(|luck| Action::Conclude(at, end, luck)));
        if run.is_hopeless() {
            return end(End::Failed);
        }
        end(End::Succeeded);
        let row = self.ledger.rows[usize::from(run.job)];
        if row.is_some_and(|row| row.asked && row.epoch == run.epoch) {
            end(End::Cancelled);
        }
        if process.draining {
            end(End::HandBack);
        }
        if run.is_suspect() {
            actions.push(Action::Outlive(at));
        }
        if run.own < ITERATIONS {
            actions.extend(self.lucks().map(|luck| Action::Checkpoint(at, luck)));
        }
        if self.mishaps > 0 && run.attempts + 1 < MAX_ATTEMPTS {
            actions.push(Action::Conclude(at, End::Retry, Luck::Heard));
        }
        if self.mishaps > 0 && process.message.is_some() {
            actions.push(Action::AckEarly(at));
        }
    }
}
