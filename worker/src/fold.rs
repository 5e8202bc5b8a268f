//! Fold: takes a session from the ledger to a harness and back. The ledger keeps the last fold and what was appended
//! since; a harness works on the whole state. This module also decides when a session is written whole again.

use harness::{Delta, Parts, Session};
use job::JobId;
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::value::RawValue;
use store::{Fold, SessionState};

/// A fold rewrites the state and moves the checkpoints, so what is only appended stays in parts: up to this many
/// checkpoints, which the next claim reads one by one.
const MANY_ROWS: usize = 256;
/// More than so many are folded even if the state is much larger than they are.
const MOST_ROWS: usize = 1024;

/// A session's state that is to be written whole.
pub struct Whole {
    /// The state.
    pub session: Session,
    /// Whether what the job appended is no part of it, because the job is rolled back.
    pub undone: bool,
}

impl Whole {
    /// Returns the session as a job leaves it, if the job's end is to write it whole: if most of what lies there is not
    /// of the state any more (a context was replaced, memory was overwritten), or if too many checkpoints were appended,
    /// which together outweigh the last fold.
    pub fn if_due(parts: Parts, session: Session) -> Option<Whole> {
        let Parts { folded, rows, bytes, .. } = parts;
        let many = rows > MANY_ROWS && bytes >= folded || rows > MOST_ROWS;
        let due = rows > 0 && (many || parts.outweigh(session.bytes(), 0));
        due.then_some(Whole { session, undone: false })
    }
}

/// A checkpoint, as the ledger gives it.
#[derive(Deserialize)]
struct Added<'a> {
    job_id: JobId,
    #[serde(borrow)]
    delta: &'a RawValue,
    #[serde(borrow)]
    entries: Option<&'a RawValue>,
}

/// What a run begins with.
pub struct Beginning {
    /// The session.
    pub session: Session,
    /// The session as it was before the job, as far as this can be told: if an earlier attempt has folded it, only the
    /// ledger knows that state. Its entries are shared with `session`.
    pub before_job: Session,
    /// What lies there of the session.
    pub parts: Parts,
    /// Whether earlier attempts at the job have appended anything to it.
    pub has_appended: bool,
    /// For how many iterations in a row the job has left memory and progress unchanged, as far as this can be told: since
    /// an earlier attempt has folded the session, if one has.
    pub stalled: u64,
}

impl Beginning {
    /// Reads a session for a job: the state at the last fold, with all deltas since.
    pub fn read(state: &SessionState, job_id: JobId) -> serde_json::Result<Beginning> {
        if let Some(hash) = &state.missing {
            let problem = format!("it refers to the blob {hash}, which is not there");
            return Err(serde_json::Error::custom(problem));
        }
        let mut session = Session::default();
        let mut parts = Parts { has_before: state.folded_within, ..Parts::default() };
        if let Some(folded) = &state.folded {
            parts.folded = folded.iter().map(String::len).sum();
            session = Session::of_kept(folded.each_ref().map(String::as_str))?;
            session.iteration_count = state.iteration_count.unsigned_abs();
            session.usage.cost = state.cost;
            session.usage.input_tokens = state.input_tokens.unsigned_abs();
            session.usage.output_tokens = state.output_tokens.unsigned_abs();
        }
        let mut before_job = session.clone();
        let (mut has_appended, mut stalled) = (state.folded_within, 0);
        if let Some(text) = &state.deltas {
            let deltas = serde_json::from_str::<Vec<Added<'_>>>(text)?;
            (parts.rows, parts.bytes) = (deltas.len(), text.len());
            for added in deltas {
                let delta = Delta::of_kept(added.delta.get(), added.entries.map(RawValue::get))?;
                if added.job_id == job_id {
                    has_appended = true;
                    stalled = session.stalled(stalled, &delta);
                } else {
                    before_job.apply(&delta);
                }
                session.apply(&delta);
            }
        }
        Ok(Beginning { session, before_job, parts, has_appended, stalled })
    }
}

/// Folds the session as a job leaves it.
pub fn fold(Whole { session, undone }: Whole) -> Fold {
    Fold { undone, ..whole(&session) }
}

/// Returns a session as it is written whole.
pub fn whole(session: &Session) -> Fold {
    Fold {
        state: session.to_kept().expect("JSON values are written without errors"),
        iteration_count: session.iteration_count,
        cost: session.usage.cost,
        input_tokens: session.usage.input_tokens,
        output_tokens: session.usage.output_tokens,
        undone: false,
        blobs: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use job::Json;
    use serde_json::json;

    fn state(folded: &Session, deltas: &[(JobId, Delta)]) -> SessionState {
        let kept = |(job_id, delta): &(JobId, Delta)| {
            let (delta, entries) = delta.to_kept().unwrap();
            let entries = entries.as_deref().unwrap_or("null");
            format!(r#"{{"job_id" : "{job_id}", "delta" : {delta}, "entries" : {entries}}}"#)
        };
        let deltas: Vec<String> = deltas.iter().map(kept).collect();
        SessionState {
            folded: Some(folded.to_kept().unwrap()),
            deltas: (!deltas.is_empty()).then(|| format!("[{}]", deltas.join(", "))),
            ..SessionState::default()
        }
    }

    fn says(bytes: usize) -> Delta {
        let entry = Json::from_value(&"x".repeat(bytes)).unwrap();
        Delta { context_window: vec![entry], ..Delta::default() }
    }

    fn due(folded: &Session, deltas: Vec<Delta>) -> bool {
        let job = JobId::now();
        let deltas: Vec<(JobId, Delta)> = deltas.into_iter().map(|delta| (job, delta)).collect();
        let Beginning { session, parts, .. } = Beginning::read(&state(folded, &deltas), job).unwrap();
        Whole::if_due(parts, session).is_some()
    }

    #[test]
    fn what_is_only_appended_stays_in_parts_until_it_is_many_and_outweighs_the_last_fold() {
        let large = {
            let mut session = Session::default();
            session.apply(&says(1_000_000));
            session
        };
        assert!(!due(&Session::default(), vec![]));
        assert!(!due(&Session::default(), vec![says(10_000); 200]));
        assert!(due(&Session::default(), vec![says(10_000); 257]));
        assert!(!due(&large, vec![says(10); 257]));
        assert!(due(&large, vec![says(10_000); 257]));
        assert!(due(&large, vec![says(10); 1_025]));
    }

    #[test]
    fn a_state_is_written_whole_once_most_of_what_lies_there_is_not_of_it_any_more() {
        let replaced = Delta { replace_context: true, ..says(1_000) };
        assert!(!due(&Session::default(), vec![says(60_000), replaced.clone()]));
        assert!(due(&Session::default(), vec![says(70_000), replaced.clone()]));
        let remembers = |n: usize| {
            let memory = json!({"notes": format!("{n:010000}")});
            Delta { memory: memory.as_object().cloned(), ..Delta::default() }
        };
        assert!(!due(&Session::default(), (0..7).map(remembers).collect()));
        assert!(due(&Session::default(), (0..10).map(remembers).collect()));
    }

    #[test]
    fn iterations_without_progress_are_counted_over_the_attempts_at_a_job() {
        let (job, other) = (JobId::now(), JobId::now());
        let does = |iterations, memory: serde_json::Value| Delta {
            iterations,
            memory: memory.as_object().cloned(),
            ..says(5)
        };
        let same = || does(1, json!({"a": {"b": 1}, "gone": null}));
        let stalled = |deltas: &[(JobId, Delta)]| {
            Beginning::read(&state(&Session::default(), deltas), job).unwrap().stalled
        };
        let deltas = [(other, does(7, json!({}))), (job, same()), (job, same()), (job, does(2, json!(null)))];
        assert_eq!(stalled(&deltas), 3);
        assert_eq!(stalled(&[&deltas[..], &[(job, does(1, json!({"a": {"b": null}})))]].concat()), 0);
        assert_eq!(stalled(&deltas[..1]), 0, "another job's");
    }

    #[test]
    fn a_delta_is_read_however_deep_it_is() {
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(124), "]".repeat(124));
        let memory = serde_json::from_str(&deep).unwrap();
        let delta = Delta { memory: Some(memory), ..Delta::default() };
        let (job, other) = (JobId::now(), JobId::now());
        let state = state(&Session::default(), &[(job, delta), (other, says(5))]);
        let read = Beginning::read(&state, job).unwrap();
        let Beginning { session, before_job, parts, .. } = &read;
        assert_eq!((session.memory.len(), session.context_window.len(), parts.rows), (1, 1, 2));
        assert_eq!((before_job.memory.len(), before_job.context_window.len()), (0, 1));
        let of_another = Beginning::read(&state, JobId::now()).unwrap();
        assert_eq!((read.has_appended, of_another.has_appended), (true, false));
        assert!(of_another.before_job == of_another.session);
    }
}
