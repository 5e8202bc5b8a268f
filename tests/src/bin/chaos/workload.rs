//! The jobs of a scenario, declared in full before anything runs: afterwards the ledger is held against them.

use std::collections::HashMap;
use std::ops::Range;

use job::{FailureCode, JobId, JobSpec, Name};
use serde_json::{Value, json};

/// How much a scenario has to do.
#[derive(Clone, Copy)]
pub struct Size {
    pub jobs: usize,
    pub sessions: usize,
    /// Parts that are published one after the other, so that publishing goes on over the fault.
    pub parts: usize,
}

impl Size {
    /// What `make chaos` takes.
    pub const FULL: Size = Size { jobs: 2_400, sessions: 48, parts: 8 };
    /// What `--quick` takes.
    pub const QUICK: Size = Size { jobs: 720, sessions: 36, parts: 5 };
}

/// A job, and what must stand in the ledger when it has ended.
#[derive(Clone)]
pub struct Job {
    pub spec: JobSpec,
    /// What its iterations add to the session's context, one entry each.
    pub says: Vec<String>,
    pub end: End,
}

/// How a job must end.
#[derive(Clone, PartialEq)]
pub enum End {
    /// With exactly this output.
    Output(Value),
    /// With an output that tells its number of iterations.
    Played,
    Failed(FailureCode),
}

/// All jobs of a scenario.
pub struct Workload {
    pub jobs: Vec<Job>,
    parts: usize,
}

/// Parts that are published by a raw AMQP client, where a scenario allows it: one in so many.
const RAW_EVERY: usize = 3;
/// An iteration's work.
const DELAY_MS: u64 = 60;
const ITERATIONS: usize = 4;

/// A part of the workload, and the way it is published.
pub struct Part {
    pub jobs: Vec<JobSpec>,
    /// By an AMQP client of its own instead of `producer`.
    pub raw: bool,
}

impl Workload {
    /// A quarter echoes, a quarter plays scripts, and half are witnesses. Sessions have jobs of every kind.
    pub fn new(size: Size, random: &mut fastrand::Rng) -> Workload {
        let job = |at: usize| {
            let session = format!("s-{:02}", at % size.sessions);
            match random.u8(0..4) {
                0 => echo(&session, json!({"n": at})),
                1 => scripted(&session, at),
                _ => witness(&session, at, ITERATIONS, DELAY_MS),
            }
        };
        Workload { jobs: (0..size.jobs).map(job).collect(), parts: size.parts }
    }

    /// More jobs, each with its place in the order of publishing.
    pub fn insert(&mut self, jobs: impl IntoIterator<Item = (usize, Job)>) {
        for (at, job) in jobs {
            self.jobs.insert(at.min(self.jobs.len()), job);
        }
    }

    /// In the order of publishing.
    pub fn parts(&self, with_raw: bool) -> Vec<Part> {
        let chunks = self.jobs.chunks(self.jobs.len().div_ceil(self.parts));
        let part = |(at, jobs): (usize, &[Job])| Part {
            jobs: jobs.iter().map(|job| job.spec.clone()).collect(),
            raw: with_raw && at % RAW_EVERY == RAW_EVERY - 1,
        };
        chunks.enumerate().map(part).collect()
    }

    pub fn ids(&self) -> Vec<JobId> {
        self.jobs.iter().map(|job| job.spec.job_id).collect()
    }

    /// The sessions, each with its jobs.
    pub fn sessions(&self) -> Vec<(Name, Vec<&Job>)> {
        let mut sessions: HashMap<&Name, Vec<&Job>> = HashMap::new();
        for job in &self.jobs {
            sessions.entry(&job.spec.session_id).or_default().push(job);
        }
        sessions.into_iter().map(|(name, jobs)| (name.clone(), jobs)).collect()
    }
}

fn spec(session: &str, agent: &str, input: Value) -> JobSpec {
    let mut spec = tests::job(session, agent, input);
    // Every death of a worker spends one, and some scenarios kill often. What kills workers itself is found by its deaths.
    spec.retry.max_attempts = 20;
    spec
}

/// Gives its input back.
pub fn echo(session: &str, input: Value) -> Job {
    let spec = spec(session, "echo", input.clone());
    Job { spec, says: Vec::new(), end: End::Output(input) }
}

fn words(at: usize, iterations: usize) -> Vec<String> {
    (0..iterations).map(|iteration| format!("{at}.{iteration}")).collect()
}

fn scripted(session: &str, at: usize) -> Job {
    let says = words(at, ITERATIONS);
    let iterations: Vec<Value> = says.iter().map(|say| json!({"delay_ms": DELAY_MS, "say": say})).collect();
    Job { spec: spec(session, "scripted", json!({"iterations": iterations})), says, end: End::Played }
}

/// Tells outside of the ledger what it does.
fn witness(session: &str, at: usize, iterations: usize, delay_ms: u64) -> Job {
    let says = words(at, iterations);
    let input = json!({"says": says, "delay_ms": delay_ms});
    Job { spec: spec(session, "witness", input), says, end: End::Played }
}

/// Witnesses in sessions of their own that run for longer than a lease and a drain's grace.
pub fn long(numbers: Range<usize>) -> Vec<Job> {
    // Their numbers are nobody else's.
    numbers.map(|at| witness(&format!("long-{at}"), 1_000_000 + at, 120, 100)).collect()
}

/// A witness that makes its session larger than the least that `MAX_SESSION_BYTES` can be: three of its iterations stand.
pub fn growing(session: &str) -> Job {
    let says: Vec<String> = (0..5).map(|at| format!("{session}.{at}.{}", "x".repeat(20_000))).collect();
    let spec = spec(session, "witness", json!({"says": says, "delay_ms": DELAY_MS}));
    Job { spec, says: says[..3].to_vec(), end: End::Failed(FailureCode::OutputLimit) }
}

/// Kills the worker that runs it.
pub fn killer(session: &str) -> Job {
    let input = json!({"says": [], "kills_worker": true});
    Job { spec: spec(session, "witness", input), says: Vec::new(), end: End::Failed(FailureCode::Poison) }
}

/// Has an output that no worker takes.
pub fn unstorable(session: &str) -> Job {
    let input = json!({"says": [], "unstorable": true});
    Job { spec: spec(session, "witness", input), says: Vec::new(), end: End::Failed(FailureCode::Unstorable) }
}
