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
use super::webhooks::WebhookAllow;
use crate::fleet_gauges::FleetGauges;
use crate::webhooks::{Outbound, Sending};

/// How long outstanding replies may take after SIGTERM.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Run a relay until SIGTERM.
#[derive(Debug, Args)]
pub struct RelayArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    webhooks: WebhookAllow,
}

impl RelayArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let admin = self.admin.check(&mut context.problems);
        let allowed = self.webhooks.check(&mut context.problems);
        let authorities = context.common.authorities(&mut context.problems);
        let (ledger, config) = context.ledger_and_broker("producer relay")?;
        // A problem with them has ended the command above.
        let admin = admin.context("reading ADMIN_ADDR")?;
        let allowed = allowed.context("reading WEBHOOK_ALLOW")?;
        let authorities = authorities.context("reading TLS_CA_FILE")?;
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
        let relay = Relay::new(dispatch.clone(), ledger.inbox_rules());
        lifecycle.spawn("relay", |end| async move { relay.run(end).await });
        let outbound = Arc::new(Outbound::new(allowed, authorities));
        let sending = Sending::new(ledger.store.clone(), outbound);
        lifecycle.spawn("webhooks", |end| sending.run(end));
        let (watched, retention) = (dispatch.clone(), ledger.retention);
        lifecycle.spawn("readings", |end| async move { gauges.keep(&watched, retention, &end).await });
        info!("relays due jobs, rescues dead workers' jobs and sends to webhooks");
        let result = lifecycle.until(&context.stop).await;
        lifecycle.finish().await;
        dispatch.close(SHUTDOWN).await;
        result
    }
}
