//! Explain: stored decisions as a person would tell them.
//!
//! Pure: it is given rows and returns text. What repeats is told once: a pool that stays as it is for an hour is one
//! entry, with the reasons and how often each was the one; what is unknown, stale or forbidden is never hidden in
//! another's entry. The newest comes last, where a terminal leaves it in sight.

mod story;
mod decision_row;
#[cfg(test)]
mod tests;

pub use decision_row::DecisionRow;
pub use story::Story;

/// The story of these decisions, oldest first. Times are UTC.
pub fn explain<'a>(decisions: impl IntoIterator<Item = &'a DecisionRow>) -> String {
    let mut story = Story::default();
    decisions.into_iter().for_each(|row| story.add(row));
    story.finish()
}

/// A leader writes a decision down every minute, whatever it decides. When the last is older than this, none decides.
const SILENT_AFTER_MS: u64 = 150_000;

/// That nothing has been decided for long, when that is so.
pub fn silence(last: &DecisionRow, now_ms: u64) -> Option<String> {
    let silent_ms = now_ms.saturating_sub(last.decided_at_ms);
    (silent_ms > SILENT_AFTER_MS).then(|| {
        format!(
            "Nothing has been decided for {} since: no autoscaler leads, or the one that does cannot see this pool.\n",
            story::seconds(silent_ms)
        )
    })
}
