//! `producer doctor`: checks whether a process of the fleet could work with these settings.

mod postgres;
mod provider_keys;
mod webhooks;
mod questions;
mod inbox;
mod lines;
mod schedules;
mod money;
mod access;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use job::Name;
use queue::{Broker, BrokerConfig, Message, PublishError};
use service::{out, unless_stopped, with_causes};
use tokio_util::sync::CancellationToken;

use super::context::Context;

/// How long the broker may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Check whether a process of the fleet could work here: a line per check, `ok` or `MISSING`
///
/// It asks Postgres and RabbitMQ what a worker asks when it starts, with the same effect: exchanges and queues are
/// declared.
///
/// Exit codes: 0 nothing is missing, 1 something is missing, 2 wrong settings.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The pools whose queues to check
    #[arg(long = "pool", value_name = "POOL", default_value = "default")]
    pools: Vec<Name>,
}

impl Doctor {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let (ledger, config) = context.ledger_and_broker("producer doctor")?;
        let mut list = Checklist::default();
        let looking = async {
            postgres::look(&ledger, &mut list).await;
            look_at_broker(config, &self.pools, &mut list).await;
            anyhow::Ok(())
        };
        unless_stopped(&context.stop, looking).await?;
        Ok(if list.missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

#[derive(Default)]
struct Checklist {
    missing: usize,
}

impl Checklist {
    /// Prints a line. Returns whether the check passed.
    fn report(&mut self, check: &str, result: Result<String, String>) -> bool {
        match result {
            Ok(found) => {
                out!("ok       {check:19} {found}");
                true
            }
            Err(problem) => {
                self.missing += 1;
                out!("MISSING  {check:19} {problem}");
                false
            }
        }
    }
}

fn chain(error: impl Into<anyhow::Error>) -> String {
    with_causes(error.into().as_ref())
}

async fn look_at_broker(config: BrokerConfig, pools: &[Name], list: &mut Checklist) {
    let broker = Broker::start(config, CancellationToken::new());
    // Connecting declares what all pools share.
    let connected =
        broker.ready(TIMEOUT).await.map(|_| "RabbitMQ answers, exchanges are declared".to_owned());
    if list.report("broker_connected", connected.map_err(chain)) {
        for pool in pools {
            let declared =
                broker.declare_pool(pool).await.map(|()| format!("the queue of pool {pool} is declared"));
            list.report("queue_declared", declared.map_err(chain));
        }
        list.report("broker_write", may_write(&broker).await);
        let letters = broker.dead_letters(1).await;
        let may_read = letters.map(|_| "messages can be read (checked on harness.dead)".to_owned());
        list.report("broker_read", may_read.map_err(chain));
        let blocked = broker.blocked().borrow().clone();
        let alarms = blocked.map_or(Ok("no memory or disk alarm".to_owned()), |reason| {
            Err(format!("it holds publishers back: {reason}"))
        });
        list.report("broker_alarms", alarms);
    }
    broker.close().await;
}

/// Publishes to a queue that does not exist. The broker must return the message, which it does only if this account may
/// publish.
async fn may_write(broker: &Broker) -> Result<String, String> {
    let nowhere = format!("harness.doctor.{:016x}", std::process::id());
    match broker.publisher().publish(&nowhere, Message::new("harness.doctor", "{}")).await {
        Err(PublishError::Returned { .. }) => Ok("messages can be published".to_owned()),
        Ok(()) => Err(format!("the queue {nowhere} exists, and should not")),
        Err(error) => Err(chain(error)),
    }
}
