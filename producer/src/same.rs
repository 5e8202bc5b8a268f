//! Whether a job that comes under a known id is the one that came before.

use job::JobSpec;
use store::KnownJob;

/// The same content, as far as the ledger has kept it. The trace is the request's, so it may differ; of a job that
/// has succeeded the envelope is not kept; one that was cancelled before it came had no content.
pub fn is_same(spec: &JobSpec, known: &KnownJob) -> bool {
    if known.session_key.is_empty() {
        return spec.tenant.is_default();
    }
    let envelope = known.message.as_deref().and_then(|message| job::decode_stored(message).ok());
    match envelope {
        Some(before) => {
            JobSpec { traceparent: None, ..before } == JobSpec { traceparent: None, ..spec.clone() }
        }
        None => {
            known.session_key == spec.session_key().as_str()
                && known.agent_id == spec.agent_id.as_str()
                && known.pool == spec.pool.as_str()
                && known.user_id == spec.user_id
        }
    }
}

#[cfg(test)]
mod tests {
    use job::Json;

    use super::*;

    fn spec(input: &str) -> JobSpec {
        JobSpec::new("s".parse().unwrap(), "echo".parse().unwrap(), Json::parse(input).unwrap())
    }

    fn known(spec: &JobSpec, message: Option<String>) -> KnownJob {
        KnownJob {
            session_key: spec.session_key().into(),
            agent_id: spec.agent_id.to_string(),
            user_id: spec.user_id.clone(),
            pool: spec.pool.to_string(),
            message,
        }
    }

    #[test]
    fn another_input_is_another_job_and_another_trace_is_not() {
        let mut first = spec("[1]");
        first.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok();
        let known = known(&first, Some(job::encode(&first)));
        assert!(is_same(&JobSpec { traceparent: None, ..first.clone() }, &known));
        assert!(!is_same(&JobSpec { input: Json::parse("[2]").unwrap(), ..first }, &known));
    }

    #[test]
    fn what_is_kept_of_a_job_that_has_succeeded_is_compared() {
        let first = spec("[1]");
        let known = known(&first, None);
        assert!(is_same(&first, &known));
        assert!(!is_same(&JobSpec { agent_id: "other".parse().unwrap(), ..first }, &known));
    }
}
