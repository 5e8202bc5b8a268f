//! The workload, declared in full before anything runs. Afterwards the ledger is compared with it.

use std::path::Path;

use anyhow::Context;
use job::{JobId, JobSpec, Json, Name, Usd};
use serde_json::{Value, json};

/// One in this many sessions reads documents; the others play scripts.
const READER_EVERY: usize = 5;
/// Documents per reader job.
pub const DOCUMENTS: usize = 5;
/// Jobs that name an agent that does not exist.
const STRAYS: usize = 3;
const STRAY_AGENT: &str = "raeder";

/// All jobs of a run. No other run has the same pool or sessions.
pub struct Workload {
    pub pool: Name,
    pub sessions: Vec<Session>,
    /// Jobs that must fail and must each leave a dead letter.
    pub strays: Vec<JobSpec>,
}

/// The jobs of one session, in the order in which they must run.
pub struct Session {
    pub id: Name,
    pub agent: Name,
    pub jobs: Vec<Job>,
}

/// A job, and how the ledger must show it when it has ended.
pub struct Job {
    pub spec: JobSpec,
    /// The beginning of what each iteration adds to the session's context.
    pub says: Vec<String>,
    pub cost: Usd,
    pub input_tokens: u64,
    pub output_tokens: u64,
}

impl Job {
    pub fn iterations(&self) -> u64 {
        self.says.len() as u64
    }
}

impl Session {
    pub fn iterations(&self) -> u64 {
        self.jobs.iter().map(Job::iterations).sum()
    }
}

impl Workload {
    /// `documents` are what the readers read, a multiple of [`DOCUMENTS`]. Without any, all sessions play scripts.
    pub fn new(run: &str, sessions: usize, jobs: usize, documents: &[String]) -> anyhow::Result<Workload> {
        let pool: Name = format!("demo-{run}").parse()?;
        let mut all = Vec::with_capacity(sessions);
        let mut documents = documents.iter().cycle();
        for at in 0..sessions {
            let id: Name = format!("{pool}-{:02}", at + 1).parse()?;
            let reads = at % READER_EVERY == READER_EVERY - 1;
            let mut session = Session { id, agent: "scripted".parse()?, jobs: Vec::new() };
            for number in 0..(at + 1) * jobs / sessions - at * jobs / sessions {
                let read: Vec<&String> = documents.by_ref().take(if reads { DOCUMENTS } else { 0 }).collect();
                let job = match read.as_slice() {
                    [] => scripted(&session.id, &pool, at, number)?,
                    read => reader(&session.id, &pool, read)?,
                };
                session.agent = job.spec.agent_id.clone();
                session.jobs.push(job);
            }
            all.push(session);
        }
        let stray = || spec(&format!("{pool}-astray").parse()?, STRAY_AGENT, &pool, &Value::Null);
        let strays = (0..STRAYS).map(|_| stray()).collect::<anyhow::Result<_>>()?;
        Ok(Workload { pool, sessions: all, strays })
    }

    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.sessions.iter().flat_map(|session| &session.jobs)
    }

    /// All jobs that must end, including the strays.
    pub fn job_ids(&self) -> Vec<JobId> {
        self.jobs().map(|job| &job.spec).chain(&self.strays).map(|spec| spec.job_id).collect()
    }

    pub fn iterations(&self) -> u64 {
        self.jobs().map(Job::iterations).sum()
    }

    /// The sessions with jobs, and the session of the strays.
    pub fn session_ids(&self) -> Vec<Name> {
        let mut ids: Vec<Name> = self.sessions.iter().map(|session| session.id.clone()).collect();
        ids.extend(self.strays.first().map(|stray| stray.session_id.clone()));
        ids
    }

    /// Writes the input of `producer enqueue --file`.
    ///
    /// The broker delivers messages to the slots in the order in which the slots began to consume, and a job behind
    /// another one of its session takes no slot. With the first two jobs of two sessions side by side, each worker gets
    /// about half of the sessions, whether the workers' slots came one after the other or interleaved.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let job = |session: &'_ Session, at: usize| session.jobs.get(at).map(|job| job.spec.clone());
        let mut specs: Vec<Option<JobSpec>> = Vec::new();
        for pair in self.sessions.chunks(2) {
            specs.extend((0..2).flat_map(|at| pair.iter().map(move |session| job(session, at))));
        }
        let most = self.sessions.iter().map(|session| session.jobs.len()).max().unwrap_or(0);
        for at in 2..most {
            specs.extend(self.sessions.iter().map(|session| job(session, at)));
        }
        let mut lines = String::new();
        for spec in specs.iter().flatten().chain(&self.strays) {
            lines.push_str(&serde_json::to_string(spec)?);
            lines.push('\n');
        }
        std::fs::write(path, lines).with_context(|| format!("writing {}", path.display()))
    }
}

fn spec(session: &Name, agent: &str, pool: &Name, input: &Value) -> anyhow::Result<JobSpec> {
    let mut spec = JobSpec::new(session.clone(), agent.parse()?, Json::from_value(input)?);
    spec.pool = pool.clone();
    Ok(spec)
}

/// Some iterations that differ a little in wait, price and words.
fn scripted(session: &Name, pool: &Name, at: usize, number: usize) -> anyhow::Result<Job> {
    let count = 6 + (at * 7 + number * 3) % 6;
    let (mut says, mut iterations) = (Vec::new(), Vec::new());
    let (mut cost, mut input_tokens, mut output_tokens) = (Usd::ZERO, 0, 0);
    for step in 0..count {
        let mix = at * 31 + number * 17 + step * 7;
        let say = format!("job {}, step {} of {count}", number + 1, step + 1);
        let price = Usd::from_micros(800 + (mix % 900) as u64);
        let (read, wrote) = (400 + (mix % 350) as u64, 60 + (mix % 90) as u64);
        iterations.push(json!({
            "delay_ms": 140 + mix * 13 % 160, "say": say, "cost_usd": price, "input_tokens": read, "output_tokens": wrote,
        }));
        says.push(say);
        cost += price;
        input_tokens += read;
        output_tokens += wrote;
    }
    let spec = spec(session, "scripted", pool, &json!({"iterations": iterations}))?;
    Ok(Job { spec, says, cost, input_tokens, output_tokens })
}

fn reader(session: &Name, pool: &Name, paths: &[&String]) -> anyhow::Result<Job> {
    let spec = spec(session, "reader", pool, &json!({"paths": paths, "delay_ms": 150}))?;
    let says = paths.iter().map(|path| format!("{path}: ")).collect();
    Ok(Job { spec, says, cost: Usd::ZERO, input_tokens: 0, output_tokens: 0 })
}
