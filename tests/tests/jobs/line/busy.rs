//! What a job asks of a busy session (`on_busy`) is asked while the job waits in a line, whatever holds it back there.

use job::{FailureCode, JobSpec, JobState, Lane, LimitKeys, OnBusy};
use serde_json::json;
use store::Unwanted;
use tests::{Fleet, Runner, claimed, job};

use super::{admitting, first, name, states, with_line};

const ALL: [OnBusy; 3] = [OnBusy::Reject, OnBusy::Interrupt, OnBusy::Rollback];

/// Runs for a minute, in a session of its own.
fn long(session: &str) -> JobSpec {
    let iterations: Vec<_> = (0..600).map(|n| json!({"delay_ms": 100, "memory": {"step": n}})).collect();
    job(session, "scripted", json!({"iterations": iterations}))
}

/// Enqueues the second job while the first one runs, and waits for what becomes of both.
async fn answered(fleet: &Fleet, running: &JobSpec, next: &JobSpec) {
    fleet.iterated(running.job_id, 1).await;
    fleet.enqueue(std::slice::from_ref(next)).await;
    let on_busy = next.on_busy.as_str();
    if next.on_busy == OnBusy::Reject {
        let view = fleet.ended(next.job_id).await;
        let code = view.failure.map(|failure| failure.code);
        assert_eq!((view.state, view.attempts, code), (JobState::Failed, 0, Some(FailureCode::SessionBusy)));
        assert_eq!(states(&fleet.store, std::slice::from_ref(running)).await, [JobState::Running]);
        return;
    }
    let view = fleet.ended(running.job_id).await;
    let code = view.failure.map(|failure| failure.code);
    assert_eq!((view.state, code), (JobState::Cancelled, Some(FailureCode::Interrupted)), "{on_busy}");
    assert_eq!(fleet.ended(next.job_id).await.state, JobState::Succeeded, "{on_busy}");
    let is_kept = fleet.session(next.session_id.as_str()).await.memory["step"].is_number();
    assert_eq!(is_kept, next.on_busy == OnBusy::Interrupt, "{on_busy}");
}

#[tokio::test]
async fn a_job_that_a_limit_holds_back_asks_the_one_that_runs_in_its_session() {
    let fleet = Fleet::new().await;
    fleet.line("default").await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 8).start().await;
    for on_busy in ALL {
        let key = on_busy.as_str();
        let ran = fleet.producer(&["limits", "set", key, "--max", "1"]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        let keyed = |spec| JobSpec { limits: LimitKeys::of([name(key)]).unwrap(), ..spec };
        let running = keyed(long(key));
        fleet.enqueue(std::slice::from_ref(&running)).await;
        // It asks when it is due.
        let next = JobSpec { on_busy, delay_ms: Some(500), ..keyed(job(key, "echo", json!(1))) };
        answered(&fleet, &running, &next).await;
    }
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_job_that_its_tenants_bound_holds_back_asks_the_one_that_runs_in_its_session() {
    let fleet = Fleet::new().await;
    fleet.line("default").await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 8).start().await;
    for on_busy in ALL {
        let ran = fleet.producer(&["tenants", "create", on_busy.as_str(), "--max-running", "1"]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        let theirs = |spec| JobSpec { tenant: on_busy.as_str().parse().unwrap(), ..spec };
        let running = theirs(long("s"));
        fleet.enqueue(std::slice::from_ref(&running)).await;
        fleet.iterated(running.job_id, 1).await;
        let next = JobSpec { on_busy, ..theirs(job("s", "echo", json!(1))) };
        fleet.enqueue(std::slice::from_ref(&next)).await;
        let view = fleet.ended(if on_busy == OnBusy::Reject { next.job_id } else { running.job_id }).await;
        let code = view.failure.map(|failure| failure.code);
        let wanted =
            if on_busy == OnBusy::Reject { FailureCode::SessionBusy } else { FailureCode::Interrupted };
        assert_eq!(code, Some(wanted), "{on_busy:?}");
        if on_busy != OnBusy::Reject {
            assert_eq!(fleet.ended(next.job_id).await.state, JobState::Succeeded);
        }
    }
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_job_that_waits_for_a_slot_asks_the_one_that_runs_in_its_session() {
    let fleet = Fleet::new().await;
    fleet.line("default").await;
    let _worker = fleet.worker("worker").set("WORKER_SLOTS", 1).start().await;
    let mut running = long("s");
    fleet.enqueue(std::slice::from_ref(&running)).await;
    for on_busy in ALL {
        fleet.iterated(running.job_id, 1).await;
        // The first of them fill what may be on its way.
        let others: Vec<JobSpec> =
            (0..5).map(|n| job(&format!("{on_busy:?}-{n}"), "echo", json!(n))).collect();
        fleet.enqueue(&others).await;
        let low = |spec| JobSpec { on_busy, lane: Lane::Low, ..spec };
        if on_busy == OnBusy::Reject {
            answered(&fleet, &running, &low(job("s", "echo", json!(1)))).await;
            continue;
        }
        let next = low(long("s"));
        fleet.enqueue(std::slice::from_ref(&next)).await;
        let view = fleet.ended(running.job_id).await;
        let code = view.failure.map(|failure| failure.code);
        assert_eq!((view.state, code), (JobState::Cancelled, Some(FailureCode::Interrupted)), "{on_busy:?}");
        running = next;
    }
    fleet.database.audited().await;
}

#[tokio::test]
async fn what_a_job_asks_is_found_until_it_is_asked_page_by_page() {
    let (database, store) = with_line().await;
    let runner = Runner::register(&store).await;
    let leadership = admitting(&store, "one").await;
    let with = |on_busy| JobSpec { on_busy, ..job("s", "echo", json!(1)) };
    // Nothing has begun in its session.
    let free = JobSpec { on_busy: OnBusy::Interrupt, ..job("free", "echo", json!(1)) };
    let running = job("s", "echo", json!(1));
    store.accept(std::slice::from_ref(&running)).await.unwrap();
    store.admit(&leadership, &name("default"), &[first(2, "default", "", 1)]).await.unwrap();
    claimed(runner.claim(&running).await.unwrap());
    let asking = [with(OnBusy::Interrupt), with(OnBusy::Rollback), with(OnBusy::Reject)];
    store.accept(&[&[free], asking.as_slice(), &[job("s", "echo", json!(2))]].concat()).await.unwrap();

    let mut wanted: Vec<_> = asking.iter().map(|spec| (spec.job_id, spec.on_busy)).collect();
    wanted.sort_by_key(|(job_id, _)| *job_id);
    let found = async |most: i64| {
        let (mut all, mut behind) = (Vec::new(), None);
        loop {
            let (some, next) = store.asking_in_line(behind, most).await.unwrap();
            all.extend(some);
            behind = next;
            if behind.is_none() {
                all.sort_by_key(|(job_id, _)| *job_id);
                return all;
            }
        }
    };
    for most in [1, 2, 100] {
        assert_eq!(found(most).await, wanted, "{most} at a time");
    }
    // Who would have asked dies before it has: nothing is lost.
    store.make_room(&[(asking[0].job_id, store::Ask::Interrupt)]).await.unwrap();
    let left = [wanted.clone(), vec![]].concat();
    let left: Vec<_> = left.into_iter().filter(|(_, on_busy)| *on_busy != OnBusy::Interrupt).collect();
    assert_eq!(found(100).await, left, "it was asked to be interrupted, and not yet to be rolled back");
    store.make_room(&[(asking[1].job_id, store::Ask::Rollback)]).await.unwrap();
    let ids: Vec<_> = asking.iter().map(|spec| spec.job_id).collect();
    // Of those that wait in the line, the one that does not want to is ended, and no other.
    let ended = store.end_waiting(&ids[2..], Unwanted::Rejected).await.unwrap();
    assert_eq!(ended.iter().map(|ended| ended.job_id).collect::<Vec<_>>(), ids[2..]);
    assert!(found(100).await.is_empty());
    let ends = [JobState::Waiting, JobState::Waiting, JobState::Failed];
    assert_eq!(states(&store, &asking).await, ends);
    database.audited().await;
}
