//! `producer relay`: a relay of its own.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use dispatch::Relay;
use migrations::SchemaError;
use service::{Admin, Check, Essential, ListenAddress, Setting, retry_or_stop};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::context::Context;
use crate::readings::Readings;

/// How long replies that are on their way may take after SIGTERM.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Run a relay until SIGTERM.
#[derive(Debug, Args)]
pub struct RelayArgs {
    /// Where /health, /ready and /metrics are served; port 0 takes a free one
    #[arg(long, env = "ADMIN_ADDR", default_value = "0.0.0.0:8000")]
    admin_addr: Setting<ListenAddress>,
}

impl RelayArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let admin_addr = context.problems.take("ADMIN_ADDR", self.admin_addr);
        let (ledger, config) = context.ledger_and_broker("producer relay")?;
        // What is wrong with it is among the problems that end this above.
        let admin_addr = admin_addr.context("reading ADMIN_ADDR")?;
        let dispatch = ledger.beside(&config);
        let publishing = dispatch.broker.clone();
        let readings = Readings::new();
        let asked = readings.clone();
        let readiness = Arc::new(move || {
            BTreeMap::from([
                ("database_connected", Check::unless(asked.trouble("ledger"))),
                ("queue_publishing", Check::unless(publishing.held_up())),
            ])
        });
        let admin = Admin::bind(admin_addr, readiness).await?;
        let end = CancellationToken::new();
        let mut essential = Essential::default();
        essential.spawn("admin port", admin.serve(end.clone()));
        // Neither has to be there first: a relay that gave up would have to be started again.
        let schema = || migrations::check(&ledger.address);
        let what = "reading the schema from Postgres";
        if retry_or_stop(what, &context.stop, SchemaError::is_retryable, schema).await?.is_none() {
            info!("stopped before it was ready");
            return Ok(ExitCode::SUCCESS);
        }
        let (relay, running) = (Relay::new(dispatch.clone(), ledger.retention), end.clone());
        essential.spawn("relay", async move {
            relay.run(running).await;
            Ok(())
        });
        let (watched, retention, reading) = (dispatch.clone(), ledger.retention, end.clone());
        essential.spawn("readings", async move {
            readings.keep(&watched, retention, &reading).await;
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
        dispatch.close(SHUTDOWN).await;
        result
    }
}
