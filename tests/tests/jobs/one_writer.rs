//! Promise 2: at any time, at most one worker can commit for a session; a stale worker's write changes nothing.
//!
//! The test makes the workers' calls to the ledger directly, one by one. Most of these cases happen to a real worker
//! only in the moment between two statements. `any_interleaving` tests all calls together.

use std::time::Duration;

use job::{Failure, FailureCode, JobSpec, JobState, Json};
use serde_json::json;
use store::{Answer, End, Fenced, Store};
use tests::{Database, Runner, claimed, declare_dead, job};

async fn ledger() -> (Database, Store) {
    let database = Database::new().await;
    let store = database.store();
    (database, store)
}

async fn state(store: &Store, spec: &JobSpec) -> JobState {
    store.jobs(&[spec.job_id]).await.expect("the ledger")[0].state
}

#[tokio::test]
async fn a_write_under_a_stale_epoch_changes_nothing() {
    let (database, store) = ledger().await;
    let (first, second) = (Runner::register(&store).await, Runner::register(&store).await);
    let spec = job("s", "echo", json!(1));
    let stale = claimed(first.claim(&spec).await.unwrap());
    assert_eq!(first.checkpoint(&stale, 0).await.unwrap(), Fenced::Done(()));
    let handed_back =
        store.conclude(first.conclusion(&stale, End::HandBack { delay: Duration::ZERO })).await.unwrap();
    assert_eq!(handed_back.recorded, Fenced::Done(()));
    let fresh = claimed(second.claim(&spec).await.unwrap());
    assert!(fresh.claim.epoch() > stale.claim.epoch());

    let everything = || async {
        let rows = "SELECT to_jsonb(t)::text FROM";
        let (mut all, tables) =
            (Vec::new(), ["harness_jobs", "harness_sessions", "harness_checkpoints", "harness_results"]);
        for table in tables {
            all.extend(database.texts(&format!("{rows} {table} t ORDER BY 1")).await);
        }
        all
    };
    let before = everything().await;
    let failure = Failure::permanent(FailureCode::HarnessError, "stale");
    let ends = [
        End::Succeeded(Json::null()),
        End::Failed(failure.clone()),
        End::Cancelled(Failure::permanent(FailureCode::Cancelled, "on request")),
        End::HandBack { delay: Duration::ZERO },
        End::Retry { failure, delay: Duration::ZERO },
    ];
    assert_eq!(first.checkpoint(&stale, 1).await.unwrap(), Fenced::Lost);
    for end in &ends {
        let refused = store.conclude(first.conclusion(&stale, end.clone())).await.unwrap();
        assert_eq!(refused.recorded, Fenced::Lost, "{end:?}");
        assert!(refused.next.is_none());
    }
    assert_eq!(everything().await, before);

    assert_eq!(second.checkpoint(&fresh, 0).await.unwrap(), Fenced::Done(()));
    assert_eq!(second.succeed(&fresh).await.unwrap().recorded, Fenced::Done(()));
    assert_eq!(second.checkpoint(&fresh, 1).await.unwrap(), Fenced::Lost, "it has ended");
}

#[tokio::test]
async fn a_sessions_jobs_run_one_after_the_other_in_the_order_of_acceptance() {
    let (_database, store) = ledger().await;
    let (here, there) = (Runner::register(&store).await, Runner::register(&store).await);
    let jobs: Vec<JobSpec> = (0..4).map(|n| job("s", "echo", json!(n))).collect();
    store.accept(&jobs).await.unwrap();
    // Delivered in the wrong order, to two workers.
    assert!(matches!(there.claim(&jobs[2]).await.unwrap(), Answer::Blocked));
    let mut run = claimed(here.claim(&jobs[0]).await.unwrap());
    assert!(matches!(there.claim(&jobs[1]).await.unwrap(), Answer::Blocked));
    assert!(matches!(there.claim(&jobs[1]).await.unwrap(), Answer::Blocked), "delivered again");
    assert!(matches!(there.claim(&jobs[0]).await.unwrap(), Answer::Held));
    for next in &jobs[1..3] {
        let concluded = here.succeed(&run).await.unwrap();
        assert_eq!(concluded.recorded, Fenced::Done(()));
        run = *concluded.next.expect("the session's next job");
        assert_eq!(run.claim.job_id(), next.job_id);
        assert_eq!(job::decode_stored(run.message.as_deref().unwrap()).unwrap(), *next);
        assert_eq!(state(&store, next).await, JobState::Running);
    }
    // The last job's message has not been delivered yet. No worker continues with the job, and it is free.
    assert!(here.succeed(&run).await.unwrap().next.is_none());
    claimed(there.claim(&jobs[3]).await.unwrap());
}

#[tokio::test]
async fn a_draining_worker_leaves_the_sessions_next_job_to_others() {
    let (_database, store) = ledger().await;
    let (here, there) = (Runner::register(&store).await, Runner::register(&store).await);
    let jobs = [job("s", "echo", json!(1)), job("s", "echo", json!(2))];
    store.accept(&jobs).await.unwrap();
    let run = claimed(here.claim(&jobs[0]).await.unwrap());
    assert!(matches!(here.claim(&jobs[1]).await.unwrap(), Answer::Blocked));
    let mut conclusion = here.conclusion(&run, End::Succeeded(Json::null()));
    conclusion.take_next = false;
    let concluded = store.conclude(conclusion).await.unwrap();
    assert_eq!(concluded.recorded, Fenced::Done(()));
    assert!(concluded.next.is_none());
    assert_eq!(state(&store, &jobs[1]).await, JobState::Scheduled);
    let (due, _) = store.take_due(10).await.unwrap();
    assert_eq!(due.iter().map(|due| due.job_id).collect::<Vec<_>>(), [jobs[1].job_id]);
    claimed(there.claim(&jobs[1]).await.unwrap());
}

#[tokio::test]
async fn a_job_whose_earlier_one_waits_for_a_retry_stays_blocked() {
    let (_database, store) = ledger().await;
    let runner = Runner::register(&store).await;
    let jobs = [job("s", "echo", json!(1)), job("s", "echo", json!(2))];
    store.accept(&jobs).await.unwrap();
    let run = claimed(runner.claim(&jobs[0]).await.unwrap());
    let failure = Failure::retryable(FailureCode::HarnessError, "again");
    let retry = End::Retry { failure, delay: Duration::from_secs(3_600) };
    let concluded = store.conclude(runner.conclusion(&run, retry)).await.unwrap();
    assert_eq!((concluded.recorded, concluded.next.is_none()), (Fenced::Done(()), true));
    assert!(matches!(runner.claim(&jobs[0]).await.unwrap(), Answer::NotDue));
    assert!(matches!(runner.claim(&jobs[1]).await.unwrap(), Answer::Blocked));
    assert_eq!(state(&store, &jobs[0]).await, JobState::Scheduled);
}

#[tokio::test]
async fn a_claim_whose_reply_was_lost_is_granted_again_under_a_new_epoch() {
    let (_database, store) = ledger().await;
    let (runner, other) = (Runner::register(&store).await, Runner::register(&store).await);
    let spec = job("s", "echo", json!(1));
    let lost = claimed(runner.claim(&spec).await.unwrap());
    assert!(matches!(other.claim(&spec).await.unwrap(), Answer::Held));
    let again = claimed(runner.claim(&spec).await.unwrap());
    assert!(again.claim.epoch() > lost.claim.epoch());
    assert_eq!(again.attempts, 0, "no attempt was spent");
    assert_eq!(runner.checkpoint(&lost, 0).await.unwrap(), Fenced::Lost);
    assert_eq!(runner.succeed(&lost).await.unwrap().recorded, Fenced::Lost);
    assert_eq!(runner.succeed(&again).await.unwrap().recorded, Fenced::Done(()));
    assert!(matches!(other.claim(&spec).await.unwrap(), Answer::Finished(JobState::Succeeded)));
}

#[tokio::test]
async fn a_lost_reply_is_made_good_even_when_an_earlier_job_became_visible_meanwhile() {
    let (database, store) = ledger().await;
    let runner = Runner::register(&store).await;
    // This one takes its number first and commits last: two transactions that accept jobs of one session may overlap.
    let (earlier, later) = (job("s", "echo", json!(1)), job("s", "echo", json!(2)));
    let lost = claimed(runner.claim(&later).await.unwrap());
    store.accept(std::slice::from_ref(&earlier)).await.unwrap();
    let swap = format!("UPDATE harness_jobs SET seq = DEFAULT WHERE job_id = '{}'", later.job_id);
    database.execute(&swap).await;
    let again = claimed(runner.claim(&later).await.unwrap());
    assert!(again.claim.epoch() > lost.claim.epoch());
    assert!(matches!(runner.claim(&earlier).await.unwrap(), Answer::Blocked));
    let concluded = runner.succeed(&again).await.unwrap();
    assert_eq!(concluded.next.expect("the earlier one").claim.job_id(), earlier.job_id);
}

#[tokio::test]
async fn a_conclusion_whose_reply_was_lost_is_recognised() {
    let (database, store) = ledger().await;
    let runner = Runner::register(&store).await;
    let failure = || Failure::retryable(FailureCode::HarnessError, "again");
    let ends = [
        End::Succeeded(Json::parse("7").unwrap()),
        End::Failed(failure()),
        End::Cancelled(Failure::permanent(FailureCode::Cancelled, "on request")),
        End::HandBack { delay: Duration::ZERO },
        End::Retry { failure: failure(), delay: Duration::from_secs(60) },
    ];
    for (n, end) in ends.into_iter().enumerate() {
        let spec = job(&format!("s-{n}"), "echo", json!(n));
        let run = claimed(runner.claim(&spec).await.unwrap());
        let conclusion = runner.conclusion(&run, end);
        for _ in 0..3 {
            let concluded = store.conclude(conclusion.clone()).await.unwrap();
            assert_eq!(concluded.recorded, Fenced::Done(()), "{:?}", conclusion.end);
        }
        assert_eq!(store.jobs(&[spec.job_id]).await.unwrap()[0].attempts as u32, conclusion.attempts);
    }
    assert_eq!(database.count("SELECT count(*) FROM harness_results").await, 3);
    assert_eq!(database.count("SELECT max(version) FROM harness_sessions").await, 1, "folded once");
}

#[tokio::test]
async fn a_checkpoint_that_is_repeated_is_appended_once() {
    let (database, store) = ledger().await;
    let runner = Runner::register(&store).await;
    let run = claimed(runner.claim(&job("s", "echo", json!(1))).await.unwrap());
    for ordinal in [0, 0, 1, 0, 1, 2] {
        assert_eq!(runner.checkpoint(&run, ordinal).await.unwrap(), Fenced::Done(()));
    }
    assert_eq!(database.count("SELECT count(*) FROM harness_checkpoints").await, 3);
    runner.succeed(&run).await.unwrap();
    let view = store.jobs(&[run.claim.job_id()]).await.unwrap().remove(0);
    assert_eq!((view.iterations, view.cost_usd.micros()), (3, 21));
}

#[tokio::test]
async fn death_is_final() {
    let (_database, store) = ledger().await;
    let (living, dead_worker) =
        (Runner::register(&store).await, Runner::with_lease(&store, Duration::from_millis(1)).await);
    let jobs = [job("s", "echo", json!(1)), job("s", "echo", json!(2)), job("t", "echo", json!(3))];
    store.accept(&jobs).await.unwrap();
    let run = claimed(dead_worker.claim(&jobs[0]).await.unwrap());
    assert!(matches!(dead_worker.claim(&jobs[1]).await.unwrap(), Answer::Blocked));
    let declared = tests::until("its lease is over", async || {
        let declared = declare_dead(&store).await;
        (!declared.is_empty()).then_some(declared)
    });
    assert_eq!(declared.await, [dead_worker.worker], "and no other worker");
    assert!(declare_dead(&store).await.is_empty(), "once");

    // The worker is dead, but its jobs are not rescued yet. Its runs may still be written to, which is harmless; it
    // gets no new job.
    assert!(matches!(dead_worker.claim(&jobs[2]).await.unwrap(), Answer::LeaseLost));
    assert!(matches!(
        store.beat(dead_worker.worker, &store::Throughput::default()).await.unwrap(),
        store::Beat::Dead
    ));
    assert_eq!(store.rescue().await.unwrap(), [jobs[0].job_id]);
    assert!(store.rescue().await.unwrap().is_empty(), "once");
    assert_eq!(dead_worker.checkpoint(&run, 0).await.unwrap(), Fenced::Lost);
    assert_eq!(dead_worker.succeed(&run).await.unwrap().recorded, Fenced::Lost);
    assert!(matches!(dead_worker.claim(&jobs[0]).await.unwrap(), Answer::LeaseLost));

    let again = claimed(living.claim(&jobs[0]).await.unwrap());
    assert_eq!(again.attempts, 1, "the attempt is spent");
    let next = living.succeed(&again).await.unwrap().next.expect("the blocked one");
    assert_eq!((next.claim.job_id(), next.attempts), (jobs[1].job_id, 0));
}

#[tokio::test]
async fn a_conclusion_of_a_worker_that_died_meanwhile_hands_it_nothing() {
    let (_database, store) = ledger().await;
    let dead_worker = Runner::with_lease(&store, Duration::from_millis(1)).await;
    let jobs = [job("s", "echo", json!(1)), job("s", "echo", json!(2))];
    store.accept(&jobs).await.unwrap();
    let run = claimed(dead_worker.claim(&jobs[0]).await.unwrap());
    assert!(matches!(dead_worker.claim(&jobs[1]).await.unwrap(), Answer::Blocked));
    let declared = async || (!declare_dead(&store).await.is_empty()).then_some(());
    tests::until("its lease is over", declared).await;
    // The job is not rescued yet, so its end counts. But the next job must not go to a dead worker.
    let concluded = dead_worker.succeed(&run).await.unwrap();
    assert_eq!(concluded.recorded, Fenced::Done(()));
    assert!(concluded.next.is_none());
    assert_eq!(state(&store, &jobs[1]).await, JobState::Scheduled);
}

#[tokio::test]
async fn an_id_that_belongs_to_another_session_is_not_run() {
    let (_database, store) = ledger().await;
    let runner = Runner::register(&store).await;
    let spec = job("mine", "echo", json!(1));
    let thief = JobSpec { session_id: "other".parse().unwrap(), ..spec.clone() };
    let run = claimed(runner.claim(&spec).await.unwrap());
    for _ in 0..2 {
        let answer = runner.claim(&thief).await.unwrap();
        assert!(matches!(&answer, Answer::OtherSession(session) if session == "mine"), "{answer:?}");
        // First live, then ended.
        runner.succeed(&run).await.unwrap();
    }
}
