//! The policies to try.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use service::{Problems, Setting};

use crate::config;
use crate::decide::{Mode, Policy};
use crate::simulate::Setup;

/// A policy and its name in the output.
pub struct Named {
    pub name: String,
    pub policy: Policy,
}

/// How demand becomes workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeName {
    /// A fixed number of jobs for each worker
    Backlog,
    /// The fewest workers for which jobs start within a time
    TargetWait,
}

/// Policies from files, and flags for the settings that are tried most often.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// A policy, as TOML with the keys of a pool's policy; the flags below change it [default: the built-in policy]
    #[arg(long, value_name = "FILE", help_heading = "Policy")]
    policy: Option<PathBuf>,
    /// Another policy file to compare with; the flags do not change it
    #[arg(long, value_name = "FILE", help_heading = "Policy")]
    compare: Option<PathBuf>,
    /// How demand becomes workers
    #[arg(long, value_enum, help_heading = "Policy")]
    mode: Option<ModeName>,
    /// Jobs ready or running for each worker; with --mode backlog [default: 1]
    #[arg(long, value_name = "JOBS", help_heading = "Policy")]
    jobs_per_worker: Option<Setting<f64>>,
    /// Seconds within which jobs start; with --mode target-wait [default: 30]
    #[arg(long, value_name = "SECONDS", help_heading = "Policy")]
    target_s: Option<Setting<f64>>,
    /// The fewest workers
    #[arg(long, value_name = "WORKERS", help_heading = "Policy")]
    min: Option<Setting<u32>>,
    /// The most workers
    #[arg(long, value_name = "WORKERS", help_heading = "Policy")]
    max: Option<Setting<u32>>,
    /// Seconds for which demand must stay lower before the pool shrinks
    #[arg(long, value_name = "SECONDS", help_heading = "Policy")]
    down_window_s: Option<Setting<u64>>,
    /// Grow at once by as much as demand asks for
    #[arg(long, help_heading = "Policy")]
    no_up_limits: bool,
}

impl PolicyArgs {
    /// Returns the first policy, changed by the flags, and the one to compare with. Adds what is wrong to `problems`.
    pub fn check(&self, setup: Option<&Setup>, problems: &mut Problems) -> Option<Vec<Named>> {
        let first = match &self.policy {
            Some(path) => problems.check("--policy", read(path)),
            None => Some(Named { name: "built-in policy".to_owned(), policy: Policy::default() }),
        };
        let second = self.compare.as_ref().map(|path| problems.check("--compare", read(path)));
        let mut first = first?;
        if self.change(&mut first.policy, setup, problems) {
            first.name.push_str(" + flags");
        }
        for problem in first.policy.check() {
            problems.add(if self.policy.is_some() { "--policy" } else { "policy" }, problem);
        }
        let Some(second) = second else { return Some(vec![first]) };
        let second = second?;
        for problem in second.policy.check() {
            problems.add("--compare", problem);
        }
        Some(vec![first, second])
    }

    /// Applies the flags to the policy, and returns whether they changed anything.
    fn change(&self, policy: &mut Policy, setup: Option<&Setup>, problems: &mut Problems) -> bool {
        let before = policy.clone();
        let jobs = self.jobs_per_worker.clone();
        let jobs = jobs.and_then(|jobs| problems.within("--jobs-per-worker", jobs, 0.01..=10_000.0));
        let target = self.target_s.clone();
        let target = target.and_then(|target| problems.within("--target-s", target, 0.0..=86_400.0));
        match (self.mode, &policy.mode) {
            (Some(ModeName::Backlog), Mode::TargetWait { .. }) => {
                policy.mode = Mode::Backlog { jobs_per_worker: 1.0 };
            }
            (Some(ModeName::TargetWait), Mode::Backlog { .. }) => {
                policy.mode = Mode::TargetWait {
                    target_s: 30.0,
                    slots_per_worker: setup.map_or(1, |setup| setup.slots),
                    utilization: 0.8,
                    startup_s: setup.map_or(0.0, |setup| setup.delays.startup_ms as f64 / 1e3),
                    assumed_service_s: 60.0,
                };
            }
            _ => {}
        }
        match &mut policy.mode {
            Mode::Backlog { jobs_per_worker } => {
                *jobs_per_worker = jobs.unwrap_or(*jobs_per_worker);
                if target.is_some() {
                    problems.add(
                        "--target-s",
                        "has no meaning in mode backlog, expected --mode target-wait with it",
                    );
                }
            }
            Mode::TargetWait { target_s, .. } => {
                *target_s = target.unwrap_or(*target_s);
                if jobs.is_some() {
                    problems.add(
                        "--jobs-per-worker",
                        "has no meaning in mode target-wait, expected --mode backlog with it",
                    );
                }
            }
        }
        let mut count = |name, setting: &Option<Setting<u32>>, value: &mut u32| {
            if let Some(given) = setting.clone().and_then(|given| problems.within(name, given, 0..=10_000)) {
                *value = given;
            }
        };
        count("--min", &self.min, &mut policy.min_replicas);
        count("--max", &self.max, &mut policy.max_replicas);
        if let Some(window) = self.down_window_s.clone()
            && let Some(window_s) = problems.within("--down-window-s", window, 0..=3_600)
        {
            policy.scale_down.stabilization_window_s = window_s;
        }
        if self.no_up_limits {
            policy.scale_up.policies.clear();
        }
        *policy != before
    }
}

/// Reads a policy's file. The file's name without its extension names the policy.
fn read(path: &Path) -> Result<Named, String> {
    let policy = config::read_policy(path)?;
    let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
    Ok(Named { name: stem.chars().take(40).collect(), policy })
}
