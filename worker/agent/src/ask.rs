//! Asks a model through the gateway, and asks again where that can mend something.
//!
//! The gateway reserves, waits, meters and stores; here is what a program with an SDK would do. Answers are streamed always:
//! text can be shown while it comes, and a provider that has fallen silent is noticed.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use harness::{Event, Meter, Prepared, Run, StopSignal, Usage};
use job::{Failure, FailureCode};
use reqwest::StatusCode;
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::timeout;

use crate::answer::{Answer, StopReason};
use crate::fault::{Again, Fault, Tries};
use crate::reading::{Reading, Taking, broken};
use crate::turns::Added;
use crate::wire::Wire;

/// How many KiB of requests are on their way to the gateway at a time, of all runs of this process. Each is a copy of its
/// conversation. A thousand sessions that go on at once would all be written before the first is sent.
const MOST_ON_THEIR_WAY: usize = 4 * 1_024;
static ON_THEIR_WAY: Semaphore = Semaphore::const_new(MOST_ON_THEIR_WAY);
/// What takes longer to be sent no longer keeps others from being written: programs of the same attempt can hold it up.
const SENT_WITHIN: Duration = Duration::from_secs(1);

/// The event that says to those who follow a job how much of the text so far counts no more: its answer did not come
/// whole, or was refused, and another one may follow.
const TEXT_VOID: &str = "text_void";

/// A request that says when it is sent: when the client drops it.
struct Written {
    request: String,
    _sent: oneshot::Sender<()>,
}

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        self.request.as_bytes()
    }
}

/// Waits until a request of about so many bytes may be written. What is larger than all of it goes alone.
async fn place(bytes: usize) -> Option<SemaphorePermit<'static>> {
    let units = bytes.div_ceil(1_024).clamp(1, MOST_ON_THEIR_WAY);
    // It is never closed.
    ON_THEIR_WAY.acquire_many(u32::try_from(units).unwrap_or(u32::MAX)).await.ok()
}

/// The way to the gateway of one attempt.
pub(crate) struct Gateway {
    client: reqwest::Client,
    root: String,
    token: String,
    idle_timeout: Duration,
}

/// An answer, and how it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub answer: Answer,
    /// Whether an earlier attempt has paid it.
    pub is_replayed: bool,
    /// Whether another job has paid it.
    pub is_cached: bool,
    /// The model that the gateway asked instead of the one that was named.
    pub instead: Option<String>,
    /// How long the first text or call took.
    pub first_token: Option<Duration>,
    /// What was added to the session for it, if that was written with its settlement.
    pub written: Option<(Prepared, Added)>,
}

/// Returns what is added to the session for an answer whose call has used this, if anything is.
pub(crate) type Take<'t> = dyn Fn(&Asked, Usage) -> Option<(Prepared, Added)> + Send + Sync + 't;

/// Why there is no answer, after all tries.
#[derive(Debug)]
pub(crate) enum Unasked {
    /// The worker wants the job back.
    HandBack,
    /// No try helped.
    Fault(Fault),
}

impl Gateway {
    /// Finds the gateway. Every agent of this kind names models, so it is there.
    pub fn of(
        meter: &dyn Meter,
        client: reqwest::Client,
        idle_timeout: Duration,
    ) -> Result<Gateway, Failure> {
        let environment = meter.environment();
        let find = |wanted: &str| {
            let found = environment.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone());
            found.ok_or_else(|| Failure::retryable(FailureCode::StartFailed, format!("there is no {wanted}")))
        };
        let (root, token) = (find("HARNESS_GATEWAY_URL")?, find("HARNESS_GATEWAY_TOKEN")?);
        Ok(Gateway { client, root, token, idle_timeout })
    }

    /// Asks until there is an answer, or no hope of one. The request is written for each try: kept until the answer, a long one
    /// would lie beside its conversation all the while. What `take` adds to the session for the answer is written with its settlement,
    /// where the meter does that.
    pub async fn ask(
        &self,
        wire: Wire,
        mut tries: Tries,
        (request, take): (&(dyn Fn() -> String + Send + Sync), Option<&Take<'_>>),
        run: &Run,
    ) -> Result<Asked, Unasked> {
        let signal = run.stop_signal();
        loop {
            let place = place(run.session().bytes()).await;
            if signal.is_wanted_back() {
                return Err(Unasked::HandBack);
            }
            let mut streamed = 0;
            let asked = self.once(wire, (place, request()), take, (run, &mut streamed)).await;
            let counts = match &asked {
                Ok(asked) => asked.answer.stop != StopReason::Refusal,
                // It is stored, and the next attempt is given it without showing it again.
                Err(fault) => matches!(fault, Fault::Stopped(_)),
            };
            if streamed > 0 && !counts {
                run.event(Event::new(TEXT_VOID, json!({"characters": streamed})));
            }
            let fault = match asked {
                Ok(asked) => return Ok(asked),
                Err(fault) => fault,
            };
            let Again::After(wait) = tries.after(&fault, fastrand::f64()) else {
                return Err(Unasked::Fault(fault));
            };
            tracing::info!(cause = ?fault, wait_ms = wait.as_millis() as u64, "a model call is made again");
            if !slept(&signal, wait).await {
                return Err(Unasked::HandBack);
            }
        }
    }

    /// Returns the answer that an earlier attempt has paid to this request, if there is one. No model is asked.
    pub async fn stored(&self, wire: Wire, request: String, run: &Run) -> Result<Option<Asked>, Fault> {
        let begun = Instant::now();
        let request = self.request(wire, Bytes::from(request)).header("x-harness-only-stored", "true");
        let response = request.send().await.map_err(broken)?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Reading { wire, run, begun, is_shown: false, streamed: &mut 0 }.answer(response, None).await.map(Some)
    }

    fn request(&self, wire: Wire, body: Bytes) -> reqwest::RequestBuilder {
        let request = self.client.post(format!("{}{}", self.root, wire.path()));
        let request = request.header("content-type", "application/json").body(http_client::body(body));
        match wire {
            Wire::Messages => {
                request.header("x-api-key", &self.token).header("anthropic-version", "2023-06-01")
            }
            Wire::Chat | Wire::Responses => request.bearer_auth(&self.token),
        }
    }

    async fn once(
        &self,
        wire: Wire,
        (place, request): (Option<SemaphorePermit<'_>>, String),
        take: Option<&Take<'_>>,
        (run, streamed): (&Run, &mut usize),
    ) -> Result<Asked, Fault> {
        let (sent, is_sent) = oneshot::channel();
        let body = Bytes::from_owner(Written { request, _sent: sent });
        let sending = async {
            let _ = timeout(SENT_WITHIN, is_sent).await;
            drop(place);
            std::future::pending::<Infallible>().await
        };
        let begun = Instant::now();
        let is_taking = AtomicBool::new(false);
        let asking = async {
            let mut request = self.request(wire, body);
            let number = fastrand::u64(..);
            let offers = take.and_then(|take| Some((take, run.meter()?.offers(number)?)));
            if offers.is_some() {
                request = request.header("x-harness-taken-as", number);
            }
            let taking = offers.map(|(take, offered)| {
                let offered = Some(offered);
                Taking { take, offered, is_taking: &is_taking }
            });
            let response = request.send().await.map_err(broken)?;
            // A summary is no text of the job.
            let is_shown = take.is_some();
            Reading { wire, run, begun, is_shown, streamed }.answer(response, taking).await
        };
        let silent = self.silence(run.meter().map(|meter| &**meter), begun, &is_taking);
        tokio::select! {
            asked = asking => asked,
            never = sending => match never {},
            () = silent => {
                let limit = self.idle_timeout.as_millis();
                Err(Fault::Broken(format!("the provider was silent for longer than idle_timeout_ms = {limit}")))
            }
        }
    }

    /// Returns once nothing has passed for too long since this call began. A wait for room in the gateway is no silence, nor is
    /// one for Postgres while the answer is taken: it cannot be given up any more.
    async fn silence(&self, meter: Option<&dyn Meter>, begun: Instant, is_taking: &AtomicBool) {
        let Some(meter) = meter else { return std::future::pending().await };
        loop {
            let idle = match is_taking.load(Ordering::Relaxed) {
                true => Duration::ZERO,
                false => meter.idle().min(begun.elapsed()),
            };
            if idle >= self.idle_timeout {
                return;
            }
            tokio::time::sleep((self.idle_timeout - idle).max(Duration::from_millis(10))).await;
        }
    }
}

/// Waits. Returns false if the job is wanted back meanwhile.
async fn slept(signal: &StopSignal, wait: Duration) -> bool {
    tokio::select! {
        () = tokio::time::sleep(wait) => true,
        () = signal.wanted_back() => false,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_is_too_much_at_a_time_waits_for_its_turn() {
        let large = place(usize::MAX).await;
        let mut small = Box::pin(place(200_000));
        assert!((&mut small).now_or_never().is_none());
        drop(large);
        assert!(small.now_or_never().is_some());
    }
}
