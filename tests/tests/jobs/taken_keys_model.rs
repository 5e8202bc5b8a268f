//! The rules by which a key finds its job, as a small machine: all orders of its steps keep the promise, and without
//! any one of the rules some order breaks it.
//!
//! Two doors bring requests with one key. Each locks the key's row, decides in a later statement, and commits; either
//! may die at any moment, and its caller tries again, with another fresh id. Between two steps the key may expire, a
//! job may end, and the row of an expired key may be deleted. A unique key is modelled: an idempotency key is one whose
//! job never counts by living alone.

use std::collections::HashSet;

const DOORS: usize = 2;
/// Jobs that are tried, at most.
const TRIES: u8 = 4;

/// A rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    None,
    /// The decision is taken on what was there before the lock.
    DecidedFirst,
    /// The row is not locked.
    NotLocked,
    /// A key is free when its time is over, although its job lives.
    LifeDoesNotCount,
    /// The sweep deletes an expired row without a look at its job.
    SweptBlindly,
    /// The job and its key are written in two transactions.
    KeyAfterJob,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Door {
    Idle,
    /// It has read the key before it locks it: only where it decides first.
    Read {
        job: u8,
        holder: Option<u8>,
    },
    Locked {
        job: u8,
        seen: Option<Option<u8>>,
    },
    /// What it commits.
    Decided {
        job: u8,
        holder: Option<u8>,
    },
    /// The row of the job is committed and that of the key is not.
    HalfDone {
        job: u8,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Key {
    job: u8,
    counts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    doors: [Door; DOORS],
    key: Option<Key>,
    locked_by: Option<usize>,
    /// The jobs that are in the ledger and have not ended, as bits.
    live: u8,
    /// The job that has the right to be the only one, and whether its window is open.
    only: Option<Key>,
    tried: u8,
}

/// What may happen next; `Err` names the promise that is broken.
fn next(state: &State, broken: Broken) -> Vec<Result<State, String>> {
    let mut after = Vec::new();
    for door in 0..DOORS {
        let with = |change: &dyn Fn(&mut State)| {
            let mut next = *state;
            change(&mut next);
            next
        };
        match state.doors[door] {
            Door::Idle if state.tried < TRIES => {
                let job = state.tried + 1;
                if broken == Broken::DecidedFirst {
                    let holder = holder(state, broken);
                    after.push(Ok(with(&|next| {
                        (next.doors[door], next.tried) = (Door::Read { job, holder }, job);
                    })));
                } else if free(state, broken) {
                    after.push(Ok(with(&|next| {
                        (next.doors[door], next.tried) = (Door::Locked { job, seen: None }, job);
                        next.locked_by = Some(door);
                    })));
                }
            }
            Door::Idle => {}
            Door::Read { job, holder } if free(state, broken) => after.push(Ok(with(&|next| {
                next.doors[door] = Door::Locked { job, seen: Some(holder) };
                next.locked_by = Some(door);
            }))),
            Door::Read { .. } => {}
            Door::Locked { job, seen } => after.push(Ok(with(&|next| {
                let holder = seen.unwrap_or_else(|| holder(state, broken));
                next.doors[door] = Door::Decided { job, holder };
            }))),
            Door::Decided { job, holder } => {
                let mut next = with(&|next| {
                    next.doors[door] = Door::Idle;
                    next.locked_by = next.locked_by.filter(|by| *by != door);
                });
                match holder {
                    Some(found) => after.push(answered(state, found).map(|()| next)),
                    None => {
                        let right = accepted(state);
                        next.live |= 1 << job;
                        next.only = Some(Key { job, counts: true });
                        if broken == Broken::KeyAfterJob {
                            next.doors[door] = Door::HalfDone { job };
                        } else {
                            next.key = Some(Key { job, counts: true });
                        }
                        after.push(right.map(|()| next));
                    }
                }
            }
            Door::HalfDone { job } => after.push(Ok(with(&|next| {
                next.doors[door] = Door::Idle;
                next.key = Some(Key { job, counts: true });
            }))),
        }
        // It dies: what is not committed was never there.
        if state.doors[door] != Door::Idle {
            after.push(Ok(with(&|next| {
                next.doors[door] = Door::Idle;
                next.locked_by = next.locked_by.filter(|by| *by != door);
            })));
        }
    }
    for job in 1..=state.tried {
        if state.live & 1 << job != 0 {
            after.push(Ok(State { live: state.live & !(1 << job), ..*state }));
        }
    }
    if let Some(key) = state.key.filter(|key| key.counts) {
        let over = |only: Key| Key { counts: only.counts && only.job != key.job, ..only };
        let expired = Some(Key { counts: false, ..key });
        after.push(Ok(State { key: expired, only: state.only.map(over), ..*state }));
    }
    let lives = state.key.is_some_and(|key| state.live & 1 << key.job != 0);
    let may_go = state.key.is_some_and(|key| !key.counts) && (!lives || broken == Broken::SweptBlindly);
    if may_go && state.locked_by.is_none() {
        after.push(Ok(State { key: None, ..*state }));
    }
    after
}

fn free(state: &State, broken: Broken) -> bool {
    state.locked_by.is_none() || broken == Broken::NotLocked
}

/// The job that holds the key, as the decision sees it.
fn holder(state: &State, broken: Broken) -> Option<u8> {
    let lives = |job: u8| state.live & 1 << job != 0 && broken != Broken::LifeDoesNotCount;
    state.key.filter(|key| key.counts || lives(key.job)).map(|key| key.job)
}

/// A job is accepted only where no other one has the right.
fn accepted(state: &State) -> Result<(), String> {
    match state.only {
        Some(only) if only.counts || state.live & 1 << only.job != 0 => {
            Err(format!("a second job beside job {}", only.job))
        }
        _ => Ok(()),
    }
}

/// A caller is led to a job that is or was in the ledger.
fn answered(state: &State, found: u8) -> Result<(), String> {
    match state.only {
        Some(only) if only.job >= found => Ok(()),
        _ => Err(format!("job {found} was found and never accepted")),
    }
}

/// All states that can be reached, or the first order of steps that breaks the promise.
fn search(broken: Broken) -> Result<usize, String> {
    let first =
        State { doors: [Door::Idle; DOORS], key: None, locked_by: None, live: 0, only: None, tried: 0 };
    let (mut seen, mut open) = (HashSet::from([first]), vec![first]);
    while let Some(state) = open.pop() {
        for after in next(&state, broken) {
            let after = after.map_err(|why| format!("{why}, after {state:?}"))?;
            if seen.insert(after) {
                open.push(after);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn one_job_has_the_key_in_every_order_of_steps() {
    let states = search(Broken::None).expect("no order breaks it");
    assert!(states > 100, "{states}");
}

#[test]
fn without_any_one_of_the_rules_some_order_makes_two_jobs() {
    for broken in [
        Broken::DecidedFirst,
        Broken::NotLocked,
        Broken::LifeDoesNotCount,
        Broken::SweptBlindly,
        Broken::KeyAfterJob,
    ] {
        assert!(search(broken).is_err(), "{broken:?}");
    }
}
