//! One of several autoscalers leads; one that has lost the lead, for any reason, changes nothing any more.

use std::time::Duration;

use futures::future::join_all;
use store::{Fenced, NewDecision};
use tests::{Database, Runner, done, until};

const LONG: Duration = Duration::from_secs(3_600);

fn decision(pool: &str) -> NewDecision {
    NewDecision {
        pool: pool.parse().expect("a name"),
        at_ms: 1_700_000_000_000,
        from: 2,
        recommended: Some(3),
        desired: 3,
        reason: "backlog".to_owned(),
        inputs: "{}".to_owned(),
        decision: "{}".to_owned(),
    }
}

#[tokio::test]
async fn of_many_contenders_one_leads() {
    let database = Database::new().await;
    let store = database.store();
    for round in 0..10 {
        let name = format!("fleet-{round}");
        let holders: Vec<String> = (0..6).map(|n| format!("holder-{n}")).collect();
        let answers = join_all(holders.iter().map(|holder| store.lead(&name, holder, LONG))).await;
        let leaders: Vec<_> = answers.into_iter().filter_map(|answer| answer.unwrap()).collect();
        assert_eq!(leaders.len(), 1, "{leaders:?}");
        let again = store.lead(&name, &leaders[0].holder, LONG).await.unwrap().unwrap();
        assert_eq!(again.epoch, leaders[0].epoch, "renewed");
    }
}

#[tokio::test]
async fn a_leader_that_was_paused_past_its_lease_finds_another_one_and_changes_nothing() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let lease = Duration::from_secs(3);
    let paused = store.lead("fleet", "paused", lease).await.unwrap().unwrap();
    assert!(paused.left() <= lease);
    assert!(store.lead("fleet", "next", LONG).await.unwrap().is_none());

    let next = async || store.lead("fleet", "next", LONG).await.unwrap();
    let next = until("its lease is over", next).await;
    assert!(next.epoch > paused.epoch);
    assert!(paused.left().is_zero(), "it knew before another one could lead");
    assert!(store.lead("fleet", "paused", LONG).await.unwrap().is_none());
    assert_eq!(store.decide(&paused, &[decision("a"), decision("b")]).await.unwrap(), [Fenced::Lost; 2]);
    assert_eq!(store.mark_drains(&paused, &[runner.worker], LONG).await.unwrap(), Fenced::Lost);
    store.resign(&paused).await.unwrap();

    assert_eq!(done(store.mark_drains(&next, &[runner.worker], LONG).await.unwrap()), [runner.worker]);
    assert_eq!(store.unmark_drains(&paused, &[runner.worker]).await.unwrap(), Fenced::Lost);
    assert_eq!(store.asked(runner.worker).await.unwrap().drain.unwrap().epoch, next.epoch);
    assert!(matches!(store.decide(&next, &[decision("a")]).await.unwrap()[..], [Fenced::Done(_)]));
    assert_eq!(database.count("SELECT count(*) FROM harness_scale_decisions").await, 1);
}

#[tokio::test]
async fn a_leadership_that_has_lapsed_or_was_given_up_is_another_one_in_the_same_hands() {
    let database = Database::new().await;
    let store = database.store();
    let first = store.lead("fleet", "only", LONG).await.unwrap().unwrap();
    store.resign(&first).await.unwrap();
    let second = store.lead("fleet", "only", LONG).await.unwrap().unwrap();
    assert!(second.epoch > first.epoch);
    assert_eq!(store.decide(&first, &[decision("a")]).await.unwrap(), [Fenced::Lost]);
    database.execute("UPDATE harness_leases SET expires_at = now()").await;
    assert_eq!(store.decide(&second, &[decision("a")]).await.unwrap(), [Fenced::Lost], "there is no leader");
    let third = store.lead("fleet", "only", LONG).await.unwrap().unwrap();
    assert!(third.epoch > second.epoch);
}

#[tokio::test]
async fn a_leader_that_begins_anew_leads_under_another_epoch() {
    let database = Database::new().await;
    let store = database.store();
    let leader = dispatch::Leader::new("fleet".to_owned(), LONG, |_| {});
    leader.contend(&store).await.unwrap();
    let first = leader.leadership().expect("nobody else leads");
    leader.begin_anew(&store).await.unwrap();
    assert!(leader.leadership().is_none());
    assert_eq!(store.decide(&first, &[decision("a")]).await.unwrap(), [Fenced::Lost]);
    leader.contend(&store).await.unwrap();
    assert!(leader.leadership().expect("nobody else leads").epoch > first.epoch);
}

#[tokio::test]
async fn a_contender_with_a_shorter_lease_takes_nothing_from_a_leader_that_lives() {
    let database = Database::new().await;
    let store = database.store();
    let leader = store.lead("fleet", "long", LONG).await.unwrap().unwrap();
    assert!(store.lead("fleet", "short", Duration::from_secs(15)).await.unwrap().is_none());
    assert_eq!(store.lead("fleet", "long", LONG).await.unwrap().unwrap().epoch, leader.epoch);
}

#[tokio::test]
async fn a_successor_waits_for_what_its_predecessor_is_writing() {
    let database = Database::new().await;
    let store = database.store();
    store.lead("fleet", "old", Duration::from_millis(300)).await.unwrap().unwrap();
    // As a transaction of the leader does.
    let mut writing = database.connect().await;
    sqlx::raw_sql("BEGIN; SELECT FROM harness_leases FOR SHARE").execute(&mut writing).await.unwrap();
    let lead = async || store.lead("fleet", "next", LONG).await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity
                  WHERE wait_event_type = 'Lock' AND datname = current_database()";
    let mut written = false;
    let writing = async {
        until("the successor waits", async || (database.count(waits).await > 0).then_some(())).await;
        written = true;
        sqlx::raw_sql("COMMIT").execute(&mut writing).await.unwrap();
    };
    let (next, ()) = tokio::join!(until("the lease is over", lead), writing);
    assert!(written && next.holder == "next");
}
