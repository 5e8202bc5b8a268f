//! The exact text that a person reads.

use super::*;
use crate::decide::{Decision, Demand, History, Observation, Policy, Reading, Reason, Replicas, decide};

/// 2026-01-05 14:02:00 UTC.
const START_MS: u64 = 1_767_621_720_000;

/// A pool whose decisions are made and explained, second by second.
struct Pool {
    history: History,
    policy: Policy,
    wanted: u32,
    now_s: u64,
    epoch: i64,
    rows: Vec<DecisionRow>,
}

/// Ready, running and how long the oldest has waited; `None` if nothing could be read.
type Look = Option<(u64, u64, Option<u64>)>;

impl Pool {
    fn new(wanted: u32) -> Pool {
        let (history, policy) = (History::default(), Policy::default());
        Pool { history, policy, wanted, now_s: 0, epoch: 7, rows: Vec::new() }
    }

    /// Observes, decides and records, as the next second begins.
    fn decide(&mut self, look: Look) {
        self.decide_from(look, 0);
    }

    /// As `decide`, but with queue and ledger as they were `age_s` ago.
    fn decide_from(&mut self, look: Look, age_s: u64) {
        self.now_s += 1;
        let now_ms = START_MS + self.now_s * 1_000;
        let then_ms = now_ms - age_s * 1_000;
        let replicas = Replicas { wanted: self.wanted, ready: self.wanted };
        let demand = |(_, running, oldest_waiting_ms)| Demand {
            running,
            oldest_waiting_ms,
            workers: self.wanted,
            slots: u64::from(self.wanted),
            ..Demand::default()
        };
        let inputs = Observation {
            ready: look.map(|(value, ..)| Reading { value, at_ms: then_ms }),
            demand: look.map(demand).map(|value| Reading { value, at_ms: then_ms }),
            replicas: Some(Reading { value: replicas, at_ms: now_ms }),
            ..Observation::default()
        };
        let decision = decide(&self.history, &inputs, &self.policy, now_ms);
        self.history.record(&decision);
        let desired = decision.desired.expect("the size is known");
        let written = desired != self.wanted;
        if written {
            self.history.resized(now_ms, self.wanted, desired);
            self.wanted = desired;
        }
        self.row(now_ms, inputs, decision, written.then(|| "applied".to_owned()));
    }

    fn row(&mut self, decided_at_ms: u64, inputs: Observation, decision: Decision, outcome: Option<String>) {
        self.rows.push(DecisionRow {
            decided_at_ms,
            epoch: self.epoch,
            inputs,
            decision,
            outcome,
            detail: None,
        });
    }
}

#[test]
fn a_burst_is_explained_change_by_change_and_the_rest_in_one_entry_each() {
    let mut pool = Pool::new(2);
    (0..10).for_each(|_| pool.decide(Some((0, 1, None))));
    pool.decide(Some((42, 2, Some(400))));
    (0..14).for_each(|second| pool.decide(Some((42, 2, Some(1_400 + second * 1_000)))));
    pool.decide(Some((37, 7, Some(15_400))));
    (0..300).for_each(|second| pool.decide(Some((0, second % 3, None))));
    assert_eq!(
        explain(&pool.rows),
        "\
2026-01-05 (UTC)
14:02:01–14:02:10  stayed at 2 (10 decisions)
                   0 messages ready, 1 job running
                   demand asks for 1; shrinking waits: more were asked for within its stabilization window
14:02:11           decided to grow from 2 to 7
                   42 messages ready, 2 jobs running, the oldest waiting for 0.4 s
                   demand asks for 44; the scale_up policies allow no more yet, so 7
                   outcome: applied
14:02:12–14:02:25  stayed at 7 (14 decisions)
                   42 messages ready, 2 jobs running, the oldest waiting for up to 14 s
                   demand asks for 44; the scale_up policies allow no more yet
14:02:26           decided to grow from 7 to 14
                   37 messages ready, 7 jobs running, the oldest waiting for 15 s
                   demand asks for 44; the scale_up policies allow no more yet, so 14
                   outcome: applied
14:02:27–14:07:26  stayed at 14 (300 decisions)
                   0 messages ready, 0 to 2 jobs running
                   demand asks for 0 to 2; shrinking waits: more were asked for within its stabilization window
"
    );
}

#[test]
fn what_is_unknown_or_stale_has_an_entry_of_its_own() {
    let mut pool = Pool::new(4);
    pool.decide(Some((1, 3, None)));
    pool.decide(None);
    pool.decide(None);
    pool.decide_from(Some((1, 3, None)), 20);
    pool.decide_from(Some((2, 2, Some(150_000))), 8);
    assert_eq!(
        explain(&pool.rows),
        "\
2026-01-05 (UTC)
14:02:01           stayed at 4
                   1 message ready, 3 jobs running
                   demand asks for 4
14:02:02–14:02:03  stayed at 4 (2 decisions)
                   messages ready: unknown, jobs running: unknown
                   the queue's depth is unknown
14:02:04           stayed at 4
                   1 message ready (20 s ago), 3 jobs running (20 s ago)
                   the queue's depth is too old to rely on
14:02:05           stayed at 4
                   2 messages ready (8 s ago), 2 jobs running (8 s ago), the oldest waiting for 2.5 min
                   demand asks for 4
"
    );
}

#[test]
fn a_new_day_a_new_leader_and_what_came_of_a_decision_are_shown() {
    let mut pool = Pool::new(2);
    pool.policy.max_replicas = 3;
    pool.decide(Some((9, 0, None)));
    let conflict = &mut pool.rows[0];
    (conflict.outcome, conflict.detail) =
        (Some("conflict".to_owned()), Some("another writer was first".to_owned()));
    pool.now_s += 36_000;
    pool.epoch = 8;
    pool.decide(Some((9, 0, None)));
    pool.wanted = 2;
    pool.decide(Some((9, 0, None)));
    pool.rows.last_mut().expect("a row").outcome = None;
    assert_eq!(
        explain(&pool.rows),
        "\
2026-01-05 (UTC)
14:02:01           decided to grow from 2 to 3
                   9 messages ready, 0 jobs running
                   demand asks for 9; the scale_up policies allow no more yet, so 7; max_replicas allows no more, so 3
                   outcome: conflict (another writer was first)

2026-01-06 (UTC)
00:02:02           another leader decides from here on (epoch 8)
00:02:02           stayed at 3
                   9 messages ready, 0 jobs running
                   demand asks for 9; the scale_up policies allow no more yet, so 8; max_replicas allows no more, so 3
00:02:03           decided to grow from 2 to 3
                   9 messages ready, 0 jobs running
                   demand asks for 9; the scale_up policies allow no more yet, so 7; max_replicas allows no more, so 3
                   outcome: not known
"
    );
}

#[test]
fn a_scale_in_that_waits_says_what_for() {
    let mut pool = Pool::new(6);
    (pool.policy.scale_down.stabilization_window_s, pool.policy.scale_down.policies) = (0, Vec::new());
    for (kind, why) in [
        ("waiting", Some("3 workers drain and hold 9 jobs")),
        ("waiting", Some("2 workers drain and hold 4 jobs")),
        ("waiting", Some("pod w-3 is not Ready (Unschedulable) and not drained")),
        ("resized", None),
    ] {
        pool.decide(Some((0, 1, None)));
        pool.wanted = 6;
        let row = pool.rows.last_mut().expect("a row");
        (row.outcome, row.detail) = (Some(kind.to_owned()), why.map(str::to_owned));
    }
    let text = explain(&pool.rows);
    assert_eq!(
        text,
        "\
2026-01-05 (UTC)
14:02:01–14:02:03  decided to shrink from 6 to 2 (3 decisions)
                   0 messages ready, 1 job running
                   demand asks for 1; min_replicas asks for it
                   no worker can be removed yet: pod w-3 is not Ready (Unschedulable) and not drained
14:02:04           decided to shrink from 6 to 2
                   0 messages ready, 1 job running
                   demand asks for 1; min_replicas asks for it, so 2
                   outcome: resized
"
    );
}

#[test]
fn that_no_autoscaler_decides_is_said() {
    let mut pool = Pool::new(2);
    pool.decide(Some((0, 1, None)));
    let last = &pool.rows[0];
    assert_eq!(silence(last, last.decided_at_ms + 150_000), None);
    let silence = silence(last, last.decided_at_ms + 420_000).expect("a silence");
    assert!(silence.starts_with("Nothing has been decided in the 7 min since then: "), "{silence}");
}

#[test]
fn no_decision_is_a_story_too_and_an_unknown_size_none_that_was_made() {
    assert_eq!(explain(&[]), "Nothing has been decided yet.\n");
    let mut pool = Pool::new(2);
    let decision = decide(&pool.history, &Observation::default(), &pool.policy, START_MS);
    assert_eq!(decision.reason, Reason::WorkloadUnknown);
    pool.row(START_MS, Observation::default(), decision, None);
    assert_eq!(
        explain(&pool.rows),
        "\
2026-01-05 (UTC)
14:02:00           could not decide
                   messages ready: unknown, jobs running: unknown
                   the workload's size is unknown
"
    );
}

#[test]
fn a_row_read_from_its_columns_is_what_was_written() {
    let mut pool = Pool::new(2);
    pool.decide(Some((42, 2, Some(400))));
    let row = &pool.rows[0];
    let json = |value: &dyn Fn() -> serde_json::Result<String>| value().expect("JSON");
    let inputs = json(&|| serde_json::to_string(&row.inputs));
    let decision = json(&|| serde_json::to_string(&row.decision));
    let read = DecisionRow::read(row.decided_at_ms, row.epoch, &inputs, &decision, row.outcome.clone(), None);
    assert_eq!(&read.expect("this version's JSON"), row);
    assert!(DecisionRow::read(0, 1, "{}", "{}", None, None).is_err(), "a decision without its parts");
}
