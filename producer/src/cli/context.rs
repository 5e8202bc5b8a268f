//! What a command needs from outside: settings, Postgres, RabbitMQ. Each command takes only what it uses.

use std::time::Duration;

use anyhow::Context as _;
use dispatch::{Dispatch, InboxRules};
use job::ReplyRule;
use postgres::Address;
use queue::{Broker, BrokerConfig};
use secrecy::ExposeSecret;
use service::{Common, Problems, unless_stopped};
use store::{Store, StoreConfig};
use tokio_util::sync::CancellationToken;

use crate::intake_limits::IntakeLimits;

/// How long a command waits for RabbitMQ before it gives up.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long a command waits for the replies that it owes to callers.
pub const REPLIED_WITHIN: Duration = Duration::from_secs(30);

/// The settings as given, and the problems found so far.
pub struct Context {
    pub common: Common,
    pub problems: Problems,
    pub stop: CancellationToken,
}

/// The checked settings of a command that needs the ledger.
pub struct LedgerAccess {
    pub store: Store,
    pub address: Address,
    pub pool_size: usize,
    pub retention: Duration,
    pub max_message_bytes: usize,
    pub replies: ReplyRule,
}

impl LedgerAccess {
    /// Joins this ledger with the broker of this configuration, and begins to connect to the broker.
    pub fn beside(&self, config: &BrokerConfig) -> Dispatch {
        let broker = Broker::start(config.clone(), CancellationToken::new());
        Dispatch::new(self.store.clone(), broker, config, self.replies.clone())
    }

    /// What jobs that come by SQL must keep.
    pub fn inbox_rules(&self) -> InboxRules {
        let (retention, replies) = (self.retention, self.replies.clone());
        InboxRules { max_bytes: self.max_message_bytes, retention, replies }
    }
}

impl Context {
    /// Reads the settings for Postgres; does not check the schema.
    pub fn ledger(&mut self) -> anyhow::Result<LedgerAccess> {
        let ledger = self.read_ledger();
        self.finish(ledger)
    }

    /// Reads the settings for Postgres and checks that its schema is that of this binary.
    pub async fn checked_ledger(&mut self) -> anyhow::Result<LedgerAccess> {
        let ledger = self.ledger()?;
        unless_stopped(&self.stop, migrations::check(&ledger.address)).await?;
        Ok(ledger)
    }

    /// Reads the settings for Postgres and RabbitMQ; connects to neither.
    pub fn ledger_and_broker(&mut self, name: &str) -> anyhow::Result<(LedgerAccess, BrokerConfig)> {
        let (ledger, config) = (self.read_ledger(), self.read_broker(name));
        self.finish(ledger.zip(config))
    }

    /// Returns Postgres, with its schema checked, and RabbitMQ, connected.
    pub async fn dispatch(&mut self, name: &str) -> anyhow::Result<(IntakeLimits, Dispatch)> {
        let (ledger, config) = self.ledger_and_broker(name)?;
        let stop = &self.stop;
        unless_stopped(stop, migrations::check(&ledger.address)).await?;
        let clock = unless_stopped(stop, ledger.store.clock()).await.context("reading Postgres's clock")?;
        let dispatch = ledger.beside(&config);
        let connecting = unless_stopped(stop, dispatch.broker.ready(TIMEOUT)).await;
        connecting.context("connecting to RabbitMQ (AMQP_URL)")?;
        let LedgerAccess { retention, max_message_bytes: max_bytes, replies, .. } = ledger;
        Ok((IntakeLimits::new(clock, max_bytes, retention, replies), dispatch))
    }

    fn read_ledger(&mut self) -> Option<LedgerAccess> {
        let (common, problems) = (&self.common, &mut self.problems);
        let retention = common.retention(problems);
        let max_message_bytes = common.max_message_bytes(problems);
        let replies = problems.check("REPLY_TO_ALLOW", common.reply_to_allow.parse());
        let pool_size = common.database_pool_size(problems);
        let url = common.database_url(problems)?;
        let set_by = problems.check("DATABASE_SETTINGS", common.database_settings.parse());
        let authorities = common.authorities(problems)?;
        let address =
            Address::trusting(url.expose_secret(), set_by.unwrap_or_default(), authorities.own_pem());
        let address = problems.check("DATABASE_URL", address)?;
        let config = StoreConfig::new(address.clone(), pool_size.unwrap_or(10));
        let config = problems.check("DATABASE_POOL_SIZE", config)?;
        Some(LedgerAccess {
            store: Store::new(&config),
            address,
            pool_size: pool_size?,
            retention: retention?,
            max_message_bytes: max_message_bytes?,
            replies: replies?,
        })
    }

    fn read_broker(&mut self, name: &str) -> Option<BrokerConfig> {
        let url = self.common.amqp_url(&mut self.problems)?;
        let authorities = self.common.authorities(&mut self.problems)?;
        let config = BrokerConfig::new(url.expose_secret(), name).trusting(authorities.own_pem());
        self.problems.check("AMQP_URL", config.check().map(|()| config))
    }

    /// Returns what was read, or all problems so far.
    pub fn finish<T>(&mut self, settings: Option<T>) -> anyhow::Result<T> {
        let problems = std::mem::take(&mut self.problems);
        match settings {
            Some(settings) if problems.count() == 0 => Ok(settings),
            _ => Err(problems.into_error().into()),
        }
    }
}
