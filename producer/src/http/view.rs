//! A job as the API shows it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;

use job::{CallId, Failure, FailureCode, InputKind, JobId, JobSpec, JobState, Json, Labels, TraceId, Usd};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use store::{JobView, OpenInput};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use uuid::Uuid;

use super::auth::{Principal, Scope};

/// A job.
#[derive(Debug, Serialize, ToSchema)]
pub struct Job {
    /// A UUID of version 7.
    #[schema(value_type = Uuid)]
    pub job_id: JobId,
    /// The trace in which its attempts are: 32 hexadecimal digits.
    #[schema(value_type = String, example = "0af7651916cd43dd8448eb211c80319c")]
    trace_id: TraceId,
    /// Its session.
    pub session_id: String,
    /// Its agent.
    agent_id: String,
    /// Its pool.
    pool: String,
    /// Its labels.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    labels: Labels,
    /// Where it is: scheduled, waiting, publishing, queued, blocked, running or awaiting_input; succeeded, failed or cancelled
    /// when it has ended.
    #[schema(value_type = String, example = "queued")]
    pub state: JobState,
    /// Attempts spent.
    attempts: i32,
    /// Iterations that are safe in the ledger.
    iterations: i64,
    /// Spend so far, in US dollars.
    #[schema(value_type = f64)]
    cost_usd: Usd,
    /// Tokens read so far.
    input_tokens: i64,
    /// Tokens written so far.
    output_tokens: i64,
    /// The worker that runs it or ended it.
    worker_id: Option<Uuid>,
    /// When it was accepted: RFC 3339, UTC.
    pub accepted_at: String,
    /// When its first attempt began: RFC 3339, UTC.
    started_at: Option<String>,
    /// When it ended: RFC 3339, UTC.
    finished_at: Option<String>,
    /// What it asks persons, while it waits for their answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<Question>>)]
    questions: Vec<Question>,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<FailureView>,
    /// What it was given; for keys with the scope `content`. It is not kept of a job that has succeeded, and it is
    /// shown, like its size and digest, only where one job is asked for and not waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    input: Option<Json>,
    /// The size of what it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    input_bytes: Option<usize>,
    /// The SHA-256 of what it was given, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    input_sha256: Option<String>,
    /// What it delivered; for keys with the scope `content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    output: Option<Json>,
    /// The size of what it delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_bytes: Option<usize>,
    /// The SHA-256 of what it delivered, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_sha256: Option<String>,
}

/// A job to be submitted. Any other field is refused.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes `job::JobSpec`, which knows no OpenAPI")]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// A UUID of version 7 of the caller's own, which makes the request safe to repeat; a fresh one when absent.
    job_id: Option<Uuid>,
    /// The session whose state the job continues; one of its own, named by its id, when absent.
    #[schema(pattern = "^[A-Za-z0-9_:@-][A-Za-z0-9._:@-]{0,127}$")]
    session_id: Option<String>,
    /// The agent that does the work.
    #[schema(pattern = "^[A-Za-z0-9_:@-][A-Za-z0-9._:@-]{0,127}$", example = "echo")]
    agent_id: String,
    /// On whose behalf.
    #[schema(min_length = 1, max_length = 255)]
    user_id: Option<String>,
    /// The pool of workers, which must be served.
    #[schema(default = "default")]
    pool: Option<String>,
    /// What the agent is given; any JSON.
    input: Option<serde_json::Value>,
    /// How often and when it is tried again.
    retry: Option<NewRetry>,
    /// Wall-clock limit of one attempt, in milliseconds; the agent's own when absent.
    #[schema(minimum = 1, maximum = 604_800_000)]
    timeout_ms: Option<u64>,
    /// The moment before which the job does not start: RFC 3339, at most half the results' retention ahead. Until then
    /// it holds up no other job of its session.
    #[schema(format = DateTime, example = "2026-03-29T06:30:00+02:00")]
    run_at: Option<String>,
    /// The same as milliseconds from the time inside `job_id`.
    delay_ms: Option<u64>,
    /// Milliseconds from the time inside `job_id`, or from when the job is due if that is later, until the job must have
    /// ended; no limit when absent.
    #[schema(minimum = 1, maximum = 31_536_000_000_u64)]
    deadline_ms: Option<u64>,
    /// How many iterations in a row may leave memory and progress as they are; no limit when absent.
    #[schema(minimum = 1)]
    max_stalled_iterations: Option<u32>,
    /// How many answers its model loop may have, in all attempts. The lower limit holds: the agent's stays.
    #[schema(minimum = 1)]
    max_iterations: Option<u32>,
    /// How many tokens its model loop may read and write, in all attempts. The lower limit holds: the agent's
    /// stays.
    #[schema(minimum = 1)]
    max_tokens: Option<u64>,
    /// What the job's model calls may cost, in all attempts. The lowest limit holds: the agent's and those of the ledger
    /// stay.
    #[schema(schema_with = dollars)]
    max_cost_usd: Option<f64>,
    /// What to do when the session is busy: enqueue, reject, interrupt or rollback.
    #[schema(default = "enqueue")]
    on_busy: Option<String>,
    /// How soon it is wanted, where its pool has a line: high, normal or low.
    #[schema(default = "normal")]
    lane: Option<String>,
    /// Its limit keys, each once: where its pool has a line, a limit of a key bounds how many jobs are at work.
    #[schema(max_items = 4)]
    limits: Option<Vec<String>>,
    /// What to find the job by: at most 8. A key is 1 to 63 of `A-Z a-z 0-9 . _ - /`, a value at most 63 of these and
    /// `: @ +`.
    #[schema(example = json!({"team": "search"}))]
    labels: Option<BTreeMap<String, String>>,
    /// The queue that gets the result; for keys with the scope `admin`.
    #[schema(min_length = 1, max_length = 255)]
    reply_to: Option<String>,
    /// Handed back in the reply.
    #[schema(min_length = 1, max_length = 255)]
    correlation_id: Option<String>,
    /// The caller's trace (W3C Trace Context).
    traceparent: Option<String>,
    /// As the header Idempotency-Key, for a job of a batch.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
    /// Makes the job the only one of its kind.
    unique: Option<NewUnique>,
}

/// A limit in dollars: a number or a text, with at most 6 digits after the point.
fn dollars() -> Schema {
    let number = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).maximum(Some(1_000_000_000));
    let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some(r"^[0-9]{1,10}(\.[0-9]{1,6})?$"));
    let none = ObjectBuilder::new().schema_type(Type::Null);
    OneOfBuilder::new().item(number).item(text).item(none).into()
}

/// What makes a job the only one of its kind: while it has not ended, and for a time.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes `job::Unique`, which knows no OpenAPI")]
#[serde(deny_unknown_fields)]
pub struct NewUnique {
    /// Jobs with the same key are the same work. It is the tenant's.
    #[schema(min_length = 1, max_length = 255)]
    key: String,
    /// Milliseconds from the acceptance on in which the job stays the only one even if it has ended.
    #[schema(minimum = 1, maximum = 2_592_000_000_u64)]
    for_ms: Option<u64>,
}

/// How often and when a job is tried again.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes `job::RetryPolicy`, which knows no OpenAPI")]
#[serde(deny_unknown_fields)]
pub struct NewRetry {
    /// Attempts in all, the first included.
    #[schema(minimum = 1, maximum = 100, default = 3)]
    max_attempts: Option<u32>,
    /// The ceiling of the first wait, in milliseconds.
    #[schema(default = 1000)]
    base_delay_ms: Option<u64>,
    /// The ceiling of every wait, in milliseconds.
    #[schema(maximum = 604_800_000, default = 60000)]
    max_delay_ms: Option<u64>,
}

/// What a submission, a cancel or a redrive is answered with.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Acted {
    /// For keys with the scope `read`.
    Job(Box<Job>),
    /// For the others.
    Receipt(Receipt),
}

/// Which job it is and where it is: all that a key without the scope `read` is shown.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// A UUID of version 7.
    #[schema(value_type = Uuid)]
    job_id: JobId,
    /// Where it is.
    #[schema(value_type = String, example = "queued")]
    state: JobState,
}

impl Acted {
    /// As this caller may see the job.
    pub fn of(job: Job, principal: &Principal) -> Acted {
        match principal.may(Scope::Read) {
            true => Acted::Job(Box::new(job)),
            false => Acted::Receipt(Receipt { job_id: job.job_id, state: job.state }),
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Failure)]
pub struct FailureView {
    /// The kind, from a fixed set.
    #[schema(value_type = String, example = "timeout")]
    code: FailureCode,
    /// For people; for keys with the scope `content`, because it may repeat what the program said.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// The size of the message.
    message_bytes: usize,
    /// The SHA-256 of the message, in hexadecimal.
    message_sha256: String,
    /// Whether another attempt could help.
    retryable: bool,
}

impl FailureView {
    fn of(failure: Failure, content: bool) -> FailureView {
        FailureView {
            code: failure.code,
            message_bytes: failure.message.len(),
            message_sha256: sha256(&failure.message),
            message: Some(failure.message).filter(|_| content),
            retryable: failure.retryable,
        }
    }
}

/// A question that waits for a person.
#[derive(Debug, Serialize, ToSchema)]
pub struct Question {
    /// The call, which the answer names.
    #[schema(value_type = String, example = "toolu_01A")]
    call_id: CallId,
    /// What answers it: for `question` any JSON, for `approval` yes or no.
    #[schema(value_type = String, example = "approval")]
    kind: InputKind,
    /// What the person is shown; for keys with the scope `content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    question: Option<Json>,
    /// The size of what the person is shown.
    question_bytes: usize,
    /// The SHA-256 of what the person is shown, in hexadecimal.
    question_sha256: String,
    /// When it was asked: RFC 3339, UTC.
    asked_at: String,
    /// When the job goes on without an answer: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

impl Question {
    /// The question as it is shown, with what was said if the caller may see it.
    pub fn of(open: OpenInput, content: bool) -> Question {
        let OpenInput { call_id, kind, question, asked_at, expires_at } = open;
        let (question_bytes, question_sha256) = size_and_digest(&question);
        let question = Some(question).filter(|_| content);
        Question { call_id, kind, question, question_bytes, question_sha256, asked_at, expires_at }
    }
}

impl Job {
    /// As the ledger has it. What was said is shown to those who may see it.
    pub fn of(view: JobView, principal: &Principal) -> Job {
        Job::shown(view, principal.may(Scope::Content))
    }

    /// At its end, with what it was given, as a key with or without the scope `content` sees it.
    pub fn ended(view: JobView, envelope: Option<&str>, content: bool) -> Job {
        Job::shown(view, content).with_input(envelope, content)
    }

    /// The job as it is shown, with what was said if the caller may see it.
    pub fn shown(view: JobView, content: bool) -> Job {
        let (output_bytes, output_sha256) = view.output.as_ref().map(size_and_digest).unzip();
        Job {
            job_id: view.job_id,
            trace_id: view.trace_id,
            session_id: view.session_id,
            agent_id: view.agent_id,
            pool: view.pool,
            labels: view.labels,
            state: view.state,
            attempts: view.attempts,
            iterations: view.iterations,
            cost_usd: view.cost_usd,
            input_tokens: view.input_tokens,
            output_tokens: view.output_tokens,
            worker_id: view.worker_id,
            accepted_at: view.accepted_at,
            started_at: view.started_at,
            finished_at: view.finished_at,
            questions: view.questions.into_iter().map(|open| Question::of(open, content)).collect(),
            failure: view.failure.map(|failure| FailureView::of(failure, content)),
            input: None,
            input_bytes: None,
            input_sha256: None,
            output: view.output.filter(|_| content),
            output_bytes,
            output_sha256,
        }
    }

    /// With what it was given, as its envelope has it.
    pub fn given(self, envelope: Option<&str>, principal: &Principal) -> Job {
        self.with_input(envelope, principal.may(Scope::Content))
    }

    fn with_input(self, envelope: Option<&str>, content: bool) -> Job {
        let input = envelope.and_then(|envelope| job::decode_stored(envelope).ok()).map(|spec| spec.input);
        let (input_bytes, input_sha256) = input.as_ref().map(size_and_digest).unzip();
        let input = input.filter(|_| content);
        Job { input, input_bytes, input_sha256, ..self }
    }

    /// As it was accepted at this time.
    pub fn accepted(spec: &JobSpec, state: JobState, accepted_at: String) -> Job {
        Job {
            job_id: spec.job_id,
            trace_id: spec.trace_id(),
            session_id: spec.session_id.to_string(),
            agent_id: spec.agent_id.to_string(),
            pool: spec.pool.to_string(),
            labels: spec.labels.clone(),
            state,
            attempts: 0,
            iterations: 0,
            cost_usd: Usd::ZERO,
            input_tokens: 0,
            output_tokens: 0,
            worker_id: None,
            accepted_at,
            started_at: None,
            finished_at: None,
            questions: Vec::new(),
            failure: None,
            input: None,
            input_bytes: None,
            input_sha256: None,
            output: None,
            output_bytes: None,
            output_sha256: None,
        }
    }
}

/// The size and the SHA-256 of what was said: of its letters, as they are shown with the scope `content`.
pub fn size_and_digest(said: &impl Serialize) -> (usize, String) {
    let mut measured = Measured::default();
    serde_json::to_writer(&mut measured, said).expect("what we show is plain JSON");
    (measured.bytes, hexadecimal(&measured.sha256.finalize()))
}

/// Measures what is written. It keeps none of it, because it may be large.
#[derive(Default)]
struct Measured {
    bytes: usize,
    sha256: Sha256,
}

impl io::Write for Measured {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.bytes += part.len();
        self.sha256.update(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn sha256(text: &str) -> String {
    hexadecimal(&Sha256::digest(text.as_bytes()))
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_hexadecimal() {
        assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
