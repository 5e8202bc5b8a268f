//! The broker goes away, for all or for one process, or who admits dies in the middle: jobs of the line run once all the same.

use std::time::Duration;

use job::{JobSpec, JobState};
use serde_json::json;
use store::Accepted;
use tests::{Api, Fleet, OwnBroker, steps, until, until_ok};

use super::crowds::accept;
use super::{first, name, states};

/// Counts who gives turns.
const LEADS: &str = "SELECT count(*) FROM harness_leases WHERE name = 'admission' AND expires_at > now()";

#[tokio::test]
async fn jobs_that_wait_in_line_while_the_broker_is_away_run_once_when_it_is_back() {
    let (fleet, own) = (Fleet::new().await, OwnBroker::start().await);
    fleet.line("default").await;
    let worker = fleet.worker("worker").set("WORKER_SLOTS", 2).set("AMQP_URL", &own.url).start().await;
    let before: Vec<JobSpec> = (0..30).map(|n| steps(n, 1, 400)).collect();
    accept(&fleet, &before).await;
    fleet.ended(before[0].job_id).await;
    own.stop().await;
    until("the broker is missed", async || (worker.get("/ready").await.0 == 503).then_some(())).await;
    let during: Vec<JobSpec> = (30..60).map(|n| steps(n, 1, 20)).collect();
    let waiting = Accepted::New(JobState::Waiting);
    assert!(fleet.store.accept(&during).await.unwrap().iter().all(|answer| *answer == waiting));
    // What was on its way ends, or comes back.
    let running = "SELECT count(*) FROM harness_jobs WHERE state = 'running'";
    until("nothing runs", async || (fleet.database.count(running).await == 0).then_some(())).await;
    super::looked(&fleet).await;
    assert_eq!(states(&fleet.store, &during).await, [JobState::Waiting; 30]);
    let left = "SELECT count(*) FROM harness_jobs WHERE state = 'waiting'";
    let left = fleet.database.count(left).await;
    assert!(left > 30, "{left} wait");
    own.start_again().await;
    fleet.undisturbed(&[before, during].concat()).await;
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, 60);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_leader_that_alone_has_lost_the_broker_leaves_the_line_to_another_process() {
    let (fleet, own) = (Fleet::new().await, OwnBroker::start().await);
    fleet.line("default").await;
    let leader = fleet.worker("leader").set("AMQP_URL", &own.url).start().await;
    until("it leads", async || (fleet.database.count(LEADS).await == 1).then_some(())).await;
    own.stop().await;
    let _other = fleet.worker("other").start().await;
    let jobs: Vec<JobSpec> = (0..10).map(|n| steps(n, 1, 1)).collect();
    accept(&fleet, &jobs).await;
    fleet.undisturbed(&jobs).await;
    leader.said("leaves that to others").await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_door_that_alone_has_lost_the_broker_gives_back_what_it_was_granted() {
    let (fleet, own) = (Fleet::new().await, OwnBroker::start().await);
    fleet.line("default").await;
    let door = fleet.door("door").set("AMQP_URL", &own.url).start().await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 4).start().await;
    own.stop().await;
    let missed = async || (door.get_json("/ready").await.1["checks"]["broker"] != "connected").then_some(());
    until("the broker is missed", missed).await;
    super::grants::note_states(&fleet.database).await;
    let api = Api::of(&door).await;
    let kept = until("a job is published without its turn", async || {
        let job = api.submit(&json!({"agent_id": "echo", "input": 1})).await.is(202);
        let kept = format!(
            "SELECT count(*) FROM states WHERE job_id = '{0}' AND state = 'publishing'
                AND at = (SELECT min(at) FROM states WHERE job_id = '{0}')",
            job.text("job_id")
        );
        (fleet.database.count(&kept).await == 1).then(|| job.text("job_id"))
    })
    .await;
    assert_eq!(api.wait(&kept).await.is(200).text("state"), "succeeded");
    // Otherwise it would have been found by a sweep after ten seconds, in which the line stood still.
    let given_back = format!(
        "SELECT count(*) FROM states back, states kept
          WHERE back.job_id = '{kept}' AND back.state = 'scheduled' AND kept.job_id = back.job_id
            AND kept.state = 'publishing' AND back.at BETWEEN kept.at AND kept.at + interval '9 seconds'"
    );
    assert_eq!(fleet.database.count(&given_back).await, 1);
    fleet.database.audited().await;
}

#[tokio::test]
async fn what_a_broker_does_not_take_for_lack_of_disk_waits_and_runs_once_when_it_has_some() {
    let (fleet, own) = (Fleet::new().await, OwnBroker::start().await);
    fleet.line("default").await;
    let door = fleet.door("door").set("AMQP_URL", &own.url).start().await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 4).set("AMQP_URL", &own.url).start().await;
    let granted = "SELECT count(*) FROM harness_pools WHERE granted_until > now()";
    until("new jobs need no turn", async || (fleet.database.count(granted).await == 1).then_some(())).await;
    own.lacks_disk(true).await;
    let api = Api::of(&door).await;
    let mut jobs = Vec::new();
    let submit = async || api.submit(&json!({"agent_id": "echo", "input": 1})).await.is(202).text("job_id");
    // What is granted is taken in, and sent by connections that the broker blocks, until the admitter's own is one.
    until("nothing is granted", async || {
        jobs.push(submit().await);
        (fleet.database.count(granted).await == 0).then_some(())
    })
    .await;
    let ungranted = submit().await;
    let state = |id: &str| format!("SELECT state FROM harness_jobs WHERE job_id = '{id}'");
    assert_eq!(fleet.database.texts(&state(&ungranted)).await, ["waiting"]);
    super::looked(&fleet).await;
    assert_eq!(fleet.database.texts(&state(&ungranted)).await, ["waiting"], "none has its turn");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, 0, "nothing was sent");
    own.lacks_disk(false).await;
    jobs.push(ungranted);
    for id in &jobs {
        assert_eq!(api.wait(id).await.is(200).text("state"), "succeeded");
    }
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, jobs.len() as i64);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_leader_that_dies_between_pick_and_publish_loses_no_job() {
    let fleet = Fleet::new().await;
    fleet.line("default").await;
    // The queue is there, so that nobody takes the jobs for those of a deleted one.
    let mut earlier = fleet.worker("earlier").start().await;
    earlier.terminate();
    assert_eq!(earlier.exit().await, 0);
    let jobs: Vec<JobSpec> = (0..3).map(|n| steps(n, 1, 10)).collect();
    fleet.database.execute("UPDATE harness_pools SET granted_until = NULL").await;
    fleet.store.accept(&jobs).await.unwrap();
    let pool = name("default");
    // It has its lease to the end, as a process that was killed.
    let lease = Duration::from_secs(5);
    let leads = fleet.store.lead("admission", "killed", lease).await.unwrap().expect("nobody else leads");
    let admitted = fleet.store.admit(&leads, &pool, &[first(2, "default", "", 2)]).await.unwrap();
    assert_eq!(admitted.due.len(), 2);
    drop(admitted);
    let picked = [JobState::Publishing, JobState::Publishing, JobState::Waiting];
    assert_eq!(states(&fleet.store, &jobs).await, picked);
    let worker = fleet.worker("worker").start().await;
    let look = async || match states(&fleet.store, &jobs).await {
        states if states[2].is_end() => Ok(states),
        states => Err(states),
    };
    let states = until_ok("the one that was not picked has ended", look).await;
    assert!(!states.contains(&JobState::Failed), "{states:?}");
    worker.said("jobs whose publish was never confirmed are due again").await;
    fleet.undisturbed(&jobs).await;
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, 3);
    fleet.database.audited().await;
}
