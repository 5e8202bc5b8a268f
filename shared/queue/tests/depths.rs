//! Many queues are looked at on one connection, and none of them hides another.

mod support;

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use queue::{Broker, BrokerConfig, Depth, Depths, QueueError};
use support::{
    Desk, TIMEOUT, amqp_url, at_desk, close_by_force, declare_foreign_queue, delete_queue, within,
};
use tokio_util::sync::CancellationToken;

/// Long enough for every look here. What is not answered by then never is.
const LOOK: Duration = TIMEOUT;

/// Returns names that begin with the name of the desk's own queue, so that no other test has them.
fn names(desk: &Desk, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{}.{n}", desk.queue)).collect()
}

/// Returns the depth of each queue, or `None` if there is no such queue.
async fn look(depths: &mut Depths) -> Vec<Option<u64>> {
    let seen = depths.look(LOOK).await.into_iter();
    seen.map(|depth| depth.expect("an answer").map(|Depth { ready }| ready)).collect()
}

#[tokio::test]
async fn missing_queues_hide_no_others_and_are_found_when_they_come() {
    at_desk(async |desk| {
        let names = names(desk, 60);
        // Two of three are missing, between those that exist.
        for name in names.iter().step_by(3) {
            declare_foreign_queue(name, FieldTable::default()).await;
        }
        let mut depths = Depths::new(desk.broker.clone(), names.clone());
        let there = |at: &usize| at.is_multiple_of(3);
        let wanted: Vec<_> = (0..60).map(|at| there(&at).then_some(0)).collect();
        for _ in 0..3 {
            assert_eq!(look(&mut depths).await, wanted);
        }
        desk.broker.publisher().publish(&names[57], queue::Message::new("test.v1", "x")).await.unwrap();
        declare_foreign_queue(&names[1], FieldTable::default()).await;
        let mut looks = 0;
        loop {
            let seen = look(&mut depths).await;
            assert_eq!(seen[57], Some(1), "at once");
            looks += 1;
            if seen[1] == Some(0) {
                break;
            }
            assert!(looks < 30, "not found in {looks} looks");
        }
        // One that goes away is missing at the next look, and does not affect the others.
        delete_queue(&names[30]).await;
        let seen = look(&mut depths).await;
        assert_eq!((seen[30], seen[27], seen[33]), (None, Some(0), Some(0)));
        assert_eq!(desk.broker.ready(TIMEOUT).await, Ok(1), "still on the first connection");
        for name in &names {
            delete_queue(name).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_queue_that_is_refused_hides_no_others() {
    at_desk(async |desk| {
        let name = format!("{}.private", desk.queue);
        let owner = lapin::Connection::connect(&amqp_url(), Default::default()).await.unwrap();
        let channel = owner.create_channel().await.unwrap();
        let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
        channel.queue_declare(name.as_str().into(), exclusive, FieldTable::default()).await.unwrap();
        let mut depths = Depths::new(desk.broker.clone(), [name, desk.queue.clone()]);
        for _ in 0..3 {
            let seen = depths.look(LOOK).await;
            let Err(QueueError::Failed { doing, reason }) = &seen[0] else { panic!("{seen:?}") };
            assert!(doing.contains(".private") && reason.contains("exclusive access"), "{doing}: {reason}");
            assert_eq!(seen[1], Ok(Some(Depth { ready: 0 })));
        }
        owner.close(200, "done".into()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_lost_connection_is_reported_and_the_next_one_answers_again() {
    at_desk(async |desk| {
        desk.publish("one").await;
        let mut depths = Depths::new(desk.broker.clone(), [desk.queue.clone()]);
        assert_eq!(look(&mut depths).await, [Some(1)]);
        close_by_force(&desk.connection_name).await;
        let again = async {
            loop {
                match depths.look(Duration::from_millis(200)).await.remove(0) {
                    Ok(depth) => return depth,
                    Err(
                        QueueError::Unavailable { .. }
                        | QueueError::Timeout { .. }
                        | QueueError::Failed { .. },
                    ) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        };
        assert_eq!(within(again).await, Some(Depth { ready: 1 }));
    })
    .await;
}

#[tokio::test]
async fn an_address_where_nobody_answers_takes_no_longer_than_its_bound() {
    let config = BrokerConfig::new("amqp://nobody:x@127.0.0.1:1/%2f", "test").only_looking();
    let broker = Broker::start(config, CancellationToken::new());
    let mut depths = Depths::new(broker.clone(), ["a".to_owned(), "b".to_owned()]);
    let seen = within(depths.look(Duration::from_millis(100))).await;
    assert!(seen.iter().all(|depth| matches!(depth, Err(QueueError::Unavailable { .. }))), "{seen:?}");
    broker.close().await;
}
