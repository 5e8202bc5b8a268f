//! What `producer doctor` shows of questions that wait for persons.

use std::time::Duration;

use store::Store;

use super::{Checklist, chain};

/// A question is old when it has waited for so long.
const OLD_AFTER: Duration = Duration::from_secs(86_400);

/// A question without an answer is a person's concern, so it is shown, and nothing is missing.
pub(super) async fn look(store: &Store, list: &mut Checklist) {
    match store.awaiting_input().await {
        Ok((0, _)) => {}
        Ok((jobs, oldest)) => _ = list.report("questions", Ok(fare(jobs, oldest))),
        Err(error) => _ = list.report("questions", Err(chain(error))),
    }
}

fn fare(jobs: i64, oldest: Duration) -> String {
    let mut said = format!("{jobs} jobs wait for a person");
    if oldest >= OLD_AFTER {
        said += &format!(
            ", the first for {} h: `producer jobs --state awaiting_input` shows them",
            oldest.as_secs() / 3_600
        );
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_older_than_a_day_is_pointed_at() {
        assert_eq!(fare(2, Duration::from_secs(86_399)), "2 jobs wait for a person");
        assert!(fare(2, Duration::from_secs(90_000)).contains("the first for 25 h"));
    }
}
