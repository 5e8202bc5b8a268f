//! Promises 1 to 3 together, in any order of events: one run of a session at a time commits, every job ends once, and
//! every checkpoint counts once.
//!
//! Several workers, each with its own connections, take deliveries in any order and any number of times. They lose
//! replies, hand back, retry, drain and die. Some jobs are not due yet. The choices are seeded and the seed is printed, but the tasks still race.

use std::collections::HashMap;
use std::time::Duration;

use fastrand::Rng;
use futures::future::join_all;
use job::{Failure, FailureCode, JobId, JobSpec, Json};
use serde_json::json;
use store::{Answer, Claimed, Concluded, Conclusion, End, Fenced, Fold, Unwanted};
use tests::{Database, Runner, declare_dead, folded, job};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_any_interleaving_one_run_at_a_time_commits_and_every_job_ends_once() {
    const SAILORS: usize = 8;
    const SESSIONS: usize = 40;
    const JOBS_PER_SESSION: usize = 3;
    const JOBS: usize = SESSIONS * JOBS_PER_SESSION;
    let seed = std::env::var("STORM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("STORM_SEED={seed} begins the same way");
    let mut rng = Rng::with_seed(seed);
    let database = Database::new().await;
    let store = database.store();
    let mut jobs: Vec<JobSpec> =
        (0..JOBS).map(|n| job(&format!("s-{}", n / JOBS_PER_SESSION), "echo", json!(n))).collect();
    // Some are not due yet, and some of those are when their message arrives.
    jobs.iter_mut().for_each(|spec| spec.delay_ms = (rng.u32(..4) == 0).then(|| rng.u64(..400)));
    // Half of the sessions come through the producer, in order; the others come only as messages.
    let accepted = jobs.iter().filter(|spec| spec.session_id.as_str().len() % 2 == 0);
    store.accept(&accepted.cloned().collect::<Vec<_>>()).await.unwrap();

    let mut sailors = Vec::new();
    for _ in 0..SAILORS {
        let mut rng = rng.fork();
        // Each is like a process, with its own connections and batches.
        let runner = Runner::with_lease(&database.store(), lease(&mut rng)).await;
        let sailor = Sailor {
            runner,
            rng,
            open: jobs.clone(),
            running: HashMap::new(),
            unheard: HashMap::new(),
            past: Vec::new(),
            ended: Vec::new(),
            checkpoints: HashMap::new(),
        };
        sailors.push(tokio::spawn(timeout(Duration::from_secs(120), sailor.sail())));
    }
    let (mut ended, mut checkpoints) = (Vec::new(), HashMap::<String, u64>::new());
    for sailor in database.audited_while(join_all(sailors)).await {
        // A second runner of a session would have violated the index that forbids it, and so failed a call.
        let Ok(sailor) = sailor.unwrap() else {
            let left = "SELECT session_id || ' ' || state FROM harness_jobs ORDER BY seq";
            panic!("these never ended: {:?}", database.texts(left).await);
        };
        ended.extend(sailor.ended);
        for (session, count) in sailor.checkpoints {
            *checkpoints.entry(session).or_default() += count;
        }
    }
    ended.sort_unstable();
    let mut wanted: Vec<JobId> = jobs.iter().map(|spec| spec.job_id).collect();
    wanted.sort_unstable();
    assert_eq!(ended, wanted, "each end was confirmed to one run");
    assert_eq!(database.count("SELECT count(*) FROM harness_results").await, JOBS as i64);
    assert_eq!(database.count("SELECT count(*) FROM harness_jobs").await, 0);
    let mut total = 0;
    for session in 0..SESSIONS {
        let name = format!("s-{session}");
        // All of its jobs may have been cancelled before their messages arrived.
        let Some(view) = store.session(&name.parse::<job::Name>().unwrap().into()).await.unwrap() else {
            continue;
        };
        let made = checkpoints.get(&name).copied().unwrap_or(0);
        assert_eq!(view.head.iteration_count as u64, made, "{name}: each checkpoint counts once");
        assert_eq!(view.head.cost_usd.micros(), 7 * made, "{name}");
        total += made;
    }
    let paid = database.count("SELECT sum(iterations)::bigint FROM harness_results").await;
    assert_eq!(paid as u64, total, "and to one job");
}

/// A worker in the storm.
struct Sailor {
    runner: Runner,
    rng: Rng,
    /// Jobs that it does not know to have ended.
    open: Vec<JobSpec>,
    /// Its runs, each with the number of its next checkpoint.
    running: HashMap<JobId, (Claimed, i32)>,
    /// Runs that were granted to it in a reply that was lost.
    unheard: HashMap<JobId, Claimed>,
    /// Runs that are over: every further call in their name comes too late.
    past: Vec<(Runner, Claimed)>,
    /// Ends that the ledger has confirmed to it, and its checkpoints by session.
    ended: Vec<JobId>,
    checkpoints: HashMap<String, u64>,
}

impl Sailor {
    async fn sail(mut self) -> Sailor {
        let all: Vec<JobId> = self.open.iter().map(|spec| spec.job_id).collect();
        loop {
            match self.rng.u32(..21) {
                0..8 => self.deliver().await,
                8..12 => self.checkpoint().await,
                12..17 => self.conclude().await,
                17 => self.come_late().await,
                18 => {
                    // Declares workers dead whose lease has expired, perhaps even itself.
                    declare_dead(&self.runner.store).await;
                    self.runner.store.rescue().await.expect("an answer");
                    self.end_the_unwanted().await;
                    self.runner.store.take_due(10).await.expect("an answer");
                }
                19 if self.rng.u32(..8) == 0 => self.cancel().await,
                _ => {
                    if self.runner.store.ended_among(&all).await.expect("an answer").len() == all.len() {
                        return self;
                    }
                }
            }
        }
    }

    /// Cancels one of the jobs, whether or not it is known or running.
    async fn cancel(&mut self) {
        let Some(spec) = self.rng.choice(&self.open).cloned() else { return };
        let (_, ended) = self.runner.store.cancel("a test", &[spec.job_id]).await.expect("an answer");
        self.ended.extend(ended.into_iter().map(|job| job.job_id));
    }

    async fn end_the_unwanted(&mut self) {
        let store = &self.runner.store;
        let unwanted = store.unwanted().await.expect("an answer");
        let jobs: Vec<JobId> = unwanted.into_iter().map(|job| job.0).collect();
        let ended = store.end_waiting(&jobs, Unwanted::Cancelled).await.expect("an answer");
        self.ended.extend(ended.into_iter().map(|job| job.job_id));
    }

    /// Messages are delivered, or delivered again; at about the same time, all workers get the same ones.
    async fn deliver(&mut self) {
        let count = self.rng.usize(1..6);
        let specs = self.rng.choose_multiple(self.open.iter().take(9).cloned(), count);
        // A worker does not ask for a job that it runs.
        let claims = specs.iter().filter(|spec| !self.running.contains_key(&spec.job_id)).map(|spec| {
            let runner = self.runner.clone();
            async move { (spec.job_id, runner.claim(spec).await.expect("an answer")) }
        });
        let mut lost = false;
        for (job_id, answer) in join_all(claims.collect::<Vec<_>>()).await {
            match answer {
                Answer::Claimed(run) => self.begin(*run),
                Answer::Finished(_) => self.open.retain(|spec| spec.job_id != job_id),
                Answer::LeaseLost => lost = true,
                _ => {}
            }
        }
        if lost {
            self.running.clear();
            self.unheard.clear();
            self.runner = Runner::with_lease(&self.runner.store, lease(&mut self.rng)).await;
        }
    }

    /// Begins a run, unless the reply is lost on its way.
    fn begin(&mut self, run: Claimed) {
        if let Some(unheard) = self.unheard.remove(&run.claim.job_id()) {
            assert!(run.claim.epoch() > unheard.claim.epoch(), "granted again under an epoch of its own");
            self.past.push((self.runner.clone(), unheard));
        }
        if self.rng.u32(..6) > 0 {
            self.running.insert(run.claim.job_id(), (run, 0));
        } else {
            self.unheard.insert(run.claim.job_id(), run);
        }
    }

    /// A call that hung in the network for a long time arrives.
    async fn come_late(&mut self) {
        let Some((runner, run)) = self.rng.choice(&self.past) else { return };
        let checkpoint = runner.checkpoint(run, 1_000).await.expect("an answer");
        assert_eq!(checkpoint, Fenced::Lost, "{run:?} is over");
        let folded = runner.fold(run, 0, fold(run, 1)).await.expect("an answer");
        assert_eq!(folded, Fenced::Lost, "{run:?} is over");
    }

    fn some_runs(&mut self) -> Vec<(Claimed, i32)> {
        let mut ids: Vec<JobId> = self.running.keys().copied().collect();
        ids.sort_unstable();
        let count = self.rng.usize(1..4);
        let ids = self.rng.choose_multiple(ids, count);
        ids.iter().filter_map(|id| self.running.remove(id)).collect()
    }

    async fn checkpoint(&mut self) {
        for (run, ordinal) in self.some_runs() {
            // Repeated, as after a lost reply; it is recorded if either call recorded it.
            let mut committed = false;
            for _ in 0..self.rng.u32(1..3) {
                let answer = self.runner.checkpoint(&run, ordinal).await.expect("an answer");
                committed |= answer == Fenced::Done(());
            }
            if committed {
                *self.checkpoints.entry(run.claim.session_key().to_owned()).or_default() += 1;
                if self.rng.u32(..3) == 0 {
                    self.fold_within(&run, ordinal).await;
                }
                self.running.insert(run.claim.job_id(), (run, ordinal + 1));
            }
        }
    }

    /// Folds within a run, and perhaps again; then the checkpoint comes once more, which was folded.
    async fn fold_within(&mut self, run: &Claimed, ordinal: i32) {
        for _ in 0..self.rng.u32(1..3) {
            let state = fold(run, ordinal + 1);
            if self.runner.fold(run, ordinal, state).await.expect("an answer") == Fenced::Done(()) {
                self.runner.checkpoint(run, ordinal).await.expect("an answer");
            }
        }
    }

    async fn conclude(&mut self) {
        // The same for all runs of a process: it drains or it does not.
        let take_next = self.rng.u32(..4) > 0;
        let runs = self.some_runs();
        let conclusions: Vec<Conclusion> = runs
            .iter()
            .map(|(run, own)| {
                let failure = || Failure::retryable(FailureCode::HarnessError, "weather");
                let end = match self.rng.u32(..8) {
                    0 => End::HandBack { delay: Duration::ZERO },
                    1 => End::Retry { failure: failure(), delay: Duration::ZERO },
                    2 => End::Failed(failure()),
                    _ => End::Succeeded(Json::null()),
                };
                let ends = matches!(end, End::Failed(_) | End::Succeeded(_));
                Conclusion {
                    fold: (ends && self.rng.bool()).then(|| fold(run, *own)),
                    take_next,
                    ..self.runner.conclusion(run, end)
                }
            })
            .collect();
        let repeated = self.rng.u32(..4) == 0;
        if repeated {
            // The first replies are lost, including the next jobs in them.
            self.record(&conclusions).await;
        }
        for (conclusion, concluded) in conclusions.iter().zip(self.record(&conclusions).await) {
            let ends = matches!(conclusion.end, End::Failed(_) | End::Succeeded(_));
            if ends && concluded.recorded == Fenced::Done(()) {
                self.ended.push(conclusion.claim.job_id());
            }
            if let Some(next) = concluded.next {
                self.begin(*next);
            }
        }
        self.past.extend(runs.into_iter().map(|(run, _)| (self.runner.clone(), run)));
    }

    async fn record(&self, conclusions: &[Conclusion]) -> Vec<Concluded> {
        let store = &self.runner.store;
        let calls = conclusions
            .iter()
            .map(|conclusion| async { store.conclude(conclusion.clone()).await.expect("an answer") });
        join_all(calls).await
    }
}

/// A random lease; no worker here renews its lease.
fn lease(rng: &mut Rng) -> Duration {
    Duration::from_millis(rng.u64(20..400))
}

/// The session with everything that was checkpointed, as a worker folds it.
fn fold(run: &Claimed, own: i32) -> Fold {
    let before: Vec<serde_json::Value> = match &run.session.deltas {
        Some(deltas) => serde_json::from_str(deltas).expect("an answer"),
        None => Vec::new(),
    };
    let iterations = run.session.iteration_count as u64 + before.len() as u64 + own as u64;
    folded(iterations)
}
