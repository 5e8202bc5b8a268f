//! Deliveries that are asked for again, by an operator or a tenant. The log has each of these requests.

use job::{JobId, Tenant};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::access::logged;
use crate::database::{Params, query};
use crate::{Store, StoreError};

/// What became of the failed deliveries of a webhook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResentFailed {
    /// How many are due again.
    pub due: i64,
    /// How many are still failed, because one call makes a bounded number due; counting stops at 10,000.
    pub left: i64,
}

/// How many failed deliveries are made due again at a time.
const RESEND_AT_MOST: i64 = 10_000;

/// Also for an end whose delivery was removed, or that came before the webhook. The log has it.
const RESEND: &str = concat!(
    "WITH ended AS (
         SELECT w.id, w.tenant, r.job_id
           FROM harness_webhooks w
          CROSS JOIN LATERAL (SELECT job_id FROM harness_results r
                               WHERE r.job_id = $4 AND r.tenant = w.tenant OFFSET 0) r
          WHERE w.tenant = $2 AND w.id = $3
     ), again AS (
         INSERT INTO harness_deliveries (webhook_id, job_id) SELECT id, job_id FROM ended
         ON CONFLICT (webhook_id, job_id) DO UPDATE
            SET state = 'pending', attempts = 0, due_at = now(), taken_by = NULL, created_at = now(), ended_at = NULL
         RETURNING webhook_id
     ), made AS (
         SELECT e.tenant, e.id, e.job_id FROM ended e JOIN again a ON a.webhook_id = e.id)",
    logged!(
        "webhook_resent",
        "tenant",
        "jsonb_build_object('webhook', id, 'job_id', job_id)",
        "made"
    )
);

/// Oldest job first, and a bounded number. All members of the statement see the rows as they were before it.
const RESEND_FAILED: &str = concat!(
    "WITH given_up AS MATERIALIZED (
         SELECT webhook_id, job_id FROM harness_deliveries
          WHERE webhook_id = (SELECT id FROM harness_webhooks WHERE tenant = $2 AND id = $3) AND state = 'failed'
          ORDER BY job_id LIMIT $4::bigint
     ), again AS (
         UPDATE harness_deliveries d
            SET state = 'pending', attempts = 0, due_at = now(), taken_by = NULL, created_at = now(), ended_at = NULL
           FROM given_up g WHERE d.webhook_id = g.webhook_id AND d.job_id = g.job_id AND d.state = 'failed'
         RETURNING 1
     ), made AS (
         SELECT $2::text AS tenant, count(*) AS deliveries FROM again HAVING count(*) > 0)",
    logged!(
        "webhook_resent",
        "tenant",
        "jsonb_build_object('webhook', $3::text, 'deliveries', deliveries)",
        "made"
    ),
    ", (SELECT deliveries FROM made),
       (SELECT count(*) FROM (SELECT FROM harness_deliveries WHERE webhook_id = $3 AND state = 'failed'
                               ORDER BY job_id LIMIT $4 OFFSET $4) rest)"
);

impl Store {
    /// Makes a job's end due again for a webhook of this tenant; false if either is not there. Safe to repeat.
    pub async fn resend(
        &self,
        actor: &str,
        tenant: &Tenant,
        webhook_id: &str,
        job_id: JobId,
    ) -> Result<bool, StoreError> {
        let job_id = Uuid::from(job_id);
        let made = self.act("resend", RESEND, &[&actor, &tenant.as_str(), &webhook_id, &job_id]).await?;
        Ok(made > 0)
    }

    /// Makes failed deliveries of a webhook of this tenant due again, those of the oldest jobs first.
    pub async fn resend_failed(
        &self,
        actor: &str,
        tenant: &Tenant,
        webhook_id: &str,
    ) -> Result<ResentFailed, StoreError> {
        let params: &Params<'_> = &[&actor, &tenant.as_str(), &webhook_id, &RESEND_AT_MOST];
        let rows = query(&self.pool, "resend_failed", RESEND_FAILED, params).await?;
        let resent = |row: &Row| ResentFailed { due: row.get(1), left: row.get(2) };
        Ok(rows.first().map_or(ResentFailed::default(), resent))
    }
}
