//! Compares what was declared with what is in the ledger. Pure: it reads nothing itself.

use std::collections::HashMap;

use job::{FailureCode, JobId, JobSpec, JobState, Usd};
use producer::SessionNow;
use serde_json::Value;
use store::JobView;

use crate::crash::Crash;
use crate::workload::{Job, Session, Workload};

/// The findings.
#[derive(Default)]
pub struct Findings {
    /// One for each broken promise; empty when all is well.
    pub problems: Vec<String>,
    pub succeeded: usize,
    pub failed: usize,
    pub cancelled: usize,
    pub unfinished: usize,
    pub lost: usize,
    pub attempts: u64,
    pub iterations: u64,
    /// Iterations committed beyond those declared.
    pub iterations_twice: u64,
    pub cost: Usd,
    /// Cost charged beyond what was declared.
    pub cost_twice: Usd,
    pub tokens: u64,
    /// Sessions that hold every iteration once, in order.
    pub whole_sessions: usize,
    /// Jobs of the killed worker that resumed exactly where the ledger was.
    pub resumed_rightly: usize,
}

/// Compares jobs and sessions with the workload.
pub fn check(
    workload: &Workload,
    jobs: &[JobView],
    sessions: &[Option<SessionNow>],
    crash: Option<&Crash>,
) -> Findings {
    let mut findings = Findings::default();
    let jobs: HashMap<JobId, &JobView> = jobs.iter().map(|view| (view.job_id, view)).collect();
    for job in workload.jobs() {
        if let Some(view) = findings.ended(&job.spec, &jobs) {
            findings.check_job(job, view, crash);
        }
    }
    for stray in &workload.strays {
        let Some(view) = findings.ended(stray, &jobs) else { continue };
        if view.failure.as_ref().map(|failure| failure.code) != Some(FailureCode::UnknownAgent) {
            findings.problem(stray, format!("{}, expected failed: unknown_agent", view.state));
        }
    }
    for (session, view) in workload.sessions.iter().zip(sessions) {
        match view.as_ref().map_or(Err("not in the ledger".to_owned()), |view| check_session(session, view)) {
            Ok(()) => findings.whole_sessions += 1,
            Err(problem) => findings.problems.push(format!("session {}: {problem}", session.id)),
        }
    }
    findings
}

impl Findings {
    fn problem(&mut self, spec: &JobSpec, problem: impl std::fmt::Display) {
        self.problems.push(format!("job {} of {}: {problem}", spec.job_id, spec.session_id));
    }

    /// Counts the job. Returns its view if it has ended.
    fn ended<'a>(&mut self, spec: &JobSpec, views: &HashMap<JobId, &'a JobView>) -> Option<&'a JobView> {
        let Some(view) = views.get(&spec.job_id) else {
            self.lost += 1;
            self.problem(spec, "lost: not in the ledger");
            return None;
        };
        self.attempts += u64::from(view.attempts.unsigned_abs());
        match view.state {
            JobState::Succeeded => self.succeeded += 1,
            JobState::Failed => self.failed += 1,
            JobState::Cancelled => self.cancelled += 1,
            live => {
                self.unfinished += 1;
                self.problem(spec, format!("not finished: {live}"));
                return None;
            }
        }
        Some(view)
    }

    fn check_job(&mut self, job: &Job, view: &JobView, crash: Option<&Crash>) {
        if view.state != JobState::Succeeded {
            let why = view.failure.as_ref().map(ToString::to_string).unwrap_or_default();
            return self.problem(&job.spec, format!("{}, expected succeeded: {why}", view.state));
        }
        let (iterations, tokens) =
            (view.iterations.unsigned_abs(), (view.input_tokens + view.output_tokens).unsigned_abs());
        self.iterations += iterations;
        self.iterations_twice += iterations.saturating_sub(job.iterations());
        self.cost += view.cost_usd;
        self.cost_twice += Usd::from_micros(view.cost_usd.micros().saturating_sub(job.cost.micros()));
        self.tokens += tokens;
        if iterations != job.iterations() {
            self.problem(&job.spec, format!("{iterations} iterations, declared {}", job.iterations()));
        }
        if view.cost_usd != job.cost {
            self.problem(&job.spec, format!("charged {}, declared {}", view.cost_usd, job.cost));
        }
        if tokens != job.input_tokens + job.output_tokens {
            let declared = job.input_tokens + job.output_tokens;
            self.problem(&job.spec, format!("{tokens} tokens, declared {declared}"));
        }
        // Both agents report where their last attempt began.
        let output = view.output.as_ref().and_then(|output| serde_json::from_str(output.as_str()).ok());
        let began = output.as_ref().and_then(|output: &Value| output["resumed_at"].as_i64());
        let held = crash.and_then(|crash| crash.held_job(job.spec.job_id));
        match (began, held) {
            (Some(began), Some(held)) if began == held.done => self.resumed_rightly += 1,
            // Its second worker lost it as well, for instance on a stalled machine.
            (Some(began), Some(held)) if view.attempts > 2 && began > held.done => self.resumed_rightly += 1,
            (Some(began), Some(held)) => {
                let problem = format!("resumed at {began}, but {} iterations were in the ledger", held.done);
                self.problem(&job.spec, problem);
            }
            (Some(0), None) => {}
            (Some(_), None) if view.attempts > 1 => {}
            (began, None) => {
                self.problem(&job.spec, format!("its output says that it began at {began:?}, expected 0"));
            }
            (None, Some(_)) => self.problem(&job.spec, "its output does not say where it resumed"),
        }
    }
}

/// Checks that a session holds each iteration of all its jobs once and in order, and costs the sum of them.
fn check_session(session: &Session, view: &SessionNow) -> Result<(), String> {
    let cost: Usd = session.jobs.iter().map(|job| job.cost).sum();
    let said = session.jobs.iter().flat_map(|job| &job.says);
    let context = view.context().map_err(|error| format!("its context cannot be read: {error}"))?;
    let words: Vec<&str> =
        context.iter().map(|entry| entry["content"].as_str().unwrap_or_default()).collect();
    for (at, expected) in said.enumerate() {
        match words.get(at) {
            Some(word) if word.starts_with(expected) => {}
            other => return Err(format!("entry {at} of its context is {other:?}, expected \"{expected}\"")),
        }
    }
    let compare = |what: &str, found: u64, declared: u64| match found == declared {
        true => Ok(()),
        false => Err(format!("{found} {what}, declared {declared}")),
    };
    compare("context entries", words.len() as u64, session.iterations())?;
    compare("iterations", view.iteration_count.unsigned_abs(), session.iterations())?;
    compare("jobs folded", view.version.unsigned_abs(), session.jobs.len() as u64)?;
    compare("millionths of a dollar", view.cost_usd.micros(), cost.micros())
}
