//! Lists of sessions, by name.
//!
//! A list is ordered by the key that it is paged by. Newest first would need an index on a time: on `last_updated`, which each
//! end of a job writes, it would make every such update write all indexes of the table, where now it writes none (HOT).
//! `created_at` never changes, but an index on it would cost each new session, and a job that names no session has a new
//! one. What is newest is asked of the jobs: their list is newest first, and each names its session.

use job::{Name, SessionKey, Tenant};
use tokio_postgres::Row;

use crate::database::{query, rfc3339};
use crate::jobs::LOOKED_AT;
use crate::{Page, Store, StoreError};

/// Which sessions of a tenant; what is `None` lets all pass. Times are Unix time in milliseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionFilter {
    /// The agent of its first job.
    pub agent: Option<Name>,
    /// Created then or later.
    pub created_since: Option<u64>,
    /// Created before then.
    pub created_before: Option<u64>,
    /// Last updated then or later.
    pub updated_since: Option<u64>,
    /// Last updated before then.
    pub updated_before: Option<u64>,
}

/// A session in a list.
#[derive(Clone, Debug)]
pub struct SessionLine {
    /// Its name.
    pub session_id: String,
    /// The agent of its first job.
    pub agent_id: String,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub last_updated: String,
    /// Jobs folded so far.
    pub jobs: i64,
}

/// The row behind which a look ends.
const LAST: &str = "
    SELECT session_id FROM harness_sessions
     WHERE session_id > $1 AND session_id < $2 ORDER BY session_id OFFSET $3 LIMIT 1";

const LIST: &str = concat!(
    "SELECT session_id, agent_id, ",
    rfc3339!("created_at"),
    ", ",
    rfc3339!("last_updated"),
    ", version FROM harness_sessions
      WHERE session_id > $1 AND session_id < $2
        AND ($4::text IS NULL OR agent_id = $4)
        AND ($5::float8 IS NULL OR created_at >= to_timestamp($5 / 1000))
        AND ($6::float8 IS NULL OR created_at < to_timestamp($6 / 1000))
        AND ($7::float8 IS NULL OR last_updated >= to_timestamp($7 / 1000))
        AND ($8::float8 IS NULL OR last_updated < to_timestamp($8 / 1000))
      ORDER BY session_id LIMIT $3"
);

impl Store {
    /// Returns a tenant's sessions behind this one that pass, by name. A look reads a bounded number of rows, whatever the
    /// filter lets pass, and answers where the next one goes on.
    pub async fn list_sessions(
        &self,
        tenant: &Tenant,
        filter: &SessionFilter,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Page<SessionLine, String>, StoreError> {
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let (first, mut end) = SessionKey::range(tenant);
        let after = after.map_or(first, |name| SessionKey::new(tenant, name).into());
        let name = |key: &str| String::from(SessionKey::split(key).1);
        let mut last_looked_at = None;
        // Without a filter, no row is looked at that is not found.
        if *filter != SessionFilter::default() {
            let rows = query(&self.pool, "last_session", LAST, &[&after, &end, &(LOOKED_AT - 1)]).await?;
            if let Some(row) = rows.first() {
                let last: &str = row.get(0);
                last_looked_at = Some(name(last));
                // No name has a character that is less.
                end = format!("{last}\u{1}");
            }
        }
        let agent = filter.agent.as_ref().map(Name::as_str);
        let ms = |time: Option<u64>| time.map(|unix_ms| unix_ms as f64);
        let created = [ms(filter.created_since), ms(filter.created_before)];
        let updated = [ms(filter.updated_since), ms(filter.updated_before)];
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
            [&after, &end, &most, &agent, &created[0], &created[1], &updated[0], &updated[1]];
        let rows = query(&self.pool, "list_sessions", LIST, &params).await?;
        let line = |row: &Row| SessionLine {
            session_id: name(row.get(0)),
            agent_id: row.get(1),
            created_at: row.get(2),
            last_updated: row.get(3),
            jobs: row.get(4),
        };
        let found: Vec<SessionLine> = rows.iter().map(line).collect();
        let next = match found.last() {
            Some(last) if found.len() == limit => Some(last.session_id.clone()),
            _ => last_looked_at,
        };
        Ok(Page { found, next })
    }
}
