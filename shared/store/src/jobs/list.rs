//! Lists of jobs, newest first, by the time in their ids: live ones and ended ones as one list.
//!
//! A look reads a bounded number of rows, whatever the filter lets pass, and answers where the next look goes on.

use job::{JobId, JobState, Label, Name, SessionKey, Tenant};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::database::{query, read_job_id, read_state, rfc3339};
use crate::{Store, StoreError};

/// Rows that one look reads of each table, at most; where labels are asked for, of one label.
pub(crate) const LOOKED_AT: i64 = 10_000;

/// Which jobs of a tenant; what is `None` or empty lets all pass.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// The tenant.
    pub tenant: Tenant,
    /// The states.
    pub states: Vec<JobState>,
    /// The agent.
    pub agent: Option<Name>,
    /// The session.
    pub session: Option<Name>,
    /// The pool.
    pub pool: Option<Name>,
    /// The labels, all of them.
    pub labels: Vec<Label>,
    /// Failed, and neither redriven nor dismissed.
    pub dead: bool,
    /// The time inside the id is not before this, as Unix time in milliseconds.
    pub since_unix_ms: Option<u64>,
    /// The time inside the id is before this, as Unix time in milliseconds.
    pub before_unix_ms: Option<u64>,
}

impl JobFilter {
    /// Whether jobs that have not ended may pass.
    fn has_live(&self) -> bool {
        !self.dead && (self.states.is_empty() || self.states.iter().any(|state| !state.is_end()))
    }

    /// Whether ended jobs may pass.
    fn has_ended(&self) -> bool {
        self.dead || self.states.is_empty() || self.states.iter().any(|state| state.is_end())
    }

    pub(super) fn agent_text(&self) -> Option<&str> {
        self.agent.as_ref().map(Name::as_str)
    }

    pub(super) fn pool_text(&self) -> Option<&str> {
        self.pool.as_ref().map(Name::as_str)
    }

    pub(super) fn session_key(&self) -> Option<SessionKey> {
        self.session.as_ref().map(|session| SessionKey::new(&self.tenant, session))
    }
}

/// A job in a list.
#[derive(Clone, Debug)]
pub struct JobLine {
    /// The job.
    pub job_id: JobId,
    /// Its session.
    pub session_id: String,
    /// Its agent.
    pub agent_id: String,
    /// Its pool.
    pub pool: String,
    /// Its state.
    pub state: JobState,
    /// Attempts spent.
    pub attempts: i32,
    /// RFC 3339, UTC.
    pub accepted_at: String,
    /// RFC 3339, UTC.
    pub finished_at: Option<String>,
    /// The code of the last failure.
    pub code: Option<String>,
}

/// A part of a list.
#[derive(Clone, Debug)]
pub struct Page<T, K> {
    /// What was found.
    pub found: Vec<T>,
    /// Where the next look begins; nothing where there is no more.
    pub next: Option<K>,
}

/// Rows of a table of which a list is made, at most: twice as many as are looked at, because rows may come between the
/// question for the last of these and the list.
const LISTED: i64 = 2 * LOOKED_AT;

/// A tenant's rows before an id. They are compared and ordered as pairs, as the index on (tenant, job_id) has them: a plan
/// for any values would otherwise go by the primary key, and walk over the rows of all others. A pair bounds a scan at
/// its beginning alone. So the tenant is compared a second time, which ends the scan with the tenant's rows, and an id
/// behind which it may end is compared outside, behind a limit. The key of the session is compared, too: a result that
/// an older worker wrote has the column's default.
macro_rules! own {
    ($tenant:literal, $before:literal) => {
        concat!(
            "(tenant, job_id) < (",
            $tenant,
            ", ",
            $before,
            ") AND tenant >= ",
            $tenant,
            " AND (session_id < '~') = (",
            $tenant,
            " = 'default')"
        )
    };
}
macro_rules! by_tenant {
    () => {
        " ORDER BY tenant DESC, job_id DESC"
    };
}

/// The same of live jobs. There is an index on those of the tenants that are not `default`; most are `default`'s, and
/// are found by the primary key, among those of the others.
macro_rules! own_of_another {
    ($tenant:literal, $before:literal) => {
        concat!("tenant <> 'default' AND ", own!($tenant, $before))
    };
}

/// The row behind which a look of one table ends.
macro_rules! last {
    ($table:literal, $own:expr) => {
        concat!("SELECT job_id FROM ", $table, " WHERE ", $own, by_tenant!(), " OFFSET $2 LIMIT 1")
    };
}

const LAST_LIVE: &str = "
    SELECT job_id FROM harness_jobs WHERE $3::text IS NOT NULL AND job_id < $1 ORDER BY job_id DESC OFFSET $2 LIMIT 1";
const LAST_LIVE_OF_ANOTHER: &str = last!("harness_jobs", own_of_another!("$3", "$1"));
const LAST_ENDED: &str = last!("harness_results", own!("$3", "$1"));

macro_rules! chosen {
    () => {
        " session_id <> '' AND job_id >= $2
          AND (cardinality($3::text[]) = 0 OR state = ANY($3))
          AND ($4::text IS NULL OR agent_id = $4)
          AND ($5::text IS NULL OR session_id = $5)
          AND ($6::text IS NULL OR pool = $6)"
    };
}

macro_rules! live {
    ($from:expr) => {
        concat!(
            "SELECT job_id, session_id, agent_id, pool, state, attempts, ",
            rfc3339!("accepted_at"),
            ", NULL::text, failure ->> 'code' FROM ",
            $from,
        )
    };
}

const LIVE: &str = live!(concat!(
    "harness_jobs WHERE tenant = $8 AND session_id < '~' AND job_id < $1 AND $9::bigint IS NOT NULL AND",
    chosen!(),
    " ORDER BY job_id DESC LIMIT $7"
));

const LIVE_OF_ANOTHER: &str = live!(concat!(
    "(SELECT * FROM harness_jobs WHERE ",
    own_of_another!("$8", "$1"),
    by_tenant!(),
    " LIMIT $9) j WHERE",
    chosen!(),
    by_tenant!(),
    " LIMIT $7"
));

const ENDED: &str = concat!(
    "SELECT job_id, session_id, agent_id, pool, state, attempts, ",
    rfc3339!("accepted_at"),
    ", ",
    rfc3339!("finished_at"),
    ", failure ->> 'code'
       FROM (SELECT * FROM harness_results WHERE ",
    own!("$8", "$1"),
    by_tenant!(),
    " LIMIT $9) r
      WHERE (NOT $10 OR (state = 'failed' AND redriven_as IS NULL AND dismissed_at IS NULL)) AND",
    chosen!(),
    by_tenant!(),
    " LIMIT $7"
);

impl Store {
    /// The newest jobs that pass, older than `before` where that is given.
    pub async fn list_jobs(
        &self,
        filter: &JobFilter,
        before: Option<JobId>,
        limit: usize,
    ) -> Result<Page<JobLine, JobId>, StoreError> {
        let first = |unix_ms: u64| Uuid::from_u128(u128::from(unix_ms) << 80);
        let end = filter.before_unix_ms.map_or(Uuid::max(), first);
        let before = before.map_or(end, |before| end.min(before.into()));
        let since = filter.since_unix_ms.map_or(Uuid::nil(), first);
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let (lowest, mut found) = if filter.labels.is_empty() {
            let lowest = self.lowest(filter, before).await?.filter(|lowest| *lowest > since);
            (lowest, self.list_between(filter, [before, lowest.unwrap_or(since)], most).await?)
        } else {
            let range = self.rarest_label(filter, before, since).await?;
            let bounds = [before, range.lowest.unwrap_or(since)];
            (range.lowest, self.list_labelled(filter, &range, bounds, most).await?)
        };
        // A job that has ended between the two questions is in both; its end comes last and counts.
        found.reverse();
        found.sort_by_key(|line| std::cmp::Reverse(line.job_id));
        found.dedup_by_key(|line| line.job_id);
        let more = found.len() >= limit;
        found.truncate(limit);
        let next = match found.last() {
            Some(last) if more => Some(last.job_id),
            _ => lowest.map(JobId::of_ledger),
        };
        Ok(Page { found, next })
    }

    /// Returns the id behind which a look ends, if there may be more behind it.
    async fn lowest(&self, filter: &JobFilter, before: Uuid) -> Result<Option<Uuid>, StoreError> {
        let (skipped, tenant) = (LOOKED_AT - 1, filter.tenant.as_str());
        let last_of = async |name, last| -> Result<Option<Uuid>, StoreError> {
            let rows = query(&self.pool, name, last, &[&before, &skipped, &tenant]).await?;
            Ok(rows.first().map(|row| row.get(0)))
        };
        let live = match (filter.has_live(), filter.tenant.is_default()) {
            (false, _) => None,
            (true, true) => last_of("last_live", LAST_LIVE).await?.map(first_of_its_time),
            (true, false) => last_of("last_live", LAST_LIVE_OF_ANOTHER).await?,
        };
        let ended = if filter.has_ended() { last_of("last_ended", LAST_ENDED).await? } else { None };
        Ok(live.max(ended))
    }

    /// Returns the jobs between two ids that pass: live ones first, then ended ones, each newest first.
    async fn list_between(
        &self,
        filter: &JobFilter,
        [before, from]: [Uuid; 2],
        most: i64,
    ) -> Result<Vec<JobLine>, StoreError> {
        let live = if filter.tenant.is_default() { LIVE } else { LIVE_OF_ANOTHER };
        let states: Vec<&str> = filter.states.iter().map(|state| state.as_str()).collect();
        let (agent, pool, tenant) = (filter.agent_text(), filter.pool_text(), filter.tenant.as_str());
        let session = filter.session_key();
        let session = session.as_ref().map(SessionKey::as_str);
        let mut found = Vec::new();
        if filter.has_live() {
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 9] =
                [&before, &from, &states, &agent, &session, &pool, &most, &tenant, &LISTED];
            found.extend(query(&self.pool, "list_live", live, &params).await?.iter().map(read_line));
        }
        if filter.has_ended() {
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 10] =
                [&before, &from, &states, &agent, &session, &pool, &most, &tenant, &LISTED, &filter.dead];
            found.extend(query(&self.pool, "list_ended", ENDED, &params).await?.iter().map(read_line));
        }
        Ok(found)
    }
}

/// The first UUIDv7 that can have this one's time. The last row that a look of the tenant `default` reads may be another
/// tenant's, whose id is not shown; the rows of the same millisecond are read as well.
fn first_of_its_time(id: Uuid) -> Uuid {
    const VERSION: u128 = 7 << 76;
    Uuid::from_u128(id.as_u128() >> 80 << 80 | VERSION)
}

pub(super) fn read_line(row: &Row) -> JobLine {
    JobLine {
        job_id: read_job_id(row, 0),
        session_id: SessionKey::split(row.get(1)).1.into(),
        agent_id: row.get(2),
        pool: row.get(3),
        state: read_state(row, 4),
        attempts: row.get(5),
        accepted_at: row.get(6),
        finished_at: row.get(7),
        code: row.get(8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_made_of_a_time_is_a_job_id_before_all_others_of_that_time_and_none_of_them() {
        let id: JobId = "0198c0de-7a00-7abc-9def-0123456789ab".parse().unwrap();
        let first = first_of_its_time(id.into());
        assert_eq!(first.to_string(), "0198c0de-7a00-7000-0000-000000000000");
        // An id has its variant where this has zeros.
        assert!(JobId::try_from(first).is_ok_and(|first| first < id && first.unix_ms() == id.unix_ms()));
        assert_eq!(first_of_its_time(first), first);
    }

    #[test]
    fn states_choose_the_tables() {
        let of = |states: &[JobState], dead| {
            let filter = JobFilter { states: states.to_vec(), dead, ..JobFilter::default() };
            (filter.has_live(), filter.has_ended())
        };
        assert_eq!(of(&[], false), (true, true));
        assert_eq!(of(&[], true), (false, true));
        assert_eq!(of(&[JobState::Queued, JobState::Running], false), (true, false));
        assert_eq!(of(&[JobState::Failed], false), (false, true));
        assert_eq!(of(&[JobState::Failed, JobState::Queued], false), (true, true));
    }
}
