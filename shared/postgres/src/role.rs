//! The account's own settings: how they are set, and what happens to the sessions that have older ones.
//!
//! A session gets the account's settings when it begins, and a pooler would continue to hand out sessions that began
//! earlier. So these are ended, but only while they are idle outside of any transaction. Busy sessions are checked
//! again, for a limited time.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use crate::address::Address;
use crate::connect::{Session, connect};
use crate::error::PostgresError;
use crate::settings::{UNLESS_CHOSEN, list};

/// How long busy older sessions are checked again, and at which interval.
const LOOKS: Duration = Duration::from_secs(10);
const NEXT_LOOK: Duration = Duration::from_millis(200);
/// The timeout of a query.
const BOUND: Duration = Duration::from_secs(10);

/// One of the settings in another notation. As long as the account has it in this form, there may be older sessions. If
/// the work is interrupted, the next call completes it.
const UNFINISHED: &str = "ALTER ROLE SESSION_USER IN DATABASE %I SET statement_timeout = ''10000ms''";

/// The condition for older sessions of this account in this database.
const OLDER: &str =
    "datname = current_database() AND usename = session_user AND backend_type = 'client backend'
    AND (extract(epoch FROM backend_start) * 1000000)::bigint < $1";

/// Gives the account its settings in this database, and ends its older sessions. Returns how many sessions are left.
/// They were busy at each check, and keep their old settings.
pub async fn set_for_role(address: &Address, session: Session) -> Result<usize, PostgresError> {
    let given = within(address, give(&session.client)).await;
    session.close().await;
    if !given? {
        return Ok(0);
    }
    let left = end_older(address).await?;
    if left == 0 {
        let session = within(address, connect(address)).await?;
        let finished = within(address, finish(&session.client)).await;
        session.close().await;
        finished?;
    }
    Ok(left)
}

/// Gives the account the settings that it lacks. Returns whether there were any.
async fn give(client: &Client) -> Result<bool, Error> {
    let mut statements = missing(client).await?;
    if statements.is_empty() {
        return Ok(false);
    }
    let unfinished = format!("SELECT format('{UNFINISHED}', current_database())");
    statements.extend(texts(client, &unfinished).await?);
    alter(client, &statements).await?;
    Ok(true)
}

async fn finish(client: &Client) -> Result<(), Error> {
    alter(client, &missing(client).await?).await
}

/// Returns the statements that give the account what it lacks.
async fn missing(client: &Client) -> Result<Vec<String>, Error> {
    let list = list();
    let statements = format!(
        "SELECT format('ALTER ROLE SESSION_USER IN DATABASE %I SET %I = %L', current_database(), name, value)
           FROM (VALUES {list}) AS ours (name, value) JOIN pg_catalog.pg_settings USING (name)
          WHERE {UNLESS_CHOSEN} AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_db_role_setting s
                 WHERE s.setdatabase = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                   AND s.setrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)
                   AND format('%s=%s', name, value) = ANY(s.setconfig))"
    );
    texts(client, &statements).await
}

async fn texts(client: &Client, sql: &str) -> Result<Vec<String>, Error> {
    Ok(client.query_typed(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// Runs the statements in a transaction that may write even if the account's transactions are read-only by default. A
/// lock makes several processes run one after another.
///
/// The commit waits for no standby. Otherwise nothing would progress while one is away. The next commit that does wait
/// covers this one, too.
async fn alter(client: &Client, statements: &[String]) -> Result<(), Error> {
    let statements = statements.join("; ");
    client
        .batch_execute(&format!(
            "BEGIN READ WRITE; SET LOCAL synchronous_commit = local; SET LOCAL lock_timeout = 0;
             SELECT pg_catalog.pg_advisory_xact_lock(7310577365291021); {statements}; COMMIT"
        ))
        .await
}

/// Ends the sessions that are older than the first check. Returns how many are left.
async fn end_older(address: &Address) -> Result<usize, PostgresError> {
    let until = Instant::now() + LOOKS;
    let mut now_us = None;
    loop {
        let left = end_idle(address, &mut now_us).await;
        let last = Instant::now() >= until;
        match left {
            Ok(0) => return Ok(0),
            Ok(left) if last => return Ok(left),
            // A pooler may hand out a session that has just been ended.
            Err(error) if last || !error.is_retryable() => return Err(error),
            Ok(_) | Err(_) => sleep(NEXT_LOOK).await,
        }
    }
}

/// Checks once, on a new connection. A pooler may give it one of the older sessions. That one is then ended as well,
/// and counts as left until another check no longer finds it.
async fn end_idle(address: &Address, now_us: &mut Option<i64>) -> Result<usize, PostgresError> {
    let session = within(address, connect(address)).await?;
    let client = &session.client;
    let looking = async {
        let since = match *now_us {
            Some(since) => since,
            None => {
                let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
                *now_us.insert(client.query_typed(sql, &[]).await?[0].get(0))
            }
        };
        let older = [(&since as &(dyn tokio_postgres::types::ToSql + Sync), Type::INT8)];
        let sql = format!(
            "SELECT count(*), count(CASE WHEN state = 'idle' AND pid <> pg_backend_pid() THEN pg_terminate_backend(pid) END),
                    coalesce(bool_or(pid = pg_backend_pid()), false)
               FROM pg_catalog.pg_stat_activity WHERE {OLDER}"
        );
        let row = client.query_typed(&sql, &older).await?.remove(0);
        if row.get(2) {
            // The session ends before it can answer.
            let sql = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = pg_backend_pid() AND {OLDER}"
            );
            let _ = client.query_typed(&sql, &older).await;
        }
        Ok(row.get::<_, i64>(0) as usize)
    };
    let left = within(address, looking).await;
    session.close().await;
    left
}

async fn within<T>(
    address: &Address,
    asking: impl Future<Output = Result<T, Error>>,
) -> Result<T, PostgresError> {
    let silent = PostgresError::Silent { servers: address.servers(), seconds: BOUND.as_secs() };
    timeout(BOUND, asking).await.map_err(|_| silent)?.map_err(|error| PostgresError::new(address, error))
}
