//! The SQL does what the model of the protocol says. Walks through the model are repeated on a real ledger, and after
//! every step the answers and the tables must be equal.
//!
//! So what `protocol_model` proves about the model holds for the SQL too. The walks are seeded: `WALK_SEED` repeats
//! one, and a failure prints its steps.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use job::{JobState, Name};
use sqlx::PgConnection;
use store::{Leadership, LinePlace, LineTake, OldestInFlight, Store};
use tests::Database;
use tests::model::action::Action;
use tests::model::broken::Broken;
use tests::model::call::{Answer, Call, Conclusion, End, Heard, Reply};
use tests::model::fleet::Fleet;
use tests::model::ledger::Ledger;
use tests::model::row::{JOBS, Job, Lease, WORKERS};
use tests::model::scope::Scope;
use tests::replay::{Real, View};

/// A walk ends when its jobs have ended, or after this many steps.
const STEPS: usize = 80;
/// Walks continue until this many calls were compared, and all of [`WANTED`] was among their replies.
const CALLS: usize = 1_200;
/// They end without that after so many.
const MOST_CALLS: usize = 10 * CALLS;
/// What walks have to lead to.
const WANTED: [&str; 12] = [
    "claimed",
    "held",
    "blocked",
    "finished",
    "stands",
    "does not stand",
    "recorded",
    "not recorded",
    "answered",
    "admitted",
    "blocked in line",
    "let past the line",
];

#[tokio::test]
async fn the_sql_answers_and_changes_as_the_model_says() {
    let given = std::env::var("WALK_SEED").ok().and_then(|seed| seed.parse().ok());
    let first = given.unwrap_or_else(|| fastrand::u64(..));
    let database = Database::new().await;
    let mut real = Real::new(&database).await;
    let mut line = Line::new(&database).await;
    let mut compared = BTreeMap::<&str, usize>::new();
    for seed in first.. {
        let mut walk = Walk::new(seed);
        real.begin_anew(&walk.fleet.ledger).await;
        line.set(&walk.fleet.ledger).await;
        for id in walk.fleet.processes.map(|process| process.id) {
            real.repeat(Call::Register(id), Reply::Done).await;
        }
        for _ in 0..STEPS {
            let before = walk.fleet.ledger;
            for (call, reply) in walk.step() {
                let answer = match call {
                    Call::Admit(job) => line.admit(job).await,
                    call => real.repeat(call, reply).await,
                };
                assert_eq!(answer, reply, "{call:?}; {}", walk.way);
                *compared.entry(kind(&call, &reply, &before, &walk.fleet.ledger)).or_default() += 1;
            }
            if walk.scope.line {
                line.set(&walk.fleet.ledger).await;
                line.compare(&walk.fleet.ledger, &walk.way).await;
            }
            assert_eq!(real.view().await, View::of(&walk.fleet.ledger), "{}", walk.way);
            if walk.fleet.ledger.ends.iter().all(Option::is_some) {
                break;
            }
        }
        let calls = compared.values().sum::<usize>();
        let enough = calls >= CALLS && WANTED.iter().all(|wanted| compared.contains_key(wanted));
        if given.is_some() || enough || calls >= MOST_CALLS {
            break;
        }
    }
    eprintln!("from WALK_SEED={first} on: {compared:?}");
    if given.is_none() {
        for wanted in WANTED {
            assert!(compared.contains_key(wanted), "no walk has led to \"{wanted}\"");
        }
    }
}

/// The line of the real ledger.
struct Line {
    store: Store,
    sql: PgConnection,
    pool: Name,
    /// Who has led before.
    former: Leadership,
    /// Who leads.
    present: Leadership,
}

impl Line {
    /// Takes the leadership from who repeats the walks.
    async fn new(database: &Database) -> Line {
        let (store, sql) = (database.store(), database.connect().await);
        let hour = Duration::from_secs(3_600);
        let former = store.lead("admission", "a walk", hour).await.expect("an answer").expect("its own");
        store.resign(&former).await.expect("an answer");
        let present = store.lead("admission", "its line", hour).await.expect("an answer").expect("no other");
        Line { store, sql, pool: Name::default(), former, present }
    }

    /// Writes down what the model's leader has.
    async fn set(&mut self, ledger: &Ledger) {
        let note = "UPDATE harness_pools SET waiting = $1, seen_at = 'infinity', granted = 1, counted_from = '-infinity',
                                             granted_until = CASE WHEN $2 THEN now() + interval '1 hour' END";
        let noted = sqlx::query(note).bind(i64::from(ledger.noted)).bind(ledger.grants);
        noted.execute(&mut self.sql).await.expect("it is written down");
    }

    /// Repeats an admission by who leads.
    async fn admit(&mut self, job: Job) -> Reply {
        let place = "SELECT lane, line, seq - 1 FROM harness_jobs WHERE state = 'waiting' AND message ->> 'input' = $1";
        let place: Option<(i16, String, i64)> =
            sqlx::query_as(place).bind(job.to_string()).fetch_optional(&mut self.sql).await.expect("a place");
        let Some((lane, line, behind)) = place else { return Reply::Jobs(0) };
        let place = LinePlace { lane, tenant: "default".to_owned(), line, behind };
        let takes = [LineTake { place, most: 1 }];
        let admitted = self.store.admit(&self.present, &self.pool, &takes).await.expect("an answer");
        Reply::Jobs(u8::from(!admitted.due.is_empty()) << job)
    }

    /// Both must count the same places. And who has led before admits nothing, whatever waits.
    async fn compare(&self, ledger: &Ledger, way: &str) {
        let facts = self.store.line_facts(&OldestInFlight::new()).await.expect("facts");
        let places: u64 = facts.in_flight.iter().filter(|it| it.line == "key").map(|it| it.jobs).sum();
        assert_eq!(places, ledger.places(Broken::None) as u64, "places of the key; {way}");

        let lines = self.store.find_lines(&self.pool, None, i16::MAX, 100).await.expect("lines");
        assert_eq!(lines.is_empty(), !ledger.has_waiting(), "lines; {way}");
        let takes: Vec<LineTake> = lines.into_iter().map(|place| LineTake { place, most: 100 }).collect();
        let admitted = self.store.admit(&self.former, &self.pool, &takes).await.expect("an answer");
        assert!(admitted.looked_at.is_empty(), "{admitted:?} under a former leadership; {way}");
    }
}

/// A walk through the model.
struct Walk {
    rng: Rng,
    scope: Scope,
    fleet: Fleet,
    /// What the ledger has granted, by worker, job and epoch.
    granted: Vec<(u8, u8, u8)>,
    /// The steps so far, for the reader of a failure.
    way: String,
}

impl Walk {
    fn new(seed: u64) -> Walk {
        let mut rng = Rng::with_seed(seed);
        let scope = [Scope::WHOLE, Scope::LATER, Scope::LINE, Scope::LIMIT][rng.usize(..4)];
        let fleet = Fleet::new(&scope);
        Walk { rng, scope, fleet, granted: Vec::new(), way: format!("WALK_SEED={seed}") }
    }

    /// Takes one step. Returns the calls to the ledger and their replies.
    fn step(&mut self) -> Vec<(Call, Reply)> {
        let calls = self.happen();
        for (_, reply) in &calls {
            let run = match reply {
                Reply::Answer(Answer::Claimed(run)) => Some(run),
                Reply::Concluded { next, .. } => next.as_ref(),
                _ => None,
            };
            self.granted.extend(run.map(|run| (run.worker, run.job, run.epoch)));
        }
        calls
    }

    fn happen(&mut self) -> Vec<(Call, Reply)> {
        let mut possible = Vec::new();
        self.fleet.possible(Broken::None, &self.scope, &mut possible);
        if possible.is_empty() || self.rng.u32(..4) == 0 {
            let call = self.anything();
            self.way += &format!("\n    {call:?}");
            return vec![(call, self.fleet.ledger.call(Broken::None, call))];
        }
        let weights: Vec<u32> = possible.iter().map(|action| weight(action, &self.fleet.ledger)).collect();
        let mut at = self.rng.u32(..weights.iter().sum::<u32>());
        let chosen =
            weights.iter().position(|weight| at.checked_sub(*weight).map(|rest| at = rest).is_none());
        let action = possible[chosen.expect("below the sum of all weights")];
        self.way += &format!("\n    {action:?}");
        let mut calls = Vec::new();
        let after = self.fleet.after(Broken::None, action, &mut |call, reply| calls.push((call, reply)));
        self.fleet = after.unwrap_or(self.fleet);
        calls
    }

    /// Makes up a call that may have no reason, as if it had hung in the network for any length of time.
    fn anything(&mut self) -> Call {
        let known = |id: &u8| self.fleet.ledger.leases[usize::from(*id)] != Lease::Unknown;
        let ids: Vec<u8> = (0..WORKERS as u8).filter(known).collect();
        let worker = self.rng.choice(ids).expect("two have registered");
        let job = self.rng.u8(..JOBS as u8);
        let row = self.fleet.ledger.rows[usize::from(job)];
        let worker = row.and_then(|row| row.worker).filter(|_| self.rng.bool()).unwrap_or(worker);
        // Often that of a current run, otherwise of one that a current run may have replaced.
        let granted = match self.rng.bool() {
            true => self.granted.last(),
            false => self.rng.choice(&self.granted),
        };
        match (self.rng.u32(..8), granted.copied()) {
            (0..3, _) => Call::Claim { worker, job, seen: None },
            (3..5, Some((worker, job, epoch))) => {
                let ordinal = self.rng.u8(..2);
                match self.rng.u32(..4) {
                    0 => Call::Fold { worker, job, epoch, ordinal, total: self.rng.u8(..5) },
                    _ => Call::Checkpoint { worker, job, epoch, ordinal },
                }
            }
            (5..7, Some((worker, job, epoch))) => {
                let ends = [End::Succeeded, End::Failed, End::Cancelled, End::Retry, End::HandBack, End::Ask];
                let (end, attempts) = (self.rng.choice(ends).expect("one of them"), self.rng.u8(..3));
                let fold = (end.is_end() && self.rng.bool()).then(|| self.rng.u8(..5));
                let take_next = self.rng.bool();
                Call::Conclude(Conclusion { worker, job, epoch, end, attempts, fold, take_next })
            }
            _ if self.rng.u32(..3) == 0 => Call::Answer(job),
            _ if self.rng.bool() => Call::Confirm(job),
            _ => Call::Accept(job),
        }
    }
}

/// How often an action is chosen, relative to the others. Jobs must make progress for many states to be seen.
fn weight(action: &Action, ledger: &Ledger) -> u32 {
    let asks =
        |job: Job| ledger.rows[usize::from(job)].is_some_and(|row| row.state == JobState::AwaitingInput);
    match action {
        Action::Cancel(_) => 1,
        // A job that is answered early never waits.
        Action::Answer(job, _) if !asks(*job) => 1,
        Action::Crash(_)
        | Action::Drain(_)
        | Action::LeaseRunsOut(_)
        | Action::Beat(_)
        | Action::LoseLead => 2,
        Action::LoseRelay(_) | Action::AckEarly(_) | Action::Conclude(..) => 4,
        Action::Duplicate(_) => 6,
        _ => 12,
    }
}

fn kind(call: &Call, reply: &Reply, before: &Ledger, after: &Ledger) -> &'static str {
    let is = |ledger: &Ledger, job: Job, state| {
        ledger.rows[usize::from(job)].is_some_and(|row| row.state == state)
    };
    match (call, reply) {
        (Call::Admit(_), Reply::Jobs(0)) => return "not admitted",
        (Call::Admit(_), _) => return "admitted",
        (Call::Block(job), _)
            if is(before, *job, JobState::Waiting) && is(after, *job, JobState::Blocked) =>
        {
            return "blocked in line";
        }
        (Call::Accept(job), _) if before.line && is(after, *job, JobState::Publishing) => {
            return "let past the line";
        }
        _ => {}
    }
    match reply {
        Reply::Done => "done",
        Reply::Accepted(true) => "accepted",
        Reply::Accepted(false) => "accepted before",
        Reply::Answer(Answer::Claimed(_)) => "claimed",
        Reply::Answer(Answer::Finished) => "finished",
        Reply::Answer(Answer::Held) => "held",
        Reply::Answer(Answer::Blocked) => "blocked",
        Reply::Answer(Answer::NotDue) => "not due",
        Reply::Answer(Answer::LeaseLost) => "lease lost",
        Reply::Answer(Answer::Refused) => "refused",
        Reply::Stands(true) => "stands",
        Reply::Stands(false) => "does not stand",
        Reply::Concluded { next: Some(_), .. } => "concluded, and the next",
        Reply::Concluded { recorded: true, .. } => "recorded",
        Reply::Concluded { .. } => "not recorded",
        Reply::Beat(Some(_)) => "alive",
        Reply::Beat(None) => "dead",
        Reply::Jobs(_) => "jobs",
        Reply::Workers(_) => "workers",
        Reply::Cancelled(_) => "cancelled",
        Reply::Heard(Heard::Counts) => "answered",
        Reply::Heard(Heard::Early) => "answered early",
        Reply::Heard(Heard::Refused) => "answered in vain",
    }
}
