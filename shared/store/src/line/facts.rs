//! What the admitter decides by: places, what is in flight, bounds, and what waits.

use std::collections::HashMap;

use job::Name;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use uuid::Uuid;

use super::find::LinePlace;
use crate::database::{Tx, leads, query, read_name};
use crate::jobs::placed;
use crate::{Store, StoreError};

/// What the workers of a pool can take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PoolCapacity {
    /// Slots without a job, of workers that take jobs.
    pub free_slots: u64,
    /// Runs begun per second over the last minute.
    pub starts_per_s: f64,
}

/// Jobs that have a place: they are being published, queued, or run by one worker.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// Their pool.
    pub pool: String,
    /// Their tenant.
    pub tenant: String,
    /// Their limit keys, with commas.
    pub line: String,
    /// Whether they run; otherwise a message is on its way to a worker.
    pub running: bool,
    /// How many.
    pub jobs: u64,
}

/// What an admitter looks at before each decision.
#[derive(Clone, Debug, Default)]
pub struct LineFacts {
    /// The pools that have a line.
    pub pools: Vec<Name>,
    /// By pool.
    pub capacity: HashMap<String, PoolCapacity>,
    /// In pools with a line; jobs that run, in all pools.
    pub in_flight: Vec<InFlight>,
    /// Where the messages of the next look begin.
    pub oldest: OldestInFlight,
}

/// By pool: since when its oldest message has been on its way, or when it was looked for, by Postgres's clock; in microseconds
/// since 1970.
pub type OldestInFlight = HashMap<String, i64>;

/// What holds jobs back, as operators have set it.
#[derive(Clone, Debug, Default)]
pub struct LineBounds {
    /// Weights that are not 1, by tenant.
    pub weights: HashMap<String, u32>,
    /// How many jobs of a tenant may have a place, over all pools.
    pub max_running: HashMap<String, u64>,
    /// How many jobs with a key may have a place in a pool, by tenant and key.
    pub limits: HashMap<(String, String), u64>,
}

/// What waits in one line.
#[derive(Clone, Debug)]
pub struct LineCount {
    /// Its jobs, up to a bound.
    pub jobs: u64,
    /// Those of them whose turn it is in their session: so many could run now.
    pub heads: u64,
    /// How long the one that came due first has waited, in milliseconds.
    pub oldest_ms: u64,
}

/// What an admitter sees of a pool's line. Counts stop at a bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolSeen {
    /// Jobs that have begun before, and wait again.
    pub begun: u64,
    /// Of the lane `high`.
    pub high: u64,
    /// Of the lane `normal`.
    pub normal: u64,
    /// Of the lane `low`.
    pub low: u64,
    /// Those that nothing holds back but the number of slots.
    pub could_run: u64,
    /// Held back by the limit of a key.
    pub held_by_limit: u64,
    /// Held back by their tenant's `max_running`.
    pub held_by_tenant: u64,
    /// Held back by another job of their session.
    pub held_by_session: u64,
    /// Lines that have jobs.
    pub lines: u64,
    /// How long those that could run have waited, at most: in milliseconds.
    pub oldest_ms: u64,
    /// Of the lines that a key's limit holds back, those with the most jobs; few.
    pub held_keys: Vec<HeldKeys>,
}

/// A line that the limit of a key holds back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldKeys {
    /// Whose jobs they are.
    pub tenant: String,
    /// Their limit keys, with commas.
    pub keys: String,
    /// How many are held back.
    pub jobs: u64,
}

impl PoolSeen {
    /// All that wait.
    pub fn waiting(&self) -> u64 {
        self.begun + self.high + self.normal + self.low
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names")
    }

    pub(crate) fn from_json(text: &str) -> PoolSeen {
        serde_json::from_str(text).unwrap_or_default()
    }
}

/// What the admitter lets those do who take in new jobs, for a short time and while none waits: a job is published without its
/// turn as long as fewer messages are on their way. Each counts these anew, so that they need not know each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// How many messages may be on their way to the workers. With 0, nothing is granted.
    pub messages: u64,
    /// Since when the oldest one has been, as [`OldestInFlight`] says it.
    pub counted_from: i64,
}

const LINED: &str =
    "SELECT pool, (extract(epoch FROM now()) * 1000000)::bigint FROM harness_pools WHERE line ORDER BY pool";

const WORKERS: &str = "
    SELECT worker_id, pool, slots, coalesce(starts_per_s, 0)::float8
      FROM harness_workers
     WHERE state = 'alive' AND heartbeat_at >= now() - lease_ms * interval '1 millisecond'
       AND coalesce(drain_until <= now(), true)
       AND pool IN (SELECT p.pool FROM harness_pools p WHERE p.line)";

/// Beyond so many messages on their way there is no room in any window, and no more are counted.
///
/// Where a snapshot elsewhere keeps Postgres from removing what has left, a walk over all messages becomes as long as what was
/// sent since. So it begins with the oldest of the last look. A message that came later carries the begin of its transaction, and
/// is found if that took less than 15 s. What was committed later still is found when all are read again.
const IN_FLIGHT: &str = concat!(
    "SELECT pool, tenant, line, worker_id, count(*), (extract(epoch FROM min(state_since)) * 1000000)::bigint FROM (",
    placed!(
        "20000",
        "least(coalesce('epoch'::timestamptz + ($1::text::json ->> p.pool)::bigint * interval '1 microsecond', '-infinity'),
               now() - interval '15 seconds')"
    ),
    ") placed GROUP BY pool, tenant, line, worker_id"
);

const TENANTS: &str = "
    SELECT name, weight::bigint, max_running::bigint FROM harness_tenants WHERE weight <> 1 OR max_running IS NOT NULL";

const LIMITS: &str = "SELECT tenant, key, most FROM harness_limits";

/// Of each of these lines, up to so many jobs.
const COUNT: &str = "
    SELECT c.jobs, c.heads, c.oldest
      FROM unnest($2::smallint[], $3::text[], $4::text[], $5::bigint[]) WITH ORDINALITY AS g(lane, tenant, line, behind, turn)
     CROSS JOIN LATERAL (
           SELECT count(*) AS jobs, (extract(epoch FROM now() - min(due_at)) * 1000)::bigint AS oldest,
                  count(*) FILTER (WHERE is_head) AS heads
             FROM (SELECT due_at,
                          epoch > 0 OR (SELECT o.job_id FROM harness_jobs o
                                         WHERE o.session_id = j.session_id AND o.epoch > 0) IS NULL
                                   AND (SELECT o.job_id FROM harness_jobs o
                                         WHERE o.session_id = j.session_id ORDER BY o.seq LIMIT 1) = job_id AS is_head
                     FROM harness_jobs j
                    WHERE j.state = 'waiting' AND j.pool = $1 AND j.lane = g.lane AND j.tenant COLLATE \"C\" = g.tenant
                      AND j.line = g.line AND j.seq > g.behind
                    ORDER BY j.seq LIMIT $6) counted) c
     ORDER BY g.turn";

pub(super) const NOTE: &str = concat!(
    "UPDATE harness_pools p
        SET seen_at = now(), waiting = s.waiting, could_run = s.could_run, seen = s.seen::json, granted = s.granted,
            granted_until = CASE WHEN s.granted > 0 THEN now() + interval '2 seconds' END,
            counted_from = least('epoch'::timestamptz + s.counted_from * interval '1 microsecond', now() - interval '15 seconds')
       FROM unnest($4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::bigint[], $9::bigint[])
            AS s(pool, waiting, could_run, seen, granted, counted_from)
      WHERE p.pool = s.pool AND p.line AND ",
    leads!()
);

impl Store {
    /// Reads places and what is in flight, in one snapshot of each. Of a pool's messages, those older than the oldest of the last
    /// look are not looked for; of a pool without one, all are.
    pub async fn line_facts(&self, last: &OldestInFlight) -> Result<LineFacts, StoreError> {
        let last = serde_json::to_string(last).expect("names and numbers");
        let tx = Tx::prepare(&self.pool, "line_facts", [LINED, WORKERS, IN_FLIGHT]).await?;
        let [pools, workers, in_flight] = tx.run([&[], &[], &[&last]]).await?;
        let count = |row: &Row, column: usize| row.get::<_, i64>(column).max(0).unsigned_abs();
        let mut held: HashMap<Uuid, u64> = HashMap::new();
        let mut oldest: OldestInFlight = pools.iter().map(|row| (row.get(0), row.get(1))).collect();
        for row in &in_flight {
            if let Some(worker) = row.get(3) {
                *held.entry(worker).or_default() += count(row, 4);
            } else if let Some(oldest) = oldest.get_mut(row.get::<_, &str>(0)) {
                *oldest = (*oldest).min(row.get(5));
            }
        }
        let mut capacity: HashMap<String, PoolCapacity> = HashMap::new();
        for row in &workers {
            let slots = row.get::<_, i32>(2).max(0).unsigned_abs();
            let of_pool = capacity.entry(row.get(1)).or_default();
            of_pool.free_slots +=
                u64::from(slots).saturating_sub(held.get(&row.get(0)).copied().unwrap_or(0));
            of_pool.starts_per_s += row.get::<_, f64>(3);
        }
        let in_flight = in_flight.iter().map(|row| InFlight {
            pool: row.get(0),
            tenant: row.get(1),
            line: row.get(2),
            running: row.get::<_, Option<Uuid>>(3).is_some(),
            jobs: count(row, 4),
        });
        Ok(LineFacts {
            pools: pools.iter().filter_map(|row| read_name(row, 0)).collect(),
            capacity,
            in_flight: in_flight.collect(),
            oldest,
        })
    }

    /// Reads what operators have set.
    pub async fn line_bounds(&self) -> Result<LineBounds, StoreError> {
        let tx = Tx::prepare(&self.pool, "line_bounds", [TENANTS, LIMITS]).await?;
        let [tenants, limits] = tx.run([&[], &[]]).await?;
        let mut bounds = LineBounds::default();
        for row in &tenants {
            let (name, weight, most): (String, i64, Option<i64>) = (row.get(0), row.get(1), row.get(2));
            if let Some(most) = most {
                bounds.max_running.insert(name.clone(), most.max(0).unsigned_abs());
            }
            bounds.weights.insert(name, u32::try_from(weight.max(1)).unwrap_or(u32::MAX));
        }
        let limit = |row: &Row| ((row.get(0), row.get(1)), row.get::<_, i64>(2).max(0).unsigned_abs());
        bounds.limits = limits.iter().map(limit).collect();
        Ok(bounds)
    }

    /// Counts what waits in each of these lines of a pool, in their order, up to `most`.
    pub async fn count_lines(
        &self,
        pool: &Name,
        lines: &[LinePlace],
        most: i64,
    ) -> Result<Vec<LineCount>, StoreError> {
        let columns = super::admit::PlaceColumns::of(lines.iter());
        let [lanes, tenants, names, behind] = columns.params();
        let rows =
            query(&self.pool, "count_lines", COUNT, &[&pool.as_str(), lanes, tenants, names, behind, &most])
                .await?;
        let count = |row: &Row| LineCount {
            jobs: row.get::<_, i64>(0).unsigned_abs(),
            heads: row.get::<_, i64>(1).unsigned_abs(),
            oldest_ms: row.get::<_, Option<i64>>(2).unwrap_or(0).max(0).unsigned_abs(),
        };
        Ok(rows.iter().map(count).collect())
    }
}
