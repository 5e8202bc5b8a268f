//! sqlx's journal, and how a migration gets into it.
//!
//! A migration, its entry and its lock are one transaction, so that it works through a pooler that gives each
//! transaction a different session. The lock is the one that sqlx's own migrator takes, so that the migrator
//! of an older release waits for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crc::{CRC_32_ISO_HDLC, Crc};
use sqlx::migrate::Migration;
use tokio::time::sleep;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, IsolationLevel, Row, Transaction};
use tracing::warn;

/// How long a migration waits for one of its locks. A transaction that waits for a table holds up all that ask for the
/// table after it, so behind a long reader it would stop the fleet: this is what the fleet notices of a try.
pub(crate) const SET_LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '500ms'";
/// After that it gives way to all others for this long, and tries again: for ten minutes in all.
pub(crate) const AGAIN_AFTER: Duration = Duration::from_millis(2_500);
const TRIES: u32 = 200;

/// A migration that a database has.
pub(crate) struct Applied {
    pub(crate) description: String,
    pub(crate) checksum: Vec<u8>,
}

/// Returns the migrations that the database has: none if there is no journal yet.
pub(crate) async fn applied(client: &Client) -> Result<BTreeMap<i64, Applied>, Error> {
    let journal = client.query_typed("SELECT to_regclass('_sqlx_migrations') IS NOT NULL", &[]).await?;
    if !journal.iter().any(|row| row.get(0)) {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT version, description, checksum FROM _sqlx_migrations WHERE success";
    let rows = client.query_typed(sql, &[]).await?;
    let entry = |row: &Row| (row.get(0), Applied { description: row.get(1), checksum: row.get(2) });
    Ok(rows.iter().map(entry).collect())
}

/// Makes the journal as sqlx makes it.
const JOURNAL: &str = "
    CREATE TABLE IF NOT EXISTS _sqlx_migrations (
        version BIGINT PRIMARY KEY,
        description TEXT NOT NULL,
        installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
        success BOOLEAN NOT NULL,
        checksum BYTEA NOT NULL,
        execution_time BIGINT NOT NULL
    )";

/// Lifts the time limits, because a migration takes its time, and lets Postgres plan it like anything else. Other
/// migrators are waited for without a bound: that holds up no others.
const SET: &str = "
    SET LOCAL statement_timeout = 0;
    SET LOCAL lock_timeout = 0;
    SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL standard_conforming_strings = on;
    SET LOCAL plan_cache_mode = auto;
    SET LOCAL enable_seqscan = on;
    SET LOCAL enable_bitmapscan = on;
    SET LOCAL enable_hashjoin = on;
    SET LOCAL enable_mergejoin = on";

/// Applies a migration, unless another process has done so meanwhile. While others use its tables, it is tried again.
pub(crate) async fn apply(client: &mut Client, migration: &Migration) -> Result<(), Error> {
    for tried in 1..TRIES {
        match try_to_apply(client, migration).await {
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                if tried == 1 {
                    let version = migration.version;
                    warn!(
                        version,
                        "a migration waits: another transaction uses its tables, see pg_stat_activity"
                    );
                }
                sleep(AGAIN_AFTER).await;
            }
            done => return done,
        }
    }
    try_to_apply(client, migration).await
}

async fn try_to_apply(client: &mut Client, migration: &Migration) -> Result<(), Error> {
    let began = Instant::now();
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    transaction.batch_execute(SET).await?;
    lock(&transaction).await?;
    transaction.batch_execute(JOURNAL).await?;
    let version = migration.version;
    let sql = "SELECT FROM _sqlx_migrations WHERE version = $1";
    if transaction.query_typed(sql, &[(&version, Type::INT8)]).await?.is_empty() {
        transaction.batch_execute(SET_LOCK_TIMEOUT).await?;
        transaction.batch_execute(migration.sql.as_str()).await?;
        let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                   VALUES ($1, $2, true, $3, $4)";
        let (description, checksum) = (migration.description.as_ref(), migration.checksum.as_ref());
        let took_ns = began.elapsed().as_nanos() as i64;
        let entry: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] = [
            (&version, Type::INT8),
            (&description, Type::TEXT),
            (&checksum, Type::BYTEA),
            (&took_ns, Type::INT8),
        ];
        transaction.query_typed(sql, &entry).await?;
    }
    transaction.commit().await
}

/// Takes sqlx's lock. The key is made of the database's name, as sqlx makes it.
async fn lock(transaction: &Transaction<'_>) -> Result<(), Error> {
    const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let rows = transaction.query_typed("SELECT current_database()::text", &[]).await?;
    let database: String = rows.iter().map(|row| row.get::<_, String>(0)).collect();
    let key = 0x3d32_ad9e * i64::from(CRC.checksum(database.as_bytes()));
    transaction.query_typed("SELECT pg_advisory_xact_lock($1)", &[(&key, Type::INT8)]).await?;
    Ok(())
}
