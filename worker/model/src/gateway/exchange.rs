//! One request, from its reservation to its settlement.
//!
//! It runs in a task of its own from before it is reserved until it is settled: a program that hangs up ends nothing but
//! its own waiting. What is sent is settled in every case; only the death of the worker leaves a call open.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::request::Parts;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use chrono::{NaiveDate, Utc};
use futures::StreamExt;
use job::Usd;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::timeout;
use uuid::Uuid;

use super::attempt::{Place, Shared};
use super::bodies::Weight;
use super::include_usage::include_usage;
use super::places::Slot;
use super::program::Program;
use super::refusal::Refusal;
use super::waiting::Room;
use super::{Inner, Upstream, headers, limits, url};
use crate::frames::Frames;
use crate::ledger::{Answer, Call, Given, Learnt, MOST_OF_A_CALL, Settlement, TakenAs};
use crate::usage::{Meter, NoUsage, Outcome, Seen, refused_before_work};
use crate::wire::{Ask, Bound, Wire};

/// The largest answer that is read. No provider sends one that is nearly as large.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How long the connection of an answer that has ended is read on, so that it can be used again.
const CLOSING: Duration = Duration::from_secs(1);
/// How long a settlement waits for checkpoints of its program that are not durable yet. Where Postgres takes longer, a kill can
/// cost this answer a second time.
const DURABLE_WITHIN: Duration = Duration::from_secs(1);

pub(super) struct Exchange {
    pub(super) inner: Arc<Inner>,
    pub(super) attempt: Arc<Shared>,
    pub(super) upstream: Upstream,
    pub(super) ask: Ask,
    pub(super) call: Call,
    pub(super) headers: HeaderMap,
    /// Behind the path, as the program wrote it.
    query: Option<String>,
    pub(super) body: Bytes,
    /// The day whose prices it is billed by: that of its reservation.
    day: NaiveDate,
    /// What its body takes of the worker's memory, until it is sent.
    weight: Option<Weight>,
    learnt: Learnt,
    /// Whether another model is asked than the request named.
    pub(super) degraded: bool,
    /// The limit of output that it has instead of its own.
    pub(super) lowered_to: Option<u64>,
    /// Whether the provider was asked how many tokens it has.
    pub(super) is_counted: bool,
    /// Its place among the calls of its provider.
    pub(super) slot: Option<Slot>,
}

/// An answer that is whole.
struct Whole {
    answer: Answer,
    /// Whether other jobs may be given it: it refuses nothing.
    is_shareable: bool,
    /// How many of its bytes the program was passed: all but the last event of a stream.
    passed: Option<usize>,
}

pub(super) type Replied = Result<Response, Refusal>;

/// Returns an answer that an earlier attempt has paid. No model is asked, so the agent may no longer have the one that gave it.
pub(super) async fn stored(attempt: &Arc<Shared>, wire: Wire, body: &Bytes) -> Replied {
    let ask = read(attempt, wire, body)?;
    let place = attempt.place(ask.hash).await?;
    let call = Call {
        id: Uuid::now_v7(),
        provider: wire.provider(),
        wire,
        model: ask.model,
        bound: Bound { input: 0, output: 0, names_output: false, cost: Usd::ZERO },
        request: place.key,
        cache_key: None,
    };
    let found = attempt.attempt.ledger.look_up(&call).await.map_err(|error| Refusal::ledger(&error))?;
    let given = found.ok_or_else(Refusal::not_stored)?;
    Ok(given_again(attempt, place, given))
}

fn read(attempt: &Shared, wire: Wire, body: &Bytes) -> Result<Ask, Refusal> {
    attempt.note_traffic();
    wire.read(body, attempt.attempt.caps).map_err(|error| Refusal::invalid(error.to_string()))
}

impl Exchange {
    /// Reads a request, and returns the head of its answer as soon as there is one.
    pub async fn begin(
        inner: Arc<Inner>,
        attempt: Arc<Shared>,
        upstream: Upstream,
        wire: Wire,
        Parts { headers, uri, .. }: Parts,
        (body, weight): (Bytes, Weight),
    ) -> Replied {
        let ask = read(&attempt, wire, &body)?;
        attempt.check_model(&ask.model)?;
        let day = Utc::now().date_naive();
        let bound = attempt.with_counted(|counted| ask.bound(&inner.settings.prices, day, counted));
        let bound = bound.map_err(|error| Refusal::invalid(error.to_string()))?;
        if bound.cost > MOST_OF_A_CALL {
            let most = bound.cost;
            let problem = format!(
                "it can cost {most}, expected at most {MOST_OF_A_CALL}: name a lower limit of output"
            );
            return Err(Refusal::invalid(problem));
        }
        let place = attempt.place(ask.hash).await?;
        let (provider, model) = (wire.provider(), ask.model.clone());
        let query = uri.query().map(str::to_owned);
        let cache_key = cache_key(&ask, &upstream, (&headers, query.as_deref()), place.of_attempt);
        let call = Call { id: Uuid::now_v7(), provider, wire, model, bound, request: place.key, cache_key };
        let learnt = Learnt::default();
        let exchange = Exchange {
            inner: inner.clone(),
            attempt,
            upstream,
            ask,
            call,
            headers,
            query,
            body,
            day,
            weight: Some(weight),
            learnt,
            degraded: false,
            lowered_to: None,
            is_counted: false,
            slot: None,
        };
        let exchanges = exchange.attempt.exchanges.clone();
        let (reply, replied) = oneshot::channel();
        inner.exchanges.spawn(exchanges.track_future(exchange.run(place, reply)));
        replied.await.unwrap_or_else(|_| Err(Refusal::cut("the exchange has failed")))
    }

    async fn run(mut self, place: Place, mut reply: oneshot::Sender<Replied>) {
        let ledger = self.attempt.attempt.ledger.clone();
        let refusal = match self.room(&mut reply).await {
            Room::Granted => {
                self.day = Utc::now().date_naive();
                None
            }
            Room::Answered(given) => {
                drop(reply.send(Ok(given_again(&self.attempt, place, given))));
                return;
            }
            Room::Gone => return,
            Room::Refused(refusal) => Some(refusal),
            Room::Over(refusal) => {
                ledger.note_busy(&self.without_room());
                Some(refusal)
            }
            Room::Spent { limit, .. } => {
                ledger.note_spent(&self.without_room());
                Some(Refusal::spent(&limit))
            }
            Room::Unavailable(error) => {
                drop(place);
                refuse(reply, Refusal::ledger(&error));
                // It may be held all the same.
                self.settle(Outcome::Free, None, None).await;
                return;
            }
        };
        if let Some(refusal) = refusal {
            // The place is free before the program can ask again.
            drop(place);
            return refuse(reply, refusal);
        }
        if reply.is_closed() {
            self.settle(Outcome::Free, None, None).await;
            return;
        }
        let request = match self.request() {
            Ok(request) => request,
            Err(error) => {
                self.settle(Outcome::Free, None, None).await;
                return refuse(reply, Refusal::invalid(format!("body: {error}")));
            }
        };
        let drain = self.inner.settings.usage_drain;
        let sent = tokio::select! {
            sent = request.send() => Some(sent),
            () = async { reply.closed().await; tokio::time::sleep(drain).await } => None,
        };
        if let (Some(slot), Some(sent)) = (&self.slot, &sent) {
            slot.heard(sent);
        }
        let response = match sent {
            Some(Ok(response)) => response,
            Some(Err(error)) => {
                // Without a connection nothing was sent. Anything else may have been.
                let outcome =
                    if error.is_connect() { Outcome::Free } else { Outcome::Unknown(NoUsage::NoAnswer) };
                self.settle(outcome, None, None).await;
                drop(place);
                return refuse(reply, Refusal::unreachable(&error));
            }
            None => {
                self.settle(Outcome::Unknown(NoUsage::GivenUp), None, None).await;
                return;
            }
        };
        self.weight = None;
        self.attempt.note_traffic();
        self.learnt = limits::learnt(self.call.provider, response.status(), response.headers());
        let is_stream = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_stream = is_stream.is_some_and(|kind| kind.starts_with("text/event-stream"));
        if response.status().is_success() && is_stream {
            self.pass_stream(response, place, reply).await;
        } else {
            self.pass_whole(response, place, reply).await;
        }
    }

    /// Returns the headers for the program. They name the model and the limit of output, if these are others than the
    /// request names.
    fn kept(&self, response: &reqwest::Response) -> HeaderMap {
        let mut kept = headers::to_program(response.headers());
        if self.degraded
            && let Ok(model) = HeaderValue::try_from(&self.call.model)
        {
            kept.insert("x-harness-model", model);
        }
        if let Some(limit) = self.lowered_to {
            kept.insert("x-harness-output-limit", limit.into());
        }
        kept
    }

    fn request(&mut self) -> Result<reqwest::RequestBuilder, serde_json::Error> {
        let body = match self.call.wire {
            Wire::Chat if self.ask.stream && !self.ask.includes_usage => include_usage(&self.body)?,
            _ => self.body.clone(),
        };
        self.body = Bytes::new();
        let url = url(&self.upstream, self.call.wire.path(), self.query.as_deref());
        let headers = headers::to_provider(&self.headers, self.call.provider, &self.upstream.key);
        Ok(self.inner.client.post(url).headers(headers).body(http_client::body(body)))
    }

    /// Passes an answer that is no stream. The program gets it when the ledger has it.
    async fn pass_whole(
        mut self,
        response: reqwest::Response,
        place: Place,
        mut reply: oneshot::Sender<Replied>,
    ) {
        let (status, kept) = (response.status(), self.kept(&response));
        let request_id = headers::request_id(response.headers());
        let drain = self.inner.settings.usage_drain;
        let body = tokio::select! {
            body = collect(response) => body,
            () = async { reply.closed().await; tokio::time::sleep(drain).await } => Err(NoUsage::GivenUp),
        };
        let mut meter = Meter::new(self.call.wire);
        let outcome = match &body {
            _ if refused_before_work(status.as_u16()) => Outcome::Free,
            _ if !status.is_success() => Outcome::Unknown(NoUsage::Status(status.as_u16())),
            Err(reason) => Outcome::Unknown(reason.clone()),
            Ok(body) => {
                meter.body(body);
                self.outcome(&meter)
            }
        };
        if let Ok(body) = &body {
            limits::learnt_from_body(&mut self.learnt, body);
        }
        let Ok(body) = body else {
            self.settle(outcome, request_id, None).await;
            drop(place);
            return refuse(reply, Refusal::cut("the provider's answer has no end"));
        };
        let is_answer = status.is_success() && meter.is_answer();
        let content_type =
            kept.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
        let answer = || Answer { content_type: content_type.to_owned(), body: body.clone() };
        let whole = || Whole { answer: answer(), is_shareable: meter.is_shareable(), passed: None };
        match self.settle(outcome, request_id, is_answer.then(whole)).await {
            Some(after) if is_answer => place.answered(after),
            None if is_answer => return refuse(reply, Refusal::cut("the ledger did not take the answer")),
            _ => drop(place),
        }
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        *response.headers_mut() = kept;
        drop(reply.send(Ok(response)));
    }

    /// Passes a stream, event by event. Its end waits for the ledger.
    async fn pass_stream(self, response: reqwest::Response, place: Place, reply: oneshot::Sender<Replied>) {
        let (status, kept) = (response.status(), self.kept(&response));
        let request_id = headers::request_id(response.headers());
        let content_type = kept.get(CONTENT_TYPE).cloned();
        let (mut program, body) = Program::begin(self.inner.settings.usage_drain);
        let mut head = Response::new(body);
        *head.status_mut() = status;
        *head.headers_mut() = kept;
        // If the program has gone, its end of the stream must go too.
        drop(reply.send(Ok(head)));

        let (mut meter, mut frames, mut whole) =
            (Meter::new(self.call.wire), Frames::default(), BytesMut::new());
        let mut chunks = response.bytes_stream();
        let given_up = loop {
            let chunk = tokio::select! {
                chunk = chunks.next() => chunk,
                () = program.given_up(self.inner.settings.usage_drain) => break Some(NoUsage::GivenUp),
            };
            let chunk = match chunk {
                None => break None,
                Some(Err(_)) => break Some(NoUsage::NoEnd),
                Some(Ok(chunk)) => chunk,
            };
            self.attempt.note_traffic();
            if frames.push(&chunk).is_err() || whole.len() > MAX_ANSWER_BYTES {
                break Some(NoUsage::Garbage);
            }
            while let Some(frame) = frames.take() {
                let seen = meter.event(&frame.data());
                if seen == Seen::UsageAlone && !self.ask.includes_usage {
                    continue;
                }
                whole.extend_from_slice(frame.bytes());
                if seen == Seen::End {
                    let kind = content_type.as_ref().and_then(|value| value.to_str().ok());
                    let content_type = kind.unwrap_or("text/event-stream").to_owned();
                    let passed = Some(whole.len() - frame.bytes().len());
                    let answer = Answer { content_type, body: whole.split().freeze() };
                    let is_answer = meter.is_answer();
                    let is_shareable = meter.is_shareable();
                    let answer = is_answer.then_some(Whole { answer, is_shareable, passed });
                    if let Some(after) = self.settle(self.outcome(&meter), request_id, answer).await {
                        if is_answer {
                            place.answered(after)
                        } else {
                            drop(place)
                        }
                        program.pass(frame.bytes().clone()).await;
                    } else {
                        program.cut("the ledger did not take the answer");
                    }
                    let _closed =
                        timeout(CLOSING, async { while let Some(Ok(_)) = chunks.next().await {} }).await;
                    return;
                }
                program.pass(frame.bytes().clone()).await;
            }
        };
        let outcome = given_up.clone().map_or_else(|| self.outcome(&meter), Outcome::Unknown);
        self.settle(outcome, request_id, None).await;
        drop(place);
        match given_up {
            None => program.pass(frames.rest()).await,
            Some(reason) => program.cut(&reason.to_string()),
        }
    }

    fn outcome(&self, meter: &Meter) -> Outcome {
        let outcome = meter.outcome(&self.ask, &self.inner.settings.prices, self.day);
        if let (Some(conversation), Some(tokens)) = (self.ask.conversation(), meter.counted_input()) {
            self.attempt.with_counted(|counted| counted.remember(conversation, tokens));
        }
        match outcome {
            Outcome::Settled(settled) if settled.cost > MOST_OF_A_CALL => Outcome::Unknown(NoUsage::Absurd),
            outcome => outcome,
        }
    }

    /// Returns after how many checkpoints the ledger has taken it, if it has.
    async fn settle(
        &self,
        outcome: Outcome,
        provider_request_id: Option<String>,
        whole: Option<Whole>,
    ) -> Option<u32> {
        let counted = outcome.clone();
        if let Outcome::Unknown(reason) = &outcome {
            tracing::warn!(call = %self.call.id, model = self.call.model, cause = %reason,
                "what a model call costs is not known: its reservation counts in full");
        }
        let learnt = self.learnt.clone();
        let is_shareable = whole.as_ref().is_some_and(|whole| whole.is_shareable);
        let number = headers::taken_as(&self.headers);
        let taken = whole.as_ref().and_then(|whole| Some(TakenAs { number: number?, passed: whole.passed? }));
        let answer = whole.map(|whole| whole.answer);
        let ledger = &self.attempt.attempt.ledger;
        if answer.is_some() {
            // What its program has written so far was written before it has this answer, and must not cover it.
            let _ended_or_late = timeout(DURABLE_WITHIN, self.attempt.until_durable()).await;
        }
        let after_checkpoints = ledger.checkpoints().written;
        let settlement = Settlement {
            outcome,
            provider_request_id,
            answer,
            after_checkpoints,
            is_shareable,
            learnt,
            taken,
        };
        let settled = ledger.settle(&self.call, settlement).await;
        // A checkpoint that counts it covers its answer, which a later attempt would count again.
        self.attempt.note_settled(&counted, self.call.bound.cost);
        self.inner.lines.note_settled();
        match settled {
            Ok(()) => Some(after_checkpoints),
            Err(error) => {
                tracing::error!(call = %self.call.id, cause = %error, "a model call could not be settled");
                None
            }
        }
    }
}

/// Returns under what other jobs find the answer, if the request alone says what is answered. The n-th same request of an
/// attempt finds what the n-th one got, whatever was checkpointed between them.
fn cache_key(
    ask: &Ask,
    upstream: &Upstream,
    (headers, query): (&HeaderMap, Option<&str>),
    nth: u32,
) -> Option<[u8; 32]> {
    if !ask.is_whole() {
        return None;
    }
    let mut sum = Sha256::new();
    let mut add = |part: &[u8]| {
        sum.update((part.len() as u64).to_be_bytes());
        sum.update(part);
    };
    add(&ask.hash);
    add(upstream.base_url.as_bytes());
    for name in headers::CHANGES_ANSWERS {
        headers.get_all(name).iter().for_each(|value| add(value.as_bytes()));
        add(b"");
    }
    add(&nth.to_be_bytes());
    query.into_iter().for_each(|query| add(query.as_bytes()));
    Some(sum.finalize().into())
}

fn refuse(reply: oneshot::Sender<Replied>, refusal: Refusal) {
    // A program that has gone needs no answer.
    drop(reply.send(Err(refusal)));
}

/// Gives an answer that was paid before.
fn given_again(attempt: &Shared, place: Place, given: Given) -> Response {
    attempt.note_given(&given);
    let Given { answer, cached, .. } = given;
    // What an earlier attempt was answered is covered by any checkpoint of this one.
    place.answered(if cached { attempt.attempt.ledger.checkpoints().written } else { 0 });
    let mut response = Response::new(Body::from(answer.body));
    let headers = response.headers_mut();
    if let Ok(kind) = HeaderValue::try_from(answer.content_type) {
        headers.insert(CONTENT_TYPE, kind);
    }
    let name = if cached { "x-harness-cached" } else { "x-harness-replayed" };
    headers.insert(name, HeaderValue::from_static("true"));
    response
}

async fn collect(response: reqwest::Response) -> Result<Bytes, NoUsage> {
    let mut chunks = response.bytes_stream();
    let mut body = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        body.extend_from_slice(&chunk.map_err(|_| NoUsage::NoEnd)?);
        if body.len() > MAX_ANSWER_BYTES {
            return Err(NoUsage::Garbage);
        }
    }
    Ok(body.freeze())
}
