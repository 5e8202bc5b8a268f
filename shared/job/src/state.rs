//! The states of a job, and the only transitions between them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The state of a job. The first seven are live, in the table `harness_jobs`. The last three are ends, in
/// `harness_results`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits in Postgres until it is due.
    Scheduled,
    /// It may run, and waits in its pool's line until it is its turn. Not every pool has a line.
    Waiting,
    /// It is its turn, and a relay is handing it to the broker.
    Publishing,
    /// The broker has confirmed its message.
    Queued,
    /// Its turn in its session has not come. Another job of the session runs, or an earlier one is unfinished.
    Blocked,
    /// A worker holds it under a lease.
    Running,
    /// It has begun, and waits for a person's answer. No worker holds it, and it keeps its session's turn.
    AwaitingInput,
    /// It ended with an output.
    Succeeded,
    /// It ended without an output.
    Failed,
    /// It ended on request.
    Cancelled,
}

/// What can happen to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEvent {
    /// It has come due, and its pool has a line.
    Joined,
    /// It has come due, or it is its turn in its pool's line: it is taken to be published.
    Due,
    /// The broker confirmed its message.
    Confirmed,
    /// No confirm came in time.
    Unconfirmed,
    /// Its message is no longer in its queue: the queue was purged or deleted.
    Vanished,
    /// A worker claims it.
    Claimed,
    /// A worker's claim finds its session busy; or the line does, at its turn.
    SessionBusy,
    /// Its session is free again, but no worker continues with it at once; or its pool has no line any more.
    Released,
    /// Its attempt failed and another is left, or its worker died or was drained.
    Rescheduled,
    /// Its attempt ended with questions to a person, and one of them has no answer yet.
    Asked,
    /// Each of its questions is answered, or its time is over.
    Answered,
    /// It produced its output.
    Succeeded,
    /// It failed for good: in a run, because it waited past its deadline, or because it would not wait at all.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl JobEvent {
    /// Every event.
    pub const ALL: [JobEvent; 14] = [
        JobEvent::Joined,
        JobEvent::Due,
        JobEvent::Confirmed,
        JobEvent::Unconfirmed,
        JobEvent::Vanished,
        JobEvent::Claimed,
        JobEvent::SessionBusy,
        JobEvent::Released,
        JobEvent::Rescheduled,
        JobEvent::Asked,
        JobEvent::Answered,
        JobEvent::Succeeded,
        JobEvent::Failed,
        JobEvent::Cancelled,
    ];
}

impl JobState {
    /// Every state, live ones first.
    pub const ALL: [JobState; 10] = [
        JobState::Scheduled,
        JobState::Waiting,
        JobState::Publishing,
        JobState::Queued,
        JobState::Blocked,
        JobState::Running,
        JobState::AwaitingInput,
        JobState::Succeeded,
        JobState::Failed,
        JobState::Cancelled,
    ];

    /// Returns the state after `event`, or `None` if the event cannot happen in this state (and must change nothing).
    ///
    /// A claim wins over what the relay believes. A message can reach a worker before the relay has recorded its
    /// confirm, or after the row came due again. A worker that lost the reply to its claim claims the job a second
    /// time, so `Running` leads to `Running`. But it never overtakes the line: a message of a job in `Waiting` is one from
    /// before, and another follows.
    pub fn next(self, event: JobEvent) -> Option<JobState> {
        use JobState::*;
        match (self, event) {
            (Scheduled, JobEvent::Joined) => Some(Waiting),
            (Scheduled | Waiting, JobEvent::Due) => Some(Publishing),
            (Publishing, JobEvent::Confirmed) => Some(Queued),
            (Publishing, JobEvent::Unconfirmed) => Some(Scheduled),
            (Queued, JobEvent::Vanished) => Some(Scheduled),
            (Scheduled | Publishing | Queued | Blocked | Running, JobEvent::Claimed) => Some(Running),
            (Scheduled | Waiting | Publishing | Queued, JobEvent::SessionBusy) => Some(Blocked),
            (Blocked | Waiting, JobEvent::Released) => Some(Scheduled),
            (Running, JobEvent::Rescheduled) => Some(Scheduled),
            (Running, JobEvent::Asked) => Some(AwaitingInput),
            (AwaitingInput, JobEvent::Answered) => Some(Scheduled),
            (Running, JobEvent::Succeeded) => Some(Succeeded),
            (
                Scheduled | Waiting | Publishing | Queued | Blocked | Running | AwaitingInput,
                JobEvent::Failed,
            ) => Some(Failed),
            (
                Scheduled | Waiting | Publishing | Queued | Blocked | Running | AwaitingInput,
                JobEvent::Cancelled,
            ) => Some(Cancelled),
            _ => None,
        }
    }

    /// Whether no further event can happen to it.
    pub fn is_end(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
    }

    /// Returns its name in the ledger, on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Scheduled => "scheduled",
            JobState::Waiting => "waiting",
            JobState::Publishing => "publishing",
            JobState::Queued => "queued",
            JobState::Blocked => "blocked",
            JobState::Running => "running",
            JobState::AwaitingInput => "awaiting_input",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        JobState::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            format!("got \"{text}\", expected one of {}", JobState::ALL.map(JobState::as_str).join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_live_state_leads_to_every_end_and_no_end_leads_anywhere() {
        for start in JobState::ALL {
            let mut reached = vec![start];
            let mut at = 0;
            while at < reached.len() {
                let here: JobState = reached[at];
                for state in JobEvent::ALL.into_iter().filter_map(|event| here.next(event)) {
                    if !reached.contains(&state) {
                        reached.push(state);
                    }
                }
                at += 1;
            }
            let ends = reached.iter().filter(|state| state.is_end()).count();
            assert_eq!(ends, if start.is_end() { 1 } else { 3 }, "{start}");
        }
    }

    proptest! {
        #[test]
        fn only_a_claim_makes_a_job_run(state in 0usize..JobState::ALL.len(), event in 0usize..JobEvent::ALL.len()) {
            if JobState::ALL[state].next(JobEvent::ALL[event]) == Some(JobState::Running) {
                prop_assert_eq!(JobEvent::ALL[event], JobEvent::Claimed);
            }
        }
    }

    #[test]
    fn a_name_reads_back() {
        for state in JobState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert!("lost".parse::<JobState>().unwrap_err().contains("scheduled"));
    }
}
