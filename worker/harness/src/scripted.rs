//! A stand-in for a model that needs no key: it plays the iterations that the job's input declares.
//!
//! The input is either a list of iterations (every field is optional) …
//!
//! ```json
//! {"iterations": [{"delay_ms": 200, "say": "…", "memory": {"…": 1}, "feature_progress": {"…": 1},
//!                  "cost_usd": 0.001, "input_tokens": 10, "output_tokens": 20,
//!                  "fail": {"message": "…", "retryable": true, "attempts": 1},
//!                  "ask": {"call_id": "…", "kind": "question", "question": "…", "timeout_s": 60}}],
//!  "output": {"any": "JSON"}}
//! ```
//!
//! … or only their number: `{"count": 8, "delay_ms": 100}`.
//!
//! An iteration waits. Then it fails if it has `fail`: in every attempt, or in the first `fail.attempts` if that is
//! given. If it has `ask` and there is no answer yet, the attempt ends with the question. Otherwise it streams `say`, if that is given, and checkpoints: one iteration, one context entry `{"role": "assistant", "content": say}`, the
//! patches and the usage. What a person answered is the entry's content if `say` is not given. The output is a summary unless one is given.
//!
//! **Resume.** The checkpoint of each iteration also notes `feature_progress[<job_id>] = {"done": 3, "total": 8}`. So a
//! worker that takes over the job goes on with the fourth, and no iteration is done or paid for twice. The note stays
//! after the last iteration, because the worker may die before it has recorded the job's end, and then the job starts
//! again. Notes of the session's earlier jobs are removed once [`KEPT_NOTES`] newer ones exist.

use std::time::Duration;

use async_trait::async_trait;
use job::{
    CallId, ClosedInput, Failure, FailureCode, InputAnswer, InputKind, InputRequest, JobId, Json, Usd,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Delta, Event, Harness, Run, RunError, Session, Usage};

/// The settings of `harness = "scripted"`: none, because everything is in the input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptedConfig {}

/// How many notes of other jobs a session keeps. If more than this many other jobs run before an unfinished job goes
/// on, that job starts from its beginning.
const KEPT_NOTES: usize = 16;
/// The longest wait of an iteration: an hour.
const MAX_DELAY_MS: u64 = 3_600_000;
/// The most iterations of a job.
const MAX_ITERATIONS: usize = 100_000;

/// A job's input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    iterations: Option<Vec<Iteration>>,
    count: Option<usize>,
    delay_ms: Option<u64>,
    output: Option<Json>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Iteration {
    delay_ms: u64,
    say: Option<String>,
    memory: Option<Map<String, Value>>,
    feature_progress: Option<Map<String, Value>>,
    cost_usd: Usd,
    input_tokens: u64,
    output_tokens: u64,
    fail: Option<Fail>,
    ask: Option<AskOf>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskOf {
    call_id: CallId,
    #[serde(default)]
    kind: InputKind,
    #[serde(default = "Json::null")]
    question: Json,
    timeout_s: Option<u64>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fail {
    message: String,
    #[serde(default)]
    retryable: bool,
    attempts: Option<u32>,
}

/// How far a job has come, as noted in the session.
#[derive(Default, Serialize, Deserialize)]
struct Progress {
    done: usize,
    total: usize,
}

/// Plays scripts.
pub struct Scripted;

#[async_trait]
impl Harness for Scripted {
    async fn run(&self, run: &mut Run) -> Result<Json, RunError> {
        let (iterations, output) = parse(&run.task().input)?;
        let total = iterations.len();
        let resumed_at = done_before(run)?.min(total);
        for (at, mut iteration) in iterations.into_iter().enumerate().skip(resumed_at) {
            wait(run, iteration.delay_ms).await?;
            if let Some(failure) = iteration.failure(run.task().attempt) {
                return Err(failure.into());
            }
            if let Some(ask) = iteration.ask.take() {
                match run.answers().get(&ask.call_id) {
                    None => return Err(RunError::Asks(vec![ask.request()])),
                    Some(closed) => iteration.say = iteration.say.or_else(|| Some(said(closed))),
                }
            }
            if let Some(say) = &iteration.say {
                run.text(say);
            }
            let progress = Progress { done: at + 1, total };
            let delta = iteration.delta(&progress, run);
            run.checkpoint(delta).await?;
            run.event(Event::new("iteration", json!(progress)));
        }
        match output {
            Some(output) => Ok(output),
            None => summary(run, total, resumed_at),
        }
    }
}

impl AskOf {
    fn request(self) -> InputRequest {
        let AskOf { call_id, kind, question, timeout_s } = self;
        InputRequest { call_id, kind, content: question, timeout: timeout_s.map(Duration::from_secs) }
    }
}

fn said(closed: &ClosedInput) -> String {
    match &closed.answer {
        Some(InputAnswer::Answer { answer }) => format!("answered: {}", answer.as_str()),
        Some(InputAnswer::Approve { approve: true }) => "approved".to_owned(),
        Some(InputAnswer::Approve { approve: false }) => "denied".to_owned(),
        None => "nobody answered in time".to_owned(),
    }
}

fn summary(run: &Run, iterations: usize, resumed_at: usize) -> Result<Json, RunError> {
    let summary = json!({"iterations": iterations, "resumed_at": resumed_at, "attempt": run.task().attempt});
    Json::from_value(&summary)
        .map_err(|error| Failure::permanent(FailureCode::Unstorable, error.to_string()).into())
}

/// Reads and checks the whole script, before its first iteration is played.
fn parse(input: &Json) -> Result<(Vec<Iteration>, Option<Json>), Failure> {
    let mut json = serde_json::Deserializer::from_str(input.as_str());
    let script: Script = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        bad_input(path.trim_start_matches('.'), error.inner().to_string())
    })?;
    let iterations = match (script.iterations, script.count) {
        (Some(_), Some(count)) => {
            return Err(bad_input(
                "count",
                format!("got {count} beside iterations, expected one of the two"),
            ));
        }
        (None, None) => {
            return Err(bad_input("iterations", "missing, expected a list of iterations, or count"));
        }
        (Some(_), None) if script.delay_ms.is_some() => {
            return Err(bad_input("delay_ms", "given beside iterations, expected it inside of each"));
        }
        (Some(iterations), None) => iterations,
        (None, Some(count)) if count > MAX_ITERATIONS => {
            return Err(bad_input("count", format!("got {count}, expected at most {MAX_ITERATIONS}")));
        }
        (None, Some(count)) => {
            let delay_ms = script.delay_ms.unwrap_or(0);
            vec![Iteration { delay_ms, ..Iteration::default() }; count]
        }
    };
    if iterations.len() > MAX_ITERATIONS {
        let problem = format!("got {}, expected at most {MAX_ITERATIONS}", iterations.len());
        return Err(bad_input("iterations", problem));
    }
    if let Some((at, bad)) = iterations.iter().enumerate().find(|(_, i)| i.delay_ms > MAX_DELAY_MS) {
        let field = if script.count.is_some() { "delay_ms" } else { &format!("iterations[{at}].delay_ms") };
        return Err(bad_input(field, format!("got {}, expected at most {MAX_DELAY_MS}", bad.delay_ms)));
    }
    Ok((iterations, script.output))
}

fn bad_input(field: &str, problem: impl std::fmt::Display) -> Failure {
    let field = if field.is_empty() { "input".to_owned() } else { format!("input.{field}") };
    Failure::permanent(FailureCode::BadInput, format!("{field}: {problem}"))
}

/// Returns how many iterations of this job the session already holds.
fn done_before(run: &Run) -> Result<usize, Failure> {
    let job_id = run.task().job_id;
    let Some(note) = run.session().feature_progress.get(&job_id.to_string()) else { return Ok(0) };
    // Starting over would pay twice, so the job fails if its note cannot be read.
    let progress = Progress::deserialize(note).map_err(|error| {
        let problem = format!("feature_progress.{job_id}: {error}, expected {{\"done\": …, \"total\": …}}");
        Failure::permanent(FailureCode::HarnessError, problem)
    })?;
    Ok(progress.done)
}

async fn wait(run: &Run, delay_ms: u64) -> Result<(), RunError> {
    tokio::select! {
        biased;
        stop = run.stopped() => Err(stop.into()),
        () = tokio::time::sleep(Duration::from_millis(delay_ms)) => Ok(()),
    }
}

impl Iteration {
    fn failure(&self, attempt: u32) -> Option<Failure> {
        let fail = self.fail.as_ref()?;
        if fail.attempts.is_some_and(|attempts| attempt > attempts) {
            return None;
        }
        let message = fail.message.clone();
        Some(if fail.retryable {
            Failure::retryable(FailureCode::HarnessError, message)
        } else {
            Failure::permanent(FailureCode::HarnessError, message)
        })
    }

    fn delta(self, progress: &Progress, run: &Run) -> Delta {
        let job_id = run.task().job_id;
        let mut notes = self.feature_progress.unwrap_or_default();
        notes.extend(outdated(run.session(), job_id).map(|key| (key, Value::Null)));
        notes.insert(job_id.to_string(), json!(progress));
        let say = self.say.unwrap_or_else(|| format!("iteration {} of {}", progress.done, progress.total));
        let entry = Json::from_value(&json!({"role": "assistant", "content": say}));
        Delta {
            memory: self.memory,
            context_window: vec![entry.expect("it came as JSON that was checked")],
            feature_progress: Some(notes),
            iterations: 1,
            usage: Usage {
                cost: self.cost_usd,
                input_tokens: self.input_tokens,
                output_tokens: self.output_tokens,
            },
            ..Delta::default()
        }
    }
}

/// Returns the notes of other jobs, except the newest few. Job ids are UUIDv7, so they sort by time.
fn outdated(session: &Session, job_id: JobId) -> impl Iterator<Item = String> {
    let mut jobs: Vec<JobId> = session.feature_progress.keys().filter_map(|key| key.parse().ok()).collect();
    jobs.retain(|other| *other != job_id);
    jobs.sort_unstable();
    jobs.truncate(jobs.len().saturating_sub(KEPT_NOTES));
    jobs.into_iter().map(|id| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(input: &str) -> String {
        let Err(failure) = parse(&Json::parse(input).unwrap()) else { panic!("accepted: {input}") };
        assert_eq!((failure.code, failure.retryable), (FailureCode::BadInput, false));
        failure.message
    }

    #[test]
    fn a_wrong_script_is_refused_by_the_name_of_its_field() {
        for (input, start) in [
            ("null", "input: "),
            ("{}", "input.iterations: missing"),
            (r#"{"cuont": 1}"#, "input"),
            (r#"{"count": -1}"#, "input.count: "),
            (r#"{"count": 1, "iterations": []}"#, "input.count: "),
            (r#"{"iterations": [{}, {"delay_ms": "x"}]}"#, "input.iterations[1].delay_ms: "),
            (r#"{"iterations": [{"delay_ms": 99999999}]}"#, "input.iterations[0].delay_ms: "),
            (r#"{"iterations": [{"cost_usd": -1}]}"#, "input.iterations[0].cost_usd: "),
            (r#"{"iterations": [{"fail": {}}]}"#, "input.iterations[0].fail: missing field `message`"),
            (r#"{"count": 3, "delay_ms": 99999999}"#, "input.delay_ms: "),
            (r#"{"iterations": [], "delay_ms": 1}"#, "input.delay_ms: "),
            (r#"{"count": 100001}"#, "input.count: "),
        ] {
            let message = refused(input);
            assert!(message.starts_with(start), "{input}: {message}");
        }
        assert!(refused(r#"{"cuont": 1}"#).contains("cuont"));
    }

    #[test]
    fn notes_of_earlier_jobs_go_once_enough_newer_ones_exist() {
        let mut ids: Vec<JobId> = (0..KEPT_NOTES + 3).map(|_| JobId::now()).collect();
        let job_id = ids.pop().unwrap();
        let mut session = Session::default();
        for id in &ids {
            session.feature_progress.insert(id.to_string(), json!({"done": 1, "total": 1}));
        }
        session.feature_progress.insert("theme".to_owned(), json!(1));
        session.feature_progress.insert(job_id.to_string(), json!({"done": 0, "total": 1}));
        let gone: Vec<String> = outdated(&session, job_id).collect();
        assert_eq!(gone, [ids[0].to_string(), ids[1].to_string()]);
    }
}
