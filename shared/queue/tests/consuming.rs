//! A slot holds one delivery at a time, and loses none.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use queue::BrokerStatus;
use support::{TIMEOUT, at_desk, until, within};
use tokio::time::timeout;

/// Long enough for an unwanted delivery to arrive.
const A_WHILE: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_slot_gets_no_second_delivery_before_it_has_acked_the_first() {
    at_desk(async |desk| {
        desk.publish("first").await;
        desk.publish("second").await;
        let mut slot = desk.broker.slot(&desk.queue, "test");
        let first = within(slot.next()).await.unwrap();
        assert!(timeout(A_WHILE, slot.next()).await.is_err());
        assert_eq!(desk.ready().await, 1);
        first.ack().await.unwrap();
        assert_eq!(within(slot.next()).await.unwrap().message_id(), Some("second"));
    })
    .await;
}

#[tokio::test]
async fn pause_and_ack_settle_a_delivery_early_without_taking_another() {
    at_desk(async |desk| {
        desk.publish("long").await;
        desk.publish("next").await;
        let mut slot = desk.broker.slot(&desk.queue, "test");
        let long = within(slot.next()).await.unwrap();
        within(slot.pause()).await;
        assert_eq!(desk.ready().await, 1, "the delivery is still ours");
        long.ack().await.unwrap();
        // Another slot gets the second message. If the paused one had taken it, it would be redelivered.
        let mut other = desk.broker.slot(&desk.queue, "test");
        let next = within(other.next()).await.unwrap();
        assert_eq!((next.message_id(), next.redelivered()), (Some("next"), false));
        next.ack().await.unwrap();
        desk.publish("later").await;
        drop(other);
        assert_eq!(within(slot.next()).await.unwrap().message_id(), Some("later"), "it consumes again");
    })
    .await;
}

#[tokio::test]
async fn a_delivery_on_its_way_to_a_slot_that_pauses_goes_back_to_the_queue() {
    at_desk(async |desk| {
        let mut slot = desk.broker.slot(&desk.queue, "test");
        assert!(timeout(A_WHILE, slot.next()).await.is_err(), "it consumes, and nothing reads the delivery");
        desk.publish("only").await;
        until(async || desk.ready().await == 0).await;
        within(slot.pause()).await;
        desk.until_ready(1).await;
    })
    .await;
}

#[tokio::test]
async fn a_delivery_that_is_dropped_comes_again() {
    at_desk(async |desk| {
        desk.publish("only").await;
        let mut slot = desk.broker.slot(&desk.queue, "test");
        drop(within(slot.next()).await.unwrap());
        let again = within(slot.next()).await.unwrap();
        assert!(again.redelivered());
        again.requeue().await.unwrap();
        within(slot.next()).await.unwrap().ack().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_slot_that_is_dropped_gives_back_what_nobody_has_looked_at() {
    at_desk(async |desk| {
        let mut slot = desk.broker.slot(&desk.queue, "test");
        assert!(timeout(A_WHILE, slot.next()).await.is_err());
        desk.publish("only").await;
        until(async || desk.ready().await == 0).await;
        drop(slot);
        desk.until_ready(1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn next_can_be_dropped_at_any_moment_without_losing_a_delivery() {
    at_desk(async |desk| {
        let mut missing: BTreeSet<String> = (0..300).map(|number| number.to_string()).collect();
        for id in &missing {
            desk.publish(id).await;
        }
        let mut slot = desk.broker.slot(&desk.queue, "test");
        let all = async {
            for round in 0u64.. {
                let moment = Duration::from_micros(round * 37 % 2_000);
                if round % 50 == 49 {
                    slot.pause().await;
                }
                let Ok(delivery) = timeout(moment, slot.next()).await else { continue };
                let delivery = delivery.unwrap();
                assert!(missing.remove(delivery.message_id().unwrap()), "{delivery:?} came twice");
                delivery.ack().await.unwrap();
                if missing.is_empty() {
                    break;
                }
            }
        };
        within(all).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_and_fifty_six_slots_share_one_channel_and_each_holds_one() {
    at_desk(async |desk| {
        for number in 0..300 {
            desk.publish(&number.to_string()).await;
        }
        let mut slots: Vec<_> = (0..256).map(|_| desk.broker.slot(&desk.queue, "test")).collect();
        let held = within(futures::future::join_all(slots.iter_mut().map(|slot| slot.next()))).await;
        assert_eq!(held.len(), 256);
        assert_eq!(desk.ready().await, 44);
        for delivery in held {
            delivery.unwrap().ack().await.unwrap();
        }
        desk.until_ready(0).await;
    })
    .await;
}

#[tokio::test]
async fn a_slot_ends_when_the_broker_is_closed_and_a_late_ack_is_refused() {
    at_desk(async |desk| {
        desk.publish("only").await;
        let mut slot = desk.broker.slot(&desk.queue, "test");
        let delivery = within(slot.next()).await.unwrap();
        let mut idle = desk.broker.slot(&desk.queue, "test");
        let (ended, ()) = within(futures::future::join(idle.next(), desk.broker.close())).await;
        assert!(ended.is_none());
        assert!(within(slot.next()).await.is_none());
        assert!(delivery.is_stale());
        assert_eq!(delivery.ack().await.unwrap_err().generation, 1);
        assert!(matches!(&*desk.broker.status().borrow(), BrokerStatus::Closed { .. }));
        assert!(desk.broker.ready(TIMEOUT).await.is_err());
    })
    .await;
}
