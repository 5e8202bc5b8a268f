//! Faults of Postgres and its connections.

use std::time::Duration;

use anyhow::Context;
use sqlx::{AssertSqlSafe, PgConnection, raw_sql};
use tokio::time::{Instant, sleep};

use crate::arena::Arena;
use crate::broker::BACK;

/// Restarts Postgres in good order.
pub async fn restart(arena: &mut Arena) -> anyhow::Result<()> {
    away(arena, &["restart-postgres"]).await
}

/// Kills all its processes (SIGKILL) and starts it, with crash recovery.
pub async fn kill(arena: &mut Arena) -> anyhow::Result<()> {
    away(arena, &["kill-postgres", "start-postgres"]).await
}

async fn away(arena: &mut Arena, commands: &[&str]) -> anyhow::Result<()> {
    arena.at_work(3).await?;
    let services = arena.services.clone();
    for command in commands {
        services.run(&[command]).await?;
    }
    arena.resumed(Instant::now(), BACK).await
}

/// Terminates every connection to this database, again and again for some seconds.
pub async fn terminate(arena: &mut Arena) -> anyhow::Result<()> {
    const STORM: Duration = Duration::from_secs(6);
    // A heartbeat may be hit often enough to be missing for a whole lease.
    arena.spends_attempts = true;
    arena.at_work(3).await?;
    let mut connection = arena.fleet.database.connect().await;
    let end = Instant::now() + STORM;
    while Instant::now() < end {
        let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()";
        run(&mut connection, all).await?;
        sleep(Duration::from_millis(arena.random.u64(50..400))).await;
    }
    arena.resumed(Instant::now(), BACK).await
}

/// Few connections for many slots, all of which wait, because every session is locked: three times, for some seconds.
pub async fn pool_exhausted(arena: &mut Arena) -> anyhow::Result<()> {
    for _ in 0..3 {
        arena.start_with(|launch| launch.set("DATABASE_POOL_SIZE", 2)).await;
    }
    arena.publish();
    arena.under_way().await?;
    for _ in 0..3 {
        hold(arena, "SELECT FROM harness_sessions ORDER BY session_id FOR UPDATE", Duration::from_secs(4))
            .await?;
        sleep(Duration::from_secs(1)).await;
    }
    arena.resumed(Instant::now() - Duration::from_secs(1), BACK).await
}

/// Leaves a transaction that locks a third of the sessions open for longer than any statement may take.
pub async fn idle_transaction(arena: &mut Arena) -> anyhow::Result<()> {
    arena.at_work(3).await?;
    let third = "SELECT FROM harness_sessions WHERE session_id LIKE 's-0%' OR session_id LIKE 's-1_'
                  ORDER BY session_id FOR UPDATE";
    hold(arena, third, Duration::from_secs(14)).await?;
    arena.resumed(Instant::now(), BACK).await
}

/// Takes a lock, holds it for a while, and releases it.
async fn hold(arena: &Arena, lock: &str, lasts: Duration) -> anyhow::Result<()> {
    let mut connection = arena.fleet.database.connect().await;
    run(&mut connection, "BEGIN").await?;
    run(&mut connection, lock).await?;
    sleep(lasts).await;
    run(&mut connection, "ROLLBACK").await
}

async fn run(connection: &mut PgConnection, sql: &str) -> anyhow::Result<()> {
    let ran = raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    ran.map(drop).with_context(|| format!("running {sql}"))
}
