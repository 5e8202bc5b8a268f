//! One attempt: a request, and what its answer says.

use std::io;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::TryStreamExt;
use harness::{Meter, Run, RunError, Task};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http_client::cause;
use job::{Failure, FailureCode, Json};
use lines::{Asked, LastMessage, Lines, Listener, Silence, idle, verdict};
use reqwest::Response;
use tokio::time::{sleep, timeout};
use tokio_util::io::StreamReader;

use crate::Remote;

/// How much of a refusal is quoted, in bytes.
const QUOTED: usize = 2_000;
/// How long what follows a last word is read on, so that the connection can be used again.
const CLOSING: Duration = Duration::from_millis(500);

impl Remote {
    /// Runs until the answer has ended, or the service's time to end it is over.
    pub(crate) async fn attempt(&self, run: &mut Run) -> Result<Json, RunError> {
        let settings = &self.settings;
        let order = lines::order(run, None)
            .map_err(|error| start_failed(format!("the job cannot be written down: {error}")))?;
        let (asked, silence, signal) = (OnceLock::new(), Arc::new(Silence::default()), run.stop_signal());
        let meter = run.meter().cloned();
        if let Some(meter) = &meter {
            let silence = silence.clone();
            meter.follow(Box::new(move || silence.is_on()));
        }
        let headers = self.headers(run.task(), meter.as_deref());
        let job_id = run.task().job_id.to_string();
        let mut supervising = pin!(async {
            let reason = tokio::select! {
                stop = signal.stopped() => Asked::Stop(stop),
                () = sleep(settings.limits.timeout) => Asked::Timeout,
                () = idle(&silence, meter.as_deref(), settings.limits.idle_timeout) => Asked::Idle,
            };
            asked.get_or_init(|| reason);
            // What it does shows in its answer.
            let _over = timeout(settings.stop_grace, async {
                self.stop(&job_id, headers.clone()).await;
                std::future::pending::<()>().await
            })
            .await;
        });
        silence.begin();
        let request =
            self.client.post(settings.url.clone()).headers(headers.clone()).body(http_client::body(order));
        let last_message = tokio::select! {
            answer = request.header(CONTENT_TYPE, "application/json").send() => match accepted(answer).await {
                Ok(answer) => {
                    let body = pin!(StreamReader::new(answer.bytes_stream().map_err(io::Error::other)));
                    let lines = Lines::new("answer", body, settings.max_line_bytes, settings.max_output_bytes);
                    let mut listener = Listener::new(run, lines, &silence);
                    let last_message = tokio::select! {
                        last_message = listener.listen() => last_message,
                        () = &mut supervising => LastMessage::Nothing { torn: None },
                    };
                    if matches!(last_message, LastMessage::Result(_) | LastMessage::Error(_)) {
                        let _rest = timeout(CLOSING, listener.discard()).await;
                    }
                    listener.settle(&last_message).await?;
                    last_message
                }
                // One that was asked to stop may end its request in any way.
                Err(failure) => LastMessage::Broken(failure),
            },
            () = &mut supervising => LastMessage::Nothing { torn: None },
        };
        let ended = |torn: Option<Failure>| {
            let problem = "the service ended its answer without a line of type result or error";
            torn.unwrap_or_else(|| Failure::permanent(FailureCode::Protocol, problem))
        };
        verdict(
            asked.get().cloned(),
            last_message,
            settings.limits,
            |problem| format!("the service {problem}"),
            ended,
        )
    }

    /// The headers of a run's requests.
    fn headers(&self, task: &Task, meter: Option<&dyn Meter>) -> HeaderMap {
        let mut headers = self.settings.headers.clone();
        let mut set = |name: &'static str, value: String| {
            // All of them are visible ASCII.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        };
        set("harness-job-id", task.job_id.to_string());
        set("harness-epoch", task.epoch.to_string());
        set("harness-attempt", task.attempt.to_string());
        if let Some(place) = task.traceparent {
            set("traceparent", place.to_string());
        }
        for (variable, value) in meter.map(Meter::environment).unwrap_or_default() {
            match variable {
                "HARNESS_GATEWAY_URL" => set("harness-gateway-url", value),
                "HARNESS_GATEWAY_TOKEN" => set("harness-gateway-token", value),
                _ => {}
            }
        }
        headers
    }

    /// Asks the service to stop.
    async fn stop(&self, job_id: &str, headers: HeaderMap) {
        let mut url = self.settings.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(job_id);
        }
        if let Err(error) = self.client.delete(url).headers(headers).send().await {
            tracing::warn!(
                cause = cause(&error),
                "a service could not be asked to stop; its connection is closed next"
            );
        }
    }
}

/// Returns an answer of success, or the failure of any other.
async fn accepted(answer: reqwest::Result<Response>) -> Result<Response, Failure> {
    let answer =
        answer.map_err(|error| start_failed(format!("the service cannot be reached: {}", cause(&error))))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = timeout(CLOSING, answer.text()).await.map(Result::unwrap_or_default).unwrap_or_default();
    let quoted: String = body.chars().take(QUOTED).collect();
    let problem = format!("the service answered {status}: {quoted}");
    let is_passing = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
    Err(if is_passing { start_failed(problem) } else { Failure::permanent(FailureCode::Protocol, problem) })
}

fn start_failed(problem: String) -> Failure {
    Failure::retryable(FailureCode::StartFailed, problem)
}
