//! Synthetic traces: the same shape and seed always give the same trace.

use std::f64::consts::TAU;

use super::trace::{Arrival, Trace};

/// Spread of the service times: they are lognormal, so that few jobs run much longer than most.
const SIGMA: f64 = 0.8;
const DAY_S: f64 = 86_400.0;
/// The time from one burst to the next.
const BETWEEN_BURSTS_S: f64 = 1_800.0;
/// All jobs of a burst come within this time.
const BURST_S: f64 = 5.0;
/// The part of all jobs that comes in bursts.
const IN_BURSTS: f64 = 0.8;

/// How jobs come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// At random, at a constant rate
    Poisson,
    /// At random, from a tenth of the rate at midnight to nearly twice the rate at noon
    Diurnal,
    /// A fifth at random, the others at once every half hour
    Burst,
}

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Synthetic {
    /// How jobs come.
    pub shape: Shape,
    /// The seed: another one gives another trace.
    pub seed: u64,
    /// For how long jobs come, in seconds.
    pub duration_s: f64,
    /// Jobs per second, on average.
    pub rate_per_s: f64,
    /// How long a job runs on average, in seconds.
    pub service_s: f64,
    /// The number of sessions, to which jobs are assigned at random; 0 gives each job its own.
    pub sessions: u32,
}

impl Synthetic {
    /// Generates the trace. It can be empty if rate × duration is small.
    pub fn make(&self) -> Trace {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let arrivals = match self.shape {
            Shape::Poisson => self.thinned(&mut random, self.rate_per_s, |_| 1.0),
            Shape::Diurnal => self.thinned(&mut random, 1.9 * self.rate_per_s, |at_s| {
                (1.0 - 0.9 * (TAU * at_s / DAY_S).cos()) / 1.9
            }),
            Shape::Burst => self.bursts(&mut random),
        };
        let mut jobs: Vec<Arrival> = arrivals.into_iter().map(|at_s| self.job(&mut random, at_s)).collect();
        jobs.sort_by_key(|job| job.arrival_ms);
        Trace::new(jobs)
    }

    /// Returns the arrivals of a Poisson process of the highest rate. Each is kept with a probability that depends on
    /// its time (thinning, Lewis and Shedler 1979).
    fn thinned(&self, random: &mut fastrand::Rng, rate_per_s: f64, kept: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut arrivals = Vec::new();
        let mut at_s = 0.0;
        loop {
            at_s -= (1.0 - random.f64()).ln() / rate_per_s;
            if at_s >= self.duration_s {
                return arrivals;
            }
            if random.f64() < kept(at_s) {
                arrivals.push(at_s);
            }
        }
    }

    fn bursts(&self, random: &mut fastrand::Rng) -> Vec<f64> {
        let mut arrivals = self.thinned(random, (1.0 - IN_BURSTS) * self.rate_per_s, |_| 1.0);
        let size = (IN_BURSTS * self.rate_per_s * BETWEEN_BURSTS_S).round() as u64;
        let mut burst_s = BETWEEN_BURSTS_S / 2.0;
        while burst_s + BURST_S < self.duration_s {
            arrivals.extend((0..size).map(|_| burst_s + BURST_S * random.f64()));
            burst_s += BETWEEN_BURSTS_S;
        }
        arrivals
    }

    fn job(&self, random: &mut fastrand::Rng, at_s: f64) -> Arrival {
        // A normal deviate by the Box–Muller transform; the mean of a lognormal is exp(μ + σ²/2).
        let normal = (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (TAU * random.f64()).cos();
        let service_s = self.service_s * (SIGMA * normal - SIGMA * SIGMA / 2.0).exp();
        let session = (self.sessions > 0).then(|| random.u32(0..self.sessions));
        Arrival {
            arrival_ms: (at_s * 1e3).round() as u64,
            service_ms: (service_s * 1e3).round() as u64,
            session,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_keeps_to_its_rate_and_mean_and_to_its_seed() {
        for shape in [Shape::Poisson, Shape::Diurnal, Shape::Burst] {
            let synthetic = Synthetic {
                shape,
                seed: 7,
                duration_s: DAY_S,
                rate_per_s: 0.5,
                service_s: 30.0,
                sessions: 5,
            };
            let trace = synthetic.make();
            assert_eq!(trace, synthetic.make());
            assert_ne!(trace, Synthetic { seed: 8, ..synthetic }.make());
            assert_eq!(trace.sessions(), 5);
            let jobs = trace.jobs().len() as f64;
            let mean_s = trace.jobs().iter().map(|job| job.service_ms as f64 / 1e3).sum::<f64>() / jobs;
            assert!((jobs / (0.5 * DAY_S) - 1.0).abs() < 0.03, "{shape:?}: {jobs} jobs");
            assert!((mean_s / 30.0 - 1.0).abs() < 0.03, "{shape:?}: {mean_s} s");
        }
    }

    #[test]
    fn days_are_busy_at_noon_and_bursts_come_at_once() {
        let base = Synthetic {
            shape: Shape::Diurnal,
            seed: 1,
            duration_s: DAY_S,
            rate_per_s: 1.0,
            service_s: 1.0,
            sessions: 0,
        };
        let within = |trace: &Trace, from_s: f64, to_s: f64| {
            let range = (from_s * 1e3) as u64..(to_s * 1e3) as u64;
            trace.jobs().iter().filter(|job| range.contains(&job.arrival_ms)).count()
        };
        let day = base.make();
        assert!(within(&day, 40_000.0, 46_000.0) > 10 * within(&day, 0.0, 6_000.0));
        let bursts = Synthetic { shape: Shape::Burst, ..base }.make();
        assert!(within(&bursts, 900.0, 905.1) >= 1_440);
    }
}
