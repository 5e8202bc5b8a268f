//! The job of a schedule: the object that is enqueued at each instant.

use std::collections::BTreeMap;

use job::{DecodeError, JobSpec, Label, Labels, Limits, Name, decode_strict};
use serde_json::value::{RawValue, to_raw_value};

/// Each firing has its own of these.
const OF_A_FIRING: [&str; 4] = ["job_id", "run_at", "delay_ms", "idempotency_key"];
/// The label by which a schedule's jobs are found.
const LABEL: &str = "schedule";

/// The job of a schedule of this name: as text, with the label `schedule`, and as its first firing would read it.
pub fn check(text: &str, name: &Name, limits: &Limits) -> Result<(String, JobSpec), DecodeError> {
    let wrong = |field: &str, problem: String| DecodeError { field: field.to_owned(), problem };
    // Its members are in it once: the decoder has refused others.
    decode_strict(text, limits)?;
    let mut members: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(text).map_err(|error| wrong("body", error.to_string()))?;
    members.retain(|_, value| value.get() != "null");
    if let Some(field) = OF_A_FIRING.into_iter().find(|field| members.contains_key(*field)) {
        return Err(wrong(field, "given, but each firing has one of its own".to_owned()));
    }
    let given = members.get("labels").map(|labels| serde_json::from_str::<Labels>(labels.get()));
    let given = given.transpose().map_err(|error| wrong("labels", error.to_string()))?.unwrap_or_default();
    let label: Label = format!("{LABEL}={name}").parse().map_err(|problem| wrong("name", problem))?;
    let others = given.texts().filter(|text| !text.starts_with("schedule="));
    let others: Result<Vec<Label>, String> = others.map(|text| text.parse()).collect();
    let others = others.map_err(|problem| wrong("labels", problem))?;
    let labels = Labels::of(others.into_iter().chain([label]))?;
    let labels = to_raw_value(&labels).map_err(|error| wrong("labels", error.to_string()))?;
    members.insert("labels".to_owned(), labels);
    let text = serde_json::to_string(&members).map_err(|error| wrong("body", error.to_string()))?;
    let asked = decode_strict(&text, limits)?;
    Ok((text, asked.spec))
}

#[cfg(test)]
mod tests {
    use job::{JobId, ReplyRule};

    use super::*;

    fn checked(text: &str) -> Result<(String, JobSpec), DecodeError> {
        let limits = Limits {
            max_bytes: 10_000,
            retention: std::time::Duration::from_secs(86_400),
            now_unix_ms: JobId::now().unix_ms(),
            replies: ReplyRule::default(),
        };
        check(text, &"nightly".parse().unwrap(), &limits)
    }

    #[test]
    fn a_job_is_kept_to_the_letter_with_the_name_of_its_schedule() {
        let (text, spec) =
            checked(r#"{"agent_id":"echo","input":{"n":1e400, "m":0.10},"job_id":null}"#).unwrap();
        assert_eq!(
            text,
            r#"{"agent_id":"echo","input":{"n":1e400, "m":0.10},"labels":{"schedule":"nightly"}}"#
        );
        assert_eq!(spec.labels.texts().collect::<Vec<_>>(), ["schedule=nightly"]);
        let (_, spec) = checked(r#"{"agent_id":"echo","labels":{"team":"a","schedule":"other"}}"#).unwrap();
        assert_eq!(spec.labels.texts().collect::<Vec<_>>(), ["schedule=nightly", "team=a"]);
    }

    #[test]
    fn what_belongs_to_one_firing_is_refused() {
        for (field, value) in
            [("delay_ms", "5"), ("idempotency_key", "\"k\""), ("run_at", "\"2030-01-01T00:00:00Z\"")]
        {
            let text = format!(r#"{{"agent_id":"echo","{field}":{value}}}"#);
            assert_eq!(checked(&text).unwrap_err().field, field);
        }
        assert_eq!(checked(r#"{"agent_id":"echo","agent":1}"#).unwrap_err().field, "agent");
        let many: String = (0..8).map(|n| format!("\"k{n}\":\"\",")).collect();
        let many = format!(r#"{{"agent_id":"echo","labels":{{{}}}}}"#, many.trim_end_matches(','));
        assert_eq!(checked(&many).unwrap_err().field, "labels");
    }
}
