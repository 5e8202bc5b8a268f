//! A job that is not due yet holds up nobody, and starts when it is due: in the order of due times.

use job::{FailureCode, JobId, JobSpec, JobState, OnBusy, RunAt};
use serde_json::json;
use tests::{Api, Fleet, job, until};

const HOUR_MS: u64 = 3_600_000;

fn delayed(session: &str, delay_ms: u64) -> JobSpec {
    JobSpec { delay_ms: Some(delay_ms), ..job(session, "echo", json!(delay_ms)) }
}

async fn state(fleet: &Fleet, job: JobId) -> Option<JobState> {
    Some(fleet.view(job).await?.state)
}

#[tokio::test]
async fn a_job_that_is_not_due_holds_up_nobody_in_its_session() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let later = delayed("s", HOUR_MS);
    fleet.enqueue(std::slice::from_ref(&later)).await;
    let raw_later = delayed("s", 2 * HOUR_MS);
    fleet.vhost.publish(vec![(job::encode(&raw_later).into_bytes(), Default::default())]).await;
    until("the raw one is known", async || state(&fleet, raw_later.job_id).await).await;

    let known = job("s", "echo", json!("known"));
    fleet.enqueue(std::slice::from_ref(&known)).await;
    assert_eq!(fleet.ended(known.job_id).await.state, JobState::Succeeded);
    let raw = job("s", "echo", json!("raw"));
    fleet.vhost.publish(vec![(job::encode(&raw).into_bytes(), Default::default())]).await;
    assert_eq!(fleet.ended(raw.job_id).await.state, JobState::Succeeded);

    for spec in [&later, &raw_later] {
        assert_eq!(state(&fleet, spec.job_id).await, Some(JobState::Scheduled));
        let why = fleet.producer(&["why", &spec.job_id.to_string()]).await;
        assert!(why.out.contains("scheduled: due in "), "{why:?}");
    }
    let audit = fleet.producer(&["audit"]).await;
    assert_eq!(audit.code, 0, "{audit:?}");
    let cancelled = fleet.producer(&["cancel", &later.job_id.to_string()]).await;
    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    assert_eq!(fleet.ended(later.job_id).await.state, JobState::Cancelled);
}

#[tokio::test]
async fn jobs_start_in_the_order_in_which_they_became_due() {
    let fleet = Fleet::new().await;
    // No relay runs meanwhile, so that one look finds all of them.
    let jobs: Vec<JobSpec> = [3, 1, 2].map(|hours| delayed("s", hours * HOUR_MS)).into();
    fleet.enqueue(&jobs).await;
    fleet.database.execute("UPDATE harness_jobs SET due_at = due_at - interval '4 hours'").await;
    let _worker = fleet.worker("worker").start().await;
    for spec in &jobs {
        let ended = fleet.ended(spec.job_id).await;
        assert_eq!(ended.state, JobState::Succeeded, "{ended:?}");
    }
    let order = "SELECT r.output::text FROM harness_results r ORDER BY r.epoch";
    assert_eq!(fleet.database.texts(order).await, ["3600000", "7200000", "10800000"]);
}

#[tokio::test]
async fn a_release_that_knows_no_such_jobs_gives_them_a_place_too() {
    let fleet = Fleet::new().await;
    let later = [delayed("s", HOUR_MS), delayed("s", HOUR_MS)];
    fleet.enqueue(&later).await;
    let placed = "SELECT count(*) FROM harness_jobs WHERE seq < 9223372036854775807";
    assert_eq!(fleet.database.count(placed).await, 0);
    // As its relay does.
    let taken = format!(
        "UPDATE harness_jobs SET state = 'publishing', state_since = now() - interval '1 hour' WHERE job_id = '{}'",
        later[1].job_id
    );
    fleet.database.execute(&taken).await;
    assert_eq!(fleet.database.count(placed).await, 1);
    let _worker = fleet.worker("worker").start().await;
    assert_eq!(fleet.ended(later[1].job_id).await.state, JobState::Succeeded);
    assert_eq!(state(&fleet, later[0].job_id).await, Some(JobState::Scheduled));
}

#[tokio::test]
async fn what_it_asks_of_a_busy_session_it_asks_when_it_is_due() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 1).start().await;
    let long = job("s", "scripted", json!({"count": 100_000, "delay_ms": 20}));
    let asking = JobSpec { on_busy: OnBusy::Interrupt, ..delayed("s", 6_000) };
    fleet.enqueue(&[long.clone(), asking.clone()]).await;
    until("the long one runs", async || {
        (state(&fleet, long.job_id).await? == JobState::Running).then_some(())
    })
    .await;
    let asked = "SELECT count(*) FROM harness_jobs WHERE asked IS NOT NULL AND EXISTS
                 (SELECT FROM harness_jobs WHERE state = 'scheduled' AND due_at > now())";
    assert_eq!(fleet.database.count(asked).await, 0);
    // The only slot is taken, so that no worker can ask for it.
    assert_eq!(fleet.ended(asking.job_id).await.state, JobState::Succeeded);
    assert_eq!(fleet.ended(long.job_id).await.state, JobState::Cancelled);
}

#[tokio::test]
async fn every_way_in_takes_it_and_names_what_is_wrong() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let at = |ahead_ms| RunAt::of_unix_ms(JobId::now().unix_ms() + ahead_ms).expect("a moment").to_string();
    let (soon, far) = (at(HOUR_MS), at(1_000 * 24 * HOUR_MS));
    for arguments in [["--run-at", soon.as_str()], ["--delay", "1h"]] {
        let ran = fleet.producer(&[&["enqueue", "--agent", "echo"], &arguments[..]].concat()).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        let id = ran.out.trim().parse().expect("an id");
        assert_eq!(state(&fleet, id).await, Some(JobState::Scheduled), "{arguments:?}");
    }
    for (arguments, problem) in [
        (["--run-at", far.as_str()], "run_at: got "),
        (["--delay", "1000d"], "delay_ms: got 86400000000, expected 0 to "),
        (["--run-at", "tomorrow"], "expected an RFC 3339 time"),
    ] {
        let ran = fleet.producer(&[&["enqueue", "--agent", "echo"], &arguments[..]].concat()).await;
        assert!(ran.code == 2 && ran.err.contains(problem), "{ran:?}");
    }

    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let taken = api.submit(&json!({"agent_id": "echo", "delay_ms": HOUR_MS, "deadline_ms": 1})).await.is(202);
    assert_eq!(taken.text("state"), "scheduled");
    let overdue = api.submit(&json!({"agent_id": "echo", "run_at": at(0), "deadline_ms": 1})).await.is(202);
    let overdue = fleet.ended(overdue.text("job_id").parse().expect("an id")).await;
    assert_eq!(overdue.failure.map(|failure| failure.code), Some(FailureCode::DeadlineExceeded));
    let taken = taken.text("job_id").parse().expect("an id");
    assert_eq!(
        state(&fleet, taken).await,
        Some(JobState::Scheduled),
        "its deadline counts from when it is due"
    );
    for (job, field) in [
        (json!({"agent_id": "echo", "delay_ms": 1, "run_at": at(1)}), "delay_ms"),
        (json!({"agent_id": "echo", "run_at": far}), "run_at"),
    ] {
        api.submit(&job).await.problem(422, Some(field));
    }
}
