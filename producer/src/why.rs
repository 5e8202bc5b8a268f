//! Why a job is where it is: one sentence from the ledger's facts. Pure.

use std::time::Duration;

use job::JobState;
use store::{HeldBack, InboxPlace, JobFacts, PlaceInLine};

/// How a fleet that tenants share is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fleet {
    /// To an operator: with the numbers of its workers and slots.
    Numbers,
    /// To a tenant: without, because what the others use of it would show.
    Words,
}

impl Fleet {
    /// Such as "the 2 workers", or "the workers".
    fn counted(self, article: &str, count: i64, one: &str, many: &str) -> String {
        match self {
            Fleet::Numbers => format!("{article} {}", counted(count, one, many)),
            Fleet::Words => format!("{article} {many}"),
        }
    }
}

/// The sentence.
pub fn why(facts: &JobFacts, fleet: Fleet) -> String {
    let JobFacts { pool, session, since, .. } = facts;
    let since = lasting(*since);
    let state = facts.state;
    if facts.asked.as_deref() == Some("cancel") && !state.is_end() {
        return format!("{state}: it was cancelled, and ends soon");
    }
    if let Some(place) = &facts.inbox {
        return in_inbox(place, &since);
    }
    match state {
        JobState::Scheduled => match facts.due_in {
            Some(due) => format!("scheduled: due in {}{}", lasting(due), attempt(facts)),
            None => {
                format!("scheduled: due, and about to be published{}{}", attempt(facts), served(facts, fleet))
            }
        },
        JobState::Waiting => in_line(facts, &since, fleet),
        JobState::Publishing => format!(
            "publishing: accepted {since} ago, its message is on its way to the queue of pool {pool}{}",
            served(facts, fleet)
        ),
        JobState::Queued if facts.workers == 0 => format!("queued for {since}{}", served(facts, fleet)),
        JobState::Queued if facts.busy >= facts.slots => {
            let slots = fleet.counted("all", facts.slots, "slot", "slots");
            format!("queued for {since}: {slots} of pool {pool} are taken")
        }
        JobState::Queued => {
            let workers = fleet.counted("the", facts.workers, "worker", "workers");
            format!("queued for {since}: {workers} of pool {pool} will take it in turn")
        }
        JobState::Blocked => match &facts.turn {
            Some(turn) if turn.state == JobState::Running => format!(
                "blocked: session {session} works on job {} for {}, {}",
                turn.job_id,
                lasting(turn.since),
                ahead(facts.ahead)
            ),
            Some(turn) => format!(
                "blocked: job {} has its turn in session {session} and is {}, {}",
                turn.job_id,
                turn.state,
                ahead(facts.ahead)
            ),
            None => format!("blocked: its turn in session {session} has come, and it is published soon"),
        },
        JobState::Running => {
            let asked = match facts.asked.as_deref() {
                Some("interrupt") => {
                    ", and ends at its next checkpoint: a later job of its session wants its place"
                }
                Some("rollback") => ", and ends now: a later job of its session wants its place",
                _ => "",
            };
            format!("running for {since}{}{asked}", attempt(facts))
        }
        JobState::AwaitingInput => {
            let calls = match facts.calls.as_slice() {
                [call] => format!("call {call}"),
                calls => format!("calls {}", calls.join(", ")),
            };
            let asked = match facts.asked.as_deref() {
                Some(_) => "; it ends soon: a later job of its session wants its place",
                None => "",
            };
            format!("awaiting_input: waits for an answer to {calls} for {since}{asked}")
        }
        JobState::Succeeded => format!("succeeded {since} ago{}", spent(facts)),
        JobState::Failed | JobState::Cancelled => {
            let reason = match (&facts.code, &facts.message) {
                (Some(code), Some(message)) => format!(": {code}: {message}"),
                (Some(code), None) => format!(": {code}"),
                (None, _) => String::new(),
            };
            let again =
                facts.redriven_as.map(|id| format!("; job {id} does its work again")).unwrap_or_default();
            format!("{state} {since} ago{}{reason}{again}", spent(facts))
        }
    }
}

fn in_line(facts: &JobFacts, since: &str, fleet: Fleet) -> String {
    let pool = &facts.pool;
    let Some(PlaceInLine { ahead, lane, held }) = &facts.line else {
        return format!("waiting: in the line of pool {pool} for {since}");
    };
    let lane = lane.map_or_else(|| "begun before".to_owned(), |lane| format!("lane {lane}"));
    let ahead = match ahead {
        0 => "first of its tenant and keys there".to_owned(),
        1 => "1 job of its tenant and keys is before it".to_owned(),
        1_000.. => "1,000 jobs of its tenant and keys or more are before it".to_owned(),
        ahead => format!("{ahead} jobs of its tenant and keys are before it"),
    };
    let held = match held {
        Some(HeldBack { key: Some(key), taken, most }) => {
            format!("; the limit of key {key} holds it back: {taken} of {most} have a place")
        }
        Some(HeldBack { key: None, taken, most }) => {
            format!(
                "; the max_running of tenant {} holds it back: {taken} of {most} have a place",
                facts.tenant
            )
        }
        None => served(facts, fleet),
    };
    format!("waiting: in the line of pool {pool} for {since} ({lane}), {ahead}{held}")
}

fn in_inbox(place: &InboxPlace, since: &str) -> String {
    match place {
        InboxPlace { max_waiting: Some(most), ahead } if *ahead > 0 => format!(
            "scheduled: in the inbox for {since}, where {}: they leave it while fewer than {most} jobs of the tenant wait",
            self::ahead(*ahead)
        ),
        InboxPlace { max_waiting: Some(most), .. } => format!(
            "scheduled: in the inbox for {since}: it leaves it once fewer than {most} jobs of its tenant wait"
        ),
        _ => format!("scheduled: in the inbox for {since}, and about to be taken from there"),
    }
}

/// Nothing where workers take jobs.
fn served(facts: &JobFacts, fleet: Fleet) -> String {
    match (facts.workers, facts.draining) {
        (1.., _) => String::new(),
        (_, 0) => format!(": no worker serves pool {}", facts.pool),
        (_, draining) => {
            let workers = fleet.counted("the", draining, "worker", "workers");
            format!(": {workers} of pool {} take no more jobs", facts.pool)
        }
    }
}

fn attempt(facts: &JobFacts) -> String {
    let number = facts.attempts + 1;
    let of = facts.max_attempts.map(|most| format!(" of {most}")).unwrap_or_default();
    let after = match &facts.code {
        Some(code) if facts.attempts > 0 => format!(", after `{code}`"),
        _ => String::new(),
    };
    if facts.attempts == 0 && facts.state == JobState::Scheduled && facts.code.is_none() {
        return String::new();
    }
    format!(": attempt {number}{of}{after}")
}

fn spent(facts: &JobFacts) -> String {
    match facts.attempts {
        0 => String::new(),
        attempts => format!(" at attempt {attempts}"),
    }
}

fn ahead(jobs: i64) -> String {
    match jobs {
        1 => "1 job is ahead".to_owned(),
        1_000.. => "1,000 jobs or more are ahead".to_owned(),
        jobs => format!("{jobs} jobs are ahead"),
    }
}

fn counted(count: i64, one: &str, many: &str) -> String {
    if count == 1 { format!("{count} {one}") } else { format!("{count} {many}") }
}

/// A time, to its greatest unit alone.
pub fn lasting(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use job::{JobId, Tenant};
    use store::Turn;

    use super::*;

    fn facts(state: JobState) -> JobFacts {
        JobFacts {
            state,
            since: Duration::from_secs(3),
            attempts: 0,
            max_attempts: Some(3),
            code: None,
            message: None,
            due_in: None,
            asked: None,
            session: "s-1".to_owned(),
            tenant: Tenant::default(),
            pool: "gpu".to_owned(),
            ahead: 3,
            turn: None,
            workers: 1,
            draining: 0,
            slots: 4,
            busy: 0,
            calls: Vec::new(),
            redriven_as: None,
            inbox: None,
            line: None,
        }
    }

    #[test]
    fn what_a_job_waits_for_is_said_in_one_sentence() {
        let id: JobId = "0198c0de-7a00-7000-8000-000000000001".parse().unwrap();
        let turn = |state| Some(Turn { job_id: id, state, since: Duration::from_secs(130) });
        let cases = [
            (
                JobFacts { turn: turn(JobState::Running), ..facts(JobState::Blocked) },
                "blocked: session s-1 works on job 0198c0de-7a00-7000-8000-000000000001 for 2 min, 3 jobs are ahead",
            ),
            (
                JobFacts { turn: turn(JobState::Scheduled), ahead: 1, ..facts(JobState::Blocked) },
                "blocked: job 0198c0de-7a00-7000-8000-000000000001 has its turn in session s-1 and is scheduled, 1 job is ahead",
            ),
            (JobFacts { workers: 0, ..facts(JobState::Queued) }, "queued for 3 s: no worker serves pool gpu"),
            (
                JobFacts { workers: 0, draining: 2, ..facts(JobState::Queued) },
                "queued for 3 s: the 2 workers of pool gpu take no more jobs",
            ),
            (
                JobFacts { busy: 4, ..facts(JobState::Queued) },
                "queued for 3 s: all 4 slots of pool gpu are taken",
            ),
            (
                JobFacts {
                    attempts: 1,
                    code: Some("timeout".to_owned()),
                    due_in: Some(Duration::from_secs(40)),
                    ..facts(JobState::Scheduled)
                },
                "scheduled: due in 40 s: attempt 2 of 3, after `timeout`",
            ),
            (
                JobFacts { due_in: Some(Duration::from_millis(500)), ..facts(JobState::Scheduled) },
                "scheduled: due in 500 ms",
            ),
            (
                JobFacts {
                    inbox: Some(InboxPlace { ahead: 0, max_waiting: None }),
                    ..facts(JobState::Scheduled)
                },
                "scheduled: in the inbox for 3 s, and about to be taken from there",
            ),
            (
                JobFacts {
                    inbox: Some(InboxPlace { ahead: 2, max_waiting: Some(5) }),
                    ..facts(JobState::Scheduled)
                },
                "scheduled: in the inbox for 3 s, where 2 jobs are ahead: they leave it while fewer than 5 jobs of the tenant wait",
            ),
            (facts(JobState::Running), "running for 3 s: attempt 1 of 3"),
            (
                JobFacts { calls: vec!["c-1".to_owned()], ..facts(JobState::AwaitingInput) },
                "awaiting_input: waits for an answer to call c-1 for 3 s",
            ),
            (
                JobFacts { calls: vec!["a".to_owned(), "b".to_owned()], ..facts(JobState::AwaitingInput) },
                "awaiting_input: waits for an answer to calls a, b for 3 s",
            ),
            (
                JobFacts { asked: Some("cancel".to_owned()), ..facts(JobState::Running) },
                "running: it was cancelled, and ends soon",
            ),
            (JobFacts { attempts: 1, ..facts(JobState::Succeeded) }, "succeeded 3 s ago at attempt 1"),
            (
                JobFacts {
                    attempts: 3,
                    code: Some("timeout".to_owned()),
                    message: Some("after 5 s".to_owned()),
                    redriven_as: Some(id),
                    ..facts(JobState::Failed)
                },
                "failed 3 s ago at attempt 3: timeout: after 5 s; job 0198c0de-7a00-7000-8000-000000000001 does its work again",
            ),
        ];
        for (facts, sentence) in cases {
            assert_eq!(why(&facts, Fleet::Numbers), sentence);
        }
    }

    #[test]
    fn a_tenant_is_shown_no_number_of_the_fleet_that_it_shares() {
        let cases = [
            (
                JobFacts { busy: 4, ..facts(JobState::Queued) },
                "queued for 3 s: all slots of pool gpu are taken",
            ),
            (facts(JobState::Queued), "queued for 3 s: the workers of pool gpu will take it in turn"),
            (
                JobFacts { workers: 0, draining: 2, ..facts(JobState::Queued) },
                "queued for 3 s: the workers of pool gpu take no more jobs",
            ),
            (JobFacts { workers: 0, ..facts(JobState::Queued) }, "queued for 3 s: no worker serves pool gpu"),
        ];
        for (facts, sentence) in cases {
            assert_eq!(why(&facts, Fleet::Words), sentence);
        }
    }

    #[test]
    fn every_state_has_a_sentence_that_begins_with_it() {
        for state in JobState::ALL {
            assert!(why(&facts(state), Fleet::Numbers).starts_with(state.as_str()), "{state}");
        }
    }
}
