//! Taken keys: two requests with the same key are one job.
//!
//! An acceptance first locks the rows of its keys, in order, and makes those that are not there. A later statement,
//! with a fresh snapshot, decides which keys are held by an earlier job, and inserts only the jobs whose keys are not.
//! So of two doors that bring the same key at once, the second one waits for the first and finds its job.
//!
//! An idempotency key is held until it expires. A unique key is also held while its job lives. Neither is held by a job
//! that the ledger no longer knows. A job whose id was accepted before takes no key: its id is what finds it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use job::Tenant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::acceptance::{Acceptance, Taken};
use super::columns::{insert_for_publishing, new_jobs};
use crate::database::{millis, query, read_job_id, rfc3339};
use crate::{Store, StoreError};

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// The same request again has the answer of the first one.
    Idempotency,
    /// Another request for the same work finds the job that does it.
    Unique,
}

impl KeyKind {
    /// Returns the field of a job that holds it.
    pub fn field(self) -> &'static str {
        match self {
            KeyKind::Idempotency => "idempotency_key",
            KeyKind::Unique => "unique.key",
        }
    }

    /// Returns its name in the table.
    fn as_str(self) -> &'static str {
        match self {
            KeyKind::Idempotency => "idempotency",
            KeyKind::Unique => "unique",
        }
    }
}

/// A key that a caller gives to a job. It is the tenant's: equal keys of two tenants never meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobKey {
    /// What it is for.
    pub kind: KeyKind,
    /// Its text.
    pub key: String,
    /// How long it is held from the acceptance on.
    pub held_for: Duration,
}

impl JobKey {
    /// Returns a number that two different keys share only by a chance of one in 2^64. If they do, their jobs go into
    /// different transactions, and nothing else.
    pub(super) fn number(&self, tenant: &Tenant) -> u128 {
        let mut hasher = DefaultHasher::new();
        (tenant.as_str(), self.kind.as_str(), &self.key).hash(&mut hasher);
        hasher.finish().into()
    }
}

/// Makes the rows of keys that are not there, and locks the others as they are: Postgres locks a row before it looks at
/// the WHERE. One pass in order, so that two transactions with the same keys cannot deadlock.
pub(super) const LOCK_KEYS: &str = "
    INSERT INTO harness_taken_keys (job_id, tenant, kind, key, sent, expires_at)
    SELECT job_id, tenant, kind, key, sent, now() + held_for * interval '1 millisecond'
      FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::float8[])
           AS t(job_id, tenant, kind, key, sent, held_for)
     ORDER BY tenant COLLATE \"C\", kind COLLATE \"C\", key COLLATE \"C\"
    ON CONFLICT (tenant, kind, key) DO UPDATE SET job_id = excluded.job_id WHERE false";

/// Follows [`LOCK_KEYS`]. Inserts the jobs whose keys no other job holds. Returns them, and for the others the job that
/// holds the key. A request that a unique key has led to another job leads there by its idempotency key, too, for as
/// long as that one counts. (Rows of keys are changed by their place, which is fixed while they are locked.)
pub(super) const ACCEPT_KEYED: &str = concat!(
    "
    WITH wanted AS MATERIALIZED (
        SELECT t.*, k.place, k.holder, k.was_sent = t.sent AS same, k.expires_at > now() AS counts
          FROM unnest($12::uuid[], $13::text[], $14::text[], $15::text[], $16::bytea[], $17::float8[])
               AS t(job_id, tenant, kind, key, sent, held_for)
         CROSS JOIN LATERAL (SELECT ctid AS place, job_id AS holder, sent AS was_sent, expires_at FROM harness_taken_keys k
                              WHERE k.tenant = t.tenant AND k.kind = t.kind AND k.key = t.key OFFSET 0) k
    ), held AS MATERIALIZED (
        SELECT w.*, l.lives FROM wanted w
         CROSS JOIN LATERAL (SELECT (SELECT j.job_id FROM harness_jobs j WHERE j.job_id = w.holder) IS NOT NULL
                                    AS lives OFFSET 0) l
         WHERE holder <> job_id
           AND CASE WHEN l.lives THEN counts OR kind = 'unique'
                    ELSE counts AND (SELECT r.job_id FROM harness_results r WHERE r.job_id = w.holder) IS NOT NULL END
    ), new AS (
        ",
    insert_for_publishing!(),
    new_jobs!(),
    "
         WHERE job_id <> ALL(ARRAY(SELECT job_id FROM held))
         ORDER BY turn
        ON CONFLICT DO NOTHING
        RETURNING job_id, accepted_at, state
    ), led AS (
        UPDATE harness_taken_keys k
           SET (job_id, sent, taken_at, expires_at) = (
                   SELECT h.holder, w.sent, now(), now() + w.held_for * interval '1 millisecond'
                     FROM wanted w JOIN held h ON h.job_id = w.job_id WHERE w.place = k.ctid)
         WHERE k.ctid = ANY(ARRAY(SELECT w.place FROM wanted w JOIN held h ON h.job_id = w.job_id
                                   WHERE w.kind = 'idempotency' AND h.kind = 'unique'
                                     AND NOT EXISTS (SELECT FROM held o WHERE o.place = w.place)))
    )
    SELECT job_id, ",
    rfc3339!("accepted_at"),
    ", state, NULL::uuid, NULL::text, NULL::bool FROM new
    UNION ALL
    SELECT job_id, NULL, NULL, holder, kind, same FROM held"
);

/// Follows [`ACCEPT_KEYED`] and what drops ended jobs. A job that this transaction has accepted, which its time shows,
/// takes the keys that an earlier job holds no longer. The others give back the rows that were made for them.
pub(super) const SETTLE_KEYS: &str = "
    WITH wanted AS MATERIALIZED (
        SELECT t.*, k.place, k.holder, k.taken_at = now() AS made,
               (SELECT j.accepted_at FROM harness_jobs j WHERE j.job_id = t.job_id) IS NOT DISTINCT FROM now() AS new
          FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::float8[])
               AS t(job_id, tenant, kind, key, sent, held_for)
         CROSS JOIN LATERAL (SELECT ctid AS place, job_id AS holder, taken_at FROM harness_taken_keys k
                              WHERE k.tenant = t.tenant AND k.kind = t.kind AND k.key = t.key OFFSET 0) k
    ), taken AS (
        UPDATE harness_taken_keys k
           SET (job_id, sent, taken_at, expires_at) = (
                   SELECT w.job_id, w.sent, now(), now() + w.held_for * interval '1 millisecond'
                     FROM wanted w WHERE w.place = k.ctid)
         WHERE k.ctid = ANY(ARRAY(SELECT place FROM wanted WHERE new AND holder <> job_id))
    )
    DELETE FROM harness_taken_keys
     WHERE ctid = ANY(ARRAY(SELECT place FROM wanted WHERE NOT new AND made AND holder = job_id))";

/// The keys of a batch, one vector per column. No key is in a batch twice.
#[derive(Default)]
pub(super) struct KeyColumns<'a> {
    jobs: Vec<Uuid>,
    tenants: Vec<&'a str>,
    kinds: Vec<&'a str>,
    keys: Vec<&'a str>,
    sent: Vec<&'a [u8]>,
    held_for: Vec<f64>,
}

impl<'a> KeyColumns<'a> {
    pub(super) fn of(batch: &'a [Acceptance]) -> KeyColumns<'a> {
        let mut columns = KeyColumns::default();
        for acceptance in batch {
            for key in &acceptance.keys {
                columns.jobs.push(acceptance.spec.job_id.into());
                columns.tenants.push(acceptance.spec.tenant.as_str());
                columns.kinds.push(key.kind.as_str());
                columns.keys.push(&key.key);
                columns.sent.push(&acceptance.sent);
                columns.held_for.push(millis(key.held_for));
            }
        }
        columns
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn params(&self) -> [&(dyn ToSql + Sync); 6] {
        let KeyColumns { jobs, tenants, kinds, keys, sent, held_for } = self;
        [jobs, tenants, kinds, keys, sent, held_for]
    }
}

/// Returns the job that holds a key, from a row of [`ACCEPT_KEYED`]; `None` for one that was accepted.
pub(super) fn read_found(row: &Row) -> Option<(Uuid, Taken)> {
    row.get::<_, Option<Uuid>>(3)?;
    let by = if row.get::<_, &str>(4) == "unique" { KeyKind::Unique } else { KeyKind::Idempotency };
    Some((row.get(0), Taken::Found { by, job_id: read_job_id(row, 3), same: row.get(5) }))
}

/// Reads which jobs hold keys, as [`ACCEPT_KEYED`] finds them, and changes nothing.
pub(super) const FIND_HELD: &str = "
    SELECT t.job_id, NULL::text, NULL::text, k.holder, t.kind, k.was_sent = t.sent
      FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::float8[])
           AS t(job_id, tenant, kind, key, sent, held_for)
     CROSS JOIN LATERAL (SELECT job_id AS holder, sent AS was_sent, expires_at > now() AS counts
                           FROM harness_taken_keys k
                          WHERE k.tenant = t.tenant AND k.kind = t.kind AND k.key = t.key OFFSET 0) k
     CROSS JOIN LATERAL (SELECT (SELECT j.job_id FROM harness_jobs j WHERE j.job_id = k.holder) IS NOT NULL
                                AS lives OFFSET 0) l
     WHERE holder <> t.job_id
       AND CASE WHEN l.lives THEN counts OR kind = 'unique'
                ELSE counts AND (SELECT r.job_id FROM harness_results r WHERE r.job_id = k.holder) IS NOT NULL END";

/// Where a look at expired keys stopped: a time in microseconds, and a job.
pub type KeyCursor = (i64, Uuid);

/// Keys that one look reads at most.
const LOOKED_AT: i64 = 1_000;

/// A unique key whose job lives is left. So that many of those hold up no other, a look goes on behind the last one.
const FORGET: &str = "
    WITH old AS MATERIALIZED (
        SELECT ctid AS place, kind, job_id, expires_at FROM harness_taken_keys
         WHERE expires_at < now()
           AND (expires_at, job_id) > (timestamptz 'epoch' + $1::bigint * interval '1 microsecond', $2::uuid)
         ORDER BY expires_at, job_id LIMIT $3
           FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM harness_taken_keys
         WHERE ctid = ANY(ARRAY(SELECT place FROM old o WHERE kind <> 'unique'
                                   OR (SELECT j.job_id FROM harness_jobs j WHERE j.job_id = o.job_id) IS NULL))
        RETURNING 1)
    SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM old),
           (extract(epoch FROM expires_at) * 1000000)::bigint, job_id
      FROM old ORDER BY expires_at DESC, job_id DESC LIMIT 1";

impl Store {
    /// Forgets keys that are held no longer: a bounded number, behind a place. Returns how many, and where the next
    /// look begins; `None` if nothing is left.
    pub async fn forget_keys(
        &self,
        behind: Option<KeyCursor>,
    ) -> Result<(u64, Option<KeyCursor>), StoreError> {
        let (at, job) = behind.unwrap_or((0, Uuid::nil()));
        let rows = query(&self.pool, "forget_keys", FORGET, &[&at, &job, &LOOKED_AT]).await?;
        let Some(row) = rows.first() else { return Ok((0, None)) };
        let more = row.get::<_, i64>(1) == LOOKED_AT;
        Ok((row.get::<_, i64>(0).unsigned_abs(), more.then(|| (row.get(2), row.get(3)))))
    }
}
