//! The fleet: the ledger, a queue, relays, worker processes, a slow network, and everything that can happen to them.

use job::JobState;

use super::action::Action;
use super::broken::Broken;
use super::call::Call;
use super::ledger::Ledger;
use super::process::{PROCESSES, Process};
use super::row::{Input, JOBS, Job, Lease, WorkerId};
use super::scope::Scope;

/// Everything, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fleet {
    /// Postgres.
    pub ledger: Ledger,
    /// Messages in the queue, by job.
    pub queue: [u8; JOBS],
    /// What relays do, by job.
    pub relays: [Relay; JOBS],
    /// The workers.
    pub processes: [Process; PROCESSES],
    /// A call that hangs in the network; its caller has given up waiting and repeats it.
    pub late: Option<Call>,
    /// What each admitter is about to admit.
    pub picks: [Option<Pick>; ADMITTERS],
    /// The job whose session the admitter has found busy.
    pub seen_busy: Option<Job>,
    /// Jobs that were reported to a client as accepted.
    pub accepted: [bool; JOBS],
    /// How much more may go wrong.
    pub mishaps: u8,
}

/// Processes that may admit jobs from the line. They take turns in leading.
pub const ADMITTERS: usize = 2;

/// A job that an admitter has chosen by what it has counted, and does not admit yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pick {
    /// The job.
    pub job: Job,
    /// The admitter's leadership, which it may lose before it admits the job.
    pub epoch: u8,
}

/// What a relay, or the producer, does for a job in `publishing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Relay {
    /// Nothing, or the relay has died.
    #[default]
    Idle,
    /// It is about to publish.
    Publishes,
    /// The broker has confirmed, and the confirm is to be noted.
    Confirms,
}

impl Fleet {
    /// The initial state, with the jobs that wait in the queue from the start.
    pub fn new(scope: &Scope) -> Fleet {
        let processes = std::array::from_fn(Process::new);
        let bits = |jobs: &[Job]| jobs.iter().fold(0, |bits, job| bits | 1 << job);
        let (later, keyed) = (bits(scope.later), bits(scope.keyed));
        let mut ledger = Ledger { later, keyed, line: scope.line, ..Ledger::default() };
        for process in &processes {
            ledger.call(Broken::None, Call::Register(process.id));
        }
        let mut fleet = Fleet {
            ledger,
            queue: [0; JOBS],
            relays: [Relay::Idle; JOBS],
            processes,
            late: None,
            picks: [None; ADMITTERS],
            seen_busy: None,
            accepted: [false; JOBS],
            mishaps: scope.mishaps,
        };
        for &job in scope.queued {
            let direct = scope.direct.contains(&job);
            let publish: &[Action] = match direct {
                true => &[Action::PublishDirectly(job)],
                false => &[Action::Accept(job), Action::Publish(job), Action::Confirm(job)],
            };
            for action in publish {
                fleet =
                    fleet.after(Broken::None, *action, &mut |_, _| {}).expect("each of them does something");
            }
        }
        for &job in scope.given {
            fleet.ledger.suspect_all();
            fleet.ledger.call(Broken::None, Call::Claim { worker: fleet.processes[0].id, job, seen: None });
        }
        fleet
    }

    /// The admitter that leads.
    pub fn leader(&self) -> usize {
        usize::from(self.ledger.leadership) % ADMITTERS
    }

    /// Whether a job's row is in a state.
    pub fn is(&self, job: usize, state: JobState) -> bool {
        self.ledger.rows[job].is_some_and(|row| row.state == state)
    }

    /// Whether a process holds a job's message.
    fn is_delivered(&self, job: usize) -> bool {
        self.processes.iter().any(|process| process.message.map(usize::from) == Some(job))
    }

    /// Whether a queued job's message is nowhere, while the queue is empty.
    pub fn has_vanished(&self) -> bool {
        self.queue == [0; JOBS]
            && (0..JOBS).any(|job| self.is(job, JobState::Queued) && !self.is_delivered(job))
    }

    /// Whether a job is in `publishing` and no relay handles it.
    pub fn is_stuck(&self) -> bool {
        (0..JOBS).any(|job| self.is(job, JobState::Publishing) && self.relays[job] == Relay::Idle)
    }

    /// Whether a process has this id.
    pub fn goes_by(&self, id: WorkerId) -> bool {
        self.processes.iter().any(|process| process.id == id)
    }

    /// Whether the ledger believes that a worker runs anything.
    pub fn holds_jobs(&self, id: WorkerId) -> bool {
        self.ledger.rows.iter().flatten().any(|row| row.worker == Some(id))
    }

    /// Whether rescue finds anything.
    pub fn has_lost(&self) -> bool {
        let dead_workers = |id: WorkerId| self.ledger.leases[usize::from(id)] == Lease::Dead;
        self.ledger.rows.iter().flatten().filter_map(|row| row.worker).any(dead_workers)
    }

    /// Whether a job that does not run is to be cancelled.
    pub fn has_unwanted(&self) -> bool {
        self.ledger.rows.iter().flatten().any(|row| row.asked && row.state != JobState::Running)
    }

    /// Whether a job's question waits for its answer.
    pub fn is_open(&self, job: usize) -> bool {
        self.ledger.inputs[job] == Input::Open
    }

    /// Whether a process's heartbeat finds a job in the ledger's list that is not in its own.
    pub fn has_unknown_job(&self, broken: Broken, process: &Process, job: Job) -> bool {
        broken != Broken::UnknownJobsKept
            && self.ledger.leases[usize::from(process.id)] == Lease::Alive
            && !process.has(job)
            && self.ledger.rows[usize::from(job)].is_some_and(|row| row.is_unknown_to(broken, process.id))
    }
}
