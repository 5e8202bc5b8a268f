//! A job that is to be accepted, with its keys: what makes two requests the same one, and two jobs the same work.

use std::time::Duration;

use job::{JobId, JobSpec, RequestedJob};
use sha2::{Digest, Sha256};
use store::{Acceptance, JobKey, KeyKind};

/// How long an idempotency key finds its job.
const IDEMPOTENCY_HELD_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// A job that is to be accepted.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The job.
    pub spec: JobSpec,
    /// The size of its body.
    pub bytes: usize,
    keys: Vec<JobKey>,
    /// The SHA-256 of what the caller sent; of a job with keys.
    sent: [u8; 32],
    has_own_id: bool,
}

impl Candidate {
    /// A job that was asked for in a body of so many bytes.
    pub fn new(asked: RequestedJob, bytes: usize) -> Candidate {
        let is_keyed = asked.idempotency_key.is_some() || asked.unique.is_some();
        let sent = if is_keyed { digest(&asked) } else { [0; 32] };
        let RequestedJob { spec, idempotency_key, unique, has_own_id } = asked;
        let idempotency = idempotency_key.map(|key| JobKey {
            kind: KeyKind::Idempotency,
            key,
            held_for: IDEMPOTENCY_HELD_FOR,
        });
        let unique = unique.map(|unique| JobKey {
            kind: KeyKind::Unique,
            key: unique.key,
            held_for: Duration::from_millis(unique.for_ms.unwrap_or(0)),
        });
        Candidate { spec, bytes, keys: idempotency.into_iter().chain(unique).collect(), sent, has_own_id }
    }

    /// Whether the same request finds its job by a key.
    pub fn is_idempotent(&self) -> bool {
        self.keys.iter().any(|key| key.kind == KeyKind::Idempotency)
    }

    /// Whether the ledger may have it already: by an id of the caller's own, or by a key.
    pub fn may_be_known(&self) -> bool {
        self.has_own_id || !self.keys.is_empty()
    }

    /// As the ledger takes it in.
    pub fn acceptance(&self) -> Acceptance {
        Acceptance::new(self.spec.clone(), self.bytes).with_keys(self.keys.clone(), self.sent)
    }

    /// As the ledger takes it in for the first time: an id that the caller has not named was made for this request.
    pub fn into_acceptance(self) -> Acceptance {
        let acceptance = Acceptance::new(self.spec, self.bytes).with_keys(self.keys, self.sent);
        if self.has_own_id { acceptance } else { acceptance.with_fresh_id() }
    }
}

/// The SHA-256 of what the caller sent: not of what differs between two tries, which are a fresh id, the session that
/// is named by it, and the trace. Spaces and the order of fields do not count.
fn digest(asked: &RequestedJob) -> [u8; 32] {
    let mut spec = JobSpec { traceparent: None, ..asked.spec.clone() };
    if !asked.has_own_id {
        let (fresh, none) = (spec.job_id.to_string(), "00000000-0000-7000-8000-000000000000");
        spec.job_id = none.parse::<JobId>().expect("a UUID of version 7");
        if spec.session_id.as_str() == fresh {
            spec.session_id = none.parse().expect("a name");
        }
    }
    let mut hasher = Sha256::new();
    hasher.update(job::encode(&spec));
    hasher.update(serde_json::to_string(&asked.unique).expect("a text and a number"));
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use job::{Limits, ReplyRule, decode_strict};

    use super::*;

    fn sent(text: &str) -> [u8; 32] {
        let limits = Limits {
            max_bytes: 1_024,
            retention: Duration::from_secs(86_400),
            now_unix_ms: JobId::now().unix_ms(),
            replies: ReplyRule::default(),
        };
        digest(&decode_strict(text, &limits).expect("a job"))
    }

    #[test]
    fn two_tries_of_a_request_are_the_same_and_another_content_is_not() {
        let first = sent(r#"{"agent_id":"echo","input":[1.0]}"#);
        let trace = r#""traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01""#;
        for same in [
            r#"{ "input": [1.0], "agent_id": "echo", "job_id": null }"#.to_owned(),
            r#"{"agent_id":"echo","input":[1.0],"idempotency_key":"k","pool":"default"}"#.to_owned(),
            format!(r#"{{"agent_id":"echo","input":[1.0],{trace}}}"#),
        ] {
            assert_eq!(sent(&same), first, "{same}");
        }
        let own = JobId::now();
        for other in [
            r#"{"agent_id":"echo","input":[1.00]}"#.to_owned(),
            r#"{"agent_id":"other","input":[1.0]}"#.to_owned(),
            r#"{"agent_id":"echo","input":[1.0],"session_id":"s"}"#.to_owned(),
            r#"{"agent_id":"echo","input":[1.0],"timeout_ms":7}"#.to_owned(),
            r#"{"agent_id":"echo","input":[1.0],"unique":{"key":"k"}}"#.to_owned(),
            format!(r#"{{"agent_id":"echo","input":[1.0],"job_id":"{own}"}}"#),
        ] {
            assert_ne!(sent(&other), first, "{other}");
        }
    }
}
