//! One run: the trace's jobs pass through queue and pool, and every second has an observation, a decision and its
//! consequence.
//!
//! Between two ticks, each event has its own millisecond: jobs end, workers become ready, jobs arrive, in this order if
//! the millisecond is the same. A message of a busy session is taken from the queue and set aside as `blocked`. When
//! the session's job ends, the message runs next on the same slot. No second is skipped: one in which nothing happens
//! has a decision, too.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::fleet::{Delays, Fleet};
use super::report::{self, Report, Waits};
use super::service_times::ServiceTimes;
use super::trace::Trace;
use crate::decide::{self, Decision, Demand, History, Observation, Policy, Reading, Replicas, Resize};

/// The time from one decision to the next.
pub const TICK_MS: u64 = 1_000;
/// The window over which arrivals per second are counted.
const ARRIVALS_MS: u64 = 60_000;
/// The window of service times: they are those of the jobs that ended within it.
const SERVICE_MS: u64 = 600_000;
/// A pool that runs nothing and changes nothing for this long will never run the jobs that wait.
const STUCK_MS: u64 = 2 * 86_400_000;

/// What is modelled around the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// How long things take.
    pub delays: Delays,
    /// Jobs that a worker runs at once.
    pub slots: u32,
    /// Workers that are ready at the beginning.
    pub workers: u32,
    /// When the trace begins, as Unix time in milliseconds. The schedule's windows use it.
    pub start_ms: u64,
}

/// The pool at the end of a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Messages ready in the queue.
    pub depth: u32,
    /// `spec.replicas`.
    pub wanted: u32,
    /// Ready workers.
    pub ready: u32,
    /// Workers that hold a job.
    pub busy: u32,
}

/// What became of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// How often it started.
    pub starts: u32,
    /// How often it ended.
    pub ends: u32,
    /// When it started, in milliseconds from the trace's beginning.
    pub started_ms: u64,
    /// The time from when it could have run (accepted, and its session free) to its start, in milliseconds.
    pub wait_ms: u64,
}

#[derive(Default)]
struct Session {
    busy: bool,
    /// When its last job ended.
    free_ms: u64,
    /// Jobs set aside until their turn, in order.
    blocked: VecDeque<u32>,
}

/// What was observed at a tick. A decision uses it when it is as old as the setup says.
struct Seen {
    ready: Reading<u64>,
    demand: Reading<Demand>,
}

/// A future end of a job: when, which job, on which worker.
type End = Reverse<(u64, u32, u32)>;

/// A trace on its way through a pool.
pub struct Simulation<'a> {
    trace: &'a Trace,
    policy: &'a Policy,
    setup: Setup,
    /// The last tick, in milliseconds from the trace's beginning.
    now_ms: u64,
    /// When a job last came or ended, or a worker last became ready.
    moved_ms: u64,
    arrived: usize,
    /// The first arrival that counts as recent.
    lately: usize,
    queue: VecDeque<u32>,
    sessions: Vec<Session>,
    blocked: u64,
    ends: BinaryHeap<End>,
    fleet: Fleet,
    service: ServiceTimes,
    seen: VecDeque<Seen>,
    history: History,
    runs: Vec<Run>,
    ended: usize,
    busy_ms: u64,
    replica_ms: u64,
    peak_depth: usize,
    peak_workers: u32,
    resizes: Vec<Resize>,
    samples: Vec<Sample>,
}

impl<'a> Simulation<'a> {
    /// Makes a run at its beginning.
    pub fn new(trace: &'a Trace, policy: &'a Policy, setup: Setup) -> Simulation<'a> {
        Simulation {
            trace,
            policy,
            setup,
            now_ms: 0,
            moved_ms: 0,
            arrived: 0,
            lately: 0,
            queue: VecDeque::new(),
            sessions: (0..trace.sessions()).map(|_| Session::default()).collect(),
            blocked: 0,
            ends: BinaryHeap::new(),
            fleet: Fleet::new(setup.delays, setup.slots, setup.workers),
            service: ServiceTimes::new(trace.jobs(), SERVICE_MS),
            seen: VecDeque::new(),
            history: History::default(),
            runs: vec![Run::default(); trace.jobs().len()],
            ended: 0,
            busy_ms: 0,
            replica_ms: 0,
            peak_depth: 0,
            peak_workers: setup.workers,
            resizes: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// Whether all jobs ended at least `tail_ms` ago, or those that wait will never run.
    pub fn is_over(&self, tail_ms: u64) -> bool {
        let rest_ms = self.now_ms - self.moved_ms;
        if self.ended == self.trace.jobs().len() {
            rest_ms >= tail_ms
        } else {
            let idle = self.fleet.running() == 0 && self.fleet.next_ready_ms().is_none();
            idle && self.arrived == self.trace.jobs().len() && rest_ms >= STUCK_MS
        }
    }

    /// The current time, in milliseconds from the trace's beginning.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The jobs that come.
    pub fn trace(&self) -> &Trace {
        self.trace
    }

    /// What became of each of the trace's jobs.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The pool after each tick so far.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// What was written to the workload.
    pub fn resizes(&self) -> &[Resize] {
        &self.resizes
    }

    /// Simulates one second: its events, then an observation, a decision and its consequence.
    pub fn tick(&mut self) -> (Observation, Decision) {
        let tick_ms = self.now_ms + TICK_MS;
        self.replica_ms += u64::from(self.fleet.replicas().wanted) * TICK_MS;
        self.advance(tick_ms);
        self.now_ms = tick_ms;
        self.look();
        let observation = self.observation();
        let now_ms = self.unix_ms(tick_ms);
        let decision = decide::decide(&self.history, &observation, self.policy, now_ms);
        self.apply(&decision);
        let Replicas { wanted, ready } = self.fleet.replicas();
        self.samples.push(Sample { depth: self.queue.len() as u32, wanted, ready, busy: self.fleet.busy() });
        (observation, decision)
    }

    fn unix_ms(&self, ms: u64) -> u64 {
        self.setup.start_ms + ms
    }

    /// Applies all events until this tick, in order.
    fn advance(&mut self, tick_ms: u64) {
        loop {
            let end = self.ends.peek().map_or(u64::MAX, |Reverse((at_ms, ..))| *at_ms);
            let ready = self.fleet.next_ready_ms().unwrap_or(u64::MAX);
            let arrival = self.trace.jobs().get(self.arrived).map_or(u64::MAX, |job| job.arrival_ms);
            let at_ms = end.min(ready).min(arrival);
            if at_ms > tick_ms {
                return;
            }
            self.moved_ms = at_ms;
            if end == at_ms {
                self.end();
            } else if ready == at_ms {
                self.fleet.start();
            } else {
                self.queue.push_back(self.arrived as u32);
                self.arrived += 1;
            }
            self.take(at_ms);
            self.peak_depth = self.peak_depth.max(self.queue.len());
        }
    }

    /// Lets free slots take messages.
    fn take(&mut self, at_ms: u64) {
        while let Some(&job) = self.queue.front() {
            if !self.fleet.has_free_slot() {
                return;
            }
            self.queue.pop_front();
            let arrival = self.trace.jobs()[job as usize];
            let mut could_run_ms = arrival.arrival_ms;
            if let Some(session) = arrival.session {
                let session = &mut self.sessions[session as usize];
                if session.busy {
                    session.blocked.push_back(job);
                    self.blocked += 1;
                    continue;
                }
                session.busy = true;
                could_run_ms = could_run_ms.max(session.free_ms);
            }
            if let Some(worker) = self.fleet.place() {
                self.start(job, worker, at_ms, could_run_ms);
            }
        }
    }

    fn start(&mut self, job: u32, worker: u32, at_ms: u64, could_run_ms: u64) {
        let run = &mut self.runs[job as usize];
        run.starts += 1;
        run.started_ms = at_ms;
        run.wait_ms = at_ms - could_run_ms;
        self.ends.push(Reverse((at_ms + self.trace.jobs()[job as usize].service_ms, job, worker)));
    }

    /// Ends the next job. Its session's next job takes the slot.
    fn end(&mut self) {
        let Some(Reverse((at_ms, job, worker))) = self.ends.pop() else { return };
        let arrival = self.trace.jobs()[job as usize];
        self.runs[job as usize].ends += 1;
        self.ended += 1;
        self.busy_ms += arrival.service_ms;
        self.service.add(job, at_ms);
        if let Some(session) = arrival.session {
            let session = &mut self.sessions[session as usize];
            session.free_ms = at_ms;
            if let Some(next) = session.blocked.pop_front() {
                self.blocked -= 1;
                return self.start(next, worker, at_ms, at_ms);
            }
            session.busy = false;
        }
        self.fleet.release(worker);
    }

    fn look(&mut self) {
        let at_ms = self.unix_ms(self.now_ms);
        let jobs = self.trace.jobs();
        while self.lately < self.arrived && jobs[self.lately].arrival_ms + ARRIVALS_MS <= self.now_ms {
            self.lately += 1;
        }
        let workers = self.fleet.replicas().ready;
        let oldest = self.queue.front().map(|job| self.now_ms - jobs[*job as usize].arrival_ms);
        let demand = Demand {
            running: u64::from(self.fleet.running()),
            blocked: self.blocked,
            due_soon: 0,
            oldest_waiting_ms: oldest,
            in_line: 0,
            line_is_old: false,
            oldest_in_line_ms: None,
            workers,
            slots: u64::from(workers) * u64::from(self.setup.slots),
            busy_workers: self.fleet.busy(),
            draining_workers: self.fleet.draining(),
            arrivals_per_s: (self.arrived - self.lately) as f64 * 1e3 / ARRIVALS_MS as f64,
            service: self.service.at(self.now_ms),
        };
        self.seen.push_back(Seen {
            ready: Reading { value: self.queue.len() as u64, at_ms },
            demand: Reading { value: demand, at_ms },
        });
    }

    /// Returns what a decision observes now: queue and ledger as they were a while ago, the workload as it is.
    fn observation(&mut self) -> Observation {
        let at_ms = self.unix_ms(self.now_ms);
        let mut observation = Observation {
            replicas: Some(Reading { value: self.fleet.replicas(), at_ms }),
            ..Observation::default()
        };
        let delay = self.setup.delays.observation_ms.div_ceil(TICK_MS) as usize;
        if self.seen.len() > delay
            && let Some(seen) = self.seen.pop_front()
        {
            observation.ready = Some(seen.ready);
            observation.demand = Some(seen.demand);
        }
        observation
    }

    fn apply(&mut self, decision: &Decision) {
        self.history.record(decision);
        let Some(desired) = decision.desired else { return };
        let resize = self.fleet.resize(desired, self.now_ms);
        // Marks that were taken back have opened slots.
        self.take(self.now_ms);
        if let Some((from, to)) = resize {
            let at_ms = self.unix_ms(self.now_ms);
            self.history.resized(at_ms, from, to);
            self.resizes.push(Resize { at_ms, from, to });
            self.peak_workers = self.peak_workers.max(to);
        }
    }

    /// Returns the figures so far. [`Report::flaps`] says what a flap is.
    pub fn report(&self, flap_ms: u64) -> Report {
        let ups = self.resizes.iter().filter(|resize| resize.to > resize.from).count();
        let mut waits: Vec<u64> =
            self.runs.iter().filter(|run| run.starts > 0).map(|run| run.wait_ms).collect();
        let slot_ms = self.replica_ms * u64::from(self.setup.slots);
        Report {
            jobs: self.trace.jobs().len(),
            unfinished: self.trace.jobs().len() - self.ended,
            interrupted: self.fleet.interrupted(),
            wait: Waits::of(&mut waits),
            worker_hours: self.replica_ms as f64 / 3.6e6,
            utilization: if slot_ms > 0 { self.busy_ms as f64 / slot_ms as f64 } else { 0.0 },
            scale_ups: ups,
            scale_downs: self.resizes.len() - ups,
            flaps: report::flaps(&self.resizes, flap_ms),
            peak_depth: self.peak_depth,
            peak_workers: self.peak_workers,
            hours: self.now_ms as f64 / 3.6e6,
        }
    }
}
