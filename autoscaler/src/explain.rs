//! Explain: stored decisions as a person would tell them.
//!
//! Pure: it is given rows and returns text. What repeats is told once: a pool that stays as it is for an hour is one
//! entry, with the reasons and how often each was the one; what is unknown, stale or forbidden is never hidden in
//! another's entry. The newest comes last, where a terminal leaves it in sight.

mod story;
mod told;
#[cfg(test)]
mod tests;

pub use story::Story;
pub use told::Told;

/// The story of these decisions, oldest first. Times are UTC.
pub fn explain<'a>(decisions: impl IntoIterator<Item = &'a Told>) -> String {
    let mut story = Story::default();
    decisions.into_iter().for_each(|told| story.add(told));
    story.finish()
}
