//! Once: one round for each pool, and its decision printed.

use std::process::ExitCode;

use anyhow::Context;
use job::one_line;
use serde_json::json;
use service::{note, out, with_causes};
use tokio_util::sync::CancellationToken;

use crate::decide::Decision;
use crate::reconcile::Failed;
use crate::serve::Fleet;
use crate::settings::Settings;

/// Observes and decides once for each pool, and acts unless it is a dry run.
pub async fn once(
    settings: Settings,
    dry_run: bool,
    json: bool,
    stop: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let end = CancellationToken::new();
    let Some(mut fleet) = Fleet::boot(&settings, &stop, &end).await? else { return Ok(ExitCode::from(130)) };
    let shared = fleet.shared.clone();
    shared.observer.look().await;
    if !dry_run {
        shared.leader.contend(&shared.store).await.context("asking for the leader's lease")?;
    }
    let mut code = ExitCode::SUCCESS;
    for (pool, mut reconciler) in settings.pools.iter().zip(fleet.reconcilers.drain(..)) {
        if stop.is_cancelled() {
            code = ExitCode::from(130);
            break;
        }
        let result = if dry_run { reconciler.rehearse().await.map(Some) } else { reconciler.tick().await };
        match result {
            Ok(Some(decision)) => {
                if decision.recommended.is_none() {
                    code = ExitCode::from(3);
                }
                report(pool.name.as_str(), &decision, json)?;
            }
            Ok(None) => {
                note!(
                    "{}: another autoscaler holds the lease \"{}\", so nothing was done",
                    pool.name,
                    settings.lease_name
                );
                code = ExitCode::from(3);
            }
            Err(Failed { stage, cause }) => {
                note!("{}: {stage}: {}", pool.name, with_causes(cause.as_ref()));
                code = ExitCode::FAILURE;
            }
        }
    }
    shared.leader.resign(&shared.store).await;
    end.cancel();
    fleet.close().await;
    Ok(code)
}

fn report(pool: &str, decision: &Decision, json: bool) -> anyhow::Result<()> {
    if json {
        out!("{}", one_line(serde_json::to_string(&json!({"pool": pool, "decision": decision}))?));
    } else {
        out!("{pool}: {decision}");
    }
    Ok(())
}
