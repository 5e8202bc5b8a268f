//! The SQL does what the machine of `src/money` says. Walks through the machine are repeated on a real ledger, and
//! after every step the answers, the calls and the account must be equal.
//!
//! The walks are seeded: `WALK_SEED` repeats one, and a failure prints its steps.

use std::collections::{BTreeMap, HashMap};

use fastrand::Rng;
use job::{Failure, FailureCode};
use sqlx::PgConnection;
use store::{CallOutcome, End, NewCall, Reserved, Settled, Store};
use tests::money::action::{Action, Luck};
use tests::money::broken::Broken;
use tests::money::world::{CALLS, JOB_OF, JOBS, LIMIT, Maker, Outcome, RESERVED, Reply, Row, World};
use tests::{Database, Runner, declare_dead};

use crate::caller::{Caller, account, cost, daily, unknown};

const STEPS: usize = 60;
/// Walks continue until this many answers were compared, and one of each kind.
const ANSWERS: usize = 300;
const KINDS: [&str; 6] = ["Granted", "Busy", "Spent", "Lost", "settled", "settled before"];
/// After this many answers, a kind that was not seen is one that no walk leads to.
const TOO_MANY: usize = 5_000;
/// The machine counts in units of this many micro-dollars.
const UNIT: u64 = 10;

#[tokio::test]
async fn the_sql_answers_and_counts_as_the_machine_says() {
    let given = std::env::var("WALK_SEED").ok().and_then(|seed| seed.parse().ok());
    let first = given.unwrap_or_else(|| fastrand::u64(..));
    let database = Database::new().await;
    let mut compared = BTreeMap::<String, usize>::new();
    for seed in first.. {
        let mut rng = Rng::with_seed(seed);
        let (mut world, mut real) = (World::new(6), Real::begin(&database).await);
        let mut way = format!("WALK_SEED={seed}");
        for _ in 0..STEPS {
            let possible = world.possible(Broken::None);
            // Jobs would end before their calls.
            let wanted: Vec<&Action> =
                possible.iter().filter(|it| !matches!(it, Action::Cancel(_)) || rng.u8(..) < 24).collect();
            let Some(action) = wanted.get(rng.usize(..wanted.len().max(1))).copied().copied() else { break };
            way += &format!("\n    {action:?}");
            let before = world;
            world = world.after(Broken::None, action);
            if let Some(answer) = real.repeat(&before, action, &way).await {
                *compared.entry(answer).or_default() += 1;
            }
            assert_eq!(real.view().await, view(&world), "{way}");
        }
        let total = compared.values().sum::<usize>();
        assert!(total < TOO_MANY, "no walk leads to some of {KINDS:?}: {compared:?}");
        let is_done = given.is_some() || (total >= ANSWERS && compared.len() == KINDS.len());
        // It takes longer than the walk.
        if is_done || seed % 4 == 0 {
            database.audited().await;
        }
        if is_done {
            break;
        }
    }
    eprintln!("from WALK_SEED={first} on: {compared:?}");
}

/// The calls, what is spent, and what is held.
type View = ([Option<(String, i64)>; CALLS], (i64, i64));

fn view(world: &World) -> View {
    let unit = UNIT as i64;
    let row = |at: usize| match world.calls[at].row {
        Row::None => None,
        Row::Held => Some(("held".to_owned(), 0)),
        Row::Ended(Outcome::Settled(cost)) => Some(("settled".to_owned(), i64::from(cost) * unit)),
        Row::Ended(Outcome::Free) => Some(("free".to_owned(), 0)),
        Row::Ended(Outcome::Unknown) => Some(("unknown".to_owned(), i64::from(RESERVED) * unit)),
    };
    (std::array::from_fn(row), (i64::from(world.spent) * unit, i64::from(world.held) * unit))
}

struct Real {
    store: Store,
    sql: PgConnection,
    /// The runs, by job and epoch.
    runs: HashMap<(usize, u8), Caller>,
    calls: [Option<NewCall>; CALLS],
}

impl Real {
    async fn begin(database: &Database) -> Real {
        let (store, mut sql) = (database.store(), database.connect().await);
        let empty =
            "TRUNCATE harness_jobs, harness_results, harness_sessions, harness_workers, harness_calls,
                     harness_accounts, harness_account_moves";
        sqlx::query(empty).execute(&mut sql).await.expect("empty tables");
        let mut runs = HashMap::new();
        for job in 0..JOBS {
            let runner = Runner::register(&store).await;
            let limits = daily(u64::from(LIMIT) * UNIT);
            runs.insert((job, 1), Caller::new(&runner, &format!("s-{job}"), &limits).await);
        }
        Real { store, sql, runs, calls: Default::default() }
    }

    /// Executes what an event does to the ledger, and compares the answer. Returns what it was.
    async fn repeat(&mut self, before: &World, action: Action, way: &str) -> Option<String> {
        match action {
            Action::Begin(at) => {
                let run = &self.runs[&(JOB_OF[at], before.jobs[JOB_OF[at]].epoch)];
                self.calls[at] = Some(run.call(u64::from(RESERVED) * UNIT));
                None
            }
            Action::Reserve(at, Luck::Heard | Luck::ReplyLost) | Action::ArriveReserve(at) => {
                let expected = before.check(Broken::None, at);
                let call = self.calls[at].clone().expect("it has begun");
                let reply = match self.store.reserve(call).await.expect("an answer") {
                    Reserved::Granted => Reply::Granted,
                    Reserved::Busy { .. } => Reply::Busy,
                    Reserved::Spent { .. } => Reply::Spent,
                    Reserved::Lost => Reply::Lost,
                    Reserved::Later { .. } => panic!("the call names no key"),
                    Reserved::Answered(_) => panic!("nothing is stored"),
                };
                assert_eq!(reply, expected, "{way}");
                Some(format!("{reply:?}"))
            }
            Action::Settle(at, Luck::Heard | Luck::ReplyLost) => {
                let Maker::Knows(outcome) = before.calls[at].maker else { panic!("{way}") };
                self.settle(before, at, outcome, way).await
            }
            Action::ArriveSettle(at) => {
                let outcome = before.calls[at].late_settle.expect("it hangs");
                self.settle(before, at, outcome, way).await
            }
            Action::Rescue(job) | Action::Suspect(job) => {
                let epoch = before.jobs[job].epoch;
                let run = self.runs[&(job, epoch)].clone();
                self.die(&run).await;
                let runner = Runner::register(&self.store).await;
                self.runs.insert((job, epoch + 1), run.again(&runner).await);
                None
            }
            Action::RescueEnded => {
                for (call, job) in before.calls.iter().zip(JOB_OF) {
                    if call.maker == Maker::Gone && call.row == Row::Held && before.jobs[job].over {
                        let run = self.runs[&(job, call.epoch)].clone();
                        self.die(&run).await;
                    }
                }
                None
            }
            Action::Cancel(job) => {
                let run = &self.runs[&(job, before.jobs[job].epoch)];
                let failure = Failure::retryable(FailureCode::HarnessError, "weather");
                let conclusion = run.runner.conclusion(&run.run, End::Cancelled(failure));
                self.store.conclude(conclusion).await.expect("an answer");
                None
            }
            Action::Reserve(_, Luck::Late)
            | Action::Settle(_, Luck::Late)
            | Action::Check(_)
            | Action::Hold(_)
            | Action::Send(_)
            | Action::Forgo(_)
            | Action::Refuse(_)
            | Action::Bill(..)
            | Action::BillUnheard(..)
            | Action::LoseConnection(_)
            | Action::Crash(_)
            | Action::Expire(_) => None,
        }
    }

    async fn settle(&self, before: &World, at: usize, outcome: Outcome, way: &str) -> Option<String> {
        let changes = { *before }.settle(Broken::None, at, outcome);
        let outcome = match outcome {
            Outcome::Settled(units) => cost(u64::from(units) * UNIT),
            Outcome::Free => CallOutcome::Free,
            Outcome::Unknown => unknown(),
        };
        let call = self.calls[at].clone().expect("it has begun");
        let settled =
            store::SettledCall { call, outcome, provider_request_id: None, answer: None, used: Vec::new() };
        let now = matches!(self.store.settle(settled).await.expect("an answer"), Settled::Now { .. });
        assert_eq!(now, changes, "{way}");
        Some(if now { "settled" } else { "settled before" }.to_owned())
    }

    /// The worker of a run is found dead, whether or not it is.
    async fn die(&mut self, run: &Caller) {
        let past =
            "UPDATE harness_workers SET heartbeat_at = now() - interval '2 hours' WHERE worker_id::text = $1";
        let worker = run.runner.worker.to_string();
        sqlx::query(past).bind(worker).execute(&mut self.sql).await.expect("the time is set");
        declare_dead(&self.store).await;
        self.store.rescue().await.expect("an answer");
    }

    async fn view(&mut self) -> View {
        let rows = "SELECT call_id::text, state, cost_microusd FROM harness_calls";
        let rows: Vec<(String, String, i64)> =
            sqlx::query_as(rows).fetch_all(&mut self.sql).await.expect("rows");
        let row = |at: usize| {
            let id = self.calls[at].as_ref()?.call_id.to_string();
            rows.iter().find(|row| row.0 == id).map(|row| (row.1.clone(), row.2))
        };
        (std::array::from_fn(row), account(&self.store, "fleet:day:").await)
    }
}
