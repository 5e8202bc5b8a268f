//! Jobs over the HTTP API: their states, their ends, cancels, and lists.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use harness_fleet::{Client, Error, Job, JobEntry, JobFilter};
use job::{CallId, InputAnswer, JobId, JobState, Json, Name, shown};
use serde_json::{Value, json};
use service::{note, out};
use store::{JobLine, JobView, OpenInput};
use tokio_util::sync::CancellationToken;

use crate::cli::progress::Progress;
use crate::cli::status;

/// Requests at a time.
const AT_A_TIME: usize = 32;
/// How often a job that the ledger does not know yet is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A request waits so long for an end, so that a stop is noticed and one slow job keeps no other from being asked for.
const WAIT: Duration = Duration::from_secs(30);

/// `producer status`.
pub async fn status(client: &Client, jobs: &[JobId], json: bool) -> anyhow::Result<ExitCode> {
    let views = views(client, jobs).await?;
    status::print(&views, json)?;
    Ok(status::exit_code(jobs, &views))
}

async fn views(client: &Client, jobs: &[JobId]) -> Result<Vec<JobView>, Error> {
    let asked = futures::stream::iter(jobs).map(|job_id| async { known(client.get(*job_id).await) });
    let found: Vec<Option<Job>> = asked.buffered(AT_A_TIME).try_collect().await?;
    Ok(found.into_iter().flatten().map(view).collect())
}

/// `producer wait`.
pub async fn wait(
    client: &Client,
    jobs: &[JobId],
    deadline: Instant,
    stop: &CancellationToken,
    (quiet, json): (bool, bool),
) -> anyhow::Result<ExitCode> {
    let progress = Progress::new(Some(jobs.len() as u64));
    let waits = futures::stream::iter(jobs).map(|job_id| async {
        let job = at_end(client, *job_id, deadline, stop).await;
        if matches!(&job, Ok(Some(job)) if job.state.is_end()) {
            progress.advance(1);
        }
        job
    });
    let found: Result<Vec<Option<Job>>, Error> = waits.buffered(AT_A_TIME).try_collect().await;
    progress.finish();
    let views: Vec<JobView> = found?.into_iter().flatten().map(view).collect();
    if !quiet {
        status::print(&views, json)?;
    }
    let ended = views.iter().filter(|view| view.state.is_end()).count();
    if ended < jobs.len() {
        note!("{} of {} jobs have not ended", jobs.len() - ended, jobs.len());
        return Ok(ExitCode::from(3));
    }
    Ok(status::exit_code(jobs, &views))
}

/// The job at its end, or as it is when the time is over or the stop comes; `None` if it is not known then.
async fn at_end(
    client: &Client,
    job_id: JobId,
    deadline: Instant,
    stop: &CancellationToken,
) -> Result<Option<Job>, Error> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let waiting = client.wait(job_id, Some(left.min(WAIT)));
        let Some(answer) = stop.run_until_cancelled(waiting).await else {
            return known(client.get(job_id).await);
        };
        let job = known(answer)?;
        if job.as_ref().is_some_and(|job| job.state.is_end()) || Instant::now() >= deadline {
            return Ok(job);
        }
        if job.is_none() {
            // Its message may be on its way.
            stop.run_until_cancelled(tokio::time::sleep(LOOK_AGAIN)).await;
        }
    }
}

/// `producer why`.
pub async fn why(client: &Client, job_id: JobId) -> anyhow::Result<ExitCode> {
    let Some(why) = known(client.why(job_id).await)? else {
        note!("{job_id}: no such job in the ledger, or it is not this key's");
        return Ok(ExitCode::FAILURE);
    };
    out!("{}", shown(&why));
    Ok(ExitCode::SUCCESS)
}

/// `producer answer`.
pub async fn answer(
    client: &Client,
    job_id: JobId,
    call_id: &CallId,
    answer: &InputAnswer,
    by: Option<&str>,
) -> anyhow::Result<ExitCode> {
    match client.answer(job_id, call_id.as_str(), answer, by).await {
        Ok(answered) => {
            out!("{job_id} {}", answered.state);
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.is_not_found() => {
            note!("job_id: no such job in the ledger, or it is not this key's");
            Ok(ExitCode::from(3))
        }
        Err(Error::Refused(problem)) if problem.status == 409 => {
            note!("{}: {}", problem.field.as_deref().unwrap_or("call_id"), shown(&problem.detail));
            Ok(ExitCode::from(3))
        }
        Err(error) => Err(error.into()),
    }
}

/// `producer cancel`. An id that is not known is not cancelled ahead: it may become another tenant's.
pub async fn cancel(
    client: &Client,
    mut jobs: Vec<JobId>,
    session: Option<Name>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    if session.is_some() {
        // Newest first, so that no blocked job starts when the one before it ends.
        let states = JobState::ALL.into_iter().filter(|state| !state.is_end()).collect();
        let filter = JobFilter { session, states, ..JobFilter::default() };
        let listed: Vec<JobEntry> = client.jobs(&filter, 500).try_collect().await?;
        jobs.extend(listed.into_iter().map(|entry| entry.job_id));
    }
    let mut code = ExitCode::SUCCESS;
    for job_id in jobs {
        let (answer, state) = match client.cancel(job_id).await {
            Ok(job) if job.state == JobState::Cancelled => ("cancelled", None),
            Ok(_) => ("stopping", None),
            Err(error) if error.is_not_found() => ("not_known", None),
            Err(error) if error.status() == Some(409) => {
                ("ended_before", known(client.get(job_id).await)?.map(|job| job.state))
            }
            Err(error) => return Err(error.into()),
        };
        if !matches!(answer, "cancelled" | "stopping") {
            code = ExitCode::from(3);
        }
        if json {
            out!("{}", line(job_id, answer, state));
        } else {
            out!("{job_id} {}", words(answer, state));
        }
    }
    Ok(code)
}

fn words(answer: &str, state: Option<JobState>) -> String {
    match (answer, state) {
        ("ended_before", Some(state)) => format!("had ended before: {state}"),
        ("ended_before", None) => "had ended before".to_owned(),
        ("not_known", _) => "is not known (yet), or is not this key's".to_owned(),
        (answer, _) => answer.to_owned(),
    }
}

fn line(job_id: JobId, answer: &str, state: Option<JobState>) -> Value {
    json!({"job_id": job_id, "answer": answer, "state": state.map(JobState::as_str)})
}

/// Lists jobs, newest first, and calls `found` with each.
pub async fn every_line(
    client: &Client,
    filter: store::JobFilter,
    limit: usize,
    mut found: impl FnMut(JobLine),
) -> anyhow::Result<()> {
    let store::JobFilter { states, agent, session, pool, labels, .. } = filter;
    let filter = JobFilter { states, agent, session, pool, labels, ..JobFilter::default() };
    let mut entries = std::pin::pin!(client.jobs(&filter, limit).take(limit));
    while let Some(entry) = entries.try_next().await? {
        let JobEntry { job_id, session_id, agent_id, pool, state, attempts, accepted_at, finished_at, code } =
            entry;
        found(JobLine {
            job_id,
            session_id,
            agent_id,
            pool,
            state,
            attempts,
            accepted_at,
            finished_at,
            code,
        });
    }
    Ok(())
}

/// Nothing where there is no such thing.
pub(super) fn known<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// A question as the ledger would show it; what it asks is there for keys with the scope `content` alone.
fn open(question: harness_fleet::Question) -> Option<OpenInput> {
    let harness_fleet::Question { call_id, kind, question, asked_at, expires_at, .. } = question;
    let question = question.unwrap_or_else(Json::null);
    Some(OpenInput { call_id: call_id.parse().ok()?, kind, question, asked_at, expires_at })
}

/// The job as the ledger would show it. The tenant is the key's, and is not shown.
pub(super) fn view(job: Job) -> JobView {
    JobView {
        questions: job.questions.into_iter().filter_map(open).collect(),
        job_id: job.job_id,
        trace_id: job.trace_id.unwrap_or_else(|| job.job_id.into()),
        tenant: job::Tenant::default(),
        session_id: job.session_id,
        agent_id: job.agent_id,
        pool: job.pool,
        labels: job.labels,
        state: job.state,
        attempts: job.attempts,
        iterations: job.iterations,
        cost_usd: job.cost_usd,
        input_tokens: job.input_tokens,
        output_tokens: job.output_tokens,
        worker_id: job.worker_id,
        accepted_at: job.accepted_at,
        started_at: job.started_at,
        finished_at: job.finished_at,
        // Without the scope `content` there is no message.
        failure: job.failure.map(|failure| job::Failure {
            code: failure.code,
            message: failure.message.unwrap_or_default(),
            retryable: failure.retryable,
        }),
        output: job.output,
    }
}
