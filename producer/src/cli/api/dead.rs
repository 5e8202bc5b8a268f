//! Failed jobs over the HTTP API. Messages that no worker could read are in RabbitMQ alone.

use std::time::{SystemTime, UNIX_EPOCH};

use futures::{StreamExt, TryStreamExt};
use harness_fleet::{Client, Error, Job, JobFilter};
use job::{JobId, Tenant};
use store::FailedJob;

use super::jobs::{known, view};
use crate::dead::{DeadEntry, DeadEntryDetail, Disposition, Event, Filter, Kind, Listener};

/// Requests at a time.
const AT_A_TIME: usize = 16;

/// The newest failed jobs that pass the filter, the oldest of them first.
pub async fn list(client: &Client, filter: &Filter, limit: usize) -> Result<Vec<DeadEntry>, Error> {
    let mut found: Vec<FailedJob> = chosen(client, filter).take(limit).try_collect().await?;
    found.reverse();
    Ok(found.into_iter().map(DeadEntry::Job).collect())
}

fn chosen<'a>(
    client: &'a Client,
    filter: &'a Filter,
) -> impl futures::Stream<Item = Result<FailedJob, Error>> + 'a {
    let of = &filter.of;
    let (session, agent, pool) = (of.session.clone(), of.agent.clone(), of.pool.clone());
    let jobs = JobFilter { agent, session, pool, labels: of.labels.clone(), ..JobFilter::default() };
    client
        .dead(&jobs, 500)
        .try_filter(move |entry| {
            let is_code = of.code.is_none() || of.code == entry.code;
            std::future::ready(
                filter.takes(Kind::Job) && is_code && is_of_time(filter, entry.finished_at.as_deref()),
            )
        })
        // A list has the codes alone, not the reasons.
        .map(|entry| async { known(client.get(entry?.job_id).await) })
        .buffered(AT_A_TIME)
        .try_filter_map(|job| std::future::ready(Ok(job.and_then(failed))))
}

fn is_of_time(filter: &Filter, finished_at: Option<&str>) -> bool {
    let died = UNIX_EPOCH + std::time::Duration::from_millis(unix_ms(finished_at.unwrap_or_default()) as u64);
    let age = SystemTime::now().duration_since(died).unwrap_or_default();
    filter.of.since.is_none_or(|since| age <= since) && filter.of.before.is_none_or(|before| age > before)
}

fn unix_ms(rfc3339: &str) -> i64 {
    let at = humantime::parse_rfc3339(rfc3339).unwrap_or(UNIX_EPOCH);
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// The job as the ledger would list it, if it has failed.
fn failed(job: Job) -> Option<FailedJob> {
    let (failure, finished_at) = (job.failure?, job.finished_at?);
    Some(FailedJob {
        job_id: job.job_id,
        tenant: Tenant::default(),
        session_id: job.session_id.parse().ok()?,
        agent_id: job.agent_id,
        pool: job.pool,
        attempts: job.attempts,
        code: failure.code.as_str().to_owned(),
        reason: failure.message.unwrap_or_default(),
        finished_unix_ms: unix_ms(&finished_at),
        finished_at,
        redriven_as: None,
        dismissed_at: None,
        message: None,
    })
}

/// One failed job in full, as far as the API shows it.
pub async fn show(client: &Client, id: &str) -> Result<Option<DeadEntryDetail>, Error> {
    let Ok(job_id) = id.parse() else { return Ok(None) };
    let job = known(client.get(job_id).await)?;
    let view = job.clone().map(|job| Box::new(view(job)));
    Ok(job.and_then(failed).map(|failed| DeadEntryDetail::Job(failed, view)))
}

/// What becomes of failed jobs.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// New jobs do their work.
    Redrive,
    /// They leave the list.
    Drop,
}

/// Settles failed jobs: those with these ids, or all that pass the filter.
pub async fn settle(
    client: &Client,
    act: Act,
    selection: Result<&Filter, &[String]>,
    dry_run: bool,
    listener: &mut impl Listener,
) -> Result<(), Error> {
    let ids: Vec<String> = match selection {
        Err(ids) => ids.to_vec(),
        Ok(filter) => chosen(client, filter).map_ok(|job| job.job_id.to_string()).try_collect().await?,
    };
    for id in &ids {
        listener.hear(Event::Looked(1));
        let missing = Event::Missing { id, why: "no such job, or it is not this key's" };
        let Ok(job_id) = id.parse::<JobId>() else {
            listener.hear(missing);
            continue;
        };
        let disposition = match settled(client, act, job_id, dry_run).await {
            Ok(disposition) => disposition,
            Err(error) if error.is_not_found() => {
                listener.hear(missing);
                continue;
            }
            Err(error) => return Err(error),
        };
        listener.hear(Event::Settled { kind: Kind::Job, id, disposition: &disposition });
        listener.keep_up().await;
    }
    Ok(())
}

async fn settled(client: &Client, act: Act, job_id: JobId, dry_run: bool) -> Result<Disposition, Error> {
    if dry_run {
        let job = client.get(job_id).await?;
        let has_failed = job.state == job::JobState::Failed;
        return Ok(match act {
            _ if !has_failed => Disposition::Kept("it has not failed".to_owned()),
            Act::Redrive => Disposition::Redriven(job_id),
            Act::Drop => Disposition::Dropped,
        });
    }
    let settled = match act {
        Act::Redrive => client.redrive(job_id).await.map(|new| Disposition::Redriven(new.job_id)),
        Act::Drop => client.drop_dead(job_id).await.map(|()| Disposition::Dropped),
    };
    match settled {
        Err(Error::Refused(problem)) if problem.status == 409 => Ok(Disposition::Kept(problem.detail)),
        other => other,
    }
}
