//! `autoscaler observe`: prints what is known of pools, and what is not.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use job::{Name, one_line};
use queue::Broker;
use secrecy::SecretString;
use service::{Common, Problems, out, unless_stopped};
use store::Store;
use tokio_util::sync::CancellationToken;

use crate::decide::Policy;
use crate::observe::{Observer, Watched};
use crate::settings::{Services, check_management};

/// How long to wait for the connection to RabbitMQ.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Observe each pool once and print what is known, one JSON object per pool
///
/// Exit codes: 0 everything is known, 2 wrong settings, 3 something is unknown; the output says what and why.
#[derive(Debug, Args)]
pub struct Observe {
    /// The pools
    #[arg(default_value = "default")]
    pools: Vec<Name>,
    /// RabbitMQ's management API to ask as well, such as http://user:password@host:15672
    #[arg(long, env = "MANAGEMENT_URL", hide_env_values = true)]
    management_url: Option<SecretString>,
}

impl Observe {
    pub async fn run(
        self,
        common: Common,
        mut problems: Problems,
        stop: &CancellationToken,
    ) -> anyhow::Result<ExitCode> {
        let services = Services::check(common, 2, "autoscaler observe", &mut problems);
        let management = match (&self.management_url, &services) {
            (Some(url), Some(services)) => services.management(url, &mut problems),
            (Some(url), None) => check_management(url, &mut problems),
            (None, _) => None,
        };
        let (Some(services), 0) = (services, problems.count()) else {
            return Err(problems.into_error().into());
        };
        unless_stopped(stop, migrations::check(services.store.address())).await?;
        let broker = Broker::start(services.broker, CancellationToken::new());
        let connecting = unless_stopped(stop, broker.ready(TIMEOUT)).await;
        connecting.context("connecting to RabbitMQ (AMQP_URL)")?;
        let due_horizon = Duration::from_secs(Policy::default().due_horizon_s);
        let watched = self.pools.iter().map(|pool| Watched { pool: pool.clone(), due_horizon });
        let store = Store::new(&services.store);
        let observer = Observer::new(broker.clone(), store, watched.collect(), management);
        observer.look().await;
        let mut code = ExitCode::SUCCESS;
        for account in self.pools.iter().filter_map(|pool| observer.account(pool)) {
            if !account.is_complete() {
                code = ExitCode::from(3);
            }
            out!("{}", one_line(serde_json::to_string(&account)?));
        }
        broker.close().await;
        Ok(code)
    }
}
