//! The jobs of a scenario, declared in full before anything runs. Afterwards the ledger is compared with them.

use std::collections::HashMap;
use std::ops::Range;

use job::{FailureCode, JobId, JobSpec, Name};
use serde_json::{Value, json};

/// How much work a scenario has.
#[derive(Clone, Copy)]
pub struct Size {
    pub jobs: usize,
    pub sessions: usize,
    /// Parts that are published one after the other, so that publishing continues during the fault.
    pub parts: usize,
}

impl Size {
    /// The size for `make chaos`.
    pub const FULL: Size = Size { jobs: 2_400, sessions: 48, parts: 8 };
    /// The size with `--quick`.
    pub const QUICK: Size = Size { jobs: 720, sessions: 36, parts: 5 };
}

/// A job, and how the ledger must show it when it has ended.
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
    /// With an output that reports its number of iterations.
    Played,
    Failed(FailureCode),
}

/// All jobs of a scenario.
pub struct Workload {
    pub jobs: Vec<Job>,
    parts: usize,
}

/// One in this many parts is published by a raw AMQP client, where a scenario allows it.
const RAW_EVERY: usize = 3;
/// The duration of one iteration.
const DELAY_MS: u64 = 60;
const ITERATIONS: usize = 4;

/// A part of the workload, and the way it is published.
pub struct Part {
    pub jobs: Vec<JobSpec>,
    /// Whether a separate AMQP client publishes it instead of `producer`.
    pub raw: bool,
}

impl Workload {
    /// A quarter of the jobs are echoes, a quarter play scripts, and half are witnesses. Sessions have jobs of every
    /// kind.
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

    /// Inserts more jobs, each at its place in the order of publishing.
    pub fn insert(&mut self, jobs: impl IntoIterator<Item = (usize, Job)>) {
        for (at, job) in jobs {
            self.jobs.insert(at.min(self.jobs.len()), job);
        }
    }

    /// The parts, in the order of publishing.
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
    // Every death of a worker spends an attempt, and some scenarios kill often. A job that kills workers itself is
    // identified by the deaths.
    spec.retry.max_attempts = 20;
    spec
}

/// A job that returns its input.
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

/// A job that records outside the ledger what it does.
fn witness(session: &str, at: usize, iterations: usize, delay_ms: u64) -> Job {
    let says = words(at, iterations);
    let input = json!({"says": says, "delay_ms": delay_ms});
    Job { spec: spec(session, "witness", input), says, end: End::Played }
}

/// A job that asks a model once in each iteration.
pub fn asking(at: usize) -> Job {
    // No other job has these numbers.
    let says = words(2_000_000 + at, ITERATIONS);
    Job { spec: spec(&format!("asker-{}", at % 16), "asker", json!({"says": says})), says, end: End::Played }
}

/// A job of this agent, which calls a tool in each of its turns, in a session of its own.
pub fn noting(agent: &str, play: &str, at: usize) -> JobSpec {
    spec(&format!("clerk-{at}"), agent, json!(format!("Note the steps of file {at}. play:{play}")))
}

/// Witnesses, each in its own session, that run for longer than a lease and the grace of a drain.
pub fn long(numbers: Range<usize>) -> Vec<Job> {
    // No other job has these numbers.
    numbers.map(|at| witness(&format!("long-{at}"), 1_000_000 + at, 120, 100)).collect()
}

/// A witness that makes its session larger than the smallest `MAX_SESSION_BYTES`; its first three iterations are
/// recorded.
pub fn growing(session: &str) -> Job {
    let says: Vec<String> = (0..5).map(|at| format!("{session}.{at}.{}", "x".repeat(20_000))).collect();
    let spec = spec(session, "witness", json!({"says": says, "delay_ms": DELAY_MS}));
    Job { spec, says: says[..3].to_vec(), end: End::Failed(FailureCode::OutputLimit) }
}

/// A job that kills the worker that runs it.
pub fn killer(session: &str) -> Job {
    let input = json!({"says": [], "kills_worker": true});
    Job { spec: spec(session, "witness", input), says: Vec::new(), end: End::Failed(FailureCode::Poison) }
}

/// A job whose output no worker accepts.
pub fn unstorable(session: &str) -> Job {
    let input = json!({"says": [], "unstorable": true});
    Job { spec: spec(session, "witness", input), says: Vec::new(), end: End::Failed(FailureCode::Unstorable) }
}
