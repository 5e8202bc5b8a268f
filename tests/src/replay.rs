//! Executes the model's transactions on a real ledger, and maps real ids to the model's numbers.

use std::collections::HashMap;
use std::time::Duration;

use job::{Failure, FailureCode, JobId, JobSpec, JobState, Json, LimitKeys, Name, Usd, WorkerId};
use serde_json::json;
use sqlx::PgConnection;
use store::{
    Accepted, Beat, BusyJob, CheckpointRow, Claim, Claimed, Fenced, Leadership, LinePlace, LineTake, RunFold,
    Store, Throughput, Unwanted,
};

use crate::model::call::{Answer, Call, Cancelled, Conclusion, End, Heard, Reply, Run};
use crate::model::ledger::Ledger;
use crate::model::row::{self, Input, JOBS, Lease, NO_PLACE, Row, SESSION_OF, SESSIONS, WORKERS};
use crate::{Database, Runner, declare_dead, folded, job};

/// A lease or a delay that ends only when the walk says so.
const HOUR: Duration = Duration::from_secs(3_600);

/// A real ledger, with the real value of each of the model's numbers.
pub struct Real {
    store: Store,
    sql: PgConnection,
    workers: HashMap<u8, Runner>,
    jobs: [JobSpec; JOBS],
    /// The epochs given in each session, in order. The model's epochs are their positions, from 1.
    epochs: [Vec<i64>; SESSIONS],
    /// The claims granted, by worker, job and the model's epoch.
    claims: HashMap<(u8, u8, u8), Claim>,
    admitter: Leadership,
}

impl Real {
    /// Uses this database.
    pub async fn new(database: &Database) -> Real {
        let (store, sql) = (database.store(), database.connect().await);
        let jobs = std::array::from_fn(|at| job(&format!("s-{}", SESSION_OF[at]), "echo", json!(at)));
        let admitter = store.lead("admission", "a walk", HOUR).await.expect("an answer").expect("no other");
        let (workers, claims) = (HashMap::new(), HashMap::new());
        Real { store, sql, workers, jobs, epochs: Default::default(), claims, admitter }
    }

    /// Returns to the initial state of this ledger, with other jobs. Those that are later are not due before the walk says so.
    pub async fn begin_anew(&mut self, ledger: &Ledger) {
        self.store.set_line("a walk", &Name::default(), ledger.line).await.expect("an answer");
        let empty =
            "TRUNCATE harness_jobs, harness_results, harness_sessions, harness_checkpoints, harness_history, harness_workers,
              harness_inputs";
        sqlx::query(empty).execute(&mut self.sql).await.expect("empty tables");
        self.workers.clear();
        for (at, spec) in self.jobs.iter_mut().enumerate() {
            spec.job_id = JobId::now();
            spec.delay_ms = (ledger.later & 1 << at != 0).then_some(HOUR.as_millis() as u64);
            let key = (ledger.keyed & 1 << at != 0).then(|| "key".parse().expect("a name"));
            spec.limits = LimitKeys::of(key).expect("a key");
        }
        self.epochs = Default::default();
        self.claims.clear();
    }

    /// Executes one transaction of the model.
    pub async fn repeat(&mut self, call: Call, expected: Reply) -> Reply {
        let store = self.store.clone();
        let spec = |job: u8| self.jobs[usize::from(job)].clone();
        match call {
            Call::Register(id) => {
                self.workers.insert(id, Runner::with_lease(&store, HOUR).await);
                Reply::Done
            }
            Call::TakeNumber(_) => unreachable!("walks have no slow acceptances"),
            Call::Accept(job) => {
                let accepted = store.accept(&[spec(job)]).await.expect("an answer");
                Reply::Accepted(matches!(accepted[..], [Accepted::New(_)]))
            }
            Call::Claim { worker, job, .. } => {
                Reply::Answer(match self.workers[&worker].claim(&spec(job)).await.expect("an answer") {
                    store::Answer::Claimed(run) => Answer::Claimed(self.run(worker, &run)),
                    store::Answer::Finished(_) => Answer::Finished,
                    store::Answer::Held => Answer::Held,
                    store::Answer::Blocked => Answer::Blocked,
                    store::Answer::NotDue | store::Answer::AwaitingInput => Answer::NotDue,
                    store::Answer::LeaseLost => Answer::LeaseLost,
                    store::Answer::Drained => panic!("no worker is marked to drain here"),
                    store::Answer::OtherSession(session) => panic!("{session} has this job"),
                    store::Answer::NotAccepted => panic!("all jobs here are the tenant default's"),
                })
            }
            Call::Checkpoint { worker, job, epoch, ordinal } => {
                let row = CheckpointRow {
                    claim: self.claims[&(worker, job, epoch)].clone(),
                    ordinal: ordinal.into(),
                    delta: "{}".to_owned(),
                    entries: None,
                    iterations: 1,
                    cost: Usd::from_micros(7),
                    input_tokens: 1,
                    output_tokens: 1,
                };
                Reply::Stands(store.checkpoint(row).await.expect("an answer") == Fenced::Done(()))
            }
            Call::Fold { worker, job, epoch, ordinal, total } => {
                let call = RunFold {
                    claim: self.claims[&(worker, job, epoch)].clone(),
                    ordinal: ordinal.into(),
                    fold: folded(total.into()),
                    before: Some(folded(0).state),
                };
                Reply::Stands(store.fold(call).await.expect("an answer") == Fenced::Done(()))
            }
            Call::Conclude(conclusion) => {
                let concluded = store.conclude(self.conclusion(conclusion)).await.expect("an answer");
                let next = concluded.next.map(|next| self.run(conclusion.worker, &next));
                Reply::Concluded { recorded: concluded.recorded == Fenced::Done(()), next }
            }
            Call::TakeDue => {
                let (due, _) = store.take_due(100).await.expect("an answer");
                self.bits(due.into_iter().map(|due| due.job_id))
            }
            Call::Admit(job) => {
                let place = "SELECT lane, seq - 1 FROM harness_jobs WHERE job_id::text = $1";
                let place: Option<(i16, i64)> = sqlx::query_as(place)
                    .bind(spec(job).job_id.to_string())
                    .fetch_optional(&mut self.sql)
                    .await
                    .expect("a place");
                let Some((lane, behind)) = place else { return Reply::Jobs(0) };
                let place = LinePlace { lane, tenant: "default".to_owned(), line: String::new(), behind };
                let takes = [LineTake { place, most: 1 }];
                let admitted = store.admit(&self.admitter, &Name::default(), &takes).await;
                self.bits(admitted.expect("an answer").due.into_iter().map(|due| due.job_id))
            }
            Call::Block(job) => {
                let spec = spec(job);
                let busy = [BusyJob { job_id: spec.job_id, session: spec.session_key() }];
                store.block(&busy).await.expect("an answer");
                Reply::Done
            }
            Call::Confirm(job) => {
                store.confirm(&[spec(job).job_id]).await.expect("an answer");
                Reply::Done
            }
            Call::ReturnStuck => {
                as_many(store.return_stuck(Duration::ZERO).await.expect("an answer"), expected)
            }
            Call::ReturnVanished => {
                let returned = store.return_vanished(&Name::default(), Duration::ZERO).await;
                as_many(returned.expect("an answer"), expected)
            }
            Call::Clear { worker, job, epoch } => {
                let cleared = store.clear_suspicion(&self.claims[&(worker, job, epoch)]).await;
                Reply::Stands(cleared.expect("an answer") == Fenced::Done(()))
            }
            Call::Notice(id) => {
                store.mark_draining(self.workers[&id].worker).await.expect("an answer");
                Reply::Done
            }
            Call::Beat(id) => Reply::Beat(
                match store.beat(self.workers[&id].worker, &Throughput::default()).await.expect("an answer") {
                    Beat::Dead => None,
                    Beat::Alive { held, .. } => {
                        let mut listed = [None; JOBS];
                        for claim in held {
                            let job = self.job(claim.job_id());
                            listed[job] = Some(self.given(SESSION_OF[job], claim.epoch()));
                        }
                        Some(listed)
                    }
                },
            ),
            Call::Stop(id) => {
                store.mark_stopped(self.workers[&id].worker).await.expect("an answer");
                Reply::Done
            }
            Call::DeclareDead => {
                let dead_workers = declare_dead(&store).await;
                let bits = dead_workers.into_iter().map(|worker| 1 << self.id(worker));
                Reply::Workers(bits.fold(0, |all, bit| all | bit))
            }
            Call::Rescue => {
                let rescued = store.rescue().await.expect("an answer");
                self.bits(rescued)
            }
            Call::Cancel(job) => {
                let (answers, _) = store.cancel("a test", &[spec(job).job_id]).await.expect("an answer");
                Reply::Cancelled(match answers[0] {
                    store::Cancelled::Now => Cancelled::Now,
                    store::Cancelled::Stopping => Cancelled::Stopping,
                    store::Cancelled::Unseen => Cancelled::Unseen,
                    store::Cancelled::Before(_) => Cancelled::Before,
                })
            }
            Call::EndUnwanted => {
                let unwanted = store.unwanted().await.expect("an answer");
                let unwanted: Vec<JobId> = unwanted.into_iter().map(|job| job.0).collect();
                let ended = store.end_waiting(&unwanted, Unwanted::Cancelled).await.expect("an answer");
                self.bits(ended.into_iter().map(|job| job.job_id))
            }
            Call::Answer(job) => {
                let call_id = "c".parse().expect("a call");
                let input = job::Input::of(spec(job).job_id, call_id, (Some(Json::null()), None), None);
                let heard =
                    store.answer(Some("a test"), &input.expect("an input"), None).await.expect("an answer");
                Reply::Heard(match heard {
                    store::Answered::Counts { .. } => Heard::Counts,
                    store::Answered::Early => Heard::Early,
                    _ => Heard::Refused,
                })
            }
            Call::TimeOut(job) => {
                let past = "UPDATE harness_inputs SET expires_at = now() - interval '1 s'
                             WHERE outcome IS NULL AND job_id::text = $1";
                let job_id = spec(job).job_id.to_string();
                sqlx::query(past).bind(job_id).execute(&mut self.sql).await.expect("the time is over");
                let due = store.time_out_inputs().await.expect("an answer");
                self.bits(due)
            }
            Call::LeaseRunsOut(id) => {
                let worker = self.workers[&id].worker.to_string();
                let past = "UPDATE harness_workers SET heartbeat_at = now() - interval '2 hours'
                             WHERE worker_id::text = $1";
                sqlx::query(past).bind(worker).execute(&mut self.sql).await.expect("the time is set");
                Reply::Done
            }
            Call::ComeDue(job) => {
                let now = "UPDATE harness_jobs SET due_at = now() WHERE job_id::text = $1";
                let job_id = spec(job).job_id.to_string();
                sqlx::query(now).bind(job_id).execute(&mut self.sql).await.expect("the job is due");
                Reply::Done
            }
        }
    }

    fn conclusion(&self, conclusion: Conclusion) -> store::Conclusion {
        let Conclusion { worker, job, epoch, end, attempts, fold, take_next } = conclusion;
        let failure = || Failure::retryable(FailureCode::HarnessError, "weather");
        store::Conclusion {
            claim: self.claims[&(worker, job, epoch)].clone(),
            end: match end {
                End::Succeeded => store::End::Succeeded(Json::null()),
                End::Failed => store::End::Failed(failure()),
                End::Cancelled => store::End::Cancelled(failure()),
                End::Retry => store::End::Retry { failure: failure(), delay: HOUR },
                End::HandBack => store::End::HandBack { delay: Duration::ZERO },
                End::Ask => store::End::Asks(vec![job::InputRequest {
                    call_id: "c".parse().expect("a call"),
                    kind: job::InputKind::Question,
                    content: Json::null(),
                    timeout: Some(HOUR),
                }]),
            },
            attempts: attempts.into(),
            fold: fold.map(|iterations| folded(iterations.into())),
            take_next,
        }
    }

    fn run(&mut self, worker: u8, run: &Claimed) -> Run {
        let deltas = run.session.deltas.as_deref().unwrap_or("[]");
        let deltas: Vec<serde_json::Value> = serde_json::from_str(deltas).expect("an array");
        let job = self.job(run.claim.job_id());
        let epoch = self.given(SESSION_OF[job], run.claim.epoch());
        self.claims.insert((worker, job as u8, epoch), run.claim.clone());
        Run {
            job: job as u8,
            worker,
            epoch,
            attempts: run.attempts as u8,
            deaths: run.deaths as u8,
            before: run.session.iteration_count as u8 + deltas.len() as u8,
            resumed: !deltas.is_empty(),
            own: 0,
            folded: 0,
            told: !run.answers.is_empty(),
        }
    }

    fn bits(&self, jobs: impl IntoIterator<Item = JobId>) -> Reply {
        Reply::Jobs(jobs.into_iter().fold(0, |all, job_id| all | 1 << self.job(job_id)))
    }

    fn job(&self, job_id: JobId) -> usize {
        self.jobs.iter().position(|spec| spec.job_id == job_id).expect("one of ours")
    }

    fn id(&self, worker: WorkerId) -> u8 {
        *self.workers.iter().find(|(_, runner)| runner.worker == worker).expect("one of ours").0
    }

    /// Converts an epoch to the model's count. An epoch that was never seen is the newest, and must be greater than all
    /// before.
    fn given(&mut self, session: usize, epoch: i64) -> u8 {
        let epochs = &mut self.epochs[session];
        if epochs.last().is_none_or(|newest| *newest < epoch) {
            epochs.push(epoch);
        }
        let place = epochs.iter().position(|given| *given == epoch);
        place.expect("the epochs of a session only grow") as u8 + 1
    }

    /// Returns the tables in the model's terms.
    pub async fn view(&mut self) -> View {
        type Job = (String, String, i64, i32, i32, Option<String>, bool, bool, i64, bool);
        let live: Vec<Job> = sqlx::query_as(
            "SELECT job_id::text, state, epoch, attempts, deaths, worker_id::text, asked IS NOT NULL, due_at <= now(),
                    coalesce(folded_iterations, 0), seq < 9223372036854775807
               FROM harness_jobs ORDER BY seq",
        )
        .fetch_all(&mut self.sql)
        .await
        .expect("rows");
        let mut view = View::default();
        for (job_id, state, epoch, attempts, deaths, worker, asked, due, folded, placed) in live {
            let (job, state) = (self.named(&job_id), state.parse().expect("a state"));
            let epoch = if epoch == 0 { 0 } else { self.given(SESSION_OF[job], epoch) };
            let worker = worker.map(|worker| self.worker(&worker));
            let due = state != JobState::Scheduled || due;
            let (attempts, deaths, folded) = (attempts as u8, deaths as u8, folded as u8);
            view.live[job] = Some(Live { state, due, epoch, worker, attempts, deaths, asked, folded });
            if placed {
                view.order[SESSION_OF[job]].push(job);
            }
        }
        type Result = (String, String, i64, Option<String>, i32, i64);
        let ended: Vec<Result> = sqlx::query_as(
            "SELECT job_id::text, state, epoch, worker_id::text, attempts, iterations FROM harness_results",
        )
        .fetch_all(&mut self.sql)
        .await
        .expect("rows");
        for (job_id, state, epoch, worker, attempts, iterations) in ended {
            let (job, state) = (self.named(&job_id), state.parse().expect("a state"));
            let epoch = if epoch == 0 { 0 } else { self.given(SESSION_OF[job], epoch) };
            let worker = worker.map(|worker| self.worker(&worker));
            let (attempts, iterations) = (attempts as u8, iterations as u8);
            view.ended[job] = Some(Ended { state, epoch, worker, attempts, iterations });
        }
        let folded = "SELECT session_id, iteration_count FROM harness_sessions";
        let folded: Vec<(String, i64)> = sqlx::query_as(folded).fetch_all(&mut self.sql).await.expect("rows");
        for (session, iterations) in folded {
            let session: usize = session.trim_start_matches("s-").parse().expect("one of ours");
            view.folded[session] = iterations as u8;
        }
        let deltas = "SELECT job_id::text, count(*) FROM harness_checkpoints GROUP BY job_id";
        let deltas: Vec<(String, i64)> = sqlx::query_as(deltas).fetch_all(&mut self.sql).await.expect("rows");
        for (job_id, count) in deltas {
            view.deltas[self.named(&job_id)] = count as u8;
        }
        let inputs = "SELECT job_id::text, asked_at IS NOT NULL, outcome FROM harness_inputs";
        let inputs: Vec<(String, bool, Option<String>)> =
            sqlx::query_as(inputs).fetch_all(&mut self.sql).await.expect("rows");
        for (job_id, asked, outcome) in inputs {
            view.inputs[self.named(&job_id)] = match outcome.as_deref() {
                Some("answered") if !asked => Input::Early,
                None => Input::Open,
                Some("answered") => Input::Answered,
                Some("timed_out") => Input::TimedOut,
                Some(_) => Input::Left,
            };
        }
        let workers = "SELECT worker_id::text, state,
                              heartbeat_at < now() - lease_ms * interval '1 millisecond' FROM harness_workers";
        let workers: Vec<(String, String, bool)> =
            sqlx::query_as(workers).fetch_all(&mut self.sql).await.expect("rows");
        for (worker, state, overdue) in workers {
            view.leases[usize::from(self.worker(&worker))] = match state.as_str() {
                "alive" | "draining" if overdue => Lease::Overdue,
                "alive" | "draining" => Lease::Alive,
                "stopped" => Lease::Stopped,
                "dead" => Lease::Dead,
                other => panic!("{other}"),
            };
        }
        view
    }

    fn named(&self, job_id: &str) -> usize {
        self.jobs.iter().position(|spec| spec.job_id.to_string() == job_id).expect("one of ours")
    }

    fn worker(&self, id: &str) -> u8 {
        *self.workers.iter().find(|(_, runner)| runner.worker.to_string() == id).expect("one of ours").0
    }
}

/// Accepts the expected set of jobs if its size matches; the tables show which jobs they are.
fn as_many(count: u64, expected: Reply) -> Reply {
    match expected {
        Reply::Jobs(jobs) if u64::from(jobs.count_ones()) == count => expected,
        _ => panic!("{count} jobs came due, expected {expected:?}"),
    }
}

/// What can be compared between two ledgers.
#[derive(Debug, Default, PartialEq)]
pub struct View {
    live: [Option<Live>; JOBS],
    ended: [Option<Ended>; JOBS],
    /// The live jobs of each session that have a place in its order.
    order: [Vec<usize>; SESSIONS],
    folded: [u8; SESSIONS],
    deltas: [u8; JOBS],
    inputs: [Input; JOBS],
    leases: [Lease; WORKERS],
}

#[derive(Debug, PartialEq)]
struct Live {
    state: JobState,
    due: bool,
    epoch: u8,
    worker: Option<u8>,
    attempts: u8,
    deaths: u8,
    asked: bool,
    folded: u8,
}

#[derive(Debug, PartialEq)]
struct Ended {
    state: JobState,
    epoch: u8,
    worker: Option<u8>,
    attempts: u8,
    iterations: u8,
}

impl View {
    /// The view of the model's ledger.
    pub fn of(ledger: &Ledger) -> View {
        let live = |row: Row| Live {
            state: row.state,
            due: row.state != JobState::Scheduled || row.due,
            epoch: row.epoch,
            worker: row.worker,
            attempts: row.attempts,
            deaths: row.deaths,
            asked: row.asked,
            folded: row.folded,
        };
        let ended = |it: row::Ended| Ended {
            state: match it.end {
                End::Succeeded => JobState::Succeeded,
                End::Cancelled => JobState::Cancelled,
                End::Failed | End::Retry | End::HandBack | End::Ask => JobState::Failed,
            },
            epoch: it.epoch,
            worker: it.worker,
            attempts: it.attempts,
            iterations: it.iterations,
        };
        let order = std::array::from_fn(|session| {
            let placed = ledger.of(session).filter(|(_, row)| row.seq < NO_PLACE);
            let mut jobs: Vec<(u8, usize)> = placed.map(|(job, row)| (row.seq, job)).collect();
            jobs.sort_unstable();
            jobs.into_iter().map(|(_, job)| job).collect()
        });
        View {
            live: ledger.rows.map(|row| row.map(live)),
            ended: ledger.ends.map(|it| it.map(ended)),
            order,
            folded: ledger.sessions.map(|session| session.folded),
            deltas: ledger.deltas,
            inputs: ledger.inputs,
            leases: ledger.leases,
        }
    }
}
