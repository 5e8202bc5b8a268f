//! The server: its routes, its streams, and the report on itself.
//!
//! `GET /double` is the report, `GET /double/calls` every call on the bill, `POST /double/faults` adds faults (a JSON list),
//! `POST /double/script` gives another script.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::answer::{self, Event};
use super::fault::Fault;
use super::office::{EMBEDDINGS, Office, Plan, Refused};
use super::script::Script;
use super::wire::{Refusal, Speaks};

type Shared = State<Arc<Office>>;

pub(super) async fn serve(listener: TcpListener, office: Arc<Office>) {
    let spoken = |speaks: Speaks| {
        post(move |State(office): Shared, headers: HeaderMap, body: Bytes| async move {
            let number = office.note(speaks.path(), &headers, &body);
            let mut response = answer(office.clone(), number, speaks, headers, body).await;
            identified(&mut response, &office, number);
            response
        })
    };
    let routes = Router::new()
        .route(Speaks::Messages.path(), spoken(Speaks::Messages))
        .route(Speaks::Chat.path(), spoken(Speaks::Chat))
        .route(Speaks::Responses.path(), spoken(Speaks::Responses))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route(EMBEDDINGS, post(embed))
        .route("/v1/models", get(models))
        .route("/double", get(async |State(office): Shared| Json(summary(&office))))
        .route("/double/calls", get(async |State(office): Shared| Json(json!(office.books().charged))))
        .route("/double/faults", post(order))
        .route("/double/script", post(play))
        .layer(DefaultBodyLimit::disable())
        .with_state(office);
    // Events leave at once, as from a real provider.
    let listener = listener.tap_io(|connection| connection.set_nodelay(true).expect("a socket"));
    axum::serve(listener, routes).await.expect("served");
}

/// Returns the report: what is on the bill, and what was found.
pub(super) fn summary(office: &Office) -> Value {
    let books = office.books();
    let sum = |of: fn(&super::Charged) -> u64| books.charged.iter().map(of).sum::<u64>();
    json!({
        "requests": office.requests(),
        "charged": books.charged.len(),
        "charged_again": books.charged.iter().filter(|call| call.again).count(),
        "bill_microusd": books.bill_micros,
        "conversations": books.memory.conversations(),
        "tokens": {
            "input": sum(|call| call.used.input),
            "cache_read": sum(|call| call.used.cache_read),
            "cache_write": sum(|call| call.used.cache_write + call.used.cache_write_long),
            "output": sum(|call| call.used.output),
        },
        "findings": books.memory.findings,
    })
}

async fn order(State(office): Shared, body: Bytes) -> Response {
    match serde_json::from_slice::<Vec<Fault>>(&body) {
        Ok(faults) => {
            office.faults.lock().expect("not poisoned").extend(faults);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

async fn play(State(office): Shared, body: String) -> Response {
    match Script::parse(&body) {
        Ok(script) => {
            office.play(script);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

/// Names a request in its answer, and adds what all answers have.
fn identified(response: &mut Response, office: &Office, number: u64) {
    let id = HeaderValue::try_from(request_id(number)).expect("digits");
    let headers = response.headers_mut();
    headers.insert("request-id", id.clone());
    headers.insert("x-request-id", id);
    headers.extend(office.headers.lock().expect("not poisoned").clone());
}

fn request_id(number: u64) -> String {
    format!("req_{number}")
}

/// Lists no models, and notes nothing: it is free.
async fn models(State(office): Shared, headers: HeaderMap) -> Response {
    let messages = Speaks::Messages.key(&headers).filter(|_| headers.contains_key("anthropic-version"));
    match messages.or_else(|| Speaks::Chat.key(&headers)) == Some(&office.key) {
        true => Json(json!({"data": []})).into_response(),
        false => StatusCode::UNAUTHORIZED.into_response(),
    }
}

async fn embed(State(office): Shared, headers: HeaderMap, body: Bytes) -> Response {
    let number = office.note(EMBEDDINGS, &headers, &body);
    let mut response = match office.embed(number, &headers, &body) {
        Ok(answer) => Json(answer).into_response(),
        Err(refused) => Speaks::Chat.refusal(&refused, &request_id(number)),
    };
    identified(&mut response, &office, number);
    response
}

async fn count_tokens(State(office): Shared, headers: HeaderMap, body: Bytes) -> Response {
    if office.counts_nothing.load(Ordering::Relaxed) {
        return Speaks::Messages.refusal(&Refusal::new(404, "not found"), "");
    }
    let number = office.note("/v1/messages/count_tokens", &headers, &body);
    match office.count(&headers, &body) {
        Ok(tokens) => Json(json!({"input_tokens": tokens})).into_response(),
        Err(refused) => {
            office.books().memory.refused(number, &refused.message);
            Speaks::Messages.refusal(&refused, &request_id(number))
        }
    }
}

async fn answer(
    office: Arc<Office>,
    number: u64,
    speaks: Speaks,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let refuse = |status: u16| {
        let mut refused = speaks.refusal(&Refusal::new(status, "try again later"), &request_id(number));
        if [429, 529].contains(&status) {
            let after = office.retry_after_s.load(Ordering::Relaxed);
            refused.headers_mut().insert("retry-after", after.into());
        }
        refused
    };
    let ordered = office.faults.lock().expect("not poisoned").pop_front();
    if let Some(Fault::Refuses(status)) = ordered {
        return refuse(status);
    }
    let plan = match office.plan(number, speaks, &headers, &body, ordered) {
        Ok(plan) => plan,
        Err(Refused::Rightly(refused)) => return speaks.refusal(&refused, &request_id(number)),
        Err(Refused::Ordered(status)) => return refuse(status),
        Err(Refused::Held) => return hang(&office).await,
    };
    match plan.fault {
        Some(Fault::Fails(status)) => {
            return speaks.refusal(&Refusal::new(status, "something broke"), &request_id(number));
        }
        Some(Fault::Stalls) => return hang(&office).await,
        _ => {}
    }
    if plan.request["stream"] == json!(true) {
        return stream_of(office, speaks, plan);
    }
    let body = answer::whole(speaks, &plan.said);
    let body = match plan.fault {
        Some(Fault::Garbage) => Body::from("<html>bad gateway</html>"),
        Some(Fault::CutAfter(_) | Fault::CutAfterEvent(_)) => {
            let half = Bytes::copy_from_slice(&body.as_bytes()[..body.len() / 2]);
            Body::from_stream(stream::iter([Ok(half)]).chain(stream::once(cut())))
        }
        _ => {
            office.left(plan.charged);
            Body::from(body)
        }
    };
    ([("content-type", "application/json")], body).into_response()
}

fn stream_of(office: Arc<Office>, speaks: Speaks, plan: Plan) -> Response {
    let mut events = answer::events(speaks, &plan.said, &plan.request);
    let all = events.len();
    let (mut is_cut, mut stalls) = (false, false);
    match plan.fault {
        Some(Fault::CutAfter(count)) => {
            events.truncate(count);
            is_cut = true;
        }
        Some(Fault::CutAfterEvent(name)) => {
            let at = events.iter().position(|event| event.name == name).map_or(all, |at| at + 1);
            events.truncate(at.min(all - 1));
            is_cut = true;
        }
        Some(Fault::StallsAfter(count)) => {
            events.truncate(count);
            stalls = true;
        }
        Some(Fault::Garbage) => {
            events.insert(1, Event { name: String::new(), text: "data: {not json\n\n".to_owned() });
        }
        _ => {}
    }
    let last = if is_cut || stalls { None } else { events.len().checked_sub(1) };
    let (pause, charged) = (plan.pause, plan.charged);
    let sending = office.clone();
    let sent = stream::iter(events.into_iter().enumerate()).then(move |(at, event)| {
        let office = sending.clone();
        async move {
            // Each event is a piece of its own, as from a model that is still thinking.
            tokio::time::sleep(pause).await;
            if last == Some(at) {
                office.left(charged);
            }
            Ok(Bytes::from(event.text))
        }
    });
    let hung = office.clone();
    let stalled = stream::once(async move {
        hung.hung.fetch_add(1, Ordering::Relaxed);
        std::future::pending().await
    });
    let stalled = stalled.take(usize::from(stalls));
    let body = Body::from_stream(sent.chain(stream::once(cut()).take(usize::from(is_cut))).chain(stalled));
    ([("content-type", "text/event-stream; charset=utf-8")], body).into_response()
}

/// Never answers.
async fn hang(office: &Office) -> Response {
    office.hung.fetch_add(1, Ordering::Relaxed);
    std::future::pending().await
}

/// Cuts a connection, after what was written before has left.
async fn cut() -> io::Result<Bytes> {
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    Err(io::Error::other("cut"))
}
