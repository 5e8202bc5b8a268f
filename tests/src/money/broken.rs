//! The rules that can be broken, one at a time.

use super::promise::Promise;

/// A rule that is broken, while everything else is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The protocol as it is.
    None,
    /// What a dead run held is given back.
    ReturnedOnDeath,
    /// A hold expires.
    Timer,
    /// What a run held is given back when its job is cancelled.
    ReleasedOnCancel,
    /// A reservation is checked in one step and held in another.
    CheckedThenHeld,
    /// A request is sent again under the same hold.
    TwoUnderOneHold,
    /// A call whose cost is not known counts for nothing.
    UnknownCostsNothing,
    /// The settlement of a call that is not there is not kept, so a reservation that arrives after it is held.
    SettlementForgotten,
    /// A run that is over may reserve.
    StaleRunReserves,
    /// A settlement that is repeated after a lost reply counts again.
    SettledAgain,
    /// The death of a worker leaves its calls of jobs that have ended.
    EndedJobsForgotten,
}

impl Broken {
    /// All broken rules.
    pub const ALL: [Broken; 10] = [
        Broken::ReturnedOnDeath,
        Broken::Timer,
        Broken::ReleasedOnCancel,
        Broken::CheckedThenHeld,
        Broken::TwoUnderOneHold,
        Broken::UnknownCostsNothing,
        Broken::SettlementForgotten,
        Broken::StaleRunReserves,
        Broken::SettledAgain,
        Broken::EndedJobsForgotten,
    ];

    /// The promise that cannot be kept without the rule.
    pub fn breaks(self) -> Option<Promise> {
        Some(match self {
            Broken::None => return None,
            Broken::ReturnedOnDeath
            | Broken::Timer
            | Broken::ReleasedOnCancel
            | Broken::TwoUnderOneHold
            | Broken::UnknownCostsNothing => Promise::BilledIsCounted,
            Broken::CheckedThenHeld => Promise::WithinLimit,
            Broken::SettledAgain => Promise::AccountEqualsCalls,
            Broken::SettlementForgotten | Broken::StaleRunReserves | Broken::EndedJobsForgotten => {
                Promise::EveryHoldEnds
            }
        })
    }
}
