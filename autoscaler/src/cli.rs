//! The command line.

mod simulate;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use job::Name;
use queue::{Broker, BrokerConfig};
use secrecy::ExposeSecret;
use service::{Common, Problems};
use store::{Store, StoreConfig};
use tokio_util::sync::CancellationToken;

use crate::observe;

/// How long to wait for RabbitMQ.
const PATIENCE: Duration = Duration::from_secs(15);

/// Watches pools of workers.
#[derive(Debug, Parser)]
#[command(name = "autoscaler", version)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look once at each pool and print what is known, one JSON object per pool
    ///
    /// Exit codes: 0 all is known, 2 wrong settings, 3 something is unknown; the output says what and why.
    Observe {
        /// The pools
        #[arg(default_value = "default")]
        pools: Vec<Name>,
    },
    Simulate(Box<simulate::Simulate>),
}

impl Args {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let mut problems = Problems::default();
        let quiet = [queue::LOG_DIRECTIVE, migrations::LOG_DIRECTIVE, "queue=warn"];
        let telemetry = self.common.telemetry(&quiet, &mut problems);
        service::run(telemetry, |stop| async move {
            match self.command {
                Command::Observe { pools } => run_observe(&pools, self.common, problems).await,
                Command::Simulate(simulate) => simulate.run(problems, &stop),
            }
        })
    }
}

async fn run_observe(pools: &[Name], common: Common, mut problems: Problems) -> anyhow::Result<ExitCode> {
    let database_url =
        problems.required("DATABASE_URL", common.database_url, "postgres://user:password@host:5432/database");
    let amqp_url = problems.required("AMQP_URL", common.amqp_url, "amqp://user:password@host:5672/vhost");
    let store = database_url
        .as_ref()
        .and_then(|url| problems.check("DATABASE_URL", StoreConfig::new(url.expose_secret(), 2)));
    let broker = amqp_url.and_then(|url| {
        let config = BrokerConfig::new(url.expose_secret(), "autoscaler observe");
        problems.check("AMQP_URL", config.check().map(|()| config))
    });
    let (Some(database_url), Some(store), Some(broker), 0) = (database_url, store, broker, problems.count())
    else {
        return Err(problems.into_error().into());
    };
    migrations::check(database_url.expose_secret()).await?;
    let store = Store::new(&store);
    let broker = Broker::start(broker, CancellationToken::new());
    broker.ready(PATIENCE).await.context("connecting to RabbitMQ (AMQP_URL)")?;
    let mut complete = true;
    for pool in pools {
        let seen = observe::observe(&broker, &store, pool).await;
        complete &= seen.is_complete();
        println!("{}", serde_json::to_string(&seen)?);
    }
    broker.close().await;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(3) })
}
