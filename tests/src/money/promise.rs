//! What must hold in every state.

use super::broken::Broken;
use super::world::{LIMIT, RESERVED, Row, World};

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// What the provider has billed is counted.
    BilledIsCounted,
    /// What is spent and held is within the limit.
    WithinLimit,
    /// The account says what its calls say.
    AccountEqualsCalls,
    /// When nothing more goes wrong, nothing stays held.
    EveryHoldEnds,
}

impl Promise {
    /// All promises.
    pub const ALL: [Promise; 4] =
        [Promise::BilledIsCounted, Promise::WithinLimit, Promise::AccountEqualsCalls, Promise::EveryHoldEnds];

    /// Whether a state keeps it.
    pub fn holds_in(self, world: &World, broken: Broken) -> bool {
        match self {
            Promise::BilledIsCounted => {
                let billed: u8 = world.calls.iter().map(|call| call.billed).sum();
                i16::from(billed) <= i16::from(world.spent) + i16::from(world.held)
            }
            Promise::WithinLimit => i16::from(world.spent) + i16::from(world.held) <= i16::from(LIMIT),
            Promise::AccountEqualsCalls => {
                let held = world.calls.iter().filter(|call| call.row == Row::Held).count() as i8;
                let spent = world.calls.iter().map(|call| match call.row {
                    Row::Ended(outcome) => World::counts(broken, outcome),
                    Row::None | Row::Held => 0,
                });
                (world.spent, world.held) == (spent.sum(), held * RESERVED as i8)
            }
            Promise::EveryHoldEnds => {
                let mut at = *world;
                while let Some(action) = at.fair(broken) {
                    at = at.after(broken, action);
                }
                at.calls.iter().all(|call| call.row != Row::Held)
            }
        }
    }
}
