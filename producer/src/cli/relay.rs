//! `producer relay`: a relay of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use service::{Admin, Check, Essential};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::context::Context;
use crate::readings::Readings;

/// Run a relay until SIGTERM.
#[derive(Debug, Args)]
pub struct RelayArgs {
    /// Where /health, /ready and /metrics are served; port 0 takes a free one
    #[arg(long, env = "ADMIN_ADDR", default_value = "0.0.0.0:8000")]
    admin_addr: SocketAddr,
}

impl RelayArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let (_, relay) = context.relay("producer relay").await?;
        let (broker, watched) = (relay.broker.clone(), relay.clone());
        let (publishing, readings) = (broker.clone(), Readings::default());
        let ledger = readings.clone();
        let readiness = Arc::new(move || {
            BTreeMap::from([
                ("database_connected", Check::unless(ledger.trouble("ledger"))),
                ("queue_publishing", Check::unless(publishing.held_up())),
            ])
        });
        let admin = Admin::bind(self.admin_addr, readiness).await?;
        let end = CancellationToken::new();
        let mut essential = Essential::default();
        essential.spawn("admin port", admin.serve(end.clone()));
        let running = end.clone();
        essential.spawn("relay", async move {
            relay.run(running).await;
            Ok(())
        });
        let reading = end.clone();
        essential.spawn("readings", async move {
            readings.keep(&watched, &reading).await;
            Ok(())
        });
        info!("relays due jobs and rescues dead workers' jobs");
        let result = tokio::select! {
            biased;
            () = context.stop.cancelled() => Ok(ExitCode::SUCCESS),
            error = essential.first_end() => Err(error),
        };
        end.cancel();
        essential.all_ended().await?;
        broker.close().await;
        result
    }
}
