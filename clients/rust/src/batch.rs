//! Many jobs in few requests. Each is accepted or refused for itself.

use futures::stream::{Stream, StreamExt};
use job::{JobId, JobSpec, JobState};
use serde::Deserialize;
use std::time::Duration;

use crate::client::{Client, text};
use crate::error::{Error, Problem};
use crate::send::Ask;
use crate::tries::{Tries, is_retried};

/// Jobs of one request, and their bytes.
const GROUP: usize = 1_000;
const GROUP_BYTES: usize = 8 << 20;
/// The answers to jobs have no `Retry-After` of their own.
const PAUSE: Duration = Duration::from_secs(1);

/// What became of one job.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    /// 202, or 200 if it was accepted before; otherwise `problem` says why it was refused.
    pub status: u16,
    /// The job.
    pub job_id: Option<JobId>,
    /// Its session.
    pub session_id: Option<String>,
    /// Its state.
    pub state: Option<JobState>,
    /// When it was accepted: RFC 3339, UTC.
    pub accepted_at: Option<String>,
    /// Why it was refused.
    pub problem: Option<Problem>,
}

/// What became of many jobs.
#[derive(Debug, Default)]
pub struct Batch {
    /// An answer for each job, in order, up to the first that has none.
    pub answers: Vec<Answer>,
    /// Why the others have none. The first of them may have been accepted: submit all of them again.
    pub error: Option<Error>,
}

#[derive(Deserialize)]
struct Reply {
    complete: bool,
    items: Vec<Answer>,
}

impl Client {
    /// Submits jobs, in order. Jobs of one session run in this order.
    pub async fn submit_all(&self, jobs: &[JobSpec]) -> Batch {
        let lines: Vec<String> = jobs.iter().map(text).collect();
        let mut batch = Batch::default();
        let mut tries = Tries::begin(self.api.retry_for);
        while let [_, ..] = &lines[batch.answers.len()..] {
            let open = &lines[batch.answers.len()..];
            let sent = group(open);
            let asking = Ask::post("/v1/jobs/batch").lines(sent.join("\n"));
            let reply: Reply = match self.api.ask(asking).await {
                Ok(reply) => reply,
                Err(error) => return Batch { error: Some(error), ..batch },
            };
            let (done, problem) = parted(reply);
            if !done.is_empty() {
                tries = Tries::begin(self.api.retry_for);
            }
            let is_whole = done.len() >= sent.len();
            batch.answers.extend(done.into_iter().take(sent.len()));
            if is_whole {
                continue;
            }
            let error = Error::Refused(problem.clone());
            let paused =
                if is_retried(problem.status) { tries.pause(error, PAUSE).await } else { Err(error) };
            if let Err(error) = paused {
                return Batch { error: Some(error), ..batch };
            }
        }
        batch
    }

    /// Submits a stream of jobs as they come, in groups, and answers each in order. It ends at the first error, after
    /// which jobs that were taken from the stream may or may not be accepted.
    pub fn batch(&self, jobs: impl Stream<Item = JobSpec>) -> impl Stream<Item = Result<Answer, Error>> {
        let client = self.clone();
        let answered = jobs.ready_chunks(GROUP).then(move |jobs| {
            let client = client.clone();
            async move { client.submit_all(&jobs).await }
        });
        let results = answered.flat_map(|Batch { answers, error }| {
            futures::stream::iter(answers.into_iter().map(Ok).chain(error.map(Err)))
        });
        let mut failed = false;
        results.take_while(move |result| {
            let goes_on = !failed;
            failed = result.is_err();
            std::future::ready(goes_on)
        })
    }
}

/// The first of these lines that fit into a request.
fn group(lines: &[String]) -> &[String] {
    let mut bytes = 0;
    let fit = lines.iter().take(GROUP).take_while(|line| {
        let first = bytes == 0;
        bytes += line.len() + 1;
        first || bytes <= GROUP_BYTES
    });
    &lines[..fit.count()]
}

/// The answers up to the first job that should be sent again, and why it should.
fn parted(reply: Reply) -> (Vec<Answer>, Problem) {
    let Reply { complete, items: mut answers } = reply;
    // The last answer of a batch that was not read to its end says why, and belongs to no job.
    let why = if complete { None } else { answers.pop() };
    // All from there on, so that jobs of one session keep their order.
    let open = answers.iter().position(|answer| is_retried(answer.status)).unwrap_or(answers.len());
    let why = answers.drain(open..).next().or(why);
    let unanswered =
        || Problem { title: "Jobs of a batch were not answered".to_owned(), ..Problem::default() };
    (answers, why.and_then(|answer| answer.problem).unwrap_or_else(unanswered))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(complete: bool, statuses: &[u16]) -> Reply {
        let answer = |status: &u16| Answer {
            status: *status,
            job_id: None,
            session_id: None,
            state: None,
            accepted_at: None,
            problem: (*status > 299).then(|| Problem { status: *status, ..Problem::default() }),
        };
        Reply { complete, items: statuses.iter().map(answer).collect() }
    }

    #[test]
    fn what_follows_the_first_job_that_is_sent_again_is_sent_again_as_well() {
        for (complete, statuses, done, why) in [
            (true, &[202, 422, 200][..], 3, 0),
            (false, &[202, 422, 503], 2, 503),
            (false, &[202, 503, 202, 503], 1, 503),
            (true, &[429, 202], 0, 429),
            (false, &[413], 0, 413),
            (false, &[], 0, 0),
        ] {
            let (answers, problem) = parted(reply(complete, statuses));
            assert_eq!((answers.len(), problem.status), (done, why), "{statuses:?}");
        }
    }

    #[test]
    fn a_group_has_at_least_one_line_and_a_bound() {
        assert_eq!(group(&vec!["x".to_owned(); GROUP + 1]).len(), GROUP);
        assert_eq!(group(&vec!["x".repeat(GROUP_BYTES / 2); 3]).len(), 1);
        assert_eq!(group(&["x".repeat(GROUP_BYTES + 7)]).len(), 1);
    }
}
