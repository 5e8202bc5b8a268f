//! Connections to Postgres.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    ConfigConnectImpl, Connect, Manager, ManagerConfig, Pool, PoolBuilder, QueueMode, RecyclingMethod,
    Runtime, Timeouts,
};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Config, NoTls};

use crate::StoreError;
use crate::batch::Batcher;
use crate::checkpoint::CheckpointRow;
use crate::claim::ClaimRequest;
use crate::conclude::Conclusion;
use crate::connect::{ForBeats, ForWork, Places};
use crate::workers::BEAT_BOUND;

/// How to reach the ledger.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    postgres: Config,
    pool_size: usize,
}

impl StoreConfig {
    /// Reads a URL such as `postgres://user:password@host:5432/database`. The error never shows the password. At most
    /// `pool_size` connections are opened, one of them for heartbeats and leases alone.
    ///
    /// `sslmode=require` encrypts and verifies the server against the system's certificates (libpq's
    /// `verify-full`); without it the connection is plain.
    pub fn new(database_url: &str, pool_size: usize) -> Result<StoreConfig, String> {
        const EXPECTED: &str = "expected postgres://user:password@host:5432/database";
        let mut postgres = Config::from_str(database_url).map_err(|error| format!("{error}, {EXPECTED}"))?;
        if postgres.get_hosts().is_empty() || postgres.get_dbname().is_none() {
            return Err(format!("no host or no database in it, {EXPECTED}"));
        }
        if pool_size < 2 {
            return Err(format!("a pool of {pool_size} connections is too small, expected at least 2"));
        }
        // Every statement of ours is driven by an index, and wants the same plan whatever its arrays hold. Told so, the
        // planner cannot be misled into sequential scans and hash joins by statistics from when the tables were
        // empty, and does not plan the same statement again and again. (A bitmap scan would walk over the same dead
        // entries each time; an index scan leaves a mark on them.)
        let options = "-c enable_seqscan=off -c enable_bitmapscan=off -c enable_hashjoin=off -c enable_mergejoin=off \
                       -c jit=off -c plan_cache_mode=force_generic_plan -c statement_timeout=10s \
                       -c idle_in_transaction_session_timeout=30s";
        let options = match postgres.get_options() {
            Some(theirs) => format!("{options} {theirs}"),
            None => options.to_owned(),
        };
        postgres
            .options(options)
            .connect_timeout(Duration::from_secs(5))
            .keepalives_idle(Duration::from_secs(10))
            .tcp_user_timeout(Duration::from_secs(15));
        if postgres.get_application_name().is_none() {
            postgres.application_name("harness-fleet");
        }
        Ok(StoreConfig { postgres, pool_size })
    }

    fn connect(&self) -> Box<dyn Connect> {
        match self.postgres.get_ssl_mode() {
            SslMode::Require => Box::new(ConfigConnectImpl { tls: tls() }),
            _ => Box::new(ConfigConnectImpl { tls: NoTls }),
        }
    }

    fn pool(&self, connect: impl Connect + 'static, size: usize, bound: Duration) -> PoolBuilder {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let bound = Some(bound);
        Pool::builder(Manager::from_connect(self.postgres.clone(), connect, recycling))
            .max_size(size)
            .runtime(Runtime::Tokio1)
            // The connection used last has the warmest caches.
            .queue_mode(QueueMode::Lifo)
            .timeouts(Timeouts { wait: bound, create: bound, recycle: bound })
    }
}

fn built(pool: PoolBuilder) -> Pool {
    pool.build().expect("timeouts come with a runtime")
}

fn tls() -> tokio_postgres_rustls::MakeRustlsConnect {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_native_certs::load_native_certs().certs {
        // One unreadable certificate of the system's must not keep the others from being used.
        let _ = roots.add(certificate);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tokio_postgres_rustls::MakeRustlsConnect::new(config)
}

/// A handle on the ledger; clones share its connections and batches.
#[derive(Clone)]
pub struct Store {
    pub(crate) pool: Pool,
    /// Heartbeats must not wait behind work, nor go without a connection because work has them all.
    pub(crate) beats: Pool,
    pub(crate) claims: Batcher<ClaimRequest>,
    pub(crate) checkpoints: Batcher<CheckpointRow>,
    pub(crate) conclusions: Batcher<Conclusion>,
}

impl Store {
    /// Opens nothing yet: connections are made when they are needed, and made anew when they break.
    ///
    /// Must be called within a tokio runtime; the batches run as tasks until the last clone is dropped.
    pub fn new(config: &StoreConfig) -> Store {
        let places = Places::default();
        let work = ForWork(config.connect(), places.clone());
        let work = config.pool(work, config.pool_size - 1, Duration::from_secs(10));
        let pool = built(work.pre_recycle(places.look_before_use()));
        places.made_by(&pool);
        let beats = ForBeats(config.connect(), places);
        Store {
            claims: Batcher::start(pool.clone()),
            checkpoints: Batcher::start(pool.clone()),
            conclusions: Batcher::start(pool.clone()),
            beats: built(config.pool(beats, 1, BEAT_BOUND)),
            pool,
        }
    }

    /// Whether Postgres answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let client = self.pool.get().await?;
        client.simple_query("SELECT 1").await.map_err(|error| StoreError::from_pg("ping", error))?;
        Ok(())
    }

    /// Closes all connections; calls under way finish, later ones fail.
    pub fn close(&self) {
        self.pool.close();
        self.beats.close();
    }
}
