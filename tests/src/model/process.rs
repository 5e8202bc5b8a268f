//! A worker process: one slot, and what it believes.

use super::broken::Broken;
use super::call::{Conclusion, Decision, End, Run};
use super::row::{Job, WORKERS, WorkerId};

/// Processes.
pub const PROCESSES: usize = 2;
/// Boots of one process: the first, and one after each crash, drain and death.
pub const BOOTS: u8 = (WORKERS / PROCESSES) as u8;
/// Attempts of a job.
pub const MAX_ATTEMPTS: u8 = 2;

/// A worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its current id.
    pub id: WorkerId,
    /// Whether it takes no more jobs.
    pub draining: bool,
    /// The delivery in its slot, unacked.
    pub message: Option<Job>,
    /// What its slot does.
    pub work: Work,
}

/// What a slot does. A call without a reply is repeated until one comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Nothing.
    Idle,
    /// It asks for a job.
    Claims(Job),
    /// A broken claim has seen this and waits for the lock.
    Waits(Job, Decision),
    /// It runs a job.
    Runs(Run),
    /// It appends a checkpoint and has had no reply.
    Appends(Run),
    /// It folds the session of a run and has had no reply.
    Folds(Run),
    /// It ends a run and has had no reply.
    Concludes(Run, End),
}

impl Process {
    /// A process at its first boot.
    pub fn new(place: usize) -> Process {
        let id = place as WorkerId * BOOTS;
        Process { id, draining: false, message: None, work: Work::Idle }
    }

    /// Whether the model's table has room for one more boot.
    pub fn may_boot_again(&self) -> bool {
        self.id % BOOTS + 1 < BOOTS
    }

    /// The run that it can be asked to stop. A run whose end is being recorded cannot be stopped.
    pub fn runs(&self) -> Option<Run> {
        match self.work {
            Work::Runs(run) | Work::Appends(run) | Work::Folds(run) => Some(run),
            Work::Idle | Work::Claims(_) | Work::Waits(..) | Work::Concludes(..) => None,
        }
    }

    /// Whether a job is in its table of running jobs.
    pub fn has(&self, job: Job) -> bool {
        match self.work {
            Work::Idle => false,
            Work::Claims(mine) | Work::Waits(mine, _) => mine == job,
            Work::Runs(run) | Work::Appends(run) | Work::Folds(run) | Work::Concludes(run, _) => {
                run.job == job
            }
        }
    }

    /// The conclusion that it sends for the end of a run.
    pub fn conclusion(&self, broken: Broken, run: Run, end: End) -> Conclusion {
        let spends = match end {
            End::Succeeded | End::Cancelled | End::Retry => true,
            // The job was not tried, because no attempt was left.
            End::Failed | End::Ask => false,
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
