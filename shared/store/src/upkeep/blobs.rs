//! Blobs of sessions' contexts that nothing refers to any more.

use uuid::Uuid;

use super::partitions::first_id;
use crate::database::query;
use crate::{Store, StoreError};

const OLDEST_WEEK: &str = "
    SELECT min(substring(c.relname FROM '\\d+$')::bigint) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'harness_history'::regclass AND NOT i.inhdetachpending AND c.relname ~ '^harness_history_w\\d+$'";

/// One that a checkpoint has made live again meanwhile stays.
const FORGET: &str = "
    DELETE FROM harness_blobs b
     USING (SELECT session_id, hash FROM harness_blobs WHERE NOT live AND kept_by < $1 ORDER BY kept_by LIMIT 1000) gone
     WHERE b.session_id = gone.session_id AND b.hash = gone.hash AND NOT b.live AND b.kept_by < $1
    RETURNING 1";

impl Store {
    /// Deletes the blobs that only dropped partitions of the history referred to.
    pub async fn forget_blobs(&self) -> Result<(), StoreError> {
        let week = query(&self.pool, "oldest_history", OLDEST_WEEK, &[]).await?;
        let week = week.first().and_then(|row| row.get::<_, Option<i64>>(0));
        let oldest = week.map_or(Uuid::nil(), |week| first_id(week.unsigned_abs()));
        while !query(&self.pool, "forget_blobs", FORGET, &[&oldest]).await?.is_empty() {}
        Ok(())
    }
}
