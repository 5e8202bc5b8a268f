//! The flags of the model: the pool that is decided for, and its delays.

use chrono::DateTime;
use clap::Args;
use service::{Problems, Setting};

use crate::simulate::{Delays, Setup};

/// The pool and its delays.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Jobs that a worker runs at once (its WORKER_SLOTS)
    #[arg(long, value_name = "NUMBER", default_value = "4", help_heading = "Model")]
    slots: Setting<u32>,
    /// Workers that are ready at the beginning [default: the policy's minimum]
    #[arg(long, value_name = "NUMBER", help_heading = "Model")]
    pub workers: Option<Setting<u32>>,
    /// From the write of `replicas` until a new worker takes jobs
    #[arg(long, value_name = "SECONDS", default_value = "20", help_heading = "Model")]
    startup_s: Setting<f64>,
    /// From the drain mark until an idle worker has drained
    #[arg(long, value_name = "SECONDS", default_value = "3", help_heading = "Model")]
    drain_s: Setting<f64>,
    /// How old the readings of queue and ledger are when a decision is made, in whole seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", help_heading = "Model")]
    observation_age_s: Setting<u64>,
    /// When the trace begins, for the policy's schedule
    #[arg(long, value_name = "TIME", default_value = "2026-01-05T00:00:00Z", help_heading = "Model")]
    start: String,
}

impl ModelArgs {
    /// Returns the model. Without --workers it has none; the caller sets the policy's minimum.
    pub fn check(&self, problems: &mut Problems) -> Option<Setup> {
        let slots = problems.within("--slots", self.slots.clone(), 1..=256);
        let workers = match self.workers.clone() {
            Some(workers) => problems.within("--workers", workers, 0..=10_000),
            None => Some(0),
        };
        let startup_s = problems.within("--startup-s", self.startup_s.clone(), 0.0..=3_600.0);
        let drain_s = problems.within("--drain-s", self.drain_s.clone(), 0.0..=3_600.0);
        let age_s = problems.within("--observation-age-s", self.observation_age_s.clone(), 0..=3_600);
        let start = DateTime::parse_from_rfc3339(&self.start).ok();
        let start_ms = start.and_then(|start| u64::try_from(start.timestamp_millis()).ok());
        if start_ms.is_none() {
            let got =
                format!("got \"{}\", expected a time since 1970 such as 2026-01-05T00:00:00Z", self.start);
            problems.add("--start", got);
        }
        let ms = |seconds: f64| (seconds * 1e3).round() as u64;
        Some(Setup {
            delays: Delays {
                startup_ms: ms(startup_s?),
                drain_ms: ms(drain_s?),
                observation_ms: age_s? * 1_000,
            },
            slots: slots?,
            workers: workers?,
            start_ms: start_ms?,
        })
    }
}
