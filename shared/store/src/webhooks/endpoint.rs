//! Webhooks: made, looked at, disabled, enabled, given a new secret, removed. Each of these acts is in the operators'
//! log, by the statement that does it.

use std::str::FromStr;
use std::time::Duration;

use job::{JobState, Tenant};
use serde::Serialize;
use serde_json::json;
use tokio_postgres::Row;

use crate::access::logged;
use crate::database::{millis, query, rfc3339};
use crate::{Store, StoreError};

/// A webhook to be made.
#[derive(Clone, Debug)]
pub struct NewWebhook {
    /// Its public id.
    pub id: String,
    /// Whose ends it gets.
    pub tenant: Tenant,
    /// Where they are sent.
    pub url: String,
    /// Which ends; at least one state, each an end.
    pub states: Vec<JobState>,
    /// Whether inputs and outputs are sent as well.
    pub content: bool,
    /// What it is for.
    pub label: String,
    /// What its deliveries are signed with.
    pub secret: String,
}

/// Why a webhook is disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DisabledBy {
    /// Somebody asked for it.
    Operator,
    /// Every attempt had failed for too long.
    Failing,
    /// It answered that it is gone (410).
    Gone,
}

impl DisabledBy {
    fn as_str(self) -> &'static str {
        match self {
            DisabledBy::Operator => "operator",
            DisabledBy::Failing => "failing",
            DisabledBy::Gone => "gone",
        }
    }
}

impl FromStr for DisabledBy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [DisabledBy::Operator, DisabledBy::Failing, DisabledBy::Gone];
        all.into_iter().find(|by| by.as_str() == text).ok_or_else(|| format!("got \"{text}\""))
    }
}

/// A webhook, without its secrets.
#[derive(Clone, Debug, Serialize)]
pub struct WebhookView {
    /// Its public id.
    pub id: String,
    /// Whose ends it gets.
    pub tenant: String,
    /// Where they are sent.
    pub url: String,
    /// Which ends.
    pub states: Vec<String>,
    /// Whether inputs and outputs are sent as well.
    pub content: bool,
    /// What it is for.
    pub label: String,
    /// How many secrets sign its deliveries now.
    pub secrets: i32,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Since when it is disabled; RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled_at: Option<String>,
    /// Why it is disabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled_by: Option<DisabledBy>,
    /// Since when every attempt has failed; RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<String>,
}

/// What deliveries of a webhook are signed with.
#[derive(Clone)]
pub struct WebhookKeys {
    /// The present secret.
    pub secret: String,
    /// The one before it, as long as it counts.
    pub old_secret: Option<String>,
}

/// The answer to a change of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedWebhook {
    /// It is changed.
    Done,
    /// It was so before.
    Before,
    /// This tenant has no such webhook.
    Unknown,
}

/// The tenant's row is locked, so that two at once do not both take the last place, and it is not closed meanwhile.
const CREATE: &str = concat!(
    "WITH tenant AS MATERIALIZED (
         SELECT name FROM harness_tenants WHERE name = $2 AND closed_at IS NULL FOR NO KEY UPDATE
     ), made AS (
         INSERT INTO harness_webhooks (id, tenant, url, states, content, label, secret)
         SELECT $3::text, name, $4::text, $5::text[], $6::bool, $7::text, $8::text FROM tenant
          WHERE (SELECT count(*) FROM harness_webhooks w WHERE w.tenant = $2) < $10::bigint
         RETURNING tenant)",
    logged!("webhook_created", "tenant", "$9::jsonb", "made")
);

const DISABLE: &str = concat!(
    "WITH made AS (
         UPDATE harness_webhooks SET disabled_at = now(), disabled_by = 'operator'
          WHERE tenant = $2 AND id = $3 AND disabled_at IS NULL RETURNING tenant, id)",
    logged!("webhook_disabled", "tenant", "jsonb_build_object('webhook', id)", "made")
);

const ENABLE: &str = concat!(
    "WITH made AS (
         UPDATE harness_webhooks
            SET disabled_at = NULL, disabled_by = NULL, failing_since = NULL, enabled_since = now()
          WHERE tenant = $2 AND id = $3 AND disabled_at IS NOT NULL RETURNING tenant, id)",
    logged!("webhook_enabled", "tenant", "jsonb_build_object('webhook', id)", "made")
);

/// The secret before the last one counts no more.
const ROTATE: &str = concat!(
    "WITH made AS (
         UPDATE harness_webhooks
            SET old_secret = secret, old_secret_until = now() + $5::float8 * interval '1 millisecond', secret = $4
          WHERE tenant = $2 AND id = $3 RETURNING tenant, id)",
    logged!("webhook_rotated", "tenant", "jsonb_build_object('webhook', id)", "made")
);

/// Its deliveries stay until their time is over. None of them is sent.
const REMOVE: &str = concat!(
    "WITH made AS (DELETE FROM harness_webhooks WHERE tenant = $2 AND id = $3 RETURNING tenant, id)",
    logged!("webhook_removed", "tenant", "jsonb_build_object('webhook', id)", "made")
);

macro_rules! view {
    () => {
        concat!(
            "SELECT id, tenant, url, states, content, label,
                    CASE WHEN old_secret_until > now() THEN 2 ELSE 1 END, ",
            rfc3339!("created_at"),
            ", ",
            rfc3339!("disabled_at"),
            ", disabled_by, ",
            rfc3339!("failing_since"),
            " FROM harness_webhooks"
        )
    };
}

const LIST: &str = concat!(view!(), " WHERE tenant = $1 ORDER BY created_at, id");
const LIST_ALL: &str = concat!(view!(), " WHERE id > '' ORDER BY tenant, created_at, id");
const ONE: &str = concat!(view!(), " WHERE tenant = $1 AND id = $2");

const KEYS: &str = "
    SELECT secret, CASE WHEN old_secret_until > now() THEN old_secret END FROM harness_webhooks
     WHERE tenant = $1 AND id = $2";

impl Store {
    /// Makes a webhook; false if its tenant is not there, is closed, or has `most` of them.
    pub async fn create_webhook(
        &self,
        actor: &str,
        webhook: &NewWebhook,
        most: i64,
    ) -> Result<bool, StoreError> {
        let NewWebhook { id, tenant, url, states, content, label, secret } = webhook;
        let states: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
        // The address may hold a secret, so the log does not.
        let detail = json!({"webhook": id, "states": states, "content": content, "label": label});
        let tenant = tenant.as_str();
        let made = self
            .act(
                "create_webhook",
                CREATE,
                &[&actor, &tenant, id, url, &states, content, label, secret, &detail, &most],
            )
            .await?;
        Ok(made > 0)
    }

    /// Returns webhooks by age: of one tenant, or of all.
    pub async fn webhooks(&self, tenant: Option<&Tenant>) -> Result<Vec<WebhookView>, StoreError> {
        let rows = match tenant {
            Some(tenant) => query(&self.pool, "webhooks", LIST, &[&tenant.as_str()]).await?,
            None => query(&self.pool, "webhooks_of_all", LIST_ALL, &[]).await?,
        };
        Ok(rows.iter().map(read_view).collect())
    }

    /// Returns a webhook of this tenant.
    pub async fn webhook(&self, tenant: &Tenant, id: &str) -> Result<Option<WebhookView>, StoreError> {
        let rows = query(&self.pool, "webhook", ONE, &[&tenant.as_str(), &id]).await?;
        Ok(rows.first().map(read_view))
    }

    /// Returns what deliveries of a webhook of this tenant are signed with.
    pub async fn webhook_keys(&self, tenant: &Tenant, id: &str) -> Result<Option<WebhookKeys>, StoreError> {
        let rows = query(&self.pool, "webhook_keys", KEYS, &[&tenant.as_str(), &id]).await?;
        Ok(rows.first().map(|row| WebhookKeys { secret: row.get(0), old_secret: row.get(1) }))
    }

    /// Stops a webhook: no end is written for it, and what waits is not sent.
    pub async fn disable_webhook(
        &self,
        actor: &str,
        tenant: &Tenant,
        id: &str,
    ) -> Result<ChangedWebhook, StoreError> {
        self.change_webhook("disable_webhook", DISABLE, actor, tenant, id).await
    }

    /// Lets a webhook go on: with what waits, and with the ends from now on.
    pub async fn enable_webhook(
        &self,
        actor: &str,
        tenant: &Tenant,
        id: &str,
    ) -> Result<ChangedWebhook, StoreError> {
        self.change_webhook("enable_webhook", ENABLE, actor, tenant, id).await
    }

    async fn change_webhook(
        &self,
        name: &'static str,
        sql: &str,
        actor: &str,
        tenant: &Tenant,
        id: &str,
    ) -> Result<ChangedWebhook, StoreError> {
        if self.act(name, sql, &[&actor, &tenant.as_str(), &id]).await? > 0 {
            return Ok(ChangedWebhook::Done);
        }
        let there = self.webhook(tenant, id).await?.is_some();
        Ok(if there { ChangedWebhook::Before } else { ChangedWebhook::Unknown })
    }

    /// Gives a webhook a new secret. The present one signs as well for this long. False if this tenant has no such
    /// webhook.
    pub async fn rotate_webhook(
        &self,
        actor: &str,
        tenant: &Tenant,
        id: &str,
        secret: &str,
        overlap: Duration,
    ) -> Result<bool, StoreError> {
        let (tenant, overlap_ms) = (tenant.as_str(), millis(overlap));
        let made = self.act("rotate_webhook", ROTATE, &[&actor, &tenant, &id, &secret, &overlap_ms]).await?;
        Ok(made > 0)
    }

    /// Removes a webhook; false if this tenant has no such webhook.
    pub async fn remove_webhook(&self, actor: &str, tenant: &Tenant, id: &str) -> Result<bool, StoreError> {
        Ok(self.act("remove_webhook", REMOVE, &[&actor, &tenant.as_str(), &id]).await? > 0)
    }
}

fn read_view(row: &Row) -> WebhookView {
    WebhookView {
        id: row.get(0),
        tenant: row.get(1),
        url: row.get(2),
        states: row.get(3),
        content: row.get(4),
        label: row.get(5),
        secrets: row.get(6),
        created_at: row.get(7),
        disabled_at: row.get(8),
        disabled_by: row.get::<_, Option<&str>>(9).and_then(|by| by.parse().ok()),
        failing_since: row.get(10),
    }
}
