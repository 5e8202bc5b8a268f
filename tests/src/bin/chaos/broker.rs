//! Faults of the broker, its connections and its queues.

use std::time::Duration;

use anyhow::{Context, ensure};
use queue::jobs_queue;
use tokio::time::{Instant, sleep};

use crate::arena::Arena;
use crate::workload::long;

/// How soon consuming must resume once the broker is back.
pub const BACK: Option<Duration> = Some(Duration::from_secs(5));

/// How long a queue must have been missing before it is declared again.
const DELETION: Duration = Duration::from_secs(1);

/// Stops and starts the broker.
pub async fn restart(arena: &mut Arena) -> anyhow::Result<()> {
    away(arena, "stop-broker").await
}

/// Kills the broker (SIGKILL) and starts it.
pub async fn kill(arena: &mut Arena) -> anyhow::Result<()> {
    away(arena, "kill-broker").await
}

async fn away(arena: &mut Arena, stop: &str) -> anyhow::Result<()> {
    arena.at_work(3).await?;
    let services = arena.services.clone();
    services.run(&[stop]).await?;
    // The broker answers clients before the script notices.
    let starting = tokio::spawn(async move { services.run(&["start-broker"]).await });
    let back = arena.broker_back().await;
    let resumed = match back {
        Ok(back) => arena.resumed(back, BACK).await,
        Err(error) => Err(error),
    };
    starting.await.context("starting the broker")??;
    resumed
}

/// Closes every connection as an operator would, three times.
pub async fn connections_closed(arena: &mut Arena) -> anyhow::Result<()> {
    arena.at_work(3).await?;
    for _ in 0..3 {
        let mut fault = Instant::now();
        arena
            .until("connections are closed", async |arena| {
                fault = Instant::now();
                let closed = arena.fleet.vhost.close_connections().map_err(anyhow::Error::msg)?;
                // A worker has two connections.
                ensure!(closed >= 6, "{closed} connections closed");
                Ok(true)
            })
            .await?;
        arena.resumed(fault, BACK).await?;
    }
    Ok(())
}

/// Deletes the queue while no message waits in it, three times. The broker then cancels all consumers, and messages on
/// their way into the queue are lost, most of them already confirmed. All jobs must continue within the arena's
/// timeout. That is as long as it takes to notice a missing message without knowing of a deletion.
pub async fn consumers_cancelled(arena: &mut Arena) -> anyhow::Result<()> {
    arena.start(3).await;
    arena.enqueue();
    arena.under_way().await?;
    for _ in 0..3 {
        let mut fault = Instant::now();
        arena
            .until("the empty queue is deleted", async |arena| {
                let (waiting, _) = arena.fleet.vhost.look_at(&queue_name()).await?;
                ensure!(waiting == 0, "{waiting} messages are in the queue");
                fault = Instant::now();
                delete_queue(arena).await?;
                Ok(true)
            })
            .await?;
        // Some messages were on their way to the queue, or held by a slot.
        let missing = arena.ledger.queued().await?;
        arena.resumed(fault, BACK.map(|back| back + DELETION)).await?;
        let gone_on = async |arena: &mut Arena| Ok(arena.ledger.gone_on(&missing).await? == missing.len());
        arena.until("the jobs whose messages were in the queue continue", gone_on).await?;
    }
    Ok(())
}

/// Purges the queue and, a moment later, deletes it, with messages in it. They are missed after a minute.
pub async fn queue_lost(arena: &mut Arena) -> anyhow::Result<()> {
    arena.timeout = Duration::from_secs(180);
    // With few slots, the queue is never empty.
    for _ in 0..2 {
        arena.start_slots(8, |launch| launch).await;
    }
    arena.enqueue();
    arena.under_way().await?;
    let some = async |arena: &mut Arena| Ok(arena.fleet.vhost.look_at(&queue_name()).await?.0 > 0);
    arena.until("messages are in the queue", some).await?;
    let fault = Instant::now();
    let connection = lapin::Connection::connect(&arena.fleet.vhost.url, Default::default()).await?;
    let channel = connection.create_channel().await?;
    channel.queue_purge(queue_name().into(), Default::default()).await.context("purging the queue")?;
    connection.close(200, "done".into()).await?;
    let mut missing = arena.ledger.queued().await?;
    sleep(Duration::from_secs(1)).await;
    delete_queue(arena).await?;
    missing.extend(arena.ledger.queued().await?);
    arena.gone_on(&missing, fault, None).await?;
    arena.resumed(Instant::now(), None).await
}

fn queue_name() -> String {
    jobs_queue(&job::Name::default())
}

async fn delete_queue(arena: &Arena) -> anyhow::Result<()> {
    let connection = lapin::Connection::connect(&arena.fleet.vhost.url, Default::default()).await?;
    let channel = connection.create_channel().await?;
    channel.queue_delete(queue_name().into(), Default::default()).await.context("deleting the queue")?;
    connection.close(200, "done".into()).await.context("closing")
}

/// Jobs keep their messages for longer than the broker allows. It closes the channel and delivers all of them again.
pub async fn ack_timeout(arena: &mut Arena) -> anyhow::Result<()> {
    let services = arena.services.clone();
    services.ack_timeout(Some(Duration::from_secs(4))).await?;
    let played = keep_messages(arena).await;
    services.ack_timeout(None).await?;
    played
}

async fn keep_messages(arena: &mut Arena) -> anyhow::Result<()> {
    arena.first(long(0..6));
    for _ in 0..3 {
        // By default, workers ack after a minute and the broker waits for half an hour.
        arena.start_with(|launch| launch.set("ACK_AFTER_S", 3_600)).await;
    }
    arena.publish();
    let mut closed = None;
    arena
        .until("the broker closes a channel", async |arena| {
            closed = arena
                .living()
                .into_iter()
                .find(|at| arena.worker(*at).log().contains("delivery acknowledgement on channel"));
            Ok(closed.is_some())
        })
        .await?;
    arena.resumed(Instant::now(), BACK).await
}

/// The broker has no disk left and blocks publishers for some seconds.
pub async fn disk_alarm(arena: &mut Arena) -> anyhow::Result<()> {
    arena.at_work(3).await?;
    let services = arena.services.clone();
    services.fill_disk().await?;
    sleep(Duration::from_secs(8)).await;
    services.free_disk().await?;
    arena.resumed(Instant::now(), BACK).await
}
