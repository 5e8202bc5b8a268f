//! The server behind the ledger, as far as it bounds what a process can do.

use crate::database::query;
use crate::{Store, StoreError};

/// What the server grants.
#[derive(Clone, Debug)]
pub struct Server {
    /// Whether it is a standby, which takes no writes.
    pub is_standby: bool,
    /// The account by which Postgres knows us.
    pub account: String,
    /// How many connections that account may have; `None` is any number.
    pub account_connections: Option<u32>,
    /// How many connections the server has for accounts that are not superusers.
    pub connections: u32,
}

const SERVER: &str = "
    SELECT pg_is_in_recovery(), session_user::text,
           (SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user),
           current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int";

impl Store {
    /// Reads what the server grants.
    pub async fn server(&self) -> Result<Server, StoreError> {
        let rows = query(&self.pool, "server", SERVER, &[]).await?;
        let row = rows.first().expect("one row");
        let limit: Option<i32> = row.get(2);
        Ok(Server {
            is_standby: row.get(0),
            account: row.get(1),
            account_connections: limit.and_then(|limit| u32::try_from(limit).ok()),
            connections: u32::try_from(row.get::<_, i32>(3)).unwrap_or_default(),
        })
    }
}
