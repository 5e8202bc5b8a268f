//! A drained worker holds nothing and gets nothing, whatever the network delivers late. Only a leader sets marks.

use std::time::Duration;

use job::{JobState, Name, WorkerId};
use serde_json::json;
use store::{Answer, DrainMark, End, Fenced, WorkerRegistration};
use tests::{Database, Runner, claimed, declare_dead, done, job, leading, until};

const LONG: Duration = Duration::from_secs(3_600);

/// The epoch of a valid mark, and whether its worker is drained.
async fn mark_of(runner: &Runner) -> Option<(i64, bool)> {
    let mark = runner.store.asked(runner.worker).await.expect("an answer").drain;
    mark.filter(|mark| !mark.left.is_zero()).map(|DrainMark { epoch, drained, .. }| (epoch, drained))
}

#[tokio::test]
async fn a_drained_worker_is_granted_nothing_until_its_mark_is_taken_back() {
    let database = Database::new().await;
    let store = database.store();
    let (leader, runner) = (leading(&store).await, Runner::register(&store).await);
    let jobs = [job("s", "echo", json!(1)), job("t", "echo", json!(2))];
    store.accept(&jobs[..1]).await.unwrap();
    assert!(!store.confirm_drained(runner.worker, leader.epoch).await.unwrap(), "it was not asked to");
    let marked = store.mark_drains(&leader, &[runner.worker], LONG).await.unwrap();
    assert_eq!(done(marked), [runner.worker]);
    assert_eq!(mark_of(&runner).await, Some((leader.epoch, false)));
    assert!(!store.confirm_drained(runner.worker, leader.epoch - 1).await.unwrap(), "another's mark");
    assert!(store.confirm_drained(runner.worker, leader.epoch).await.unwrap());
    assert!(store.confirm_drained(runner.worker, leader.epoch).await.unwrap(), "reported twice");
    assert_eq!(mark_of(&runner).await, Some((leader.epoch, true)));

    // One job that the ledger knows, and one that it does not.
    for spec in &jobs {
        assert!(matches!(runner.claim(spec).await.unwrap(), Answer::Drained));
    }
    assert_eq!(database.count("SELECT count(*) FROM harness_jobs").await, 1);
    assert_eq!(database.count("SELECT count(*) FROM harness_jobs WHERE state = 'running'").await, 0);

    let unmarked = store.unmark_drains(&leader, &[runner.worker]).await.unwrap();
    assert_eq!(done(unmarked), [runner.worker]);
    assert_eq!(done(store.unmark_drains(&leader, &[runner.worker]).await.unwrap()), [], "once");
    assert_eq!(mark_of(&runner).await, None);
    for spec in &jobs {
        claimed(runner.claim(spec).await.unwrap());
    }
    database.audited().await;
}

#[tokio::test]
async fn a_worker_with_a_job_is_not_drained_and_gets_no_second_one_with_its_end() {
    let database = Database::new().await;
    let store = database.store();
    let (leader, runner) = (leading(&store).await, Runner::register(&store).await);
    let jobs = [job("s", "echo", json!(1)), job("s", "echo", json!(2))];
    store.accept(&jobs).await.unwrap();
    let run = claimed(runner.claim(&jobs[0]).await.unwrap());
    assert!(matches!(runner.claim(&jobs[1]).await.unwrap(), Answer::Blocked));
    store.mark_drains(&leader, &[runner.worker], LONG).await.unwrap();
    assert!(!store.confirm_drained(runner.worker, leader.epoch).await.unwrap());

    let concluded = runner.succeed(&run).await.unwrap();
    assert_eq!(concluded.recorded, Fenced::Done(()));
    assert!(concluded.next.is_none(), "{concluded:?}");
    let next = store.jobs(&[jobs[1].job_id]).await.unwrap().remove(0);
    assert_eq!(next.state, JobState::Scheduled, "it is left to others");
    assert!(store.confirm_drained(runner.worker, leader.epoch).await.unwrap());
}

#[tokio::test]
async fn a_mark_that_is_renewed_keeps_what_was_confirmed_and_one_that_has_lapsed_does_not() {
    let database = Database::new().await;
    let store = database.store();
    let (leader, runner) = (leading(&store).await, Runner::register(&store).await);
    let mark = async |valid_for| done(store.mark_drains(&leader, &[runner.worker], valid_for).await.unwrap());
    mark(LONG).await;
    assert!(store.confirm_drained(runner.worker, leader.epoch).await.unwrap());
    mark(Duration::from_millis(300)).await;
    assert!(mark_of(&runner).await.is_none_or(|(_, drained)| drained), "renewed");

    until("the mark lapses", async || mark_of(&runner).await.is_none().then_some(())).await;
    assert!(!store.confirm_drained(runner.worker, leader.epoch).await.unwrap());
    let run = claimed(runner.claim(&job("s", "echo", json!(1))).await.unwrap());
    database.audited().await;
    mark(LONG).await;
    assert_eq!(mark_of(&runner).await, Some((leader.epoch, false)));
    database.audited().await;
    assert!(!store.confirm_drained(runner.worker, leader.epoch).await.unwrap());
    runner.store.conclude(runner.conclusion(&run, End::HandBack { delay: LONG })).await.unwrap();
    assert!(store.confirm_drained(runner.worker, leader.epoch).await.unwrap());
}

#[tokio::test]
async fn only_workers_that_take_jobs_are_marked_and_not_against_a_higher_epoch() {
    let database = Database::new().await;
    let store = database.store();
    let earlier = store.lead("one", "holder", LONG).await.unwrap().unwrap();
    let later = store.lead("other", "holder", LONG).await.unwrap().unwrap();
    let (takes, drains, ended) =
        (Runner::register(&store).await, Runner::register(&store).await, Runner::register(&store).await);
    store.mark_draining(drains.worker).await.unwrap();
    store.mark_stopped(ended.worker).await.unwrap();
    let all = [takes.worker, drains.worker, ended.worker];
    assert_eq!(done(store.mark_drains(&later, &all, LONG).await.unwrap()), [takes.worker]);
    assert_eq!(done(store.mark_drains(&earlier, &all, LONG).await.unwrap()), []);
    assert_eq!(done(store.unmark_drains(&earlier, &all).await.unwrap()), []);
    assert_eq!(mark_of(&takes).await.unwrap().0, later.epoch);
    assert_eq!(done(store.unmark_drains(&later, &all).await.unwrap()), [takes.worker]);
    assert_eq!(done(store.mark_drains(&earlier, &all, LONG).await.unwrap()), [], "nor after it");
}

#[tokio::test]
async fn a_worker_that_goes_on_under_a_new_id_stays_marked_and_has_to_confirm_anew() {
    let database = Database::new().await;
    let store = database.store();
    let (leader, mut runner) =
        (leading(&store).await, Runner::with_lease(&store, Duration::from_millis(1)).await);
    store.mark_drains(&leader, &[runner.worker], LONG).await.unwrap();
    assert!(store.confirm_drained(runner.worker, leader.epoch).await.unwrap());
    let declared = async || declare_dead(&store).await.pop();
    let dead_worker = until("its lease is over", declared).await;
    let successor = WorkerRegistration {
        worker: WorkerId::random(),
        host: "test".to_owned(),
        pod_name: None,
        pool: Name::default(),
        slots: 1,
        lease: LONG,
        schema: migrations::newest(),
    };
    store.register_successor(&successor, dead_worker).await.unwrap();
    assert_eq!(mark_of(&runner).await, None, "a dead worker drains no more");
    runner.worker = successor.worker;
    assert_eq!(mark_of(&runner).await, Some((leader.epoch, false)));
    assert!(store.confirm_drained(runner.worker, leader.epoch).await.unwrap());
}

/// The locks exist because of the claim that hangs in the network.
#[tokio::test]
async fn of_a_claim_and_a_confirmation_at_the_same_time_one_is_refused() {
    let database = Database::new().await;
    let store = database.store();
    let leader = leading(&store).await;
    let (mut granted, mut confirmed) = (0, 0);
    for round in 0..60 {
        let runner = Runner::register(&store).await;
        store.mark_drains(&leader, &[runner.worker], LONG).await.unwrap();
        let spec = job(&format!("s-{round}"), "echo", json!(1));
        let late = Duration::from_micros(fastrand::u64(..3_000));
        let (answer, drained) = tokio::join!(runner.claim(&spec), async {
            tokio::time::sleep(late).await;
            store.confirm_drained(runner.worker, leader.epoch).await
        });
        match (answer.unwrap(), drained.unwrap()) {
            (Answer::Claimed(_), false) => granted += 1,
            (Answer::Drained, true) => confirmed += 1,
            other => panic!("both or neither: {other:?}"),
        }
    }
    eprintln!("{granted} claims were granted, {confirmed} confirmations");
    database.audited().await;
}
