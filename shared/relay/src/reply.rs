//! The reply: a `harness.result.v1` message for a caller that named a queue.
//!
//! A worker sends it after the end is in the ledger and before the delivery is acked: if it dies in between, the message
//! stays with the broker, and whoever gets it next finds the job ended and replies (again).

use job::{JobSpec, TraceParent};
use queue::{Message, Publisher};
use serde::Serialize;
use store::{JobView, Store};
use tracing::{debug, warn};

/// The version of the reply, in its field `schema` and in the AMQP property `type`.
const SCHEMA: &str = "harness.result.v1";

#[derive(Serialize)]
struct Reply<'a> {
    schema: &'static str,
    #[serde(flatten)]
    job: &'a JobView,
}

/// Sends the reply to an ended job, if its caller wants one, from this place in its trace. A caller whose queue is gone
/// reads the result from the ledger, or not at all: a reply is never a reason to hold up a job.
pub async fn reply(store: &Store, publisher: &Publisher, spec: &JobSpec, place: Option<TraceParent>) {
    let Some(queue) = &spec.reply_to else { return };
    let job_id = spec.job_id;
    let view = match store.jobs(&[job_id]).await {
        Ok(views) => views.into_iter().next(),
        Err(cause) => {
            return warn!(cause = cause.as_dyn(), "the reply was not sent: the result cannot be read");
        }
    };
    let Some(view) = view.filter(|view| view.state.is_end()) else { return };
    let body = match serde_json::to_vec(&Reply { schema: SCHEMA, job: &view }) {
        Ok(body) => body,
        Err(error) => return warn!(cause = %error, "the reply was not sent: the result cannot be written"),
    };
    let message = Message {
        message_id: Some(job_id.to_string()),
        correlation_id: Some(spec.correlation_id.clone().unwrap_or_else(|| job_id.to_string())),
        traceparent: place.map(|place| place.to_string()),
        ..Message::new(SCHEMA, body)
    };
    match publisher.reply(queue, message).await {
        Ok(()) => debug!(queue, "replied"),
        Err(error) => warn!(queue, cause = %error, "the reply was not sent"),
    }
}
