//! An index on a large table that is written all the time: built partition by partition, without stopping writers.
//!
//! Its migration only makes the part of it that new partitions inherit, because Postgres cannot build an index of a
//! partitioned table concurrently. The rest needs a statement of its own for each partition, outside of a transaction,
//! which no file can hold. A build that was cut short leaves an index that is not valid; the next call drops it and
//! builds it again. Statements are right without the index, and only slower.

use std::time::Duration;

use postgres::{Address, Pooling, PostgresError, look};
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, IsolationLevel};

use crate::apply::{AGAIN_AFTER, SET_LOCK_TIMEOUT};
use crate::error::{IndexError, SchemaError};
use crate::within;

/// How long one step waits for transactions of others. A build waits for all that began before it, and holds up none.
const WAIT: Duration = Duration::from_secs(10 * 60);

/// The partitions whose index is not a part of the whole one: whether there is one, and whether a process builds it
/// now. Newest first, because lists are.
const LACKING: &str = "
    SELECT c.relname::text, x.indisvalid,
           EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index b WHERE b.relid = c.oid)
      FROM pg_catalog.pg_inherits part JOIN pg_catalog.pg_class c ON c.oid = part.inhrelid
      LEFT JOIN (pg_catalog.pg_class n JOIN pg_catalog.pg_index x ON x.indexrelid = n.oid)
             ON x.indrelid = c.oid AND n.relname::text = c.relname::text || '_tenant'
     WHERE part.inhparent = to_regclass('harness_results') AND NOT part.inhdetachpending
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits own JOIN pg_catalog.pg_index o ON o.indexrelid = own.inhrelid
                        WHERE own.inhparent = to_regclass('harness_results_tenant') AND o.indrelid = c.oid)
     ORDER BY c.relname DESC";

/// A partition without its index.
struct Part {
    table: String,
    /// `None`: there is none.
    valid: Option<bool>,
    under_way: bool,
}

/// Returns how many partitions of the results lack their index.
pub async fn lacking_indexes(address: &Address, client: &Client) -> Result<usize, SchemaError> {
    let looking = async { lacking(client).await.map_err(|error| PostgresError::new(address, error).into()) };
    Ok(within(address, looking).await?.len())
}

/// Builds what is missing of the indexes of partitioned tables. Returns how many partitions got theirs. `says` is
/// called before each build with the partition and how many are left.
///
/// Two processes at once do no harm: the second one finds what the first one does, and fails.
pub async fn build_indexes(
    address: &Address,
    mut says: impl FnMut(&str, usize),
) -> Result<usize, SchemaError> {
    let (mut session, pooling) = look(address).await?;
    let client = &mut session.client;
    if pooling == Pooling::Own {
        // Where a pooler shares sessions, a setting would apply to others as well. There, `statement_timeout` is the
        // bound. This session ends below.
        let set = format!("SET statement_timeout = 0; SET lock_timeout = {}", WAIT.as_millis());
        client.batch_execute(&set).await.map_err(|error| PostgresError::new(address, error))?;
    }
    let (mut until, mut built) = (Instant::now() + WAIT, 0);
    loop {
        let parts = lacking(client).await.map_err(|error| PostgresError::new(address, error))?;
        let Some(part) = parts.first() else { break };
        if part.under_way {
            return Err(IndexError::UnderWay { table: part.table.clone() }.into());
        }
        if part.valid.is_none() {
            says(&part.table, parts.len());
        }
        match step(client, part).await {
            Ok(done) => {
                built += usize::from(done);
                until = Instant::now() + WAIT;
            }
            Err(error) if meets_others(&error) && Instant::now() < until => sleep(AGAIN_AFTER).await,
            Err(source) => {
                return Err(IndexError::Failed { table: part.table.clone(), pooling, source }.into());
            }
        }
    }
    session.close().await;
    Ok(built)
}

/// Whether another process was in the way, or has changed the partition meanwhile.
fn meets_others(error: &Error) -> bool {
    let known = [
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::DUPLICATE_TABLE,
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_OBJECT,
    ];
    error.code().is_some_and(|code| known.contains(code))
}

/// Does the next thing for a partition: drops what a build has left, builds, or joins the index to the whole one.
/// Returns whether it has its index now.
async fn step(client: &mut Client, part: &Part) -> Result<bool, Error> {
    let table = &part.table;
    match part.valid {
        Some(false) => client.batch_execute(&format!("DROP INDEX CONCURRENTLY {table}_tenant")).await?,
        None => {
            let build = format!("CREATE INDEX CONCURRENTLY {table}_tenant ON {table} (tenant, job_id)");
            client.batch_execute(&build).await?;
        }
        Some(true) => {
            // It locks the index of the partition for a moment, so it gives way as a migration does.
            let transaction =
                client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
            transaction.batch_execute(SET_LOCK_TIMEOUT).await?;
            let join = format!("ALTER INDEX harness_results_tenant ATTACH PARTITION {table}_tenant");
            transaction.batch_execute(&join).await?;
            transaction.commit().await?;
        }
    }
    Ok(part.valid == Some(true))
}

async fn lacking(client: &Client) -> Result<Vec<Part>, Error> {
    let rows = client.query_typed(LACKING, &[]).await?;
    Ok(rows.iter().map(|row| Part { table: row.get(0), valid: row.get(1), under_way: row.get(2) }).collect())
}
