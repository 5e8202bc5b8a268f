//! The envelope `harness.job.v1`: a job as it is sent over the wire.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use serde_path_to_error::Segment;

use crate::id::clip;
use crate::{JobId, JobSpec, JsonError, Labels, Name, ReplyRule, SessionKey, Tenant, shown};

/// The version that this fleet reads and writes, in the body's field `schema` and in the AMQP property `type`.
pub const SCHEMA: &str = "harness.job.v1";

/// The default of the largest body that is accepted: 1 MiB.
pub const DEFAULT_MAX_BYTES: usize = 1024 * 1024;

/// The limits that a message must keep.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest body, in bytes.
    pub max_bytes: usize,
    /// How long results are kept, and therefore how old a job id may be.
    pub retention: Duration,
    /// The present, as Unix time in milliseconds.
    pub now_unix_ms: u64,
    /// Where results may be sent.
    pub replies: ReplyRule,
}

/// Why a message is not a job: the field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct DecodeError {
    /// The path of the field, such as `retry.max_attempts`, or `body` for the message as a whole.
    pub field: String,
    /// What was given and what would be right.
    pub problem: String,
}

impl DecodeError {
    pub(crate) fn new(field: impl Into<String>, problem: impl ToString) -> Self {
        let (field, problem) = (field.into(), problem.to_string());
        // Both may hold text from an unknown sender, and people read them.
        DecodeError { field: shown(&field).into_owned(), problem: shown(&problem).into_owned() }
    }
}

/// The body's field `schema`. Any value other than [`SCHEMA`] fails to parse.
struct Schema;

impl Serialize for Schema {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(SCHEMA)
    }
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let got = String::deserialize(deserializer)?;
        if got == SCHEMA {
            return Ok(Schema);
        }
        Err(D::Error::custom(format!("got \"{}\", expected \"{SCHEMA}\"", clip(&got))))
    }
}

#[derive(Serialize)]
struct Outgoing<'a> {
    schema: Schema,
    #[serde(flatten)]
    spec: &'a JobSpec,
}

/// Only the version. It is looked at first when a body does not parse, because another version explains the rest.
#[derive(Deserialize)]
struct Incoming {
    #[serde(rename = "schema")]
    _schema: Schema,
}

/// Returns the body of this job's message.
pub fn encode(spec: &JobSpec) -> String {
    // The rest of most jobs is shorter.
    let mut text = Vec::with_capacity(spec.input.as_str().len() + 512);
    serde_json::to_writer(&mut text, &Outgoing { schema: Schema, spec })
        .expect("a job spec has only string keys");
    String::from_utf8(text).expect("JSON is written as UTF-8")
}

/// Reads a message's body. `message_id` is the AMQP property of that name. If it is set, it must equal the body's
/// `job_id`, so that a message can be identified by its properties alone.
pub fn decode(body: &[u8], message_id: Option<&str>, limits: &Limits) -> Result<JobSpec, DecodeError> {
    if body.len() > limits.max_bytes {
        let problem = format!("got {} bytes, expected at most {}", body.len(), limits.max_bytes);
        return Err(DecodeError::new("body", problem));
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| DecodeError::new("body", format!("not UTF-8: {error}, expected JSON")))?;
    parse::<Incoming>(text)?;
    let spec: JobSpec = parse(text)?;
    spec.check(limits)?;
    match message_id {
        Some(id) if id.parse::<JobId>().as_ref() != Ok(&spec.job_id) => {
            let problem = format!("got \"{}\", expected the body's job_id {}", clip(id), spec.job_id);
            Err(DecodeError::new("message_id", problem))
        }
        _ => Ok(spec),
    }
}

/// Reads a job that a person wrote. It is like a message's body, but `schema` and `job_id` may be left out or null.
/// They are then the present version and a new id. With `own_session`, `session_id` may be left out or null as well: the
/// job then has a session of its own, named like the job.
pub fn decode_loose(text: &str, own_session: bool, limits: &Limits) -> Result<JobSpec, DecodeError> {
    #[derive(Deserialize)]
    struct Given<'a> {
        #[serde(borrow, default)]
        schema: Loose<'a>,
        #[serde(borrow, default)]
        job_id: Loose<'a>,
        #[serde(borrow, default)]
        session_id: Loose<'a>,
    }
    let given: Given<'_> = parse(text)?;
    // One that is no id is refused below, by its own name.
    let own = peek(text.as_bytes(), None).job_id.unwrap_or_else(JobId::now);
    let session = if own_session { given.session_id } else { Loose::Given };
    let members = [
        ("schema", given.schema, SCHEMA.to_owned()),
        ("job_id", given.job_id, own.to_string()),
        ("session_id", session, own.to_string()),
    ];
    decode(complete(text, members).as_bytes(), None, limits)
}

/// Writes members into an object that lacks them, or has them as `null`. Edited as text, so that the rest stays
/// exactly as it was written.
pub(crate) fn complete<const N: usize>(text: &str, members: [(&str, Loose<'_>, String); N]) -> String {
    let (mut added, mut nulls) = (String::new(), Vec::new());
    for (name, given, value) in members {
        match given {
            Loose::Absent => added += &format!("\"{name}\":\"{value}\","),
            Loose::Null(null) => nulls.push((null.as_ptr().addr() - text.as_ptr().addr(), value)),
            Loose::Given => {}
        }
    }
    let mut whole = text.to_owned();
    nulls.sort();
    for (at, value) in nulls.into_iter().rev() {
        whole.replace_range(at..at + "null".len(), &format!("\"{value}\""));
    }
    let fields = whole.trim_start().strip_prefix('{').unwrap_or(&whole);
    if fields.trim_start().starts_with('}') {
        added.pop();
    }
    format!("{{{added}{fields}")
}

/// A member that may be left out.
#[derive(Default)]
pub(crate) enum Loose<'a> {
    #[default]
    Absent,
    /// The member's text within the whole.
    Null(&'a str),
    Given,
}

impl<'de: 'a, 'a> Deserialize<'de> for Loose<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        Ok(if raw == "null" { Loose::Null(raw) } else { Loose::Given })
    }
}

/// Reads back what [`decode`] or [`encode`] accepted before, such as a message kept in the ledger. The limits are not
/// checked again: they were checked then, and the clock has moved on since.
pub fn decode_stored(body: &str) -> Result<JobSpec, DecodeError> {
    parse(body)
}

/// Which job a message seems to be, as far as that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peek {
    /// The job, unless body and property contradict each other.
    pub job_id: Option<JobId>,
    /// Its tenant: `default` if the message names none, and `None` if what it names cannot be one.
    pub tenant: Option<Tenant>,
    /// Its session.
    pub session_id: Option<Name>,
    /// Its agent.
    pub agent_id: Option<Name>,
    /// Its labels, where all can be read.
    pub labels: Labels,
}

/// Reads what it can of a message that may not be a job. The result is unchecked: it helps to find the job, and must
/// not be used to run it.
pub fn peek(body: &[u8], message_id: Option<&str>) -> Peek {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Seen {
        job_id: Value,
        tenant: Value,
        session_id: Value,
        agent_id: Value,
        labels: Value,
    }
    let seen: Seen = serde_json::from_slice(body).unwrap_or_default();
    let name = |value: Value| value.as_str()?.parse().ok();
    let inside: Option<JobId> = seen.job_id.as_str().and_then(|id| id.parse().ok());
    let outside: Option<JobId> = message_id.and_then(|id| id.parse().ok());
    let job_id = match (inside, message_id) {
        (_, None) => inside,
        (None, Some(_)) => outside,
        (Some(_), Some(_)) => inside.filter(|id| outside == Some(*id)),
    };
    let tenant = match seen.tenant {
        Value::Null => Some(Tenant::default()),
        tenant => tenant.as_str().and_then(|tenant| tenant.parse().ok()),
    };
    let labels = serde_json::from_value(seen.labels).unwrap_or_default();
    Peek { job_id, tenant, session_id: name(seen.session_id), agent_id: name(seen.agent_id), labels }
}

impl Peek {
    /// Returns the key of the session in the ledger, as far as that can be read.
    pub fn session_key(&self) -> Option<SessionKey> {
        Some(SessionKey::new(self.tenant.as_ref()?, self.session_id.as_ref()?))
    }
}

/// Parses fast. Only if that fails, parses again while keeping track of the path, to name the field at fault.
pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, DecodeError> {
    check_object(text)?;
    serde_json::from_str(text).map_err(|plain| {
        let mut walk = serde_json::Deserializer::from_str(text);
        match serde_path_to_error::deserialize::<_, T>(&mut walk) {
            Err(error)
                if plain.is_data() && error.path().iter().any(|at| !matches!(at, Segment::Unknown)) =>
            {
                DecodeError::new(error.path().to_string(), problem(text, &error.into_inner()))
            }
            _ => {
                let problem = problem(text, &plain);
                let field = unplaced_field(&problem).unwrap_or("body").to_owned();
                DecodeError::new(field, problem)
            }
        }
    })
}

/// Refuses anything but an object: serde would also accept a list of values, whose fields have lost their names, and
/// for any other type its error names one of our structs.
fn check_object(text: &str) -> Result<(), DecodeError> {
    let got = match text.trim_start().chars().next() {
        Some('{') => return Ok(()),
        Some('[') => "an array",
        Some('"') => "a string",
        Some('n') => "null",
        Some('t' | 'f') => "true or false",
        Some(_) | None => "a number",
    };
    Err(DecodeError::new(
        "body",
        match serde_json::from_str::<&RawValue>(text) {
            Ok(_) => format!("got {got}, expected a JSON object"),
            Err(error) => problem(text, &error),
        },
    ))
}

/// Returns serde's message without the names of Rust's types. The position is kept only for text that is not JSON.
fn problem(text: &str, error: &serde_json::Error) -> String {
    if !error.is_data() {
        return JsonError::malformed(text, error).to_string();
    }
    let said = error.to_string();
    let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
    for (name, most) in [("u32", u64::from(u32::MAX)), ("u64", u64::MAX)] {
        if let Some(said) = said.strip_suffix(name) {
            return format!("{said}a whole number from 0 to {most}");
        }
    }
    said.to_owned()
}

/// Returns the name in serde's "missing field `name`" and "duplicate field `name`", which have no path.
fn unplaced_field(problem: &str) -> Option<&str> {
    let named = ["missing field `", "duplicate field `"];
    named.iter().find_map(|start| problem.strip_prefix(start))?.split('`').next()
}

#[cfg(test)]
mod tests;
