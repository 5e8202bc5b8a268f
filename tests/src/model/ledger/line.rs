//! The line: what waits in it, who is let go, and what its leader has written down.

use job::JobState;

use super::Ledger;
use crate::model::broken::Broken;
use crate::model::row::{JOBS, Job, Row};

impl Ledger {
    /// A job in the line.
    fn waiting(&self, job: Job) -> Option<Row> {
        self.rows[usize::from(job)].filter(|row| row.state == JobState::Waiting)
    }

    /// Whether a job has the limit key.
    pub fn is_keyed(&self, job: Job) -> bool {
        self.keyed & 1 << job != 0
    }

    /// How many jobs with the limit key have a place, as an admitter counts them.
    pub fn places(&self, broken: Broken) -> usize {
        let has_place = |job: &Job| self.rows[usize::from(*job)].is_some_and(|row| row.has_place(broken));
        (0..JOBS as Job).filter(|job| self.is_keyed(*job)).filter(has_place).count()
    }

    /// Whether an admitter finds a job in the line that no limit holds back.
    pub fn may_admit(&self, broken: Broken, job: Job) -> bool {
        self.waiting(job).is_some() && (!self.is_keyed(job) || self.places(broken) == 0)
    }

    /// Whether an admission under this epoch counts.
    pub fn is_led_under(&self, broken: Broken, epoch: u8) -> bool {
        epoch == self.leadership || broken == Broken::AdmittedWithoutLead
    }

    /// Whether jobs wait in the line.
    pub fn has_waiting(&self) -> bool {
        (0..JOBS as Job).any(|job| self.waiting(job).is_some())
    }

    /// Whether a session's next job gets its turn in the line: a limit may hold it back, or others wait there.
    pub(super) fn waits_its_turn(&self, broken: Broken, job: Job) -> bool {
        let by_limit = self.is_keyed(job) && broken != Broken::TakenPastTheLimit;
        let by_line = self.noted && broken != Broken::TakenPastTheLine;
        self.line && (by_limit || by_line)
    }

    /// Whether a new job is published without its turn.
    pub(super) fn is_granted(&self, broken: Broken, job: Job) -> bool {
        let is_message = |row: &Row| matches!(row.state, JobState::Publishing | JobState::Queued);
        let by_limit = self.is_keyed(job) && broken != Broken::GrantedPastTheLimit;
        self.grants && !by_limit && !self.rows.iter().flatten().any(is_message)
    }

    /// Writes down whether jobs wait in the line; while none do, new ones may pass by it.
    pub fn note(&mut self, broken: Broken) {
        self.noted = self.has_waiting();
        self.grants = !self.noted || self.grants && broken == Broken::GrantKept;
    }

    /// Whether a note would change anything.
    pub fn is_news(&self) -> bool {
        self.noted != self.has_waiting() || self.grants == self.has_waiting()
    }

    /// Admits a job, for who leads. No limit is looked at: who leads has done so, and nobody else gives places.
    pub(super) fn admit(&mut self, broken: Broken, job: Job) -> u8 {
        match self.waiting(job) {
            Some(row) if self.has_its_turn(broken, job, &row) => {
                self.rows[usize::from(job)] = Some(Row { state: JobState::Publishing, ..row });
                1 << job
            }
            _ => 0,
        }
    }

    pub(super) fn block(&mut self, broken: Broken, job: Job) {
        let Some(row) = self.waiting(job).filter(|row| row.epoch == 0) else { return };
        if broken == Broken::BlockedWithoutLook || !self.has_its_turn(broken, job, &row) {
            self.rows[usize::from(job)] = Some(Row { state: JobState::Blocked, ..row });
        }
    }
}
