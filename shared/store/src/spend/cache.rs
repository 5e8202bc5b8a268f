//! The cache of answers: what one job has paid, another one of the same tenant is given for the same request.
//!
//! * **A hit is no call.** It holds nothing, costs nothing, and has no row among the calls.
//! * **Tenants share nothing.** The tenant is a part of the key.
//! * **The n-th same request of a run gets what the n-th one got**, as with stored answers. So a program that asks three
//!   times for three opinions gets three.
//! * **A hit is stored as the job's answer** in the same statement, so that a later attempt gets the same.
//! * **It is never in the way.** A lookup that fails or takes long is left out, and then all are for a while. An answer is
//!   kept after its settlement, beside it.
//! * **It is bounded** in age by each entry's own end, and in bytes by those who keep answers; the oldest go first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use job::{Tenant, Usd};
use tokio::time::Instant;

use super::account::micros;
use super::call::CacheLookup;
use crate::database::{query, query_within};
use crate::{Store, StoreError};

/// After a failure it is not asked for this long.
const REST: Duration = Duration::from_secs(10);
/// Longer is nothing waited for: what is kept is kept beside the calls.
const KEEP_WITHIN: Duration = Duration::from_secs(5);
/// A bound in bytes is looked at when a process has kept a sixteenth of it since.
const LOOK_EVERY: u64 = 16;
/// Entries that are deleted at a time.
const AT_A_TIME: i64 = 5_000;

/// The CTEs `cached` and `kept`: what other jobs were answered, and its copy for the later attempts of these.
macro_rules! cached {
    () => {
        concat!(
            ", cached AS MATERIALIZED (
                SELECT t.turn, s.content_type, s.body, true AS cached, 0::bigint, 0::bigint, 0::bigint
                  FROM came t
                 CROSS JOIN LATERAL (
                       SELECT content_type, body FROM harness_cache k
                        WHERE k.tenant = ",
            $crate::jobs::tenant_of!("t.session_id"),
            " AND k.key = t.cache_key AND k.keep_until > now()
                          AND k.stored_at > now() - t.cache_age_s * interval '1 second' OFFSET 0) s
                 WHERE t.cache_key IS NOT NULL AND t.alive
                   AND t.turn NOT IN (SELECT turn FROM answers)
            ), kept AS (
                INSERT INTO harness_call_answers AS h
                       (job_id, request_hash, request_nth, session_id, epoch, after_checkpoints, call_id, content_type, body)
                SELECT DISTINCT ON (t.job_id, t.request_hash, t.request_nth)
                       t.job_id, t.request_hash, t.request_nth, t.session_id, t.epoch, t.after_checkpoints, t.call_id,
                       c.content_type, c.body
                  FROM cached c JOIN came t ON t.turn = c.turn ORDER BY t.job_id, t.request_hash, t.request_nth
                ON CONFLICT (job_id, request_hash, request_nth) DO UPDATE
                   SET epoch = excluded.epoch, after_checkpoints = excluded.after_checkpoints, call_id = excluded.call_id,
                       content_type = excluded.content_type, body = excluded.body, stored_at = excluded.stored_at
                 WHERE h.epoch <= excluded.epoch
            )"
        )
    };
}
pub(super) use cached;

/// How the cache fares, as one process has seen it.
#[derive(Debug)]
pub(crate) struct CacheHealth {
    began: Instant,
    /// Until when it is not asked, in milliseconds since then.
    rests_until: AtomicU64,
    /// What was kept since its size was last looked at.
    bytes: AtomicU64,
    looks: AtomicBool,
}

impl Default for CacheHealth {
    fn default() -> Self {
        let (rests_until, bytes) = (AtomicU64::default(), AtomicU64::new(u64::MAX / 2));
        CacheHealth { began: Instant::now(), rests_until, bytes, looks: AtomicBool::default() }
    }
}

impl CacheHealth {
    pub fn is_up(&self) -> bool {
        self.rests_until.load(Ordering::Relaxed) <= self.now()
    }

    pub fn rest(&self) {
        self.rests_until.store(self.now() + REST.as_millis() as u64, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns whether it is time to look at its size, and nobody of this process does.
    fn is_due(&self, kept: u64, bound: u64) -> bool {
        let since = self.bytes.fetch_add(kept, Ordering::Relaxed).saturating_add(kept);
        since >= bound / LOOK_EVERY && !self.looks.swap(true, Ordering::Relaxed)
    }

    fn looked(&self, done: bool) {
        if done {
            self.bytes.store(0, Ordering::Relaxed);
        }
        self.looks.store(false, Ordering::Relaxed);
    }
}

/// An answer to be kept.
#[derive(Clone, Debug)]
pub struct CacheEntry {
    /// Whose it is.
    pub tenant: Tenant,
    /// Under which it is found, and how long it may be given.
    pub entry: CacheLookup,
    /// The model that the request names.
    pub model: String,
    /// Its `Content-Type`.
    pub content_type: String,
    /// Its bytes.
    pub body: Vec<u8>,
    /// What it has cost.
    pub cost: Usd,
}

const KEEP: &str = "
    INSERT INTO harness_cache (tenant, key, model, content_type, body, cost_microusd, keep_until)
    VALUES ($1, $2, $3, $4, $5, $6, now() + $7 * interval '1 second')
    ON CONFLICT (tenant, key) DO UPDATE
       SET model = excluded.model, content_type = excluded.content_type, body = excluded.body,
           cost_microusd = excluded.cost_microusd, stored_at = now(), keep_until = excluded.keep_until";

/// Deletes the oldest beyond a bound in bytes. Others may do the same at this moment.
const EVICT: &str = "
    WITH sized AS (
        SELECT tenant, key, sum(bytes) OVER (ORDER BY stored_at DESC, tenant, key) AS up_to FROM harness_cache
    ), over AS MATERIALIZED (
        SELECT tenant, key FROM sized WHERE up_to > $1
    ), locked AS MATERIALIZED (
        SELECT c.tenant, c.key FROM harness_cache c JOIN over o ON o.tenant = c.tenant AND o.key = c.key
         ORDER BY c.tenant, c.key FOR UPDATE OF c SKIP LOCKED
    )
    DELETE FROM harness_cache c USING locked l WHERE c.tenant = l.tenant AND c.key = l.key RETURNING c.bytes";

const FORGET: &str = "
    WITH ended AS MATERIALIZED (
        SELECT tenant, key FROM harness_cache WHERE keep_until <= now() ORDER BY keep_until LIMIT $1
           FOR UPDATE SKIP LOCKED
    )
    DELETE FROM harness_cache c USING ended e WHERE c.tenant = e.tenant AND c.key = e.key RETURNING c.bytes";

const SIZE: &str = "
    SELECT count(*), coalesce(sum(bytes), 0)::bigint FROM (SELECT bytes FROM harness_cache ORDER BY stored_at LIMIT 100000) c";

impl Store {
    /// Returns whether the cache of answers is asked. It is not for a while after it did not answer.
    pub fn asks_cache(&self) -> bool {
        self.cache.is_up()
    }

    /// Keeps an answer for other jobs of its tenant. Now and then, the oldest entries beyond `bound` bytes are deleted.
    pub async fn keep_answer(&self, entry: &CacheEntry, bound: u64) -> Result<(), StoreError> {
        let CacheEntry { tenant, entry, model, content_type, body, cost } = entry;
        let (tenant, key, cost) = (tenant.to_string(), entry.key.as_slice(), micros(*cost));
        let age = entry.max_age.as_secs_f64();
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&tenant, &key, model, content_type, body, &cost, &age];
        query_within(KEEP_WITHIN, &self.pool, "keep_answer", KEEP, &params).await?;
        if self.cache.is_due(body.len() as u64, bound) {
            let evicted = self.evict_answers(bound).await;
            self.cache.looked(evicted.is_ok());
            evicted?;
        }
        Ok(())
    }

    /// Deletes the oldest answers of the cache beyond a bound in bytes. Returns how many there were.
    pub async fn evict_answers(&self, bound: u64) -> Result<usize, StoreError> {
        let bound = i64::try_from(bound).unwrap_or(i64::MAX);
        Ok(query_within(KEEP_WITHIN, &self.pool, "evict_answers", EVICT, &[&bound]).await?.len())
    }

    /// Deletes answers of the cache that are too old. Returns how many there were.
    pub async fn forget_cached(&self) -> Result<usize, StoreError> {
        Ok(query(&self.pool, "forget_cached", FORGET, &[&AT_A_TIME]).await?.len())
    }

    /// Returns how many answers the cache has, and their bytes; counting stops at 100000.
    pub async fn cache_size(&self) -> Result<(i64, i64), StoreError> {
        let rows = query(&self.pool, "cache_size", SIZE, &[]).await?;
        Ok(rows.first().map_or((0, 0), |row| (row.get(0), row.get(1))))
    }

    pub(crate) fn cache_health(&self) -> Arc<CacheHealth> {
        self.cache.clone()
    }
}
