//! Explain: stored decisions in plain sentences.
//!
//! Pure: it takes rows and returns text. Repeated decisions share an entry: a pool that stays as it is for an hour is
//! one entry, with its reasons and how often each was the decision's. What is unknown, stale or forbidden has its own
//! entry, so that it is never hidden in another. The newest entry comes last, where a terminal leaves it in sight.

mod story;
mod decision_row;
#[cfg(test)]
mod tests;

pub use decision_row::DecisionRow;
pub use story::Story;

/// Returns the story of these decisions, oldest first. Times are UTC.
pub fn explain<'a>(decisions: impl IntoIterator<Item = &'a DecisionRow>) -> String {
    let mut story = Story::default();
    decisions.into_iter().for_each(|row| story.add(row));
    story.finish()
}

/// A leader records a decision every minute, whatever it decides. If the last one is older than this, no autoscaler
/// decides.
const SILENT_AFTER_MS: u64 = 150_000;

/// Returns a warning if nothing has been decided for a long time.
pub fn silence(last: &DecisionRow, now_ms: u64) -> Option<String> {
    let silent_ms = now_ms.saturating_sub(last.decided_at_ms);
    (silent_ms > SILENT_AFTER_MS).then(|| {
        format!(
            "Nothing has been decided in the {} since then: no autoscaler leads, or the leader cannot see this pool.\n",
            story::seconds(silent_ms)
        )
    })
}
