//! The client: one job at a time.

use std::time::Duration;

use job::{InputAnswer, JobId, JobSpec};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::address::BadAddress;
use crate::error::Error;
use crate::send::{Api, Ask};
use crate::view::{Job, Session};

/// One request waits at most so long for an end: shorter than the 60 s after which many proxies give up.
const WAIT: Duration = Duration::from_secs(45);

/// The API at an address, for the holder of a key. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) api: Api,
}

impl Client {
    /// The API at this address, such as `https://fleet.example.com`, with this key.
    pub fn new(url: &str, key: Option<&str>) -> Result<Client, BadAddress> {
        Client::trusting(url, key, None)
    }

    /// The same; these authorities (PEM) are trusted beside the system's.
    pub fn trusting(url: &str, key: Option<&str>, authorities: Option<&str>) -> Result<Client, BadAddress> {
        Ok(Client { api: Api::new(url, key, authorities)? })
    }

    /// Tries each request again for so long after its first failure, instead of a minute.
    pub fn retrying_for(mut self, retry_for: Duration) -> Client {
        self.api.retry_for = retry_for;
        self
    }

    /// Submits a job. One that was accepted before is the same job, as it is now.
    pub async fn submit(&self, job: &JobSpec) -> Result<Job, Error> {
        self.api.ask(Ask::post("/v1/jobs").json(text(job))).await
    }

    /// Reads a job.
    pub async fn get(&self, job_id: JobId) -> Result<Job, Error> {
        self.api.ask(Ask::get(&of(job_id, ""))).await
    }

    /// Waits for a job's end, but not longer than this. Returns the job as it is then, so look at its state.
    pub async fn wait(&self, job_id: JobId, timeout: Option<Duration>) -> Result<Job, Error> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = until.map_or(WAIT, |until| until.saturating_duration_since(Instant::now()));
            let path = of(job_id, "");
            let job: Job = self.api.ask(Ask::get(&path).waiting(left.min(WAIT))).await?;
            if job.state.is_end() || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(job);
            }
            if left < Duration::from_secs(1) {
                // The API counts whole seconds.
                tokio::time::sleep(left.min(Duration::from_millis(100))).await;
            }
        }
    }

    /// Cancels a job. One that waits has ended then; a running one ends soon. It is refused (409) where the job had
    /// ended before.
    pub async fn cancel(&self, job_id: JobId) -> Result<Job, Error> {
        self.api.ask(Ask::post(&of(job_id, "/cancel"))).await
    }

    /// Answers a question of a job; `by` names who answers. It is refused (409) where the question was answered in
    /// another way, or its time is over; and where the job has ended, or waits for other calls. The same answer again is
    /// answered as the first.
    pub async fn answer(
        &self,
        job_id: JobId,
        call_id: &str,
        answer: &InputAnswer,
        by: Option<&str>,
    ) -> Result<Job, Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            call_id: &'a str,
            #[serde(flatten)]
            answer: &'a InputAnswer,
            #[serde(skip_serializing_if = "Option::is_none")]
            by: Option<&'a str>,
        }
        let body = serde_json::to_string(&Body { call_id, answer, by }).expect("an answer is JSON");
        self.api.ask(Ask::post(&of(job_id, "/answers")).json(body)).await
    }

    /// Runs a failed job again, and returns the new job. It is refused (409) where the job was redriven before.
    ///
    /// If the answer of a first try was lost, the second try is refused too, and its detail names the new job.
    pub async fn redrive(&self, job_id: JobId) -> Result<Job, Error> {
        self.api.ask(Ask::post(&of(job_id, "/redrive"))).await
    }

    /// Takes a failed job out of the list of dead letters; its result stays. It is refused (409) where that was done
    /// before.
    pub async fn drop_dead(&self, job_id: JobId) -> Result<(), Error> {
        self.api.answer(Ask::delete(&format!("/v1/dead/{job_id}"))).await.map(drop)
    }

    /// Says in one sentence what a job waits for, or how it ended.
    pub async fn why(&self, job_id: JobId) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Why {
            why: String,
        }
        let Why { why } = self.api.ask(Ask::get(&of(job_id, "/why"))).await?;
        Ok(why)
    }

    /// Reads a session.
    pub async fn session(&self, name: &job::Name) -> Result<Session, Error> {
        self.api.ask(Ask::get(&format!("/v1/sessions/{name}"))).await
    }

    /// Empties a session: its memory, context and progress. It is refused (409) while the session has jobs that have
    /// not ended.
    pub async fn empty_session(&self, name: &job::Name) -> Result<(), Error> {
        self.api.answer(Ask::delete(&format!("/v1/sessions/{name}"))).await.map(drop)
    }
}

/// Where a job is, or something of it.
pub(crate) fn of(job_id: JobId, what: &str) -> String {
    format!("/v1/jobs/{job_id}{what}")
}

/// A job as the API reads it.
pub(crate) fn text(job: &JobSpec) -> String {
    serde_json::to_string(job).expect("a job's fields are all JSON")
}
