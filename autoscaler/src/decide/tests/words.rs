//! A decision can be explained, stored and counted.

use std::collections::HashSet;

use super::*;

#[test]
fn a_decision_explains_itself() {
    let policy = Policy::default();
    let said = decide(&History::default(), &seen(NOW_MS, 30, 2), &policy, NOW_MS).to_string();
    assert_eq!(
        said,
        "grows from 2 to 7: 2 → 30: demand asks for that; 30 → 7: the scale_up policies allow no more yet"
    );
    let said = decide(&History::default(), &seen(NOW_MS, 2, 7), &policy, NOW_MS).to_string();
    assert!(said.starts_with("stays at 7: 7 → 2: demand asks for that; 2 → 7: shrinking waits: "), "{said}");
    let said = decide(&History::default(), &Observation::default(), &policy, NOW_MS).to_string();
    assert_eq!(said, "nothing to decide: the workload's size is unknown");
}

#[test]
fn a_decision_is_kept_as_it_was() {
    let mut look = seen(NOW_MS, 0, 30);
    ledger(&mut look).busy_workers = 25;
    let decision = decide(&History::default(), &look, &Policy::default(), NOW_MS);
    assert!(decision.steps.len() > 2 && decision.idle_since_ms.is_some());
    let text = serde_json::to_string(&decision).unwrap();
    assert_eq!(serde_json::from_str::<Decision>(&text).unwrap(), decision);
}

#[test]
fn every_reason_has_one_name_and_words_of_its_own() {
    let names: HashSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let words: HashSet<String> = Reason::ALL.iter().map(Reason::to_string).collect();
    assert_eq!((names.len(), words.len()), (Reason::ALL.len(), Reason::ALL.len()));
    for reason in Reason::ALL {
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
    }
}
