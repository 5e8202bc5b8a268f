//! A decision is written before it is carried out, is read back as it was written, and is never written after a later
//! leader's decision.

use std::time::Duration;

use job::Name;
use store::{DecisionView, Fenced, NewDecision};
use tests::{Database, done, leading};

const LONG: Duration = Duration::from_secs(3_600);

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn decision(pool: &str, at_ms: u64, desired: u32) -> NewDecision {
    NewDecision {
        pool: name(pool),
        at_ms,
        from: 2,
        recommended: desired.checked_sub(1),
        desired,
        reason: "rate_limit".to_owned(),
        inputs: r#"{"ready": {"value": 17, "age_ms": 3}}"#.to_owned(),
        decision: r#"{"steps": []}"#.to_owned(),
    }
}

fn desired(decisions: &[DecisionView]) -> Vec<u32> {
    decisions.iter().map(|view| view.made.desired).collect()
}

#[tokio::test]
async fn decisions_are_read_back_as_they_were_written() {
    let database = Database::new().await;
    let store = database.store();
    let leader = leading(&store).await;
    let now_ms = store.clock().await.unwrap().now_unix_ms();
    let made = [
        decision("a", now_ms - 60_000, 3),
        decision("b", now_ms - 60_000, 0),
        decision("a", now_ms - 1_001, 4),
        decision("a", now_ms - 999, 5),
    ];
    let answers = store.decide(&leader, &made).await.unwrap();
    let ids: Vec<i64> = answers.into_iter().map(done).collect();
    assert!(ids.is_sorted() && ids.len() == 4, "{ids:?}");

    let last = store.last_decisions(&name("a"), 2).await.unwrap();
    assert_eq!(desired(&last), [4, 5], "oldest first");
    assert_eq!((last[0].id, last[0].epoch), (ids[2], leader.epoch));
    assert_eq!(format!("{:?}", last[0].made), format!("{:?}", made[2]));
    assert!(last[0].outcome.is_none());
    let none = store.last_decisions(&name("b"), 9).await.unwrap().remove(0).made;
    assert_eq!((none.recommended, none.desired), (None, 0));

    let both = [name("a"), name("b")];
    assert_eq!(desired(&store.decisions_since(&both, Duration::from_secs(30), 9).await.unwrap()), [4, 5]);
    assert_eq!(desired(&store.decisions_since(&both, LONG, 3).await.unwrap()), [0, 4, 5], "the latest");
    assert_eq!(desired(&store.decisions_since(&both[1..], LONG, 9).await.unwrap()), [0]);
}

#[tokio::test]
async fn an_outcome_is_noted_once() {
    let database = Database::new().await;
    let store = database.store();
    let leader = leading(&store).await;
    let answers = store.decide(&leader, &[decision("a", 1_000, 3)]).await.unwrap();
    let id = done(answers[0]);
    assert!(store.finish_decision(id, "scaled", Some("from 2 to 3")).await.unwrap());
    assert!(!store.finish_decision(id, "failed", None).await.unwrap());
    let outcome = store.last_decisions(&name("a"), 1).await.unwrap().remove(0).outcome.unwrap();
    assert_eq!((outcome.outcome.as_str(), outcome.detail.as_deref()), ("scaled", Some("from 2 to 3")));
    let now_ms = store.clock().await.unwrap().now_unix_ms();
    assert!(outcome.at_ms.abs_diff(now_ms) < 60_000);
}

#[tokio::test]
async fn no_decision_follows_one_of_a_higher_epoch_in_its_pool() {
    let database = Database::new().await;
    let store = database.store();
    // Two fleets use pool b by mistake, so both lead.
    let earlier = store.lead("one", "holder", LONG).await.unwrap().unwrap();
    let later = store.lead("other", "holder", LONG).await.unwrap().unwrap();
    store.decide(&earlier, &[decision("b", 1_000, 3)]).await.unwrap();
    assert!(matches!(store.decide(&later, &[decision("b", 1_000, 4)]).await.unwrap()[..], [Fenced::Done(_)]));
    let answers = store.decide(&earlier, &[decision("a", 1_001, 5), decision("b", 1_001, 6)]).await.unwrap();
    assert!(matches!(answers[..], [Fenced::Done(_), Fenced::Lost]), "{answers:?}");
    assert_eq!(desired(&store.last_decisions(&name("b"), 9).await.unwrap()), [3, 4]);
}

#[tokio::test]
async fn old_decisions_are_forgotten() {
    let database = Database::new().await;
    let store = database.store();
    let leader = leading(&store).await;
    let now_ms = store.clock().await.unwrap().now_unix_ms();
    let made = [decision("a", now_ms - 7_200_000, 3), decision("a", now_ms, 4)];
    store.decide(&leader, &made).await.unwrap();
    store.forget_decisions(LONG).await.unwrap();
    assert_eq!(desired(&store.last_decisions(&name("a"), 9).await.unwrap()), [4]);
}
