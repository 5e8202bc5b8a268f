//! `producer relay`: runs a relay and nothing else.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use dispatch::Relay;
use migrations::SchemaError;
use service::{AdminArgs, Check, Lifecycle, retry_or_stop};
use tracing::info;

use super::context::Context;
use crate::fleet_gauges::FleetGauges;

/// How long outstanding replies may take after SIGTERM.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Run a relay until SIGTERM.
#[derive(Debug, Args)]
pub struct RelayArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

impl RelayArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let admin = self.admin.check(&mut context.problems);
        let (ledger, config) = context.ledger_and_broker("producer relay")?;
        // A problem with it has ended the command above.
        let admin = admin.context("reading ADMIN_ADDR")?;
        let dispatch = ledger.beside(&config);
        let publishing = dispatch.broker.clone();
        let gauges = FleetGauges::new();
        let asked = gauges.clone();
        let readiness = Arc::new(move || {
            BTreeMap::from([
                ("database_connected", Check::unless(asked.trouble("ledger"))),
                ("queue_publishing", Check::unless(publishing.held_up())),
            ])
        });
        let mut lifecycle = Lifecycle::default();
        lifecycle.open(&admin, readiness).await?;
        // Neither Postgres nor the broker needs to be up first: a relay that gave up would have to be started again.
        let schema = || migrations::check(&ledger.address);
        let what = "reading the schema from Postgres";
        if retry_or_stop(what, &context.stop, SchemaError::is_retryable, schema).await?.is_none() {
            info!("stopped before it was ready");
            return Ok(ExitCode::SUCCESS);
        }
        let relay = Relay::new(dispatch.clone(), ledger.retention);
        lifecycle.spawn("relay", |end| async move { relay.run(end).await });
        let (watched, retention) = (dispatch.clone(), ledger.retention);
        lifecycle.spawn("readings", |end| async move { gauges.keep(&watched, retention, &end).await });
        info!("relays due jobs and rescues dead workers' jobs");
        let result = lifecycle.until(&context.stop).await;
        lifecycle.finish().await;
        dispatch.close(SHUTDOWN).await;
        result
    }
}
