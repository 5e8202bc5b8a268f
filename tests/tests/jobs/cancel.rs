//! A job that is no longer wanted ends as cancelled, wherever it is: once, soon, and with a reply to its caller.

use std::time::Duration;

use job::{FailureCode, JobId, JobSpec, JobState};
use serde_json::{Value, json};
use sqlx::Connection;
use store::{Answer, Cancelled, End, Fenced};
use tests::{Database, Fleet, Ran, Runner, claimed, job, until};

async fn cancel(fleet: &Fleet, jobs: &[JobId]) -> Ran {
    let ids: Vec<String> = jobs.iter().map(JobId::to_string).collect();
    let mut arguments = vec!["cancel"];
    arguments.extend(ids.iter().map(String::as_str));
    fleet.producer(&arguments).await
}

async fn blocked(fleet: &Fleet, job_id: JobId) {
    let look = async || (fleet.view(job_id).await?.state == JobState::Blocked).then_some(());
    until("the job waits for its turn", look).await;
}

#[tokio::test]
async fn a_running_harness_gets_its_stop_signal_within_a_second_and_keeps_what_it_did() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let spec = job("s", "scripted", json!({"count": 1000, "delay_ms": 20}));
    let behind = job("s", "scripted", json!({"count": 1}));
    fleet.enqueue(&[spec.clone(), behind.clone()]).await;
    fleet.iterated(spec.job_id, 3).await;
    let ran = cancel(&fleet, &[spec.job_id]).await;
    assert_eq!((ran.code, ran.out.trim()), (0, format!("{} stopping", spec.job_id).as_str()), "{ran:?}");
    let then = fleet.view(spec.job_id).await.unwrap().iterations;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!(view.state, JobState::Cancelled);
    assert_eq!(view.failure.as_ref().map(|failure| failure.code), Some(FailureCode::Cancelled));
    // Each iteration takes at least 20 ms.
    assert!((3..then + 150).contains(&view.iterations), "{then} when it was asked to stop: {view:?}");
    assert_eq!(fleet.ended(behind.job_id).await.state, JobState::Succeeded, "the session goes on");
    assert_eq!(fleet.session("s").await.iteration_count, view.iterations + 1);
    worker.counted(r#"harness_requests_total{outcome="cancelled"}"#, 1.0).await;

    let again = cancel(&fleet, &[spec.job_id]).await;
    assert_eq!(again.code, 3, "{again:?}");
    assert!(again.out.contains("had ended before: cancelled"), "{again:?}");
}

#[tokio::test]
async fn waiting_jobs_end_at_once_and_free_those_behind_them() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let mut retrying =
        job("s", "scripted", json!({"iterations": [{"fail": {"message": "x", "retryable": true}}]}));
    (retrying.retry.base_delay_ms, retrying.retry.max_delay_ms) = (600_000, 600_000);
    retrying.retry.max_attempts = 100;
    let [second, third] =
        ["second", "third"].map(|say| job("s", "scripted", json!({"iterations": [{"say": say}]})));
    fleet.enqueue(&[retrying.clone(), second.clone(), third.clone()]).await;
    blocked(&fleet, third.job_id).await;
    let waits = async || (fleet.view(retrying.job_id).await?.state == JobState::Scheduled).then_some(());
    until("the first one waits for its next attempt", waits).await;

    let ran = cancel(&fleet, &[second.job_id]).await;
    assert_eq!(
        (ran.code, fleet.view(second.job_id).await.unwrap().state),
        (0, JobState::Cancelled),
        "{ran:?}"
    );
    assert_eq!(fleet.view(third.job_id).await.unwrap().state, JobState::Blocked, "the first one goes first");
    let ran = cancel(&fleet, &[retrying.job_id]).await;
    assert_eq!(ran.out.trim(), format!("{} cancelled", retrying.job_id));
    assert_eq!(fleet.ended(third.job_id).await.state, JobState::Succeeded);

    // This one is in the queue of a pool without workers.
    let queued = JobSpec { pool: "elsewhere".parse().unwrap(), ..job("q", "echo", json!(1)) };
    fleet.enqueue(std::slice::from_ref(&queued)).await;
    let ran = fleet.producer(&["cancel", "--session", "q"]).await;
    assert_eq!(ran.out.trim(), format!("{} cancelled", queued.job_id));
    assert_eq!(fleet.view(queued.job_id).await.unwrap().state, JobState::Cancelled);
}

#[tokio::test]
async fn a_job_that_was_never_seen_is_cancelled_ahead_of_its_message() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let spec = job("s", "echo", json!("never to be said"));
    let ran = cancel(&fleet, &[spec.job_id]).await;
    let text = "is not known (yet): its end is recorded as cancelled, so that its message finds it";
    assert_eq!((ran.code, ran.out.trim()), (3, format!("{} {text}", spec.job_id).as_str()), "{ran:?}");
    fleet.vhost.publish(vec![(job::encode(&spec).into_bytes(), Default::default())]).await;
    // Its message finds the end.
    worker.counted(r#"harness_claims_total{answer="finished"}"#, 1.0).await;
    assert_eq!(fleet.view(spec.job_id).await.unwrap().state, JobState::Cancelled);
    let enqueued = fleet.producer_with_input(&job::encode(&spec), &["enqueue", "--file", "-"]).await;
    assert_eq!(enqueued.code, 0, "{enqueued:?}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0, "it stays ended");

    let other = JobId::now().to_string();
    for (state, answer) in [(Value::Null, "not_known"), (json!("cancelled"), "ended_before")] {
        let ran = fleet.producer(&["cancel", &other, "--json"]).await;
        let expected = json!({"job_id": other, "answer": answer, "state": state});
        assert_eq!((ran.code, ran.json()), (3, vec![expected]), "{ran:?}");
    }

    let old = "00000000-0000-7000-8000-000000000000";
    let refused = fleet.producer(&["cancel", old]).await;
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("job_id: got 00000000"), "{refused:?}");
}

#[tokio::test]
async fn a_job_that_was_never_seen_is_not_known_also_when_a_sweep_ends_it() {
    let database = Database::new().await;
    let (store, sweeping) = (database.store(), database.store());
    let sweep = async {
        loop {
            let found: Vec<JobId> = sweeping.unwanted().await.unwrap().into_iter().map(|job| job.0).collect();
            sweeping.end_waiting(&found, store::Unwanted::Cancelled).await.unwrap();
        }
    };
    let cancel = async {
        for _ in 0..60 {
            let (answers, _) = store.cancel("a test", &[JobId::now()]).await.unwrap();
            assert_eq!(answers, [Cancelled::Unseen]);
        }
    };
    tokio::select! {
        () = cancel => {}
        () = sweep => {}
    }
}

#[tokio::test]
async fn the_caller_of_a_job_that_is_cancelled_while_it_waits_gets_a_reply() {
    let fleet = Fleet::new().await;
    let connection = fleet.vhost.lapin().await;
    let channel = connection.create_channel().await.unwrap();
    channel.queue_declare("replies".into(), Default::default(), Default::default()).await.unwrap();
    // A worker declares the topology.
    drop(fleet.worker("worker").start().await);
    let spec = JobSpec { reply_to: Some("replies".to_owned()), ..job("s", "echo", json!(1)) };
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    cancel(&fleet, &[spec.job_id]).await;
    let get = async || channel.basic_get("replies".into(), Default::default()).await.unwrap();
    let reply = until("the reply", get).await;
    let reply: Value = serde_json::from_slice(&reply.delivery.data).unwrap();
    assert_eq!((&reply["state"], &reply["failure"]["code"]), (&json!("cancelled"), &json!("cancelled")));
}

#[tokio::test]
async fn a_cancelled_job_whose_worker_dies_is_not_run_again() {
    let fleet = Fleet::new().await;
    let mut first = fleet.worker("first").short_lease().start().await;
    let spec = job("s", "scripted", json!({"count": 1000, "delay_ms": 50}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.iterated(spec.job_id, 1).await;
    first.pause();
    let ran = cancel(&fleet, &[spec.job_id]).await;
    assert!(ran.out.contains("stopping"), "{ran:?}");
    first.kill();
    let second = fleet.worker("second").short_lease().start().await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Cancelled, 1), "{view:?}");
    assert_eq!(second.metric(r#"harness_claims_total{answer="claimed"}"#).await, 0.0);
}

#[tokio::test]
async fn when_a_cancel_and_an_end_race_only_one_counts() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    for round in 0..30 {
        let spec = job(&format!("s-{round}"), "echo", json!(1));
        let other = database.store();
        let ids = [spec.job_id];
        let (claim, cancelled) = tokio::join!(runner.claim(&spec), other.cancel("a test", &ids));
        match (claim.unwrap(), cancelled.unwrap().0[0]) {
            (Answer::Claimed(run), Cancelled::Stopping) => {
                let asks = store.asked(runner.worker).await.unwrap().jobs;
                assert_eq!(
                    asks.iter().map(|ask| (ask.0, ask.1)).collect::<Vec<_>>(),
                    [(spec.job_id, run.claim.epoch())]
                );
                let ended = runner.succeed(&run).await.unwrap();
                assert_eq!(ended.recorded, Fenced::Done(()));
            }
            (Answer::Claimed(run), Cancelled::Now | Cancelled::Unseen) => {
                panic!("claimed and cancelled: {run:?}")
            }
            (_, Cancelled::Now | Cancelled::Unseen) => {}
            other => panic!("{other:?}"),
        }
        // The same race, with the end of a run.
        let spec = job(&format!("t-{round}"), "echo", json!(1));
        let run = claimed(runner.claim(&spec).await.unwrap());
        let conclusion = runner.conclusion(&run, End::HandBack { delay: Duration::ZERO });
        let ids = [spec.job_id];
        let (back, _) = tokio::join!(store.conclude(conclusion), other.cancel("a test", &ids));
        assert_eq!(back.unwrap().recorded, Fenced::Done(()));
        let left: Vec<JobId> = store.unwanted().await.unwrap().into_iter().map(|job| job.0).collect();
        store.end_waiting(&left, store::Unwanted::Cancelled).await.unwrap();
        let view = store.jobs(&[spec.job_id]).await.unwrap().remove(0);
        assert_eq!(view.state, JobState::Cancelled, "{view:?}");
    }
    assert_eq!(database.count("SELECT count(*) FROM harness_jobs").await, 0);
    assert_eq!(database.count("SELECT count(*) FROM harness_results").await, 60);
}

#[tokio::test]
async fn a_claim_that_was_held_up_does_not_run_what_was_cancelled_meanwhile() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let (held, spec) = (job("held", "echo", json!(1)), job("s", "echo", json!(2)));
    // A producer is in the middle of accepting the first job. A claim of both waits for it in the middle of its
    // statement.
    let mut producer = database.connect().await;
    let mut accepting = producer.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO harness_jobs (job_id, session_id, agent_id, pool, state, message)
         VALUES ($1::uuid, 'held', 'echo', 'default', 'publishing', '{}')",
    )
    .bind(held.job_id.to_string())
    .execute(&mut *accepting)
    .await
    .unwrap();
    let cancelling = async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
        until("the claim waits", async || (database.count(waiting).await == 1).then_some(())).await;
        let other = database.store();
        let ids = [spec.job_id];
        let (cancelled, ()) = tokio::join!(other.cancel("a test", &ids), async {
            let ahead = "SELECT count(*) FROM harness_jobs WHERE session_id = ''";
            let gone = "SELECT count(*) FROM harness_results";
            let seen = async || (database.count(ahead).await + database.count(gone).await > 0).then_some(());
            until("it is cancelled ahead", seen).await;
            accepting.rollback().await.unwrap();
        });
        cancelled.unwrap().0
    };
    // In one batch, in this order.
    let (_, claim, cancelled) = tokio::join!(runner.claim(&held), runner.claim(&spec), cancelling);
    assert_eq!(cancelled, [Cancelled::Unseen]);
    assert!(!matches!(claim.unwrap(), Answer::Claimed(_)));
    database.audited().await;
}
