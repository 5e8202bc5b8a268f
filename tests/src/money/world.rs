//! Everything at one moment, and the ledger's transactions.

use super::broken::Broken;

/// Calls that can be made.
pub const CALLS: usize = 3;
/// Jobs that can make them.
pub const JOBS: usize = 2;
/// Whose call each one is.
pub const JOB_OF: [usize; CALLS] = [0, 0, 1];
/// The most that a call can cost.
pub const RESERVED: u8 = 2;
/// The account's limit: two calls fit.
pub const LIMIT: u8 = 4;

/// What the maker of a call knows of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It cost this much.
    Settled(u8),
    /// It was not sent, or was refused.
    Free,
    /// It was sent.
    Unknown,
}

/// A row of the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Row {
    /// There is none.
    #[default]
    None,
    /// It may be under way.
    Held,
    /// It has ended.
    Ended(Outcome),
}

/// How far the process that makes a call is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Maker {
    /// It has not begun.
    #[default]
    Idle,
    /// It wants to reserve.
    Asking,
    /// A broken reservation was found to fit, and is not held yet.
    Checked,
    /// It may send.
    Granted,
    /// It waits for the provider.
    Sent,
    /// It has to settle.
    Knows(Outcome),
    /// It is done with it.
    Done,
    /// The process is dead.
    Gone,
}

/// A call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Call {
    /// The ledger's row.
    pub row: Row,
    /// Its process.
    pub maker: Maker,
    /// The run that makes it.
    pub epoch: u8,
    /// Requests at the provider that it has not answered.
    pub at_provider: u8,
    /// How often it was sent.
    pub sent: u8,
    /// What the provider has billed.
    pub billed: u8,
    /// A reservation hangs in the network.
    pub late_reserve: bool,
    /// A settlement hangs in the network.
    pub late_settle: Option<Outcome>,
}

/// A job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    /// Its newest run, from 1.
    pub epoch: u8,
    /// It has ended.
    pub over: bool,
}

/// The answer to a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is held.
    Granted,
    /// What is held is in the way.
    Busy,
    /// What is spent is in the way.
    Spent,
    /// The run is over, or the call was settled.
    Lost,
}

/// Everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The calls.
    pub calls: [Call; CALLS],
    /// Their jobs.
    pub jobs: [Job; JOBS],
    /// What the account says is spent.
    pub spent: i8,
    /// What the account says is held.
    pub held: i8,
    /// Mishaps that may still come.
    pub mishaps: u8,
}

impl World {
    /// Nothing has happened.
    pub fn new(mishaps: u8) -> World {
        World {
            calls: Default::default(),
            jobs: [Job { epoch: 1, over: false }; JOBS],
            spent: 0,
            held: 0,
            mishaps,
        }
    }

    /// Whether the call's run may reserve.
    fn runs(&self, at: usize) -> bool {
        let job = self.jobs[JOB_OF[at]];
        !job.over && job.epoch == self.calls[at].epoch
    }

    /// Decides about a reservation, without holding it.
    pub fn check(&self, broken: Broken, at: usize) -> Reply {
        match self.calls[at].row {
            Row::Held => Reply::Granted,
            Row::Ended(_) => Reply::Lost,
            Row::None if !self.runs(at) && broken != Broken::StaleRunReserves => Reply::Lost,
            Row::None if self.spent + (RESERVED as i8) > LIMIT as i8 => Reply::Spent,
            Row::None if self.spent + self.held + (RESERVED as i8) > LIMIT as i8 => Reply::Busy,
            Row::None => Reply::Granted,
        }
    }

    /// Holds a call, whatever the account says.
    pub fn hold(&mut self, at: usize) {
        if self.calls[at].row == Row::None {
            self.calls[at].row = Row::Held;
            self.held += RESERVED as i8;
        }
    }

    /// The transaction of a reservation.
    pub fn reserve(&mut self, broken: Broken, at: usize) -> Reply {
        let reply = self.check(broken, at);
        if reply == Reply::Granted {
            self.hold(at);
        }
        reply
    }

    /// What an ended call counts.
    pub fn counts(broken: Broken, outcome: Outcome) -> i8 {
        match outcome {
            Outcome::Settled(cost) => cost as i8,
            Outcome::Free => 0,
            Outcome::Unknown if broken == Broken::UnknownCostsNothing => 0,
            Outcome::Unknown => RESERVED as i8,
        }
    }

    /// The transaction of a settlement. Returns whether it has changed anything.
    pub fn settle(&mut self, broken: Broken, at: usize, outcome: Outcome) -> bool {
        let counts = World::counts(broken, outcome);
        match self.calls[at].row {
            Row::None if broken == Broken::SettlementForgotten => return false,
            Row::None => self.spent += counts,
            Row::Held => {
                self.held -= RESERVED as i8;
                self.spent += counts;
            }
            Row::Ended(Outcome::Unknown) if outcome != Outcome::Unknown => {
                self.spent += counts - World::counts(broken, Outcome::Unknown);
            }
            Row::Ended(_) if broken == Broken::SettledAgain => {
                self.spent += counts;
                return false;
            }
            Row::Ended(_) => return false,
        }
        self.calls[at].row = Row::Ended(outcome);
        true
    }

    /// Gives a hold back.
    pub fn give_back(&mut self, at: usize) {
        if self.calls[at].row == Row::Held {
            self.calls[at].row = Row::Ended(Outcome::Free);
            self.held -= RESERVED as i8;
        }
    }

    /// Counts in full what is held.
    pub fn leave(&mut self, broken: Broken, at: usize) {
        if self.calls[at].row == Row::Held {
            self.calls[at].row = Row::Ended(Outcome::Unknown);
            self.held -= RESERVED as i8;
            self.spent += World::counts(broken, Outcome::Unknown);
        }
    }

    /// The transaction that takes a job from its run and begins another one.
    pub fn rescue(&mut self, broken: Broken, job: usize) {
        self.jobs[job].epoch += 1;
        for at in (0..CALLS).filter(|at| JOB_OF[*at] == job) {
            if self.calls[at].epoch < self.jobs[job].epoch {
                if broken == Broken::ReturnedOnDeath { self.give_back(at) } else { self.leave(broken, at) }
            }
        }
    }
}
