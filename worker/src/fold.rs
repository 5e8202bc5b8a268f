//! Fold: takes a session from the ledger to a harness and back. The ledger keeps the last fold and what was appended
//! since; a harness works on the whole state. This module also decides when a session is written whole again.

use harness::{Appended, Delta, Session};
use job::JobId;
use serde::Deserialize;
use store::{Fold, SessionState};

/// A state of at most this many bytes is written whole at every end, for those who look at it in the ledger.
const SMALL_STATE: usize = 64 * 1024;
/// At most this many checkpoints are left for the next claim to fold.
const MOST_ROWS: usize = 500;

/// Returns whether a job's end writes the session's state whole. It does if the state is small or no larger than what
/// was appended to it, or if too many checkpoints were appended.
pub fn fold_is_due(state: &SessionState, appended: Appended) -> bool {
    let folded = state.folded.as_ref().map_or(0, |texts| texts.iter().map(String::len).sum());
    appended.rows > 0 && (folded <= SMALL_STATE || appended.bytes >= folded || appended.rows > MOST_ROWS)
}

/// Returns the state at the last fold, with the deltas that jobs in `of` have appended since; and how much all jobs
/// have appended since.
pub fn read_session(
    state: &SessionState,
    of: impl Fn(JobId) -> bool,
) -> serde_json::Result<(Session, Appended)> {
    #[derive(Deserialize)]
    struct Added {
        job_id: JobId,
        delta: Delta,
    }
    let mut session = Session::default();
    if let Some([memory, context_window, feature_progress]) = &state.folded {
        session.memory = serde_json::from_str(memory)?;
        session.context_window = serde_json::from_str(context_window)?;
        session.feature_progress = serde_json::from_str(feature_progress)?;
        session.iteration_count = state.iteration_count.unsigned_abs();
        session.usage.cost = state.cost;
        session.usage.input_tokens = state.input_tokens.unsigned_abs();
        session.usage.output_tokens = state.output_tokens.unsigned_abs();
    }
    let mut appended = Appended::default();
    if let Some(text) = &state.deltas {
        let deltas = serde_json::from_str::<Vec<Added>>(text)?;
        appended = Appended { rows: deltas.len(), bytes: text.len() };
        let deltas = deltas.into_iter().filter(|added| of(added.job_id));
        deltas.for_each(|added| session.apply(&added.delta));
    }
    Ok((session, appended))
}

/// Folds the session as a job leaves it. Its open tool calls get their answers here, since nothing will answer them any
/// more.
pub fn fold(mut session: Session) -> Fold {
    session.context_window.extend(session.answers_for_open_calls());
    let text =
        |value: Result<String, serde_json::Error>| value.expect("JSON values are written without errors");
    Fold {
        state: [
            text(serde_json::to_string(&session.memory)),
            text(serde_json::to_string(&session.context_window)),
            text(serde_json::to_string(&session.feature_progress)),
        ],
        iteration_count: session.iteration_count,
        cost: session.usage.cost,
        input_tokens: session.usage.input_tokens,
        output_tokens: session.usage.output_tokens,
    }
}
