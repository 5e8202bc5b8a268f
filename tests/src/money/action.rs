//! The events, which of them are possible, and what each one changes.

use super::broken::Broken;
use super::world::{CALLS, JOB_OF, JOBS, Maker, Outcome, RESERVED, Reply, Row, World};

/// The fate of a call to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Luck {
    /// It is executed, and the reply arrives.
    Heard,
    /// It is executed, but the reply is lost.
    ReplyLost,
    /// It is executed only after its caller has given up on it, perhaps much later.
    Late,
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The newest run of the call's job wants to make it.
    Begin(usize),
    /// A process reserves.
    Reserve(usize, Luck),
    /// A reservation that hung arrives.
    ArriveReserve(usize),
    /// A broken reservation is checked.
    Check(usize),
    /// A broken reservation that was checked is held.
    Hold(usize),
    /// A process sends.
    Send(usize),
    /// A process has no need of the call any more, and does not send it.
    Forgo(usize),
    /// The provider refuses.
    Refuse(usize),
    /// The provider bills this much, and its answer arrives.
    Bill(usize, u8),
    /// The provider bills this much; its answer does not arrive.
    BillUnheard(usize, u8),
    /// A process settles.
    Settle(usize, Luck),
    /// A settlement that hung arrives.
    ArriveSettle(usize),
    /// The job is taken from its run, and another one begins.
    Rescue(usize),
    /// The calls of dead processes whose jobs have ended are looked for.
    RescueEnded,
    /// The job ends.
    Cancel(usize),
    /// Mishap: the connection to the provider is lost.
    LoseConnection(usize),
    /// Mishap: the process of a call dies, with all calls of its run.
    Crash(usize),
    /// Mishap: a run is taken for dead.
    Suspect(usize),
    /// A broken hold expires.
    Expire(usize),
}

impl World {
    /// Returns what may happen next.
    pub fn possible(&self, broken: Broken) -> Vec<Action> {
        let mut actions = Vec::new();
        let lucks: &[Luck] =
            if self.mishaps > 0 { &[Luck::Heard, Luck::ReplyLost, Luck::Late] } else { &[Luck::Heard] };
        for (at, job) in JOB_OF.into_iter().enumerate() {
            let (call, job) = (self.calls[at], self.jobs[job]);
            match call.maker {
                Maker::Idle if !job.over && !self.needs_rescue(JOB_OF[at]) => actions.push(Action::Begin(at)),
                Maker::Asking if broken == Broken::CheckedThenHeld => actions.push(Action::Check(at)),
                Maker::Asking => actions.extend(lucks.iter().map(|luck| Action::Reserve(at, *luck))),
                Maker::Checked => actions.push(Action::Hold(at)),
                Maker::Granted => actions.extend([Action::Send(at), Action::Forgo(at)]),
                Maker::Knows(_) => actions.extend(lucks.iter().map(|luck| Action::Settle(at, *luck))),
                Maker::Sent if self.mishaps > 0 => actions.push(Action::LoseConnection(at)),
                _ => {}
            }
            if broken == Broken::TwoUnderOneHold
                && call.sent == 1
                && matches!(call.maker, Maker::Knows(Outcome::Unknown))
            {
                actions.push(Action::Send(at));
            }
            if call.at_provider > 0 {
                actions.push(Action::Refuse(at));
                actions.extend((1..=RESERVED).map(|cost| Action::Bill(at, cost)));
                if self.mishaps > 0 {
                    actions.extend((1..=RESERVED).map(|cost| Action::BillUnheard(at, cost)));
                }
            }
            if call.late_reserve {
                actions.push(Action::ArriveReserve(at));
            }
            if call.late_settle.is_some() {
                actions.push(Action::ArriveSettle(at));
            }
            if self.mishaps > 0 && !matches!(call.maker, Maker::Idle | Maker::Done | Maker::Gone) {
                actions.push(Action::Crash(at));
            }
            if broken == Broken::Timer && call.row == Row::Held {
                actions.push(Action::Expire(at));
            }
        }
        for job in 0..JOBS {
            if self.jobs[job].over {
                continue;
            }
            actions.push(Action::Cancel(job));
            if self.needs_rescue(job) {
                actions.push(Action::Rescue(job));
            } else if self.mishaps > 0 {
                actions.push(Action::Suspect(job));
            }
        }
        if self.has_left_over() && broken != Broken::EndedJobsForgotten {
            actions.push(Action::RescueEnded);
        }
        actions
    }

    /// Whether the process of the job's newest run is dead.
    fn needs_rescue(&self, job: usize) -> bool {
        (0..CALLS).any(|at| {
            JOB_OF[at] == job
                && self.calls[at].maker == Maker::Gone
                && self.calls[at].epoch == self.jobs[job].epoch
        })
    }

    fn is_left_over(&self, at: usize) -> bool {
        let call = self.calls[at];
        call.maker == Maker::Gone && call.row == Row::Held && self.jobs[JOB_OF[at]].over
    }

    fn has_left_over(&self) -> bool {
        (0..CALLS).any(|at| self.is_left_over(at))
    }

    /// Returns the world after an event.
    pub fn after(mut self, broken: Broken, action: Action) -> World {
        if action.is_mishap() {
            self.mishaps -= 1;
        }
        match action {
            Action::Begin(at) => {
                self.calls[at].epoch = self.jobs[JOB_OF[at]].epoch;
                self.calls[at].maker = Maker::Asking;
            }
            Action::Reserve(at, Luck::Heard) => {
                let reply = self.reserve(broken, at);
                self.calls[at].maker = replied(reply);
            }
            Action::Reserve(at, Luck::ReplyLost) => {
                self.reserve(broken, at);
                self.calls[at].maker = Maker::Knows(Outcome::Free);
            }
            Action::Reserve(at, Luck::Late) => {
                self.calls[at].late_reserve = true;
                self.calls[at].maker = Maker::Knows(Outcome::Free);
            }
            Action::ArriveReserve(at) => {
                self.calls[at].late_reserve = false;
                self.reserve(broken, at);
            }
            Action::Check(at) => {
                self.calls[at].maker = match self.check(broken, at) {
                    Reply::Granted => Maker::Checked,
                    reply => replied(reply),
                };
            }
            Action::Hold(at) => {
                self.hold(at);
                self.calls[at].maker = Maker::Granted;
            }
            Action::Send(at) => {
                let call = &mut self.calls[at];
                (call.maker, call.sent, call.at_provider) =
                    (Maker::Sent, call.sent + 1, call.at_provider + 1);
            }
            Action::Forgo(at) => self.calls[at].maker = Maker::Knows(Outcome::Free),
            Action::Refuse(at) => {
                self.calls[at].at_provider -= 1;
                self.hears(at, Outcome::Free);
            }
            Action::Bill(at, cost) => {
                self.calls[at].at_provider -= 1;
                self.calls[at].billed += cost;
                self.hears(at, Outcome::Settled(cost));
            }
            Action::BillUnheard(at, cost) => {
                self.calls[at].at_provider -= 1;
                self.calls[at].billed += cost;
                self.hears(at, Outcome::Unknown);
            }
            Action::LoseConnection(at) => self.hears(at, Outcome::Unknown),
            Action::Settle(at, luck) => {
                let Maker::Knows(outcome) = self.calls[at].maker else { return self };
                match luck {
                    Luck::Heard => {
                        self.settle(broken, at, outcome);
                        self.calls[at].maker = Maker::Done;
                    }
                    Luck::ReplyLost => drop(self.settle(broken, at, outcome)),
                    Luck::Late => self.calls[at].late_settle = Some(outcome),
                }
            }
            Action::ArriveSettle(at) => {
                if let Some(outcome) = self.calls[at].late_settle.take() {
                    self.settle(broken, at, outcome);
                }
            }
            Action::Rescue(job) | Action::Suspect(job) => self.rescue(broken, job),
            Action::RescueEnded => {
                (0..CALLS).filter(|at| self.is_left_over(*at)).collect::<Vec<_>>().into_iter().for_each(
                    |at| {
                        if broken == Broken::ReturnedOnDeath {
                            self.give_back(at)
                        } else {
                            self.leave(broken, at)
                        }
                    },
                );
            }
            Action::Cancel(job) => {
                self.jobs[job].over = true;
                if broken == Broken::ReleasedOnCancel {
                    (0..CALLS).filter(|at| JOB_OF[*at] == job).for_each(|at| self.give_back(at));
                }
            }
            Action::Crash(at) => {
                let (job, epoch) = (JOB_OF[at], self.calls[at].epoch);
                for (call, of) in self.calls.iter_mut().zip(JOB_OF) {
                    if of == job && call.epoch == epoch && !matches!(call.maker, Maker::Idle | Maker::Done) {
                        call.maker = Maker::Gone;
                    }
                }
            }
            Action::Expire(at) => self.give_back(at),
        }
        self
    }

    /// The process hears of its call, if it still waits.
    fn hears(&mut self, at: usize, outcome: Outcome) {
        if self.calls[at].maker == Maker::Sent {
            self.calls[at].maker = Maker::Knows(outcome);
        }
    }

    /// Returns what happens next if nothing more goes wrong.
    pub fn fair(&self, broken: Broken) -> Option<Action> {
        let possible = self.possible(broken);
        let order = |action: &Action| match action {
            Action::ArriveReserve(_) | Action::ArriveSettle(_) => Some(0),
            Action::Settle(_, Luck::Heard) => Some(1),
            Action::Bill(_, 1) => Some(2),
            Action::Rescue(_) | Action::RescueEnded => Some(3),
            Action::Hold(_) | Action::Send(_) => Some(4),
            // A call that waits for others asks again only when they have ended.
            Action::Reserve(at, Luck::Heard) if self.check(broken, *at) != Reply::Busy => Some(5),
            _ => None,
        };
        possible.into_iter().filter(|it| order(it).is_some()).min_by_key(order)
    }
}

fn replied(reply: Reply) -> Maker {
    match reply {
        Reply::Granted => Maker::Granted,
        Reply::Busy => Maker::Asking,
        Reply::Spent | Reply::Lost => Maker::Done,
    }
}

impl Action {
    /// Whether it is one of the few that a search allows.
    fn is_mishap(self) -> bool {
        matches!(
            self,
            Action::Reserve(_, Luck::ReplyLost | Luck::Late)
                | Action::Settle(_, Luck::ReplyLost | Luck::Late)
                | Action::LoseConnection(_)
                | Action::BillUnheard(..)
                | Action::Crash(_)
                | Action::Suspect(_)
        )
    }
}
