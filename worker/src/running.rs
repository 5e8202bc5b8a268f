//! The running table: which jobs this process holds, and how to stop each.
//!
//! The ledger has its own view of the same; `lease` compares the two.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use harness::{Stop, Stopper};
use job::JobId;

use crate::metrics::METRICS;

/// The table; clones share it.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    jobs: HashMap<JobId, Entry>,
    /// Set once all runs are to stop: a run that begins later stops at once.
    stop_all: Option<Stop>,
    /// Runs that have ended here but whose end the ledger did not take, with their epochs.
    unrecorded: HashMap<JobId, i64>,
}

struct Entry {
    /// 0 while the claim is under way.
    epoch: i64,
    /// For a suspect, which one more death would prove to be poison: beside which other suspects it may run.
    suspect: Option<Isolation>,
    stop: Stopper,
}

impl Running {
    /// Reserves a job before it is claimed, so that if it is delivered twice, one delivery claims it and the other
    /// waits for the outcome.
    pub fn reserve(&self, job_id: JobId) -> Reserved {
        let mut table = self.lock();
        match table.jobs.get(&job_id) {
            Some(entry) if entry.epoch == 0 || entry.stop.asked() == Some(Stop::LeaseLost) => {
                Reserved::Undecided
            }
            Some(_) => Reserved::Runs,
            None => {
                table.jobs.insert(job_id, Entry { epoch: 0, suspect: None, stop: Stopper::default() });
                Reserved::Ours(Reservation { running: self.clone(), job_id })
            }
        }
    }

    /// Returns the jobs that run, with their epochs.
    pub fn epochs(&self) -> Vec<(JobId, i64)> {
        let table = self.lock();
        table
            .jobs
            .iter()
            .filter(|(_, entry)| entry.epoch != 0)
            .map(|(id, entry)| (*id, entry.epoch))
            .collect()
    }

    /// Notes that a run has ended and the ledger does not take its end. The job will be handed back with the unknown
    /// ones.
    pub fn unrecorded(&self, job_id: JobId, epoch: i64) {
        self.lock().unrecorded.insert(job_id, epoch);
    }

    /// Returns whether a job that is about to be handed back has been run here under that epoch.
    pub fn was_run(&self, job_id: JobId, epoch: i64) -> bool {
        self.lock().unrecorded.get(&job_id) == Some(&epoch)
    }

    /// Keeps only the unrecorded runs that the ledger believes to run here. The others have been handed back.
    pub fn keep_unrecorded(&self, listed: &[(JobId, i64)]) {
        self.lock().unrecorded.retain(|job_id, epoch| listed.contains(&(*job_id, *epoch)));
    }

    /// Returns whether the job is in the table, running or being claimed.
    pub fn contains(&self, job_id: JobId) -> bool {
        self.lock().jobs.contains_key(&job_id)
    }

    /// Asks one run to stop. Does nothing if it is over or a later run of the job is under way.
    pub fn stop(&self, job_id: JobId, epoch: i64, stop: Stop) {
        if let Some(entry) = self.lock().jobs.get(&job_id).filter(|entry| entry.epoch == epoch) {
            entry.stop.ask(stop);
        }
    }

    /// Asks every present run to stop.
    pub fn stop_present(&self, stop: &Stop) {
        for entry in self.lock().jobs.values() {
            entry.stop.ask(stop.clone());
        }
    }

    /// Asks every run to stop, including those that begin later.
    pub fn stop_all(&self, stop: Stop) {
        self.lock().stop_all = Some(stop.clone());
        self.stop_present(&stop);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No invariant spans two operations, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Beside which other suspects a suspect may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Not beside one that began before it; later ones may join it.
    First,
    /// Beside any that need not be alone, because it has waited long enough.
    Any,
    /// Beside none: a worker has died of it, or of a suspect that ran beside it.
    Alone,
}

/// The answer to a reservation.
pub enum Reserved {
    /// The job is ours to claim.
    Ours(Reservation),
    /// Another slot is claiming it, or has lost the lease on it and will leave it: the ledger may have given the job
    /// to another worker, or wait for this very message.
    Undecided,
    /// Another slot runs it: it is safe in the ledger.
    Runs,
}

/// A job's place in the table. Dropping it removes the job.
pub struct Reservation {
    running: Running,
    job_id: JobId,
}

impl Reservation {
    /// Notes that the claim was granted: from now on the job runs. Returns what stops it.
    pub fn begin(&self, epoch: i64) -> Stopper {
        let mut table = self.running.lock();
        let stop = Stopper::default();
        table.stop_all.iter().for_each(|reason| stop.ask(reason.clone()));
        table.jobs.insert(self.job_id, Entry { epoch, suspect: None, stop: stop.clone() });
        METRICS.running.set(table.jobs.len() as i64);
        stop
    }

    /// Enters the job as a suspect and returns true, unless a suspect runs here beside which it must not run. If this
    /// worker dies too, it must be clear which suspect did it; otherwise none is charged.
    pub fn may_run_as_suspect(&self, isolation: Isolation) -> bool {
        let mut table = self.running.lock();
        let may = table
            .jobs
            .values()
            .filter_map(|entry| entry.suspect)
            .all(|other| isolation == Isolation::Any && other != Isolation::Alone);
        if let Some(entry) = table.jobs.get_mut(&self.job_id).filter(|_| may) {
            entry.suspect = Some(isolation);
        }
        may
    }

    /// Notes that the job is no longer a suspect.
    pub fn clear_suspicion(&self) {
        if let Some(entry) = self.running.lock().jobs.get_mut(&self.job_id) {
            entry.suspect = None;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut table = self.running.lock();
        table.jobs.remove(&self.job_id);
        METRICS.running.set(table.jobs.len() as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Running {
        fn reservation(&self, job_id: JobId) -> Reservation {
            match self.reserve(job_id) {
                Reserved::Ours(reservation) => reservation,
                Reserved::Undecided | Reserved::Runs => panic!("{job_id} is reserved already"),
            }
        }
    }

    #[test]
    fn a_job_has_one_reservation_and_leaves_it() {
        let running = Running::default();
        let id = JobId::now();
        let reservation = running.reservation(id);
        assert!(matches!(running.reserve(id), Reserved::Undecided));
        assert!(running.epochs().is_empty(), "not yet claimed");
        let _stop = reservation.begin(7);
        assert!(matches!(running.reserve(id), Reserved::Runs));
        assert_eq!(running.epochs(), [(id, 7)]);
        running.stop(id, 7, Stop::Drain);
        assert!(matches!(running.reserve(id), Reserved::Runs), "the lease lasts until its end is recorded");
        running.stop(id, 7, Stop::LeaseLost);
        assert!(matches!(running.reserve(id), Reserved::Undecided), "it may run elsewhere by now");
        drop(reservation);
        assert!(!running.contains(id));
    }

    #[test]
    fn a_stop_reaches_the_run_it_is_meant_for() {
        let running = Running::default();
        let reservation = running.reservation(JobId::now());
        let stop = reservation.begin(7);
        running.stop(reservation.job_id, 6, Stop::LeaseLost);
        assert_eq!(stop.asked(), None);
        running.stop(reservation.job_id, 7, Stop::Timeout);
        running.stop(reservation.job_id, 7, Stop::Drain);
        assert_eq!(stop.asked(), Some(Stop::Timeout), "the first reason is kept");
        running.stop(reservation.job_id, 7, Stop::LeaseLost);
        assert_eq!(stop.asked(), Some(Stop::LeaseLost));
    }

    #[test]
    fn only_one_suspect_runs_here() {
        let running = Running::default();
        let (first, second) = (running.reservation(JobId::now()), running.reservation(JobId::now()));
        let _stops = (first.begin(1), second.begin(2));
        assert!(first.may_run_as_suspect(Isolation::First));
        assert!(!second.may_run_as_suspect(Isolation::First));
        drop(first);
        assert!(second.may_run_as_suspect(Isolation::First));
    }

    #[test]
    fn a_suspect_that_has_waited_joins_others_but_for_those_that_must_be_alone() {
        let running = Running::default();
        let reservations = [1, 2, 3].map(|epoch| {
            let reservation = running.reservation(JobId::now());
            drop(reservation.begin(epoch));
            reservation
        });
        let [first, second, third] = &reservations;
        assert!(first.may_run_as_suspect(Isolation::First));
        assert!(second.may_run_as_suspect(Isolation::Any));
        assert!(!third.may_run_as_suspect(Isolation::Alone));
        first.clear_suspicion();
        assert!(!third.may_run_as_suspect(Isolation::Alone), "the second is still there");
        second.clear_suspicion();
        assert!(third.may_run_as_suspect(Isolation::Alone));
        assert!(!first.may_run_as_suspect(Isolation::Any));
    }

    #[test]
    fn a_run_that_begins_after_the_end_of_grace_stops_at_once() {
        let running = Running::default();
        running.stop_all(Stop::Drain);
        let reservation = running.reservation(JobId::now());
        assert_eq!(reservation.begin(1).asked(), Some(Stop::Drain));
    }
}
