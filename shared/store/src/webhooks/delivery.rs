//! Deliveries: taken when they are due, and given a result. One that was taken and got no result is due again after
//! its lease, so an end is sent at least once.

use std::time::Duration;

use job::JobId;
use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::endpoint::{DisabledBy, WebhookKeys};
use crate::database::{millis, query, read_job_id, read_millis, rfc3339};
use crate::{Page, Store, StoreError};

/// A delivery that this process is to send.
#[derive(Clone)]
pub struct DueDelivery {
    /// Its webhook.
    pub webhook_id: String,
    /// The webhook's tenant, as the ledger has it.
    pub tenant: String,
    /// The job whose end it is.
    pub job_id: JobId,
    /// Attempts before this one.
    pub attempts: u32,
    /// Where it is sent.
    pub url: String,
    /// Whether inputs and outputs are sent as well.
    pub content: bool,
    /// What it is signed with.
    pub keys: WebhookKeys,
}

/// What an attempt came to.
#[derive(Clone, Debug)]
pub struct DeliveryResult {
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// What follows from it.
    pub sent: Sent,
}

/// What follows from an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It was taken.
    Delivered,
    /// It was not, for this reason.
    Failed {
        /// Why.
        problem: String,
        /// When it is tried again; `None` is never.
        retry_in: Option<Duration>,
        /// Whether the receiver says that it is gone for good.
        gone: bool,
    },
}

/// A state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is to be sent, for the first time or again.
    Pending,
    /// It was taken.
    Delivered,
    /// It was given up.
    Failed,
}

impl DeliveryState {
    /// All of them.
    pub const ALL: [DeliveryState; 3] =
        [DeliveryState::Pending, DeliveryState::Delivered, DeliveryState::Failed];

    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryState::Pending => "pending",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Failed => "failed",
        }
    }
}

impl std::str::FromStr for DeliveryState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = DeliveryState::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| format!("got \"{text}\", expected pending, delivered or failed"))
    }
}

/// A delivery, as people look at it.
#[derive(Clone, Debug, Serialize)]
pub struct DeliveryView {
    /// The job whose end it is.
    pub job_id: JobId,
    /// Where it is.
    pub state: DeliveryState,
    /// Attempts so far.
    pub attempts: i32,
    /// When the next attempt is due: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<String>,
    /// The status of the last answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// When it was written: RFC 3339, UTC.
    pub created_at: String,
    /// When it was delivered or given up: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
}

/// What waits to be sent to enabled webhooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WebhookBacklog {
    /// How many deliveries; counting stops at 10,000.
    pub pending: i64,
    /// For how long the one that is due the longest has been due.
    pub lag: Duration,
}

/// How long deliveries are kept.
const KEEP: Duration = Duration::from_secs(7 * 86_400);
/// How many are removed at a time.
const REMOVE_AT_ONCE: i64 = 1_000;
/// How many rows a list looks at, and a count counts.
const LOOK_AT_MOST: i64 = 10_000;

/// The webhooks for which something waits: from one to the next in `harness_deliveries_due`, however many there are for
/// which nothing does. The last row is null.
macro_rules! waiting {
    () => {
        "waiting AS (
        (SELECT webhook_id FROM harness_deliveries WHERE state = 'pending' ORDER BY webhook_id LIMIT 1)
        UNION ALL
        SELECT (SELECT d.webhook_id FROM harness_deliveries d WHERE d.state = 'pending' AND d.webhook_id > w.webhook_id
                 ORDER BY d.webhook_id LIMIT 1)
          FROM waiting w WHERE w.webhook_id IS NOT NULL
    )"
    };
}

/// Takes deliveries that are due. Each webhook has a few places at a time, one if its last attempt failed, so that a
/// slow one holds up no other, and so does each tenant (`$7`). `$2` and `$3` say how many are under way here. The order of
/// webhooks is by chance, so that the bound `$5` leaves out a different one each time.
const TAKE: &str = concat!(
    "WITH RECURSIVE ",
    waiting!(),
    ", busy AS MATERIALIZED (
        SELECT w.tenant, sum(u.n) AS n
          FROM unnest($2::text[], $3::bigint[]) u(id, n)
         CROSS JOIN LATERAL (SELECT tenant FROM harness_webhooks w WHERE w.id = u.id OFFSET 0) w
         GROUP BY w.tenant
    ), places AS MATERIALIZED (
        SELECT w.id, w.tenant, w.url, w.content, w.secret,
               CASE WHEN w.old_secret_until > now() THEN w.old_secret END AS old_secret,
               CASE WHEN w.failing_since IS NULL THEN $4::bigint ELSE 1 END
               - coalesce((SELECT u.n FROM unnest($2::text[], $3::bigint[]) u(id, n) WHERE u.id = w.id), 0) AS free
          FROM waiting CROSS JOIN LATERAL (SELECT * FROM harness_webhooks w WHERE w.id = waiting.webhook_id OFFSET 0) w
         WHERE w.disabled_at IS NULL ORDER BY random()
    ), due AS MATERIALIZED (
        SELECT p.id, p.tenant, p.url, p.content, p.secret, p.old_secret, d.job_id
          FROM places p CROSS JOIN LATERAL (
               SELECT job_id FROM harness_deliveries
                WHERE webhook_id = p.id AND state = 'pending' AND due_at <= now()
                ORDER BY due_at LIMIT greatest(p.free, 0) FOR UPDATE SKIP LOCKED) d
         LIMIT $5
    ), taken AS MATERIALIZED (
        SELECT * FROM (SELECT d.*, row_number() OVER (PARTITION BY d.tenant) AS nth FROM due d) d
         WHERE d.nth <= $7::bigint - coalesce((SELECT b.n FROM busy b WHERE b.tenant = d.tenant), 0)
    )
    UPDATE harness_deliveries d SET taken_by = $1, due_at = now() + $6::float8 * interval '1 millisecond'
      FROM taken due WHERE d.webhook_id = due.id AND d.job_id = due.job_id
    RETURNING d.webhook_id, d.job_id, d.attempts, due.url, due.content, due.secret, due.old_secret, due.tenant"
);

const SAID_BYTES: &str = "
    SELECT (coalesce(octet_length(output::text), 0) + coalesce(octet_length(failure::text), 0)
            + coalesce(octet_length(message::text), 0))::bigint
      FROM harness_results WHERE job_id = $1";

const DELIVERED: &str = "
    WITH done AS (
        UPDATE harness_deliveries
           SET state = 'delivered', attempts = attempts + 1, status = $4, problem = NULL, taken_by = NULL, ended_at = now()
         WHERE webhook_id = $2 AND job_id = $3 AND taken_by = $1 AND state = 'pending'
        RETURNING webhook_id
    )
    UPDATE harness_webhooks SET failing_since = NULL
     WHERE id = (SELECT webhook_id FROM done) AND failing_since IS NOT NULL
    RETURNING false";

/// The webhook's row is written only when something about it changes. `$6` is null when there is no further attempt.
const NOT_DELIVERED: &str = "
    WITH done AS (
        UPDATE harness_deliveries
           SET attempts = attempts + 1, status = $4, problem = $5, taken_by = NULL,
               state = CASE WHEN $6::float8 IS NULL THEN 'failed' ELSE 'pending' END,
               ended_at = CASE WHEN $6 IS NULL THEN now() END,
               due_at = CASE WHEN $6 IS NULL THEN due_at ELSE now() + $6 * interval '1 millisecond' END
         WHERE webhook_id = $2 AND job_id = $3 AND taken_by = $1 AND state = 'pending'
        RETURNING webhook_id
    ), judged AS (
        SELECT id, $7::bool OR failing_since <= now() - $8::float8 * interval '1 millisecond' AS ends
          FROM harness_webhooks WHERE id = (SELECT webhook_id FROM done) AND disabled_at IS NULL
    )
    UPDATE harness_webhooks w
       SET failing_since = coalesce(w.failing_since, now()),
           disabled_at = CASE WHEN j.ends THEN now() END,
           disabled_by = CASE WHEN j.ends THEN CASE WHEN $7 THEN 'gone' ELSE 'failing' END END
      FROM judged j WHERE w.id = j.id AND (j.ends OR w.failing_since IS NULL)
    RETURNING w.disabled_at IS NOT NULL";

const LIST: &str = concat!(
    "WITH looked AS MATERIALIZED (
         SELECT * FROM harness_deliveries
          WHERE webhook_id = $1 AND job_id < coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
          ORDER BY job_id DESC LIMIT $5)
     SELECT f.*, cut.job_id
       FROM (SELECT 1) one LEFT JOIN (
            SELECT job_id, state, attempts, CASE WHEN state = 'pending' THEN ",
    rfc3339!("due_at"),
    " END, status, problem, ",
    rfc3339!("created_at"),
    ", ",
    rfc3339!("ended_at"),
    " FROM looked WHERE $3::text IS NULL OR state = $3 ORDER BY job_id DESC LIMIT $4) f ON true
       LEFT JOIN (SELECT job_id FROM looked ORDER BY job_id DESC OFFSET $5 - 1) cut ON true
      ORDER BY f.job_id DESC"
);

const FORGET: &str = "
    DELETE FROM harness_deliveries
     WHERE ctid = ANY(ARRAY(
           SELECT ctid FROM harness_deliveries WHERE created_at < now() - $1::float8 * interval '1 millisecond'
            ORDER BY created_at LIMIT $2))
    RETURNING 1";

const BACKLOG: &str = concat!(
    "WITH RECURSIVE ",
    waiting!(),
    ", enabled AS MATERIALIZED (
        SELECT w.id FROM waiting CROSS JOIN LATERAL (
               SELECT id FROM harness_webhooks w WHERE w.id = waiting.webhook_id AND w.disabled_at IS NULL OFFSET 0) w
    )
    SELECT (SELECT count(*) FROM (
              SELECT FROM enabled w CROSS JOIN LATERAL (
                     SELECT FROM harness_deliveries d WHERE d.webhook_id = w.id AND d.state = 'pending' OFFSET 0) d
               LIMIT $1) pending),
           (SELECT (extract(epoch FROM now() - min(d.due_at)) * 1000)::bigint
              FROM enabled w CROSS JOIN LATERAL (
                   SELECT due_at FROM harness_deliveries d WHERE d.webhook_id = w.id AND d.state = 'pending'
                    ORDER BY due_at LIMIT 1) d)"
);

impl Store {
    /// Takes deliveries that are due for this process, each for as long as `lease`. `under_way` says how many of
    /// each webhook this process is sending, `places` how many it may of a webhook and of a tenant, `most` how many are
    /// wanted in all.
    pub async fn take_deliveries(
        &self,
        sender: Uuid,
        under_way: &[(String, u32)],
        places: [u32; 2],
        most: usize,
        lease: Duration,
    ) -> Result<Vec<DueDelivery>, StoreError> {
        let (ids, counts): (Vec<&str>, Vec<i64>) =
            under_way.iter().map(|(id, count)| (id.as_str(), i64::from(*count))).unzip();
        let ([places, of_tenant], most, lease_ms) = (places.map(i64::from), most as i64, millis(lease));
        let params: [&(dyn ToSql + Sync); 7] =
            [&sender, &ids, &counts, &places, &most, &lease_ms, &of_tenant];
        let rows = query(&self.pool, "take_deliveries", TAKE, &params).await?;
        let read = |row: &Row| DueDelivery {
            webhook_id: row.get(0),
            tenant: row.get(7),
            job_id: read_job_id(row, 1),
            attempts: row.get::<_, i32>(2).unsigned_abs(),
            url: row.get(3),
            content: row.get(4),
            keys: WebhookKeys { secret: row.get(5), old_secret: row.get(6) },
        };
        Ok(rows.iter().map(read).collect())
    }

    /// Returns how many bytes an ended job was given, delivered and failed with, without reading them.
    pub async fn said_bytes(&self, job_id: JobId) -> Result<u64, StoreError> {
        let rows = query(&self.pool, "said_bytes", SAID_BYTES, &[&Uuid::from(job_id)]).await?;
        Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0).unsigned_abs()))
    }

    /// Records what an attempt came to, unless another process has taken the delivery since. A webhook whose every
    /// attempt has failed for `failing_for` is disabled. Returns why, if this attempt has disabled it.
    pub async fn record_delivery(
        &self,
        sender: Uuid,
        delivery: &DueDelivery,
        result: &DeliveryResult,
        failing_for: Duration,
    ) -> Result<Option<DisabledBy>, StoreError> {
        let (webhook, job_id) = (&delivery.webhook_id, Uuid::from(delivery.job_id));
        let status = result.status.map(i32::from);
        let Sent::Failed { problem, retry_in, gone } = &result.sent else {
            query(&self.pool, "delivered", DELIVERED, &[&sender, webhook, &job_id, &status]).await?;
            return Ok(None);
        };
        let (retry_ms, failing_ms) = (retry_in.map(millis), millis(failing_for));
        let rows = query(
            &self.pool,
            "not_delivered",
            NOT_DELIVERED,
            &[&sender, webhook, &job_id, &status, problem, &retry_ms, gone, &failing_ms],
        )
        .await?;
        let disabled = rows.first().is_some_and(|row| row.get(0));
        Ok(disabled.then_some(if *gone { DisabledBy::Gone } else { DisabledBy::Failing }))
    }

    /// Returns deliveries of a webhook, newest job first: those before `before`, of one state or of all.
    pub async fn deliveries(
        &self,
        webhook_id: &str,
        state: Option<DeliveryState>,
        before: Option<JobId>,
        limit: usize,
    ) -> Result<Page<DeliveryView, JobId>, StoreError> {
        let (state, before) = (state.map(DeliveryState::as_str), before.map(Uuid::from));
        let rows = query(
            &self.pool,
            "deliveries",
            LIST,
            &[&webhook_id, &before, &state, &(limit as i64), &LOOK_AT_MOST],
        )
        .await?;
        // A row without a delivery says only where the look was cut.
        let there = rows.iter().filter(|row| row.get::<_, Option<Uuid>>(0).is_some());
        let found: Vec<DeliveryView> = there.map(read_delivery).collect();
        let full = (found.len() == limit).then(|| found.last().map(|last| last.job_id)).flatten();
        let cut = rows.first().and_then(|row| row.get::<_, Option<Uuid>>(8)).map(JobId::of_ledger);
        Ok(Page { next: full.or(cut), found })
    }

    /// Removes some deliveries that have been kept long enough; returns whether there may be more.
    pub async fn forget_deliveries(&self) -> Result<bool, StoreError> {
        let rows = query(&self.pool, "forget_deliveries", FORGET, &[&millis(KEEP), &REMOVE_AT_ONCE]).await?;
        Ok(rows.len() as i64 == REMOVE_AT_ONCE)
    }

    /// Returns what waits to be sent.
    pub async fn webhook_backlog(&self) -> Result<WebhookBacklog, StoreError> {
        let rows = query(&self.pool, "webhook_backlog", BACKLOG, &[&LOOK_AT_MOST]).await?;
        let row = rows.first().expect("one row");
        Ok(WebhookBacklog { pending: row.get(0), lag: read_millis(row, 1).unwrap_or_default() })
    }
}

fn read_delivery(row: &Row) -> DeliveryView {
    DeliveryView {
        job_id: read_job_id(row, 0),
        state: row.get::<_, &str>(1).parse().expect("the table checks its states"),
        attempts: row.get(2),
        due_at: row.get(3),
        status: row.get(4),
        problem: row.get(5),
        created_at: row.get(6),
        ended_at: row.get(7),
    }
}
