//! `producer doctor`: whether a process of the fleet could work with these settings.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use job::Name;
use queue::{Broker, BrokerConfig, Message, PublishError};
use service::{out, unless_stopped};
use tokio_util::sync::CancellationToken;

use super::context::{Context, Ledger};

/// How long the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A job's id tells the time of the host that made it, and may lie a day ahead. This is where somebody should look.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Look whether a process of the fleet could work here: a line per check, `ok` or `MISSING`
///
/// It asks Postgres and RabbitMQ as a worker would at its start, and with the same effect: exchanges and queues are
/// declared. Exit codes: 0 nothing is missing, 1 something is, 2 wrong settings.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The pools whose queues to look at
    #[arg(long = "pool", value_name = "POOL", default_value = "default")]
    pools: Vec<Name>,
}

impl Doctor {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let (ledger, config) = context.ledger_and_broker("producer doctor")?;
        let mut list = Checklist::default();
        let looking = async {
            look_at_postgres(&ledger, &mut list).await;
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
    /// Prints a line. Whether the check holds.
    fn tell(&mut self, check: &str, result: Result<String, String>) -> bool {
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
    format!("{:#}", error.into())
}

async fn look_at_postgres(ledger: &Ledger, list: &mut Checklist) {
    let store = &ledger.store;
    let connected = store.ping().await.map(|()| "Postgres answers".to_owned());
    if !list.tell("database_connected", connected.map_err(chain)) {
        return;
    }
    let schema = migrations::check(&ledger.database_url).await;
    let schema = schema.map(|()| "the schema of this release".to_owned());
    if !list.tell("schema_current", schema.map_err(chain)) {
        return;
    }
    let rights = match store.missing_rights().await {
        Ok(missing) if missing.is_empty() => Ok("all rights on the ledger's tables".to_owned()),
        Ok(missing) => Err(format!("this account lacks {}", missing.join(", "))),
        Err(error) => Err(chain(error)),
    };
    list.tell("database_rights", rights);
    let partitions = match store.partitions_ahead(ledger.retention).await {
        Ok(found) if found.missing == 0 => {
            Ok(format!("results have partitions for {} hours more", found.ahead.as_secs() / 3_600))
        }
        Ok(found) => Err(format!("{} weeks have none: run `producer migrate`", found.missing)),
        Err(error) => Err(chain(error)),
    };
    list.tell("partitions", partitions);
    let clock = store.clock().await.map_err(chain).and_then(|clock| {
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let skew = ours.abs_diff(Duration::from_millis(clock.now_unix_ms()));
        match skew <= CLOCK_SKEW {
            true => Ok(format!("within {} ms of Postgres's", skew.as_millis())),
            false => Err(format!(
                "{} s away from Postgres's, expected at most {}: set this host's clock",
                skew.as_secs(),
                CLOCK_SKEW.as_secs()
            )),
        }
    });
    list.tell("clock", clock);
}

async fn look_at_broker(config: BrokerConfig, pools: &[Name], list: &mut Checklist) {
    let broker = Broker::start(config, CancellationToken::new());
    // A connection declares what all pools share.
    let connected =
        broker.ready(PATIENCE).await.map(|_| "RabbitMQ answers, exchanges are declared".to_owned());
    if list.tell("broker_connected", connected.map_err(chain)) {
        for pool in pools {
            let declared =
                broker.declare_pool(pool).await.map(|()| format!("the queue of pool {pool} is declared"));
            list.tell("queue_declared", declared.map_err(chain));
        }
        list.tell("broker_write", may_write(&broker).await);
        let letters = broker.dead_letters(1).await;
        let may_read = letters.map(|_| "messages can be read (harness.dead was looked at)".to_owned());
        list.tell("broker_read", may_read.map_err(chain));
        let blocked = broker.blocked().borrow().clone();
        let alarms = blocked.map_or(Ok("no memory or disk alarm".to_owned()), |reason| {
            Err(format!("it holds publishers back: {reason}"))
        });
        list.tell("broker_alarms", alarms);
    }
    broker.close().await;
}

/// Publishes to where no queue is: the broker must give it back, and could not without taking it.
async fn may_write(broker: &Broker) -> Result<String, String> {
    let nowhere = format!("harness.doctor.{:016x}", std::process::id());
    match broker.publisher().publish(&nowhere, Message::new("harness.doctor", "{}")).await {
        Err(PublishError::Returned { .. }) => Ok("messages can be published".to_owned()),
        Ok(()) => Err(format!("the queue {nowhere} exists, and should not")),
        Err(error) => Err(chain(error)),
    }
}
