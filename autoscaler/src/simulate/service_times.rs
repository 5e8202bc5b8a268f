//! How long recent jobs ran: the distribution over a sliding window, exact and cheap at every tick.
//!
//! All service times of a trace are known beforehand, so each job has a rank among them. The window is a count per rank
//! in a Fenwick tree: to add a job, to remove one, or to find the n-th of the window takes O(log jobs).

use std::collections::VecDeque;

use super::trace::Arrival;
use crate::decide::ServiceTime;

/// The service times of the jobs that ended within a window.
pub struct ServiceTimes {
    window_ms: u64,
    /// Each job's place among all service times, from 1.
    rank: Vec<u32>,
    /// The service time at each place, in milliseconds.
    sorted_ms: Vec<u64>,
    tree: Vec<u32>,
    /// Jobs in the window and when they ended, oldest first.
    ended: VecDeque<(u64, u32)>,
    sum_ms: u64,
}

impl ServiceTimes {
    pub fn new(jobs: &[Arrival], window_ms: u64) -> ServiceTimes {
        let mut order: Vec<u32> = (0..jobs.len() as u32).collect();
        order.sort_by_key(|job| jobs[*job as usize].service_ms);
        let mut rank = vec![0; jobs.len()];
        for (place, job) in order.iter().enumerate() {
            rank[*job as usize] = place as u32 + 1;
        }
        let sorted_ms = order.iter().map(|job| jobs[*job as usize].service_ms).collect();
        ServiceTimes {
            window_ms,
            rank,
            sorted_ms,
            tree: vec![0; jobs.len() + 1],
            ended: VecDeque::new(),
            sum_ms: 0,
        }
    }

    /// Adds a job that has ended. Times must not go back.
    pub fn add(&mut self, job: u32, ended_ms: u64) {
        let rank = self.rank[job as usize];
        self.ended.push_back((ended_ms, rank));
        self.sum_ms += self.sorted_ms[rank as usize - 1];
        self.count(rank, 1);
    }

    /// Returns the distribution over the window that ends now; `None` if no job ended within it.
    pub fn at(&mut self, now_ms: u64) -> Option<ServiceTime> {
        while let Some(&(ended_ms, rank)) = self.ended.front()
            && ended_ms + self.window_ms <= now_ms
        {
            self.ended.pop_front();
            self.sum_ms -= self.sorted_ms[rank as usize - 1];
            self.count(rank, -1);
        }
        let jobs = self.ended.len() as u64;
        (jobs > 0).then(|| ServiceTime {
            jobs,
            mean_ms: self.sum_ms as f64 / jobs as f64,
            p50_ms: self.nth_ms(jobs.div_ceil(2)) as f64,
            p95_ms: self.nth_ms((jobs * 95).div_ceil(100)) as f64,
        })
    }

    fn count(&mut self, rank: u32, change: i32) {
        let mut node = rank as usize;
        while node < self.tree.len() {
            self.tree[node] = self.tree[node].wrapping_add_signed(change);
            node += node & node.wrapping_neg();
        }
    }

    /// Returns the n-th smallest service time of the window, counted from 1.
    fn nth_ms(&self, n: u64) -> u64 {
        let (mut place, mut left) = (0, n);
        let mut step = self.tree.len().next_power_of_two();
        while step > 0 {
            if let Some(&below) = self.tree.get(place + step)
                && u64::from(below) < left
            {
                place += step;
                left -= u64::from(below);
            }
            step /= 2;
        }
        self.sorted_ms[place]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_what_sorting_the_window_gives(
            service in prop::collection::vec(0u64..5_000, 1..80),
            gaps in prop::collection::vec(0u64..400, 80),
        ) {
            let jobs: Vec<Arrival> = service
                .iter()
                .map(|&service_ms| Arrival { arrival_ms: 0, service_ms, session: None })
                .collect();
            let mut times = ServiceTimes::new(&jobs, 1_000);
            let mut ended = Vec::new();
            let mut now_ms = 0;
            for job in 0..jobs.len() {
                now_ms += gaps[job];
                times.add(job as u32, now_ms);
                ended.push((now_ms, service[job]));
                let at_ms = now_ms + gaps[(job * 7) % 80] / 4;
                now_ms = at_ms;
                let mut window: Vec<u64> =
                    ended.iter().filter(|(end, _)| end + 1_000 > at_ms).map(|(_, ms)| *ms).collect();
                window.sort_unstable();
                let n = window.len();
                let expected = ServiceTime {
                    jobs: n as u64,
                    mean_ms: window.iter().sum::<u64>() as f64 / n as f64,
                    p50_ms: window[n.div_ceil(2) - 1] as f64,
                    p95_ms: window[(n * 95).div_ceil(100) - 1] as f64,
                };
                prop_assert_eq!(times.at(at_ms), Some(expected));
            }
            prop_assert_eq!(times.at(now_ms + 1_000), None);
        }
    }
}
