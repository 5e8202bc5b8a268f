//! Decides what can be done about a dead letter, and why not. Pure; `read` and `settle` act.
//!
//! A letter whose job has failed in the ledger belongs to that job: the same id in the same session is the same job.
//! Settling the job settles its letter too.

use job::{FailureCode, JobId, JobSpec, JobState, Limits, Name, Peek, SessionKey};
use queue::{DeadLetter, jobs_queue, pool_of_queue};
use store::{FailedJob, Standing};

/// What the caller wants done.
#[derive(Clone, Debug)]
pub enum Act {
    /// Run it again, in another pool if one is given.
    Redrive { to_pool: Option<Name> },
    /// Remove it from the list.
    Drop,
}

/// The step for one letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its failed job is open: act on the job.
    AsJob(JobId),
    /// Its failed job was redriven or dismissed: remove the letter.
    Clear,
    /// Send it back to this queue, then remove it.
    Publish(String),
    /// Remove it.
    Remove,
    /// Keep it, for this reason.
    Keep(String),
}

/// Whether a letter belongs to a failed job.
pub fn is_of_failed(peek: &Peek, standing: Option<&Standing>) -> bool {
    standing.is_some_and(|standing| {
        standing.state == JobState::Failed
            && Some(standing.job_id) == peek.job_id
            && standing.session_key.as_deref() == peek.session_key().as_ref().map(SessionKey::as_str)
            && standing.session_key.is_some()
    })
}

/// Decides about one letter. `standing` is what the ledger says about the job that the letter names.
pub fn step(
    act: &Act,
    letter: &DeadLetter,
    peek: &Peek,
    standing: Option<&Standing>,
    limits: &Limits,
) -> Step {
    if let Some(standing) = standing.filter(|_| is_of_failed(peek, standing)) {
        return if standing.open { Step::AsJob(standing.job_id) } else { Step::Clear };
    }
    let to_pool = match act {
        Act::Drop => return Step::Remove,
        Act::Redrive { to_pool } => to_pool.clone(),
    };
    // What a worker would refuse again stays here, with its reason.
    let spec = match job::decode(&letter.body, letter.message_id.as_deref(), limits) {
        Ok(spec) => spec,
        Err(error) => return Step::Keep(error.to_string()),
    };
    if let Some(standing) = standing {
        let (id, state) = (spec.job_id, standing.state);
        return Step::Keep(match &standing.session_key {
            Some(session) if *session != spec.session_key().as_str() => {
                format!("job_id: got {id}, which is taken by a job of session {session}, expected a new id")
            }
            _ if state.is_end() => format!("its job has ended: {state}"),
            _ => format!("its job is live: {state}"),
        });
    }
    if !spec.tenant.is_default() {
        return Step::Keep(format!(
            "tenant: got \"{}\", and the ledger does not know the job, expected \"default\"",
            spec.tenant
        ));
    }
    match to_pool.or_else(|| pool_of_queue(letter.source_queue.as_deref()?)) {
        Some(pool) => Step::Publish(jobs_queue(&pool)),
        None => Step::Keep("it came from no pool's queue: name one with --to-pool".to_owned()),
    }
}

/// Returns a job that redoes the work of a failed one. It has a new id, from which its deadline counts anew. Its reply
/// carries the old id as correlation id, unless the caller chose another.
pub fn renewed(failed: &FailedJob, to_pool: Option<&Name>, limits: &Limits) -> Result<JobSpec, String> {
    if failed.code == FailureCode::Invalid.as_str() {
        return Err("it was never a job (invalid): what enqueued it has to be corrected".to_owned());
    }
    let message = failed.message.as_deref().ok_or("its envelope was not kept")?;
    let mut spec =
        job::decode_stored(message).map_err(|error| format!("its envelope cannot be read: {error}"))?;
    spec.correlation_id.get_or_insert_with(|| failed.job_id.to_string());
    spec.job_id = JobId::now();
    // It is redriven now.
    (spec.run_at, spec.delay_ms) = (None, None);
    if let Some(pool) = to_pool {
        spec.pool = pool.clone();
    }
    // The same checks as in a worker, including the size.
    job::decode(job::encode(&spec).as_bytes(), None, limits).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use job::Json;
    use std::time::Duration;

    fn limits() -> Limits {
        Limits {
            max_bytes: 1024,
            retention: Duration::from_secs(86_400),
            now_unix_ms: JobId::now().unix_ms(),
            replies: job::ReplyRule::default(),
        }
    }

    fn spec() -> JobSpec {
        let input = Json::parse(r#"{"n":123456789012345678901234567890}"#).unwrap();
        JobSpec::new("s".parse().unwrap(), "echo".parse().unwrap(), input)
    }

    fn letter(body: &str, queue: Option<&str>) -> DeadLetter {
        DeadLetter {
            mark: "m".to_owned(),
            body: body.as_bytes().to_vec(),
            message_id: None,
            kind: None,
            reason: "r".to_owned(),
            code: "c".to_owned(),
            source_queue: queue.map(str::to_owned),
            dead_at_unix_ms: None,
            headers: Default::default(),
        }
    }

    fn decide(act: &Act, letter: &DeadLetter, standing: Option<Standing>) -> Step {
        let peek = job::peek(&letter.body, letter.message_id.as_deref());
        step(act, letter, &peek, standing.as_ref(), &limits())
    }

    const REDRIVE: Act = Act::Redrive { to_pool: None };

    #[test]
    fn a_message_goes_back_to_its_pool_or_to_another_one() {
        let body = job::encode(&spec());
        let from = |queue| letter(&body, queue);
        assert_eq!(
            decide(&REDRIVE, &from(Some("harness.jobs.p")), None),
            Step::Publish("harness.jobs.p".to_owned())
        );
        let elsewhere = Act::Redrive { to_pool: Some("q".parse().unwrap()) };
        for queue in [None, Some("replies"), Some("harness.jobs.p")] {
            assert_eq!(decide(&elsewhere, &from(queue), None), Step::Publish("harness.jobs.q".to_owned()));
        }
        // Otherwise any header could send it anywhere.
        for queue in [None, Some("replies"), Some("harness.dead")] {
            let kept = decide(&REDRIVE, &from(queue), None);
            assert!(matches!(&kept, Step::Keep(why) if why.contains("--to-pool")), "{kept:?}");
        }
        assert_eq!(decide(&Act::Drop, &from(None), None), Step::Remove);
    }

    #[test]
    fn what_a_worker_would_refuse_again_stays_with_its_reason() {
        let garbage = letter("{", Some("harness.jobs.p"));
        let kept = decide(&REDRIVE, &garbage, None);
        assert!(matches!(&kept, Step::Keep(why) if why.starts_with("body: ")), "{kept:?}");
        assert_eq!(decide(&Act::Drop, &garbage, None), Step::Remove);
        // A message alone proves no tenant.
        let other = JobSpec { tenant: "acme".parse().unwrap(), ..spec() };
        let kept = decide(&REDRIVE, &letter(&job::encode(&other), Some("harness.jobs.p")), None);
        assert!(matches!(&kept, Step::Keep(why) if why.starts_with("tenant: got \"acme\"")), "{kept:?}");
    }

    #[test]
    fn the_ledger_decides_where_it_knows_the_job() {
        let spec = spec();
        let letter = letter(&job::encode(&spec), Some("harness.jobs.p"));
        let standing = |state, session: &str, open| {
            let session_key = Some(session.to_owned());
            Some(Standing { job_id: spec.job_id, session_key, state, open })
        };
        for act in [REDRIVE, Act::Drop] {
            let failed = |open| standing(JobState::Failed, "s", open);
            assert_eq!(decide(&act, &letter, failed(true)), Step::AsJob(spec.job_id));
            assert_eq!(decide(&act, &letter, failed(false)), Step::Clear);
        }
        for (standing, text) in [
            (standing(JobState::Succeeded, "s", false), "has ended: succeeded"),
            (standing(JobState::Queued, "s", false), "is live: queued"),
            (standing(JobState::Failed, "other", true), "taken by a job of session other"),
            (standing(JobState::Failed, "~acme/s", true), "taken by a job of session ~acme/s"),
        ] {
            let kept = decide(&REDRIVE, &letter, standing.clone());
            assert!(matches!(&kept, Step::Keep(why) if why.contains(text)), "{kept:?}");
            assert_eq!(decide(&Act::Drop, &letter, standing), Step::Remove);
        }
    }

    fn failed(spec: &JobSpec) -> FailedJob {
        FailedJob {
            job_id: spec.job_id,
            tenant: spec.tenant.clone(),
            session_id: spec.session_id.clone(),
            agent_id: "echo".to_owned(),
            pool: "default".to_owned(),
            attempts: 3,
            code: "timeout".to_owned(),
            reason: "r".to_owned(),
            finished_at: String::new(),
            finished_unix_ms: 0,
            redriven_as: None,
            dismissed_at: None,
            message: Some(job::encode(spec)),
        }
    }

    #[test]
    fn a_renewed_job_is_the_same_but_for_its_id() {
        let mut old = spec();
        old.deadline_ms = Some(60_000);
        old.delay_ms = Some(5);
        old.reply_to = Some("replies".to_owned());
        let new = renewed(&failed(&old), None, &limits()).unwrap();
        assert_ne!(new.job_id, old.job_id);
        assert!(new.deadline_unix_ms() >= old.deadline_unix_ms().map(|ms| ms - 5));
        old.delay_ms = None;
        assert_eq!(new.correlation_id, Some(old.job_id.to_string()));
        let same = JobSpec { job_id: old.job_id, correlation_id: None, ..new };
        assert_eq!(same, old);

        old.correlation_id = Some("the caller's".to_owned());
        let pool: Name = "q".parse().unwrap();
        let new = renewed(&failed(&old), Some(&pool), &limits()).unwrap();
        assert_eq!((new.pool, new.correlation_id), (pool, old.correlation_id));
    }

    #[test]
    fn a_job_without_its_envelope_or_over_the_limits_is_not_renewed() {
        let gone = FailedJob { message: None, ..failed(&spec()) };
        assert_eq!(renewed(&gone, None, &limits()), Err("its envelope was not kept".to_owned()));
        let small = Limits { max_bytes: 10, ..limits() };
        assert!(renewed(&failed(&spec()), None, &small).unwrap_err().starts_with("body: got "));
    }
}
