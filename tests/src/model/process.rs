//! A worker process: one slot, and what it believes.

use super::broken::Broken;
use super::call::{Conclusion, Decision, End, Run};
use super::row::{Job, WORKERS, WorkerId};

/// Processes.
pub const PROCESSES: usize = 2;
/// Boots of one process: its first, and one after each crash, drain and death.
pub const BOOTS: u8 = (WORKERS / PROCESSES) as u8;
/// Attempts of a job.
pub const MAX_ATTEMPTS: u8 = 2;

/// A worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// The id it goes by.
    pub id: WorkerId,
    /// Whether it takes no more jobs.
    pub draining: bool,
    /// The delivery in its slot, unacked.
    pub message: Option<Job>,
    /// What its slot is at.
    pub work: Work,
}

/// What a slot is at. A call whose reply does not come is repeated for as long as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Nothing.
    Idle,
    /// It asks for a job.
    Claims(Job),
    /// A broken claim has seen this, and waits for the lock.
    Waits(Job, Decision),
    /// It runs a job.
    Runs(Run),
    /// It appends a checkpoint, and has not heard of it.
    Appends(Run),
    /// It ends a run, and has not heard of it.
    Concludes(Run, End),
}

impl Process {
    /// A process at its first boot.
    pub fn new(place: usize) -> Process {
        let id = place as WorkerId * BOOTS;
        Process { id, draining: false, message: None, work: Work::Idle }
    }

    /// Whether it can boot once more within the model's table.
    pub fn may_boot_again(&self) -> bool {
        self.id % BOOTS + 1 < BOOTS
    }

    /// What it runs and may be told to stop. One that records its end does that to the end.
    pub fn runs(&self) -> Option<Run> {
        match self.work {
            Work::Runs(run) | Work::Appends(run) => Some(run),
            Work::Idle | Work::Claims(_) | Work::Waits(..) | Work::Concludes(..) => None,
        }
    }

    /// Whether a job is in its running table.
    pub fn has(&self, job: Job) -> bool {
        match self.work {
            Work::Idle => false,
            Work::Claims(mine) | Work::Waits(mine, _) => mine == job,
            Work::Runs(run) | Work::Appends(run) | Work::Concludes(run, _) => run.job == job,
        }
    }

    /// What it has to say of the end of a run.
    pub fn conclusion(&self, broken: Broken, run: Run, end: End) -> Conclusion {
        let spends = match end {
            End::Succeeded | End::Cancelled | End::Retry => true,
            // Nobody has tried: no attempt was left.
            End::Failed => false,
            End::HandBack => broken == Broken::DrainSpendsAttempt,
        };
        let changed = run.resumed || run.own > 0;
        Conclusion {
            worker: run.worker,
            job: run.job,
            epoch: run.epoch,
            end,
            attempts: run.attempts + u8::from(spends),
            fold: (end.is_end() && changed).then_some(run.before + run.own),
            take_next: !self.draining,
        }
    }
}
