//! What is asked and answered about webhooks.

use job::JobId;
use serde::{Deserialize, Serialize};
use store::{DeliveryState, DeliveryView, WebhookView};
use utoipa::ToSchema;

/// A webhook to be made. Any other field is refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    /// Where ends are sent: an address of the public internet, by HTTPS.
    #[schema(example = "https://example.com/hooks/fleet", max_length = 2048)]
    pub url: String,
    /// Which ends: succeeded, failed, cancelled; all of them when absent.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    pub states: Vec<String>,
    /// Whether inputs and outputs are sent as well; needs the scope `content`.
    #[serde(default)]
    pub content: bool,
    /// What it is for.
    #[serde(default)]
    #[schema(max_length = 200)]
    pub label: String,
}

/// How a secret is replaced. Any other field is refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// For how many seconds the present secret signs as well: up to 30 days, a day when absent.
    #[schema(maximum = 2_592_000, default = 86_400)]
    pub overlap_s: Option<u64>,
}

/// What is sent again. One of the two. Any other field is refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Again {
    /// The end of this job.
    #[schema(value_type = Option<Uuid>)]
    pub job_id: Option<String>,
    /// Every delivery that was given up.
    #[serde(default)]
    pub failed: bool,
}

/// A webhook.
#[derive(Debug, Serialize, ToSchema)]
pub struct Webhook {
    /// Its id.
    #[schema(example = "wh_6f1c0c3a5b0d4d6f9a3f2f1f0c9e8d7b")]
    pub id: String,
    /// Where ends are sent.
    pub url: String,
    /// Which ends.
    pub states: Vec<String>,
    /// Whether inputs and outputs are sent as well.
    pub content: bool,
    /// What it is for.
    pub label: String,
    /// How many secrets sign its deliveries now: two after a rotation, for a while.
    pub secrets: i32,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Since when nothing is sent: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled_at: Option<String>,
    /// Why: operator, failing (every attempt of five days has failed) or gone (it answered with 410).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub disabled_by: Option<store::DisabledBy>,
    /// Since when every attempt has failed: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<String>,
}

/// A webhook with its new secret, which is shown this once.
#[derive(Debug, Serialize, ToSchema)]
pub struct Secret {
    /// The webhook's id.
    pub id: String,
    /// What deliveries are signed with (Standard Webhooks).
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    pub secret: String,
}

/// What a message that only tries a webhook was answered with.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tried {
    /// Whether it was taken.
    pub delivered: bool,
    /// The status of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why it was not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// An end that was sent, or is to be sent.
#[derive(Debug, Serialize, ToSchema)]
pub struct Delivery {
    /// The job whose end it is.
    #[schema(value_type = Uuid)]
    pub job_id: JobId,
    /// Where it is: pending, delivered or failed (given up).
    #[schema(value_type = String, example = "delivered")]
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

/// How many deliveries are due again.
#[derive(Debug, Serialize, ToSchema)]
pub struct Resent {
    /// Their number.
    pub deliveries: i64,
    /// How many more were given up, and are not due yet: ask again. Counting stops at 10,000.
    pub left: i64,
}

impl From<WebhookView> for Webhook {
    fn from(view: WebhookView) -> Webhook {
        Webhook {
            id: view.id,
            url: view.url,
            states: view.states,
            content: view.content,
            label: view.label,
            secrets: view.secrets,
            created_at: view.created_at,
            disabled_at: view.disabled_at,
            disabled_by: view.disabled_by,
            failing_since: view.failing_since,
        }
    }
}

impl From<DeliveryView> for Delivery {
    fn from(view: DeliveryView) -> Delivery {
        Delivery {
            job_id: view.job_id,
            state: view.state,
            attempts: view.attempts,
            due_at: view.due_at,
            status: view.status,
            problem: view.problem,
            created_at: view.created_at,
            ended_at: view.ended_at,
        }
    }
}
