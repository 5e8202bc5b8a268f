//! One fair order of the steps that must happen sooner or later when nothing more goes wrong.
//!
//! From each state it has exactly one next step, so it can be followed from anywhere to its end. If it reached a state
//! twice, it would go on for ever.

use job::JobState;

use super::action::{Action, Luck};
use super::broken::Broken;
use super::call::End;
use super::fleet::{Fleet, Relay};
use super::process::Work;
use super::row::{JOBS, Job, Lease, WorkerId};

impl Fleet {
    /// Returns the next step in the fair order; `None` when nothing is left to do.
    pub fn fair(&self, broken: Broken) -> Option<Action> {
        if self.late.is_some() {
            return Some(Action::ArriveLate);
        }
        for (at, process) in self.processes.iter().enumerate() {
            let lease = self.ledger.leases[usize::from(process.id)];
            let runs = process.runs();
            let lost = runs.is_some_and(|run| {
                let row = self.ledger.rows[usize::from(run.job)];
                run.worker != process.id
                    || row.is_none_or(|row| row.worker != Some(run.worker) || row.epoch != run.epoch)
            });
            if lost || matches!(lease, Lease::Overdue | Lease::Dead) && process.may_boot_again() {
                return Some(Action::Beat(at));
            }
            let unknown = |job: &usize| self.has_unknown_job(broken, process, *job as Job);
            if let Some(job) = (0..JOBS).find(unknown) {
                return Some(Action::HandBack(at, job as Job, Luck::Heard));
            }
            match process.work {
                Work::Idle if process.draining => return Some(Action::Leave(at)),
                Work::Idle => {}
                Work::Claims(_) if broken == Broken::OneStatementClaim => return Some(Action::Read(at)),
                Work::Claims(_) | Work::Waits(..) => return Some(Action::Claim(at, Luck::Heard)),
                Work::Appends(_) => return Some(Action::Checkpoint(at, Luck::Heard)),
                Work::Folds(_) => return Some(Action::Fold(at, Luck::Heard)),
                Work::Concludes(_, end) => return Some(Action::Conclude(at, end, Luck::Heard)),
                Work::Runs(run) => {
                    let end = match run.is_hopeless() {
                        true => End::Failed,
                        false if process.draining => End::HandBack,
                        false => End::Succeeded,
                    };
                    return Some(Action::Conclude(at, end, Luck::Heard));
                }
            }
        }
        self.fair_upkeep(broken).or_else(|| self.fair_dispatch(broken))
    }

    /// The steps that rescuers and relays find.
    fn fair_upkeep(&self, broken: Broken) -> Option<Action> {
        let rows = || self.ledger.rows.iter().flatten();
        if self.ledger.leases.contains(&Lease::Overdue) {
            return Some(Action::DeclareDead);
        }
        let is_orphan = |id: &WorkerId| {
            let alive = self.ledger.leases[usize::from(*id)] == Lease::Alive;
            alive && !self.goes_by(*id)
        };
        if let Some(id) = rows().filter_map(|row| row.worker).find(is_orphan) {
            return Some(Action::LeaseRunsOut(id));
        }
        if self.has_lost() {
            return Some(Action::Rescue);
        }
        if self.has_unwanted() {
            return Some(Action::EndUnwanted);
        }
        if let Some(job) = (0..JOBS).find(|job| self.is_open(*job)) {
            return Some(Action::Answer(job as Job, Luck::Heard));
        }
        (self.is_stuck() && broken != Broken::PublishingKept).then_some(Action::ReturnStuck)
    }

    /// The steps that bring a job to a worker.
    fn fair_dispatch(&self, broken: Broken) -> Option<Action> {
        for (job, relay) in self.relays.iter().enumerate() {
            match relay {
                Relay::Idle => {}
                Relay::Publishes => return Some(Action::Publish(job as Job)),
                Relay::Confirms => return Some(Action::Confirm(job as Job)),
            }
        }
        if let Some(at) = self.picks.iter().position(Option::is_some) {
            return Some(Action::Admit(at));
        }
        if let Some(job) = self.seen_busy {
            return Some(Action::Block(job));
        }
        if let Some(job) = (0..JOBS as Job).find(|job| self.may_pick(broken, *job)) {
            return Some(Action::Pick(self.leader(), job));
        }
        let waits = |job: &usize| self.is(*job, JobState::Scheduled);
        if let Some(job) =
            (0..JOBS).filter(waits).find(|job| self.ledger.rows[*job].is_some_and(|row| !row.due))
        {
            return Some(Action::ComeDue(job as Job));
        }
        if (0..JOBS).any(|job| waits(&job)) {
            return Some(Action::TakeDue);
        }
        if let Some(job) = (0..JOBS).find(|job| self.queue[*job] > 0) {
            let free = self.processes.iter().position(|process| process.work == Work::Idle);
            return free.map(|at| Action::Deliver(at, job as Job));
        }
        self.has_vanished().then_some(Action::ReturnVanished)
    }
}
