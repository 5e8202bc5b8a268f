//! The operators' log. A trigger numbers and chains its rows; see the migration.
//!
//! A row is written in the transaction that makes the change, and by its last statement: the chain is locked from then on, and
//! who holds it waits for nothing more. Each act is logged once, when it changes something, so that callers who repeat
//! themselves do not make the log grow.

use serde::Serialize;
use serde_json::Value;

use crate::database::{query, rfc3339};
use crate::{Store, StoreError};

/// Appends a row for each row of `$from`, as the last step of a statement that has just made the change. The actor is
/// the statement's `$1`.
macro_rules! logged {
    ($act:literal, $tenant:literal, $detail:literal, $from:literal) => {
        concat!(
            "INSERT INTO harness_audit_log (actor, act, tenant, detail) SELECT $1::text, '",
            $act,
            "', ",
            $tenant,
            ", ",
            $detail,
            " FROM ",
            $from,
            " RETURNING tenant"
        )
    };
}
pub(crate) use logged;

/// Appends rows that name jobs, as a statement of its own: one for each tenant and each hundred jobs of `$from`, which has the
/// columns `tenant` and `job_id`. `$more` adds fields. The actor is the statement's `$1`.
macro_rules! jobs_logged {
    ($act:literal, $more:literal, $from:literal) => {
        concat!(
            "INSERT INTO harness_audit_log (actor, act, tenant, detail)
             SELECT $1::text, '",
            $act,
            "', tenant, jsonb_build_object('job_ids', jsonb_agg(job_id ORDER BY job_id)",
            $more,
            ")
               FROM (SELECT *, (row_number() OVER (PARTITION BY tenant ORDER BY job_id) - 1) / 100 AS part
                       FROM (",
            $from,
            ") acted_on) parts
              GROUP BY tenant, part ORDER BY tenant, part"
        )
    };
}
pub(crate) use jobs_logged;

/// The hash that a row should have. The text that is hashed is that of the trigger in migration 10.
macro_rules! log_hash {
    () => {
        "sha256(prev_hash || convert_to(jsonb_build_array(id, (extract(epoch FROM at) * 1000000)::bigint,
                                                          actor, act, tenant, detail)::text, 'UTF8'))"
    };
}
pub(crate) use log_hash;

/// A row of the log.
#[derive(Clone, Debug, Serialize)]
pub struct LogRow {
    /// Its number, without gaps.
    pub id: i64,
    /// RFC 3339, UTC.
    pub at: String,
    /// The operator; of a use, the key.
    pub actor: String,
    /// What was done, such as `key_revoked`.
    pub act: String,
    /// The tenant that it concerns.
    pub tenant: Option<String>,
    /// What there is to say about it.
    pub detail: Value,
    /// The hash of this row and of all before it, in hexadecimal digits.
    pub hash: String,
}

const NEWEST: &str = concat!(
    "SELECT id, ",
    rfc3339!("at"),
    ", actor, act, tenant, detail, encode(hash, 'hex')
       FROM harness_audit_log WHERE $2::text IS NULL OR tenant = $2 ORDER BY id DESC LIMIT $1"
);

/// `$2` is the act.
const NOTE_MESSAGES: &str = "
    INSERT INTO harness_audit_log (actor, act, detail)
    SELECT $1::text, $2::text, jsonb_build_object('message_ids', $3::text[])";

/// What is done with messages that no worker could use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageAct {
    /// They go back to their queues.
    Returned,
    /// They are deleted.
    Dropped,
}

impl Store {
    /// Writes into the operators' log what is about to be done with messages. RabbitMQ has no part in a transaction of
    /// Postgres, so the log comes first: it may have an act that a crash has prevented, and lacks none.
    pub async fn note_messages(
        &self,
        actor: &str,
        act: MessageAct,
        messages: &[String],
    ) -> Result<(), StoreError> {
        let act = match act {
            MessageAct::Returned => "messages_returned",
            MessageAct::Dropped => "messages_dropped",
        };
        query(&self.pool, "note_messages", NOTE_MESSAGES, &[&actor, &act, &messages]).await?;
        Ok(())
    }

    /// Returns the newest rows of the operators' log, newest first; only those about a tenant, if one is named.
    pub async fn operators_log(
        &self,
        limit: i64,
        tenant: Option<&job::Tenant>,
    ) -> Result<Vec<LogRow>, StoreError> {
        let tenant = tenant.map(job::Tenant::as_str);
        let rows = query(&self.pool, "operators_log", NEWEST, &[&limit, &tenant]).await?;
        let read = |row: &tokio_postgres::Row| LogRow {
            id: row.get(0),
            at: row.get(1),
            actor: row.get(2),
            act: row.get(3),
            tenant: row.get(4),
            detail: row.get(5),
            hash: row.get(6),
        };
        Ok(rows.iter().map(read).collect())
    }
}
