//! What is sent: an end, as the API shows it.

use serde::Serialize;
use serde_json::json;
use store::{DueDelivery, Store, StoreError};

use crate::http::Job;

#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: String,
    /// When the job ended: RFC 3339, UTC.
    timestamp: &'a str,
    data: &'a Job,
}

/// Returns the id of a delivery's message: the same at every attempt, and at every other request to send it.
pub(super) fn message_id(delivery: &DueDelivery) -> String {
    format!("{}_{}", delivery.webhook_id, delivery.job_id)
}

/// Returns the body of a delivery; `None` if the end is not kept any longer.
pub(super) async fn body(store: &Store, delivery: &DueDelivery) -> Result<Option<Vec<u8>>, StoreError> {
    let views = store.jobs(&[delivery.job_id]).await?;
    let Some(view) = views.into_iter().find(|view| view.state.is_end()) else { return Ok(None) };
    let envelope = store.known_job(delivery.job_id).await?.and_then(|known| known.message);
    let kind = format!("job.{}", view.state);
    let timestamp = view.finished_at.clone().unwrap_or_default();
    let job = Job::ended(view, envelope.as_deref(), delivery.content);
    let event = Event { kind, timestamp: &timestamp, data: &job };
    Ok(Some(serde_json::to_vec(&event).expect("a job is plain JSON")))
}

/// Returns the body of a message that only tries a webhook.
pub(super) fn test_body(webhook_id: &str, timestamp: &str) -> Vec<u8> {
    let event = json!({"type": "webhook.test", "timestamp": timestamp, "data": {"webhook_id": webhook_id}});
    event.to_string().into_bytes()
}
