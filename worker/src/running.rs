//! The running table: which jobs this process holds, and how to stop each.
//!
//! The ledger has its own view of the same; `lease` compares the two.

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use harness::{Stop, Stopper};
use job::JobId;
use tokio::sync::oneshot;
use tokio::time::Instant;

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
    /// When the last heartbeat was sent whose answer listed this run.
    listed: Option<Instant>,
    /// For a suspect, which one more death would prove to be poison: beside which other suspects it may run.
    suspect: Option<Isolation>,
    stop: Stopper,
    /// While the claim is under way: who has been given the job by the end of another one, and takes the place if the
    /// claim is not granted.
    heir: Option<oneshot::Sender<Reservation>>,
}

impl Entry {
    fn new(epoch: i64, stop: Stopper) -> Entry {
        Entry { epoch, listed: None, suspect: None, stop, heir: None }
    }
}

impl Running {
    /// Reserves a job before it is claimed, so that if it is delivered twice, one delivery claims it and the other
    /// waits for the outcome. Returns `None` while another slot claims or runs it.
    pub fn reserve(&self, job_id: JobId) -> Option<Reservation> {
        match self.lock().jobs.entry(job_id) {
            Occupied(_) => None,
            Vacant(place) => {
                place.insert(Entry::new(0, Stopper::default()));
                Some(Reservation { running: self.clone(), job_id })
            }
        }
    }

    /// Reserves a job that the ledger has given to this worker under this epoch without a claim, as the next one of its
    /// session. A delivery of the same job may be claiming it just then, and then one of the two runs it: this waits for
    /// the claim's answer.
    pub async fn inherit(&self, job_id: JobId, epoch: i64) -> Inherited {
        let claimed = {
            let mut table = self.lock();
            match table.jobs.entry(job_id) {
                Vacant(place) => {
                    place.insert(Entry::new(0, Stopper::default()));
                    return Inherited::Place(Reservation { running: self.clone(), job_id });
                }
                Occupied(mut place) if place.get().epoch == 0 => {
                    let (heir, claimed) = oneshot::channel();
                    place.get_mut().heir = Some(heir);
                    claimed
                }
                Occupied(place) if place.get().epoch > epoch => return Inherited::RunsAnew,
                Occupied(_) => return Inherited::RunsStill,
            }
        };
        // A claim is granted under a later epoch, because the ledger gives a job that it believes to run here again.
        claimed.await.map_or(Inherited::RunsAnew, Inherited::Place)
    }

    /// Notes which runs the ledger has listed in answer to a heartbeat that was sent at this moment.
    pub fn listed(&self, listed: &[(JobId, i64)], sent: Instant) {
        let mut table = self.lock();
        for (job_id, epoch) in listed {
            if let Some(entry) = table.jobs.get_mut(job_id).filter(|entry| entry.epoch == *epoch) {
                entry.listed = Some(sent);
            }
        }
    }

    /// Returns whether a heartbeat that was sent at this moment or later has found that the ledger lists the present
    /// run of this job.
    pub fn is_listed_since(&self, job_id: JobId, moment: Instant) -> bool {
        self.lock().jobs.get(&job_id).and_then(|entry| entry.listed).is_some_and(|sent| sent >= moment)
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

/// What became of the place of a job that was given to this worker without a claim.
pub enum Inherited {
    /// It is free for the job.
    Place(Reservation),
    /// A claim of the same job was granted meanwhile, so that it runs under a later epoch.
    RunsAnew,
    /// An earlier run of the job has not ended here.
    RunsStill,
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
        table.jobs.insert(self.job_id, Entry::new(epoch, stop.clone()));
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
        let heir = {
            let mut table = self.running.lock();
            let heir = table.jobs.get_mut(&self.job_id).and_then(|entry| entry.heir.take());
            if heir.is_none() {
                table.jobs.remove(&self.job_id);
                METRICS.running.set(table.jobs.len() as i64);
            }
            heir
        };
        if let Some(heir) = heir {
            // If nobody waits for it any more, this drops it, now without an heir.
            drop(heir.send(Reservation { running: self.running.clone(), job_id: self.job_id }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    impl Running {
        fn reservation(&self, job_id: JobId) -> Reservation {
            self.reserve(job_id).expect("not reserved")
        }
    }

    #[test]
    fn a_job_has_one_reservation_and_leaves_it() {
        let running = Running::default();
        let id = JobId::now();
        let reservation = running.reservation(id);
        assert!(running.reserve(id).is_none());
        assert!(running.epochs().is_empty(), "not yet claimed");
        let _stop = reservation.begin(7);
        assert!(running.reserve(id).is_none());
        assert_eq!(running.epochs(), [(id, 7)]);
        drop(reservation);
        assert!(!running.contains(id));
    }

    #[tokio::test]
    async fn a_job_that_is_given_while_it_is_claimed_runs_once_whether_the_claim_is_granted_or_not() {
        let running = Running::default();
        let id = JobId::now();
        let claiming = running.reservation(id);
        let (inherited, ()) = tokio::join!(running.inherit(id, 7), async { drop(claiming) });
        let Inherited::Place(inherited) = inherited else { panic!("the claim was not granted") };
        assert!(running.reserve(id).is_none(), "the place was not free in between");
        let _stop = inherited.begin(7);
        assert!(matches!(running.inherit(id, 6).await, Inherited::RunsAnew));
        assert!(matches!(running.inherit(id, 8).await, Inherited::RunsStill));
        drop(inherited);
        assert!(!running.contains(id));

        let claiming = running.reservation(id);
        let (inherited, _stop) = tokio::join!(running.inherit(id, 7), async { claiming.begin(8) });
        assert!(matches!(inherited, Inherited::RunsAnew), "the claim was granted");
        assert_eq!(running.epochs(), [(id, 8)]);
        drop(claiming);

        let claiming = running.reservation(id);
        assert!(running.inherit(id, 7).now_or_never().is_none(), "it is being claimed");
        drop(claiming);
        assert!(!running.contains(id), "nobody waits for the place any more");
        assert!(matches!(running.inherit(id, 7).await, Inherited::Place(_)));
    }

    #[test]
    fn a_run_is_safe_in_the_ledger_once_a_heartbeat_behind_the_question_has_listed_it() {
        let running = Running::default();
        let reservation = running.reservation(JobId::now());
        let id = reservation.job_id;
        let _stop = reservation.begin(7);
        let (earlier, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        running.listed(&[(id, 7)], earlier);
        assert!(running.is_listed_since(id, earlier));
        // Suspended in between, for example: the ledger may have given the job to another worker by now.
        assert!(!running.is_listed_since(id, later));
        running.listed(&[(id, 6)], later);
        assert!(!running.is_listed_since(id, later), "another run of the job");
        running.listed(&[(id, 7)], later);
        assert!(running.is_listed_since(id, later));
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
