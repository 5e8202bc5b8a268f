//! Compares what was declared with what is in the ledger. Pure: it reads nothing itself.
//!
//! * **lost**: accepted jobs without an end.
//! * **doubled**: what was committed beyond what was declared: surplus iterations of a job or its session, and repeated
//!   entries in its context. A job cannot have two ends; the ledger's key forbids it.

use std::collections::HashMap;

use job::{JobId, JobState};
use producer::SessionNow;
use serde_json::Value;
use store::JobView;

use crate::workload::{End, Job, Workload};

/// The findings.
#[derive(Default)]
pub struct Findings {
    pub lost: u64,
    pub doubled: u64,
    /// Attempts beyond the first of each job.
    pub attempts_again: u64,
    /// One for each broken promise; empty when all is well.
    pub problems: Vec<String>,
}

/// Compares jobs and sessions with the workload.
pub fn check(workload: &Workload, jobs: &[JobView], sessions: &[SessionNow]) -> Findings {
    let mut findings = Findings::default();
    let views: HashMap<JobId, &JobView> = jobs.iter().map(|view| (view.job_id, view)).collect();
    for job in &workload.jobs {
        let view = views.get(&job.spec.job_id).copied();
        if !view.is_some_and(|view| view.state.is_end()) {
            findings.lost += 1;
        }
        let found = view.map_or(Err("not in the ledger".to_owned()), |view| check_job(job, view));
        if let Err(problem) = found {
            findings.problems.push(format!("job {} of {}: {problem}", job.spec.job_id, job.spec.session_id));
        }
        let again = view.map_or(0, |view| view.attempts.saturating_sub(1));
        findings.attempts_again += u64::from(again.unsigned_abs());
    }
    let sessions: HashMap<&str, &SessionNow> =
        sessions.iter().map(|view| (view.session_id.as_str(), view)).collect();
    for (name, jobs) in workload.sessions() {
        let Some(view) = sessions.get(name.as_str()).copied() else {
            findings.problems.push(format!("session {name}: not in the ledger"));
            continue;
        };
        let of_jobs: u64 = jobs.iter().map(|job| beyond(job, views.get(&job.spec.job_id).copied())).sum();
        let words = words(view);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let declared: usize = jobs.iter().map(|job| job.says.len()).sum();
        let counted = view.iteration_count.unsigned_abs().saturating_sub(declared as u64);
        findings.doubled += of_jobs.max(counted).max(repeated(&words));
        if let Err(problem) = check_session(&jobs, view, &words, declared) {
            findings.problems.push(format!("session {name}: {problem}"));
        }
    }
    findings
}

/// Counts a job's iterations beyond those that it declared.
fn beyond(job: &Job, view: Option<&JobView>) -> u64 {
    let found = view.map_or(0, |view| view.iterations.unsigned_abs());
    found.saturating_sub(job.says.len() as u64)
}

fn repeated(words: &[&str]) -> u64 {
    let mut times: HashMap<&str, u64> = HashMap::new();
    for word in words {
        *times.entry(word).or_default() += 1;
    }
    times.values().map(|times| times - 1).sum()
}

fn check_job(job: &Job, view: &JobView) -> Result<(), String> {
    let why = || view.failure.as_ref().map(|failure| format!(" ({failure})")).unwrap_or_default();
    let output = view.output.as_ref().and_then(|output| serde_json::from_str(output.as_str()).ok());
    let output: Value = output.unwrap_or_default();
    let code = view.failure.as_ref().map(|failure| failure.code);
    match &job.end {
        End::Output(_) | End::Played if view.state != JobState::Succeeded => {
            return Err(format!("{}, expected succeeded{}", view.state, why()));
        }
        End::Output(expected) if output != *expected => {
            return Err(format!("output {output}, expected {expected}"));
        }
        End::Played if output["iterations"] != job.says.len() => {
            return Err(format!("output {output}, expected {} iterations", job.says.len()));
        }
        End::Failed(expected) if view.state != JobState::Failed || code != Some(*expected) => {
            return Err(format!("{}{}, expected failed: {expected}", view.state, why()));
        }
        End::Output(_) | End::Played | End::Failed(_) => {}
    }
    match view.iterations.unsigned_abs() == job.says.len() as u64 {
        true => Ok(()),
        false => Err(format!("{} iterations, declared {}", view.iterations, job.says.len())),
    }
}

/// Checks that a session holds each job's iterations once and in order, one job after the other.
fn check_session(jobs: &[&Job], view: &SessionNow, words: &[&str], declared: usize) -> Result<(), String> {
    let mut by_first: HashMap<&str, &Job> =
        jobs.iter().filter_map(|job| Some((job.says.first()?.as_str(), *job))).collect();
    let mut at = 0;
    while let Some(first) = words.get(at) {
        let job = by_first.remove(first);
        let job = job
            .ok_or_else(|| format!("entry {at} of its context, \"{first}\", is not the first of any job"))?;
        let found = &words[at..words.len().min(at + job.says.len())];
        if found != job.says {
            return Err(format!("entries {found:?} in its context, expected {:?}", job.says));
        }
        at += job.says.len();
    }
    let compare = |what: &str, found: usize, declared: usize| match found == declared {
        true => Ok(()),
        false => Err(format!("{found} {what}, declared {declared}")),
    };
    compare("context entries", words.len(), declared)?;
    compare("iterations", view.iteration_count.unsigned_abs() as usize, declared)
}

fn words(view: &SessionNow) -> Vec<String> {
    let entries = view.context().unwrap_or_default();
    entries.iter().map(|entry| entry["content"].as_str().unwrap_or_default().to_owned()).collect()
}
