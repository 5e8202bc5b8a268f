//! Inputs: what a job asks of a person, what a person answers, and the message `harness.input.v1` that carries an
//! answer.
//!
//! An input names the call that it answers, and counts once. So a call's id is the job's own, and never used twice.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::clip;
use crate::message::parse;
use crate::{DecodeError, JobId, Json};

/// The version of the message, in its field `schema` and in the AMQP property `type`.
pub const INPUT_SCHEMA: &str = "harness.input.v1";

/// The largest question, in bytes of JSON.
pub const MAX_QUESTION_BYTES: usize = 64 * 1024;
/// The largest answer, in bytes of JSON.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The most questions that an attempt ends with.
pub const MAX_QUESTIONS: usize = 32;
/// The most inputs that a job has, over all its attempts.
pub const MAX_INPUTS: usize = 1_000;
/// The longest time for an answer: a year.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 86_400);

/// The longest call id, in bytes.
const MAX_CALL_ID: usize = 128;

/// The id of a call that a person answers: 1 to 128 visible characters of ASCII. Providers' ids of tool calls fit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CallId(String);

impl CallId {
    /// Returns it as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CallId {
    type Err = String;
    fn from_str(text: &str) -> Result<CallId, String> {
        if text.is_empty() || text.len() > MAX_CALL_ID || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "got \"{}\", expected 1 to {MAX_CALL_ID} visible ASCII characters without spaces",
                clip(text)
            ));
        }
        Ok(CallId(text.to_owned()))
    }
}

impl TryFrom<String> for CallId {
    type Error = String;
    fn try_from(text: String) -> Result<CallId, String> {
        text.parse()
    }
}

impl From<CallId> for String {
    fn from(id: CallId) -> String {
        id.0
    }
}

impl Borrow<str> for CallId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of answer is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputKind {
    /// Any JSON.
    #[default]
    Question,
    /// Yes or no.
    Approval,
}

impl InputKind {
    /// Both.
    pub const ALL: [InputKind; 2] = [InputKind::Question, InputKind::Approval];

    /// Returns its name in the ledger and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            InputKind::Question => "question",
            InputKind::Approval => "approval",
        }
    }

    /// Returns what answers it, for people.
    pub fn expected(self) -> &'static str {
        match self {
            InputKind::Question => "answer, which is any JSON",
            InputKind::Approval => "approve, which is true or false",
        }
    }
}

impl fmt::Display for InputKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for InputKind {
    type Err = String;
    fn from_str(text: &str) -> Result<InputKind, String> {
        InputKind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| format!("got \"{}\", expected question or approval", clip(text)))
    }
}

/// What a job asks of a person.
#[derive(Clone, Debug, PartialEq)]
pub struct InputRequest {
    /// The call that waits for the answer. A job uses each id once.
    pub call_id: CallId,
    /// What kind of answer it takes.
    pub kind: InputKind,
    /// What the person is shown; its shape is the harness's own.
    pub content: Json,
    /// After how long the job goes on without an answer; `None` for never.
    pub timeout: Option<Duration>,
}

impl InputRequest {
    /// Returns the first of these requests that breaks a limit, as the field and what is wrong with it.
    pub fn check(requests: &[InputRequest]) -> Result<(), DecodeError> {
        if requests.is_empty() || requests.len() > MAX_QUESTIONS {
            let problem = format!("got {}, expected 1 to {MAX_QUESTIONS} at a time", requests.len());
            return Err(DecodeError::new("questions", problem));
        }
        for (at, request) in requests.iter().enumerate() {
            let call_id = &request.call_id;
            if requests[..at].iter().any(|other| other.call_id == *call_id) {
                return Err(DecodeError::new(
                    "call_id",
                    format!("got \"{call_id}\" twice, expected a new id"),
                ));
            }
            let bytes = request.content.as_str().len();
            if bytes > MAX_QUESTION_BYTES {
                let problem = format!(
                    "got {bytes} bytes for call \"{call_id}\", expected at most {MAX_QUESTION_BYTES}"
                );
                return Err(DecodeError::new("question", problem));
            }
            if let Some(timeout) =
                request.timeout.filter(|timeout| timeout.is_zero() || *timeout > MAX_TIMEOUT)
            {
                let most = MAX_TIMEOUT.as_secs();
                let problem =
                    format!("got {} s for call \"{call_id}\", expected 1 to {most}", timeout.as_secs());
                return Err(DecodeError::new("timeout_s", problem));
            }
        }
        Ok(())
    }
}

/// What a person answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum InputAnswer {
    /// To a question.
    Answer {
        /// Any JSON.
        answer: Json,
    },
    /// To a request for approval.
    Approve {
        /// Whether it is approved.
        approve: bool,
    },
}

impl InputAnswer {
    /// Returns the kind of request that it answers.
    pub fn kind(&self) -> InputKind {
        match self {
            InputAnswer::Answer { .. } => InputKind::Question,
            InputAnswer::Approve { .. } => InputKind::Approval,
        }
    }

    /// Returns the answer alone, as JSON.
    pub fn json(&self) -> &str {
        match self {
            InputAnswer::Answer { answer } => answer.as_str(),
            InputAnswer::Approve { approve: true } => "true",
            InputAnswer::Approve { approve: false } => "false",
        }
    }

    /// Makes an answer of what was given. Exactly one of the two must be.
    pub fn of(answer: Option<Json>, approve: Option<bool>) -> Result<InputAnswer, DecodeError> {
        match (answer, approve) {
            (Some(answer), None) if answer.as_str().len() > MAX_ANSWER_BYTES => {
                let problem =
                    format!("got {} bytes, expected at most {MAX_ANSWER_BYTES}", answer.as_str().len());
                Err(DecodeError::new("answer", problem))
            }
            (Some(answer), None) => Ok(InputAnswer::Answer { answer }),
            (None, Some(approve)) => Ok(InputAnswer::Approve { approve }),
            (Some(_), Some(_)) => {
                Err(DecodeError::new("approve", "given beside answer, expected one of the two"))
            }
            (None, None) => Err(DecodeError::new(
                "answer",
                "missing, expected answer (any JSON) or approve (true or false)",
            )),
        }
    }
}

/// A request that is over: answered, or not answered in its time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClosedInput {
    /// The answer; `None` if nobody answered in time.
    #[serde(flatten)]
    pub answer: Option<InputAnswer>,
    /// Who answered, as far as that was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Whether nobody answered in time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
}

/// A person's answer to a job's call.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The job.
    pub job_id: JobId,
    /// The call.
    pub call_id: CallId,
    /// The answer.
    pub answer: InputAnswer,
    /// Who answers, for the job and for those who look at it later.
    pub by: Option<String>,
}

/// The longest name of somebody who answers, in bytes.
const MAX_BY: usize = 200;

impl Input {
    /// Makes an input of its parts as they were given.
    pub fn of(
        job_id: JobId,
        call_id: CallId,
        (answer, approve): (Option<Json>, Option<bool>),
        by: Option<String>,
    ) -> Result<Input, DecodeError> {
        let answer = InputAnswer::of(answer, approve)?;
        if let Some(by) = &by
            && (by.is_empty() || by.len() > MAX_BY || by.contains('\0'))
        {
            let problem = format!("got {} bytes, expected 1 to {MAX_BY} without NUL", by.len());
            return Err(DecodeError::new("by", problem));
        }
        Ok(Input { job_id, call_id, answer, by })
    }
}

#[derive(Deserialize)]
struct InputMessage {
    job_id: JobId,
    call_id: CallId,
    #[serde(default, deserialize_with = "given")]
    answer: Option<Json>,
    approve: Option<bool>,
    by: Option<String>,
}

/// An answer of `null` is an answer.
fn given<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

/// Returns the body of an input's message.
pub fn encode_input(input: &Input) -> String {
    #[derive(Serialize)]
    struct Outgoing<'a> {
        schema: &'static str,
        job_id: JobId,
        call_id: &'a CallId,
        #[serde(flatten)]
        answer: &'a InputAnswer,
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<&'a str>,
    }
    let Input { job_id, call_id, answer, by } = input;
    let outgoing = Outgoing { schema: INPUT_SCHEMA, job_id: *job_id, call_id, answer, by: by.as_deref() };
    serde_json::to_string(&outgoing).expect("it has only string keys")
}

/// Returns whether a message's body says that it is an input.
pub fn is_input(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Head {
        schema: String,
    }
    serde_json::from_slice::<Head>(body).is_ok_and(|head| head.schema == INPUT_SCHEMA)
}

/// Reads an input's message. Unknown fields are ignored.
pub fn decode_input(body: &[u8]) -> Result<Input, DecodeError> {
    let text = std::str::from_utf8(body)
        .map_err(|error| DecodeError::new("body", format!("not UTF-8: {error}, expected JSON")))?;
    let InputMessage { job_id, call_id, answer, approve, by } = parse(text)?;
    Input::of(job_id, call_id, (answer, approve), by)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "0198c0de-7a00-7000-8000-000000000001";

    fn read(members: &str) -> Result<Input, DecodeError> {
        let body = format!(r#"{{"schema":"{INPUT_SCHEMA}","job_id":"{JOB}",{members}}}"#);
        assert!(is_input(body.as_bytes()) || body.contains("\\u0000"), "{body}");
        decode_input(body.as_bytes())
    }

    #[test]
    fn an_input_reads_back_to_the_letter() {
        for members in [
            r#""call_id":"toolu_01A","answer":{"n":12345678901234567890123},"by":"Ada""#,
            r#""call_id":"c","answer":null"#,
            r#""call_id":"c","approve":false"#,
        ] {
            let input = read(members).unwrap();
            assert_eq!(decode_input(encode_input(&input).as_bytes()).unwrap(), input);
            assert!(encode_input(&input).contains(members), "{}", encode_input(&input));
        }
    }

    #[test]
    fn a_wrong_input_is_refused_by_the_name_of_its_field() {
        let large = format!(r#""call_id":"c","answer":"{}""#, "x".repeat(MAX_ANSWER_BYTES));
        let long = format!(r#""call_id":"{}","approve":true"#, "x".repeat(MAX_CALL_ID + 1));
        for (members, field) in [
            (r#""call_id":"c""#, "answer"),
            (r#""call_id":"c","answer":1,"approve":true"#, "approve"),
            (r#""call_id":"c","approve":"yes""#, "approve"),
            (r#""call_id":"c","approve":true,"by":"""#, "by"),
            (r#""call_id":"a b","approve":true"#, "call_id"),
            (r#""call_id":"","approve":true"#, "call_id"),
            (r#""approve":true"#, "call_id"),
            (r#""call_id":"c","answer":"\u0000""#, "answer"),
            (r#""call_id":"c","answer":1e400000"#, "answer"),
            (&large, "answer"),
            (&long, "call_id"),
        ] {
            let error = read(members).unwrap_err();
            assert!(error.to_string().contains(field), "{members}: {error}");
        }
        assert!(!is_input(br#"{"schema":"harness.job.v1"}"#));
    }

    #[test]
    fn requests_are_checked_together() {
        let request = |call_id: &str| InputRequest {
            call_id: call_id.parse().unwrap(),
            kind: InputKind::Question,
            content: Json::null(),
            timeout: None,
        };
        assert_eq!(InputRequest::check(&[request("a"), request("b")]), Ok(()));
        assert_eq!(InputRequest::check(&[]).unwrap_err().field, "questions");
        assert_eq!(InputRequest::check(&[request("a"), request("a")]).unwrap_err().field, "call_id");
        let never = InputRequest { timeout: Some(Duration::ZERO), ..request("a") };
        assert_eq!(InputRequest::check(&[never]).unwrap_err().field, "timeout_s");
    }
}
