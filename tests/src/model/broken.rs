//! The rules that can be broken, one at a time, so that the search can be seen to notice.

use std::fmt;
use std::str::FromStr;

use super::promise::Promise;

/// A rule that does not hold; everything else is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The protocol as it is.
    None,
    /// A worker's write is fenced by the worker's id alone.
    NoEpochCheck,
    /// Rescue leaves a job the epoch of the run that it takes it from.
    RescueWithoutBump,
    /// A delivery is acked as soon as it is here.
    AckBeforeClaim,
    /// A claim decides on what it saw before it waited for the session's lock.
    OneStatementClaim,
    /// A claim and a heartbeat under a dead id are taken.
    DeathNotFinal,
    /// A job that the ledger believes to run here is taken for somebody's who runs it.
    OwnLeaseReadAsForeign,
    /// Only the claim minds the job whose reply was lost, not the heartbeat.
    UnknownJobsKept,
    /// A claim does not look for jobs that were accepted earlier.
    ClaimOutOfTurn,
    /// A job that waits for its next attempt does not keep its session.
    TurnGivenUp,
    /// An epoch counts the runs of a job, not those of its session.
    EpochPerJob,
    /// A checkpoint that was repeated after a lost reply is appended again.
    CheckpointAppendedAgain,
    /// A drained job's attempt is spent.
    DrainSpendsAttempt,
    /// A claim that hung is granted to a worker which has ended in good order meanwhile.
    StoppedMayClaim,
    /// A conclusion that is repeated after a lost reply does not recognise itself.
    EndNotRecognised,
    /// The end of a job does not release the one that waits for it.
    NextForgotten,
    /// Nobody looks after what a relay took before it died.
    PublishingKept,
    /// A death that came with notice is charged like any other.
    NoticeIgnored,
    /// All suspects that a dead worker was given are charged.
    SuspectsChargedTogether,
}

impl Broken {
    /// Every way to break it.
    pub const ALL: [Broken; 18] = [
        Broken::NoEpochCheck,
        Broken::RescueWithoutBump,
        Broken::AckBeforeClaim,
        Broken::OneStatementClaim,
        Broken::DeathNotFinal,
        Broken::OwnLeaseReadAsForeign,
        Broken::UnknownJobsKept,
        Broken::ClaimOutOfTurn,
        Broken::TurnGivenUp,
        Broken::EpochPerJob,
        Broken::CheckpointAppendedAgain,
        Broken::DrainSpendsAttempt,
        Broken::StoppedMayClaim,
        Broken::EndNotRecognised,
        Broken::NextForgotten,
        Broken::PublishingKept,
        Broken::NoticeIgnored,
        Broken::SuspectsChargedTogether,
    ];

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
            Broken::ClaimOutOfTurn => Promise::InOrder,
            Broken::TurnGivenUp => Promise::OneBegun,
            Broken::EpochPerJob => Promise::EpochsGrow,
            Broken::CheckpointAppendedAgain => Promise::CountedOnce,
            Broken::OwnLeaseReadAsForeign
            | Broken::UnknownJobsKept
            | Broken::StoppedMayClaim
            | Broken::NextForgotten
            | Broken::PublishingKept => Promise::EveryJobEnds,
        })
    }
}

impl fmt::Display for Broken {
    /// Its name in `PROTOCOL_BREAK`.
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
