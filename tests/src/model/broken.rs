//! The rules that can be broken, one at a time, to show that the search notices.

use std::fmt;
use std::str::FromStr;

use super::promise::Promise;

/// A rule that is broken, while everything else is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The protocol as it is.
    None,
    /// A worker's writes are fenced by the worker's id alone.
    NoEpochCheck,
    /// Rescue leaves a job with the epoch of the run that it takes the job from.
    RescueWithoutBump,
    /// A delivery is acked as soon as it arrives.
    AckBeforeClaim,
    /// A claim decides on what it saw before it waited for the session's lock.
    OneStatementClaim,
    /// A claim and a heartbeat under a dead id are accepted.
    DeathNotFinal,
    /// A job that the ledger believes to run at this worker is treated as run by another worker.
    OwnLeaseReadAsForeign,
    /// Only the claim handles a job whose reply was lost; the heartbeat does not.
    UnknownJobsKept,
    /// A claim does not look for jobs that were accepted earlier.
    ClaimOutOfTurn,
    /// A job that is not due yet has a place in its session's order.
    PlaceBeforeDue,
    /// A job that waits for its next attempt does not keep its turn in its session.
    TurnGivenUp,
    /// An epoch counts the runs of a job instead of those of its session.
    EpochPerJob,
    /// A checkpoint that is repeated after a lost reply is appended again.
    CheckpointAppendedAgain,
    /// A fold within a run does not keep which checkpoints it has taken.
    FoldForgotten,
    /// A drain spends an attempt of the job.
    DrainSpendsAttempt,
    /// A claim that hung is granted to a worker that has ended in good order meanwhile.
    StoppedMayClaim,
    /// A conclusion that is repeated after a lost reply is not recognised.
    EndNotRecognised,
    /// The end of a job does not release the one that waits for it.
    NextForgotten,
    /// Jobs that a relay took before it died are not returned.
    PublishingKept,
    /// A death that was announced is charged like any other.
    NoticeIgnored,
    /// All suspects that a dead worker had are charged.
    SuspectsChargedTogether,
    /// A job that asks waits, without a look for an answer that came first.
    AskWithoutLook,
    /// A sweep closes a question that it has found open, without a second look.
    TimeOutWithoutLook,
    /// An answer counts although the call was closed before.
    AnsweredAgain,
    /// An answer is kept, and its job waits on.
    AnswerWakesNobody,
    /// A job in a line is blocked by what was seen before its session was locked.
    BlockedWithoutLook,
    /// An admitter admits what it has chosen, although another one leads by now.
    AdmittedWithoutLead,
    /// Only what runs counts for a limit, not what is on its way to a worker.
    MessagesNotCounted,
    /// A worker takes a session's next job although it has a limit key.
    TakenPastTheLimit,
    /// A worker takes a session's next job although jobs wait in the line.
    TakenPastTheLine,
    /// A new job with a limit key is published under a grant.
    GrantedPastTheLimit,
    /// A grant does not end when jobs wait in the line.
    GrantKept,
    /// A message claims a job that waits in the line.
    WaitingClaimed,
}

impl Broken {
    /// All broken rules.
    pub const ALL: [Broken; 32] = [
        Broken::NoEpochCheck,
        Broken::RescueWithoutBump,
        Broken::AckBeforeClaim,
        Broken::OneStatementClaim,
        Broken::DeathNotFinal,
        Broken::OwnLeaseReadAsForeign,
        Broken::UnknownJobsKept,
        Broken::ClaimOutOfTurn,
        Broken::PlaceBeforeDue,
        Broken::TurnGivenUp,
        Broken::EpochPerJob,
        Broken::CheckpointAppendedAgain,
        Broken::FoldForgotten,
        Broken::DrainSpendsAttempt,
        Broken::StoppedMayClaim,
        Broken::EndNotRecognised,
        Broken::NextForgotten,
        Broken::PublishingKept,
        Broken::NoticeIgnored,
        Broken::SuspectsChargedTogether,
        Broken::AskWithoutLook,
        Broken::TimeOutWithoutLook,
        Broken::AnsweredAgain,
        Broken::AnswerWakesNobody,
        Broken::BlockedWithoutLook,
        Broken::AdmittedWithoutLead,
        Broken::MessagesNotCounted,
        Broken::TakenPastTheLimit,
        Broken::TakenPastTheLine,
        Broken::GrantedPastTheLimit,
        Broken::GrantKept,
        Broken::WaitingClaimed,
    ];

    /// Whether the rule is about a line.
    pub fn is_of_the_line(self) -> bool {
        matches!(
            self,
            Broken::BlockedWithoutLook
                | Broken::AdmittedWithoutLead
                | Broken::MessagesNotCounted
                | Broken::TakenPastTheLimit
                | Broken::TakenPastTheLine
                | Broken::GrantedPastTheLimit
                | Broken::GrantKept
                | Broken::WaitingClaimed
        )
    }

    /// The promise that cannot be kept without the rule.
    pub fn breaks(self) -> Option<Promise> {
        Some(match self {
            Broken::None => return None,
            Broken::NoEpochCheck => Promise::OneWriter,
            Broken::RescueWithoutBump | Broken::EndNotRecognised => Promise::AnswersAreTrue,
            Broken::AckBeforeClaim => Promise::AckedWhenSafe,
            Broken::OneStatementClaim => Promise::OneEnd,
            Broken::DeathNotFinal | Broken::DrainSpendsAttempt | Broken::NoticeIgnored => {
                Promise::AttemptsAreFailures
            }
            Broken::SuspectsChargedTogether => Promise::CertainCulprit,
            Broken::TimeOutWithoutLook | Broken::AnsweredAgain => Promise::AnsweredOnce,
            Broken::ClaimOutOfTurn => Promise::InOrder,
            Broken::PlaceBeforeDue => Promise::NoneWaitsForLater,
            Broken::TurnGivenUp => Promise::OneBegun,
            Broken::EpochPerJob => Promise::EpochsGrow,
            Broken::AdmittedWithoutLead
            | Broken::MessagesNotCounted
            | Broken::TakenPastTheLimit
            | Broken::GrantedPastTheLimit
            | Broken::WaitingClaimed => Promise::WithinLimit,
            Broken::TakenPastTheLine | Broken::GrantKept => Promise::NonePassesTheLine,
            Broken::CheckpointAppendedAgain | Broken::FoldForgotten => Promise::CountedOnce,
            Broken::OwnLeaseReadAsForeign
            | Broken::UnknownJobsKept
            | Broken::StoppedMayClaim
            | Broken::NextForgotten
            | Broken::AskWithoutLook
            | Broken::AnswerWakesNobody
            | Broken::BlockedWithoutLook
            | Broken::PublishingKept => Promise::EveryJobEnds,
        })
    }
}

impl fmt::Display for Broken {
    /// The rule's name in `PROTOCOL_BREAK`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, letter) in format!("{self:?}").char_indices() {
            if letter.is_uppercase() && at > 0 {
                f.write_str("_")?;
            }
            write!(f, "{}", letter.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

impl FromStr for Broken {
    type Err = String;

    fn from_str(text: &str) -> Result<Broken, String> {
        let names = || Broken::ALL.map(|broken| broken.to_string()).join(", ");
        let found = Broken::ALL.into_iter().find(|broken| broken.to_string() == text);
        found.ok_or_else(|| format!("got \"{text}\", expected one of {}", names()))
    }
}
