//! The state that an action leads to.

use job::JobState;

use super::action::{Action, Luck};
use super::broken::Broken;
use super::call::{Answer, Call, Conclusion, End, Reply, Run};
use super::fleet::{Fleet, Pick, Relay};
use super::process::{Process, Work};
use super::promise::Promise;
use super::row::JOBS;

impl Fleet {
    /// Returns the state that an action leads to; `None` if the action changes nothing or cannot happen now. Passes
    /// each call to the ledger and its reply to `report`.
    pub fn after(self, broken: Broken, action: Action, report: &mut dyn FnMut(Call, Reply)) -> Option<Fleet> {
        let mut next = Step { fleet: self, broken, report };
        next.take(action)?;
        (next.fleet != self).then_some(next.fleet)
    }
}

/// A fleet in the middle of a step.
struct Step<'a> {
    fleet: Fleet,
    broken: Broken,
    report: &'a mut dyn FnMut(Call, Reply),
}

impl Step<'_> {
    fn take(&mut self, action: Action) -> Option<()> {
        match action {
            Action::Accept(job) => {
                let new = self.call(Call::Accept(job)) == Reply::Accepted(true);
                self.fleet.accepted[usize::from(job)] = true;
                if new && self.fleet.is(usize::from(job), JobState::Publishing) {
                    self.fleet.relays[usize::from(job)] = Relay::Publishes;
                }
            }
            Action::TakeNumber(job) => drop(self.call(Call::TakeNumber(job))),
            Action::PublishDirectly(job) => {
                self.fleet.accepted[usize::from(job)] = true;
                self.fleet.queue[usize::from(job)] += 1;
            }
            Action::Publish(job) => {
                self.fleet.queue[usize::from(job)] += 1;
                self.fleet.relays[usize::from(job)] = Relay::Confirms;
            }
            Action::Confirm(job) => {
                self.call(Call::Confirm(job));
                self.fleet.relays[usize::from(job)] = Relay::Idle;
            }
            Action::TakeDue => {
                let Reply::Jobs(taken) = self.call(Call::TakeDue) else { return None };
                for job in (0..JOBS).filter(|job| taken & 1 << job != 0) {
                    self.fleet.relays[job] = Relay::Publishes;
                }
            }
            Action::Pick(at, job) => {
                let epoch = self.fleet.ledger.leadership;
                self.fleet.picks[at] = Some(Pick { job, epoch });
            }
            Action::Admit(at) => {
                let Pick { job, epoch } = self.fleet.picks[at].take()?;
                if !self.fleet.ledger.is_led_under(self.broken, epoch) {
                    return Some(());
                }
                let Reply::Jobs(admitted) = self.call(Call::Admit(job)) else { return None };
                if admitted == 0 {
                    self.fleet.seen_busy = Some(job);
                } else {
                    self.fleet.relays[usize::from(job)] = Relay::Publishes;
                }
            }
            Action::Note => self.fleet.ledger.note(self.broken),
            Action::Block(job) => {
                self.call(Call::Block(job));
                self.fleet.seen_busy = None;
            }
            Action::ReturnStuck => drop(self.call(Call::ReturnStuck)),
            Action::ReturnVanished => drop(self.call(Call::ReturnVanished)),
            Action::Deliver(at, job) => {
                self.fleet.queue[usize::from(job)] -= 1;
                let process = &mut self.fleet.processes[at];
                (process.message, process.work) = (Some(job), Work::Claims(job));
                if self.broken == Broken::AckBeforeClaim {
                    self.ack(at);
                }
            }
            Action::Read(at) => {
                let Process { id, work: Work::Claims(job), .. } = self.fleet.processes[at] else {
                    return None;
                };
                let seen = self.fleet.ledger.decide(self.broken, id, job);
                self.fleet.processes[at].work = Work::Waits(job, seen);
            }
            Action::Claim(at, luck) => self.claim(at, luck)?,
            Action::Checkpoint(at, luck) => self.checkpoint(at, luck)?,
            Action::Fold(at, luck) => self.fold(at, luck)?,
            Action::Conclude(at, end, luck) => self.conclude(at, end, luck)?,
            Action::Outlive(at) => {
                let Work::Runs(run) = self.fleet.processes[at].work else { return None };
                let Run { job, worker, epoch, .. } = run;
                if self.call(Call::Clear { worker, job, epoch }) == Reply::Stands(true) {
                    self.fleet.processes[at].work = Work::Runs(Run { deaths: 0, ..run });
                }
            }
            Action::Beat(at) => self.beat(at)?,
            Action::HandBack(at, job, luck) => {
                let row = self.fleet.ledger.rows[usize::from(job)]?;
                let (worker, epoch, attempts) = (self.fleet.processes[at].id, row.epoch, row.attempts);
                let (end, fold, take_next) = (End::HandBack, None, false);
                let back = Conclusion { worker, job, epoch, end, attempts, fold, take_next };
                self.send(Call::Conclude(back), luck);
            }
            Action::StopWithoutLease(at) => self.finish(at),
            Action::Leave(at) => {
                self.call(Call::Stop(self.fleet.processes[at].id));
                self.boot(at);
            }
            Action::DeclareDead => drop(self.call(Call::DeclareDead)),
            Action::Rescue => drop(self.call(Call::Rescue)),
            Action::EndUnwanted => drop(self.call(Call::EndUnwanted)),
            Action::Answer(job, luck) => drop(self.send(Call::Answer(job), luck)),
            Action::TimeOut(job, luck) => drop(self.send(Call::TimeOut(job), luck)),
            Action::ArriveLate => {
                let call = self.fleet.late.take()?;
                self.call(call);
            }
            Action::LeaseRunsOut(id) => {
                if self.fleet.goes_by(id) {
                    self.fleet.mishaps -= 1;
                }
                self.call(Call::LeaseRunsOut(id));
            }
            Action::ComeDue(job) => drop(self.call(Call::ComeDue(job))),
            Action::Crash(at) => {
                self.fleet.mishaps -= 1;
                self.boot(at);
            }
            Action::Drain(at) => {
                self.fleet.mishaps -= 1;
                self.fleet.processes[at].draining = true;
                self.call(Call::Notice(self.fleet.processes[at].id));
            }
            Action::AckEarly(at) => {
                self.fleet.mishaps -= 1;
                self.ack(at);
            }
            Action::LoseRelay(job) => {
                self.fleet.mishaps -= 1;
                self.fleet.relays[usize::from(job)] = Relay::Idle;
            }
            Action::LoseLead => {
                self.fleet.mishaps -= 1;
                self.fleet.ledger.leadership += 1;
            }
            Action::Duplicate(job) => {
                self.fleet.mishaps -= 1;
                self.fleet.queue[usize::from(job)] += 1;
            }
            Action::Cancel(job) => {
                self.fleet.mishaps -= 1;
                self.fleet.accepted[usize::from(job)] = true;
                self.call(Call::Cancel(job));
            }
        }
        Some(())
    }

    fn call(&mut self, call: Call) -> Reply {
        let reply = self.fleet.ledger.call(self.broken, call);
        (self.report)(call, reply);
        reply
    }

    /// Sends a call that may go wrong.
    fn send(&mut self, call: Call, luck: Luck) -> Option<Reply> {
        match luck {
            Luck::Heard => return Some(self.call(call)),
            Luck::ReplyLost => drop(self.call(call)),
            Luck::Late => self.fleet.late = Some(call),
        }
        self.fleet.mishaps -= 1;
        None
    }

    fn claim(&mut self, at: usize, luck: Luck) -> Option<()> {
        let (job, seen) = match self.fleet.processes[at].work {
            Work::Claims(job) => (job, None),
            Work::Waits(job, seen) => (job, Some(seen)),
            _ => return None,
        };
        let worker = self.fleet.processes[at].id;
        let answer = self.send(Call::Claim { worker, job, seen }, luck);
        self.fleet.processes[at].work = match answer {
            Some(Reply::Answer(Answer::Claimed(run))) => Work::Runs(run),
            // The next heartbeat brings a new id.
            None | Some(Reply::Answer(Answer::LeaseLost | Answer::Refused)) => Work::Claims(job),
            Some(_) => {
                self.finish(at);
                Work::Idle
            }
        };
        Some(())
    }

    fn checkpoint(&mut self, at: usize, luck: Luck) -> Option<()> {
        let run = self.fleet.processes[at].runs()?;
        let (job, worker, epoch, ordinal) = (run.job, run.worker, run.epoch, run.own);
        match self.send(Call::Checkpoint { worker, job, epoch, ordinal }, luck) {
            None => self.fleet.processes[at].work = Work::Appends(run),
            Some(Reply::Stands(true)) => {
                self.fleet.processes[at].work = Work::Runs(Run { own: run.own + 1, ..run });
            }
            Some(_) => self.finish(at),
        }
        Some(())
    }

    fn fold(&mut self, at: usize, luck: Luck) -> Option<()> {
        let run = self.fleet.processes[at].runs()?;
        let (job, worker, epoch, ordinal) = (run.job, run.worker, run.epoch, run.own.checked_sub(1)?);
        let total = run.before + run.own;
        match self.send(Call::Fold { worker, job, epoch, ordinal, total }, luck) {
            None => self.fleet.processes[at].work = Work::Folds(run),
            Some(Reply::Stands(true)) => {
                self.fleet.processes[at].work = Work::Runs(Run { folded: run.own, ..run });
            }
            Some(_) => self.finish(at),
        }
        Some(())
    }

    fn conclude(&mut self, at: usize, end: End, luck: Luck) -> Option<()> {
        let process = self.fleet.processes[at];
        let run = match process.work {
            Work::Runs(run) => run,
            Work::Concludes(run, chosen) if chosen == end => run,
            _ => return None,
        };
        if end == End::Retry && process.work == Work::Runs(run) {
            self.fleet.mishaps -= 1;
        }
        match self.send(Call::Conclude(process.conclusion(self.broken, run, end)), luck) {
            None => self.fleet.processes[at].work = Work::Concludes(run, end),
            Some(Reply::Concluded { next: Some(next), .. }) => {
                self.fleet.processes[at].work = Work::Runs(next)
            }
            Some(_) => self.finish(at),
        }
        Some(())
    }

    fn beat(&mut self, at: usize) -> Option<()> {
        let process = self.fleet.processes[at];
        let Reply::Beat(listed) = self.call(Call::Beat(process.id)) else { return None };
        let run = process.runs();
        match listed {
            Some(listed) => {
                let lost =
                    |run: &Run| run.worker != process.id || listed[usize::from(run.job)] != Some(run.epoch);
                if run.as_ref().is_some_and(lost) {
                    self.finish(at);
                }
            }
            None => {
                if run.is_some() {
                    self.finish(at);
                }
                self.fleet.processes[at].id += 1;
                self.call(Call::Register(process.id + 1));
            }
        }
        Some(())
    }

    /// Frees the slot and acks its delivery.
    fn finish(&mut self, at: usize) {
        self.ack(at);
        self.fleet.processes[at].work = Work::Idle;
    }

    fn ack(&mut self, at: usize) {
        if let Some(job) = self.fleet.processes[at].message.take() {
            let known = self.fleet.ledger.knows(job);
            self.fleet.ledger.marks.mark(Promise::AckedWhenSafe, !known);
        }
    }

    /// Ends a process and starts another one in its place; what was not acked goes back to the queue.
    fn boot(&mut self, at: usize) {
        let Process { id, message, .. } = self.fleet.processes[at];
        if let Some(job) = message {
            self.fleet.queue[usize::from(job)] += 1;
        }
        self.fleet.processes[at] = Process { id: id + 1, draining: false, message: None, work: Work::Idle };
        self.call(Call::Register(id + 1));
    }
}
