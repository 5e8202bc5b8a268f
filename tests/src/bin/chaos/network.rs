//! Faults of the network between one worker, or all of them, and a service.

use std::time::Duration;

use tests::{Link, Proxy};
use tokio::time::{Instant, sleep};

use crate::arena::Arena;
use crate::broker::BACK;
use crate::workers::AGAIN;

/// Resets every connection of one worker to the broker, and lets no new one through.
pub async fn broker_cut(arena: &mut Arena) -> anyhow::Result<()> {
    broker(arena, Link::Cut, Duration::from_secs(8)).await
}

/// Drops all bytes between one worker and the broker, for longer than two heartbeats.
pub async fn broker_half_open(arena: &mut Arena) -> anyhow::Result<()> {
    broker(arena, Link::Frozen, Duration::from_secs(15)).await
}

async fn broker(arena: &mut Arena, link: Link, lasts: Duration) -> anyhow::Result<()> {
    let proxy = Proxy::to(&arena.fleet.vhost.url).await;
    let through = proxy.through(&arena.fleet.vhost.url);
    arena.proxies.push(proxy);
    let victim = arena.start_with(|launch| launch.set("AMQP_URL", &through)).await;
    arena.start(2).await;
    arena.publish();
    arena.under_way().await?;
    arena.set_link(0, link);
    sleep(lasts).await;
    arena.worker(victim).said("lost the connection to the broker").await;
    arena.set_link(0, Link::Pass);
    arena.resumed(Instant::now(), BACK).await
}

/// Resets every connection of one worker to Postgres, and lets no new one through, for longer than its lease.
pub async fn postgres_cut(arena: &mut Arena) -> anyhow::Result<()> {
    postgres(arena, Link::Cut).await
}

/// Drops all bytes between one worker and Postgres, for longer than its lease.
pub async fn postgres_half_open(arena: &mut Arena) -> anyhow::Result<()> {
    postgres(arena, Link::Frozen).await
}

async fn postgres(arena: &mut Arena, link: Link) -> anyhow::Result<()> {
    arena.spends_attempts = true;
    for _ in 0..3 {
        let proxy = Proxy::to(&arena.fleet.database.url).await;
        let through = proxy.through(&arena.fleet.database.url);
        arena.start_with(|launch| launch.set("DATABASE_URL", &through)).await;
        arena.proxies.push(proxy);
    }
    arena.publish();
    arena.under_way().await?;
    let victim = arena.busy().await?;
    let fault = Instant::now();
    arena.set_link(victim, link);
    let held = arena.held(victim).await?;
    let gone_on = arena.gone_on(&held, fault, AGAIN).await;
    arena.set_link(victim, Link::Pass);
    gone_on?;
    arena.probe().await
}

/// Postgres executes what the workers ask, but its answers are lost: for some seconds, and for longer than a lease.
pub async fn replies_lost(arena: &mut Arena) -> anyhow::Result<()> {
    let proxy = Proxy::to(&arena.fleet.database.url).await;
    let through = proxy.through(&arena.fleet.database.url);
    arena.proxies.push(proxy);
    for _ in 0..3 {
        arena.start_with(|launch| launch.set("DATABASE_URL", &through)).await;
    }
    arena.publish();
    arena.under_way().await?;
    for lasts_s in [1, 2, 12] {
        arena.set_link(0, Link::RepliesLost);
        sleep(Duration::from_secs(lasts_s)).await;
        arena.set_link(0, Link::Pass);
        sleep(Duration::from_millis(1_500)).await;
    }
    arena.resumed(Instant::now() - Duration::from_millis(1_500), BACK).await
}
