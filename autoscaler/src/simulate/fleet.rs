//! The simulated pool: workers that start, take jobs, drain and are removed.
//!
//! It behaves like the real one. The slot that has been free for longest gets the next job. Only a worker that holds
//! nothing is marked. A marked worker takes no more jobs, and when it has drained, it is removed from the replicas,
//! unless another worker is starting. Marks are taken back before the pool grows.

use std::collections::{BTreeMap, VecDeque};

use crate::decide::Replicas;

/// How long things take, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// From the write of replicas until a new worker takes jobs.
    pub startup_ms: u64,
    /// From the mark until a worker has drained.
    pub drain_ms: u64,
    /// The age of the readings that a decision uses.
    pub observation_ms: u64,
}

enum State {
    Starting,
    Ready,
    Draining { since_ms: u64 },
}

struct Worker {
    state: State,
    held: u32,
    /// How often it was marked. Its free slots from before a mark no longer count.
    mark: u32,
}

/// A slot that is free unless its worker has been marked since.
struct FreeSlot {
    worker: u32,
    mark: u32,
}

/// The pool.
pub struct Fleet {
    delays: Delays,
    slots: u32,
    /// The workers by number; a later worker has a higher number.
    workers: BTreeMap<u32, Worker>,
    next: u32,
    /// Starting workers and when they are ready, in order.
    starting: VecDeque<(u64, u32)>,
    /// Free slots; the one that has been free for longest comes first.
    free: VecDeque<FreeSlot>,
    draining: u32,
    busy: u32,
    running: u32,
    interrupted: u64,
}

impl Fleet {
    /// Makes a pool of ready workers with `slots` slots each.
    pub fn new(delays: Delays, slots: u32, workers: u32) -> Fleet {
        let mut fleet = Fleet {
            delays,
            slots,
            workers: BTreeMap::new(),
            next: 0,
            starting: VecDeque::new(),
            free: VecDeque::new(),
            draining: 0,
            busy: 0,
            running: 0,
            interrupted: 0,
        };
        fleet.grow(workers, 0);
        while fleet.next_ready_ms().is_some() {
            fleet.start();
        }
        fleet
    }

    /// The workers that the workload should have, and those that are Ready.
    pub fn replicas(&self) -> Replicas {
        let wanted = self.workers.len() as u32;
        Replicas { wanted, ready: wanted - self.starting.len() as u32 - self.draining }
    }

    /// Workers with a mark.
    pub fn draining(&self) -> u32 {
        self.draining
    }

    /// Workers that hold a job.
    pub fn busy(&self) -> u32 {
        self.busy
    }

    /// Jobs that run.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Jobs that a removed worker held.
    pub fn interrupted(&self) -> u64 {
        self.interrupted
    }

    /// When the next starting worker is ready.
    pub fn next_ready_ms(&self) -> Option<u64> {
        self.starting.front().map(|(at_ms, _)| *at_ms)
    }

    /// Makes the next starting worker ready.
    pub fn start(&mut self) {
        if let Some((_, number)) = self.starting.pop_front() {
            self.open(number);
        }
    }

    /// Whether a job could be placed.
    pub fn has_free_slot(&mut self) -> bool {
        while let Some(slot) = self.free.front() {
            let worker = self.workers.get(&slot.worker);
            if worker.is_some_and(|worker| worker.mark == slot.mark) {
                return true;
            }
            self.free.pop_front();
        }
        false
    }

    /// Puts a job on the slot that has been free for longest; returns its worker.
    pub fn place(&mut self) -> Option<u32> {
        if !self.has_free_slot() {
            return None;
        }
        let number = self.free.pop_front()?.worker;
        let worker = self.workers.get_mut(&number)?;
        worker.held += 1;
        self.running += 1;
        self.busy += u32::from(worker.held == 1);
        Some(number)
    }

    /// Ends one of this worker's jobs, and frees its slot.
    pub fn release(&mut self, number: u32) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        worker.held -= 1;
        self.running -= 1;
        self.busy -= u32::from(worker.held == 0);
        self.free.push_back(FreeSlot { worker: number, mark: worker.mark });
    }

    /// Brings the pool towards `desired` workers. Returns the size before and after, if replicas were written.
    pub fn resize(&mut self, desired: u32, now_ms: u64) -> Option<(u32, u32)> {
        let from = self.workers.len() as u32;
        self.mark(from.saturating_sub(desired), now_ms);
        if desired > from {
            self.grow(desired - from, now_ms + self.delays.startup_ms);
        } else {
            self.lower(from.saturating_sub(desired), now_ms);
        }
        let to = self.workers.len() as u32;
        (from != to).then_some((from, to))
    }

    fn grow(&mut self, by: u32, ready_ms: u64) {
        for number in self.next..self.next + by {
            self.workers.insert(number, Worker { state: State::Starting, held: 0, mark: 0 });
            self.starting.push_back((ready_ms, number));
        }
        self.next += by;
    }

    /// Lets `wanted` workers drain: takes back surplus marks, or marks idle workers, the newest first.
    fn mark(&mut self, wanted: u32, now_ms: u64) {
        if wanted < self.draining {
            let marked = |worker: &Worker| matches!(worker.state, State::Draining { .. });
            let back = self.pick(self.draining - wanted, true, marked);
            self.draining -= back.len() as u32;
            back.into_iter().for_each(|number| self.open(number));
        } else if wanted > self.draining && self.busy < self.replicas().ready {
            let idle = |worker: &Worker| matches!(worker.state, State::Ready) && worker.held == 0;
            for number in self.pick(wanted - self.draining, false, idle) {
                if let Some(worker) = self.workers.get_mut(&number) {
                    worker.state = State::Draining { since_ms: now_ms };
                    worker.mark += 1;
                    self.draining += 1;
                }
            }
        }
    }

    /// Removes at most `by` drained workers. While a worker starts, all wait: its pod is not Ready either, so the
    /// controller could remove that one instead.
    fn lower(&mut self, by: u32, now_ms: u64) {
        if self.draining == 0 || !self.starting.is_empty() {
            return;
        }
        let drain_ms = self.delays.drain_ms;
        let drained = |worker: &Worker| matches!(worker.state, State::Draining { since_ms } if since_ms + drain_ms <= now_ms);
        for number in self.pick(by, false, drained) {
            if let Some(worker) = self.workers.remove(&number) {
                self.interrupted += u64::from(worker.held);
                self.running -= worker.held;
                self.busy -= u32::from(worker.held > 0);
                self.draining -= 1;
            }
        }
    }

    /// Returns at most `count` workers of this kind, the oldest or the newest first.
    fn pick(&self, count: u32, oldest: bool, kind: impl Fn(&Worker) -> bool) -> Vec<u32> {
        let of_kind = |(number, worker): (&u32, &Worker)| kind(worker).then_some(*number);
        if oldest {
            self.workers.iter().filter_map(of_kind).take(count as usize).collect()
        } else {
            self.workers.iter().rev().filter_map(of_kind).take(count as usize).collect()
        }
    }

    /// Lets a worker take jobs from now on.
    fn open(&mut self, number: u32) {
        let Some(worker) = self.workers.get_mut(&number) else { return };
        worker.state = State::Ready;
        let mark = worker.mark;
        self.free.extend((worker.held..self.slots).map(|_| FreeSlot { worker: number, mark }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAYS: Delays = Delays { startup_ms: 10_000, drain_ms: 2_000, observation_ms: 1_000 };

    #[test]
    fn a_busy_worker_stays_however_few_are_wanted() {
        let mut fleet = Fleet::new(DELAYS, 2, 3);
        let (first, second) = (fleet.place().unwrap(), fleet.place().unwrap());
        assert_eq!((first, second), (0, 0), "both slots of the first worker were free first");
        let third = fleet.place().unwrap();
        assert_eq!((third, fleet.busy(), fleet.running()), (1, 2, 3));
        assert_eq!(fleet.resize(0, 0), None);
        assert_eq!((fleet.draining(), fleet.resize(0, 2_000)), (1, Some((3, 2))));
        fleet.release(first);
        assert_eq!((fleet.resize(0, 3_000), fleet.draining()), (None, 0), "one slot of it is busy still");
        fleet.release(second);
        assert_eq!((fleet.resize(0, 4_000), fleet.draining()), (None, 1));
        assert_eq!(fleet.place(), Some(1), "not on the marked one");
        assert_eq!(fleet.resize(0, 6_000), Some((2, 1)));
        assert_eq!((fleet.replicas(), fleet.interrupted()), (Replicas { wanted: 1, ready: 1 }, 0));
    }

    #[test]
    fn marks_are_taken_back_before_the_pool_grows() {
        let mut fleet = Fleet::new(DELAYS, 1, 3);
        assert_eq!((fleet.resize(1, 0), fleet.draining()), (None, 2));
        assert_eq!((fleet.resize(3, 1_000), fleet.draining()), (None, 0));
        assert_eq!((0..3).filter_map(|_| fleet.place()).count(), 3);
        assert_eq!(fleet.place(), None, "a slot is free once, however often its worker was marked");
        assert_eq!(
            (fleet.resize(4, 2_000), fleet.replicas()),
            (Some((3, 4)), Replicas { wanted: 4, ready: 3 })
        );
    }

    #[test]
    fn nothing_is_lowered_while_a_worker_starts() {
        let mut fleet = Fleet::new(DELAYS, 1, 2);
        assert_eq!(fleet.resize(3, 0), Some((2, 3)));
        assert_eq!((fleet.resize(1, 1_000), fleet.draining()), (None, 2));
        assert_eq!(fleet.resize(1, 9_000), None);
        assert_eq!(fleet.next_ready_ms(), Some(10_000));
        fleet.start();
        assert_eq!(fleet.resize(1, 10_000), Some((3, 1)));
    }
}
