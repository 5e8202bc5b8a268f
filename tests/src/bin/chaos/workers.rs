//! Faults of workers.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::{Instant, sleep};

use crate::arena::{Arena, GRACE, LEASE, RESCUE};
use crate::workload::killer;

pub const AGAIN: Option<Duration> = Some(Duration::from_secs(LEASE.as_secs() + RESCUE.as_secs()));

/// The broker considers a silent worker alive for up to three heartbeats of 5 s, and sends it what its free slots can
/// take. A job whose message went there takes longer.
const SILENT: Option<Duration> = Some(Duration::from_secs(15 + RESCUE.as_secs()));

/// Kills one worker (SIGKILL).
pub async fn kill(arena: &mut Arena) -> anyhow::Result<()> {
    arena.spends_attempts = true;
    arena.at_work(3).await?;
    let victim = arena.busy().await?;
    let fault = Instant::now();
    let held = arena.kill(victim).await?;
    arena.gone_on(&held, fault, AGAIN).await
}

/// Kills one worker after the other (SIGKILL), and starts another one each time.
pub async fn kills(arena: &mut Arena) -> anyhow::Result<()> {
    const KILLS: usize = 5;
    arena.spends_attempts = true;
    arena.at_work(3).await?;
    for kill in 1..=KILLS {
        let living = arena.living();
        // The oldest worker. The last one runs a job, and the others have watched the oldest for a lease.
        let mut victim = living[0];
        if kill == KILLS {
            arena.warmed_up().await;
            victim = arena.busy().await?;
        }
        arena.stop_without_suspects(victim).await?;
        let fault = Instant::now();
        let held = arena.kill(victim).await?;
        arena.start(1).await;
        if kill == KILLS {
            arena.gone_on(&held, fault, AGAIN).await?;
        }
        // The kills are closer together than a rescue takes, so that two of them may hit the same job.
        sleep(Duration::from_millis(arena.random.u64(1_000..3_000))).await;
    }
    Ok(())
}

/// Stops a worker (SIGSTOP) until others have its jobs, and continues it. Its programs keep running meanwhile, and some
/// still run when their jobs begin again.
pub async fn pause(arena: &mut Arena) -> anyhow::Result<()> {
    (arena.spends_attempts, arena.runs_twice) = (true, true);
    arena.at_work(3).await?;
    let victim = arena.busy().await?;
    let fault = Instant::now();
    arena.note(format!("SIGSTOP to number {victim}"));
    arena.worker(victim).pause();
    let held = arena.held(victim).await?;
    let gone_on = arena.gone_on(&held, fault, SILENT).await;
    arena.note("SIGCONT");
    arena.worker(victim).resume();
    gone_on?;
    arena.worker(victim).said("goes on under a new id").await;
    Ok(())
}

/// Sends SIGTERM while all slots are busy, some for longer than the grace.
pub async fn drain(arena: &mut Arena) -> anyhow::Result<()> {
    arena.at_work(3).await?;
    let victim = arena.busy().await?;
    let held = arena.held(victim).await?;
    let fault = Instant::now();
    arena.drain(victim).await?;
    // A stopped harness ends at once here; the rest of the second is for the sign-off.
    arena.recovered(fault.elapsed(), Some(GRACE + Duration::from_secs(1)));
    arena.gone_on(&held, fault, None).await
}

/// A job kills its worker again and again until it is identified as poison. Workers are started again, as an
/// orchestrator would.
pub async fn poison(arena: &mut Arena) -> anyhow::Result<()> {
    // From the third on, a death does not count if another suspect could have caused it.
    const MOST_DEATHS: usize = 8;
    arena.spends_attempts = true;
    arena.start(3).await;
    let killer = killer("killer");
    let id = killer.spec.job_id;
    arena.sprinkle(vec![killer]);
    arena.publish();
    let mut deaths = 0;
    loop {
        let mut dead_worker = None;
        arena
            .until("a worker is killed by its job, or the job is identified as poison", async |arena| {
                dead_worker = arena.living().into_iter().find(|at| !arena.lives(*at));
                Ok(dead_worker.is_some() || arena.has_ended(id).await?)
            })
            .await?;
        let Some(dead_worker) = dead_worker else { return Ok(()) };
        deaths += 1;
        ensure!(deaths <= MOST_DEATHS, "a job has killed {deaths} workers and is not identified as poison");
        let fault = Instant::now();
        let held = arena.held(dead_worker).await?;
        arena.start(1).await;
        // The next death may come before all of them run, and suspects wait for each other.
        arena.gone_on(&held, fault, None).await?;
    }
}
