//! Other things that cost, such as a search or a machine by the minute: `POST /reserve` before, `POST /settle` after.
//!
//! The program says what each can cost and what it has cost; the accounts are those of its model calls. What it does not
//! settle before its attempt ends is unknown, and counts in full.
//!
//! Nobody but the program knows what it has paid, so it is believed up to what it has reserved, and no further: a larger
//! cost would shut the budgets of all others.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::response::Response;
use job::Usd;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::Inner;
use super::attempt::Shared;
use super::refusal::Refusal;
use super::waiting::{Room, Waiting};
use crate::ledger::{Purchase, WithoutRoom};
use crate::prices::Tokens;
use crate::usage::{NoUsage, Outcome, Settled};

/// More open reservations than any program needs at a time.
const MOST_OPEN: usize = 1_000;
/// More than anything costs that a program buys at once. Sums of larger ones would not fit an account.
const MOST_COST: Usd = Usd::from_micros(100_000_000_000);
const LONGEST_NAME: usize = 128;
/// The line of those that wait for a rate limit. There is none for these.
const NO_RATES: &str = "other";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    what: String,
    max_cost_usd: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Paid {
    call_id: Uuid,
    cost_usd: String,
}

/// What an open reservation waits for: its cost, and where to say that the ledger has it.
pub(super) struct Payment {
    cost: Usd,
    recorded: oneshot::Sender<bool>,
}

type Reserved = Result<(), Refusal>;

pub(super) async fn reserve(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let reserved = async {
        let (attempt, wanted) = opened::<Wanted>(&inner, request).await?;
        let what = wanted.what;
        let is_name =
            (1..=LONGEST_NAME).contains(&what.len()) && what.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_name {
            let problem = format!(
                "what: got {} bytes, expected 1 to {LONGEST_NAME} visible ASCII characters",
                what.len()
            );
            return Err(Refusal::invalid(problem));
        }
        let most = dollars("max_cost_usd", &wanted.max_cost_usd)?;
        if most > MOST_COST {
            return Err(Refusal::invalid(format!("max_cost_usd: got {most}, expected at most {MOST_COST}")));
        }
        if attempt.open_purchases() >= MOST_OPEN {
            return Err(Refusal::invalid(format!("{MOST_OPEN} reservations are open: settle them first")));
        }
        let purchase = Purchase { id: Uuid::now_v7(), what, most };
        let id = purchase.id;
        let (reply, replied) = oneshot::channel();
        let exchanges = attempt.exchanges.clone();
        inner.exchanges.spawn(exchanges.track_future(hold(inner.clone(), attempt, purchase, reply)));
        replied.await.unwrap_or_else(|_| Err(Refusal::cut("the reservation has failed")))?;
        Ok(json!({"call_id": id}))
    };
    answer(reserved.await)
}

pub(super) async fn settle(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let settled = async {
        let (attempt, paid) = opened::<Paid>(&inner, request).await?;
        let cost = dollars("cost_usd", &paid.cost_usd)?;
        let most = attempt.most_of(&paid.call_id).ok_or_else(Refusal::not_open)?;
        if cost > most {
            let problem = format!(
                "cost_usd: got {cost}, expected at most the {most} that was reserved: reserve the rest first"
            );
            return Err(Refusal::invalid(problem));
        }
        let open = attempt.take_purchase(&paid.call_id).ok_or_else(Refusal::not_open)?;
        let (recorded, is_recorded) = oneshot::channel();
        // A reservation whose attempt ends in this moment does not take it.
        drop(open.send(Payment { cost, recorded }));
        match is_recorded.await {
            Ok(true) => Ok(json!({"call_id": paid.call_id})),
            Ok(false) => Err(Refusal::cut("the ledger did not take the settlement")),
            Err(_) => Err(Refusal::dead_token()),
        }
    };
    answer(settled.await)
}

/// Reserves, and waits for the settlement or the attempt's end.
async fn hold(
    inner: Arc<Inner>,
    attempt: Arc<Shared>,
    purchase: Purchase,
    mut reply: oneshot::Sender<Reserved>,
) {
    let refused = |reply: oneshot::Sender<Reserved>, refusal| drop(reply.send(Err(refusal)));
    let without = WithoutRoom { request: None, most: purchase.most, least: purchase.most };
    match room(&inner, &attempt, &purchase, &mut reply).await {
        Room::Granted => {}
        // Nothing is looked up for it.
        Room::Answered(_) => return refused(reply, Refusal::cut("the reservation has failed")),
        Room::Gone => return,
        Room::Refused(refusal) => return refused(reply, refusal),
        Room::Over(refusal) => {
            attempt.attempt.ledger.note_busy(&without);
            return refused(reply, refusal);
        }
        Room::Spent { limit, .. } => {
            attempt.attempt.ledger.note_spent(&without);
            return refused(reply, Refusal::spent(&limit));
        }
        Room::Unavailable(error) => {
            refused(reply, Refusal::ledger(&error));
            // It may be held all the same.
            record(&inner, &attempt, &purchase, Outcome::Free).await;
            return;
        }
    }
    let (payment, paid) = oneshot::channel();
    if !attempt.open_purchase(purchase.id, payment, purchase.most) {
        record(&inner, &attempt, &purchase, Outcome::Free).await;
        return refused(reply, Refusal::dead_token());
    }
    if reply.send(Ok(())).is_err() {
        // The program does not know its id, so it buys nothing.
        attempt.take_purchase(&purchase.id);
        record(&inner, &attempt, &purchase, Outcome::Free).await;
        return;
    }
    let payment = tokio::select! {
        biased;
        payment = paid => payment.ok(),
        () = attempt.ended.cancelled() => None,
    };
    // What was open when the program ended is counted already.
    let is_counted = attempt.take_purchase(&purchase.id).is_none() && payment.is_none();
    let outcome = match &payment {
        Some(Payment { cost, .. }) => {
            Outcome::Settled(Settled { cost: *cost, tokens: Tokens::default(), model: purchase.what.clone() })
        }
        None => Outcome::Unknown(NoUsage::NotSettled),
    };
    let is_recorded = if is_counted {
        settled(&inner, &attempt, &purchase, outcome).await
    } else {
        record(&inner, &attempt, &purchase, outcome).await
    };
    if let Some(payment) = payment {
        // A program that has gone needs no answer.
        let _gone = payment.recorded.send(is_recorded);
    }
}

async fn room(
    inner: &Inner,
    attempt: &Arc<Shared>,
    purchase: &Purchase,
    reply: &mut oneshot::Sender<Reserved>,
) -> Room {
    let mut waiting = Waiting::begin(inner, attempt, NO_RATES);
    loop {
        if let Some(end) = waiting.turn(reply).await {
            return end;
        }
        let reserved = attempt.attempt.ledger.reserve_purchase(purchase).await;
        if let Some(end) = waiting.answered(reserved, NO_RATES) {
            return end;
        }
    }
}

async fn record(inner: &Inner, attempt: &Shared, purchase: &Purchase, outcome: Outcome) -> bool {
    attempt.note_settled(&outcome, purchase.most);
    settled(inner, attempt, purchase, outcome).await
}

async fn settled(inner: &Inner, attempt: &Shared, purchase: &Purchase, outcome: Outcome) -> bool {
    let settled = attempt.attempt.ledger.settle_purchase(purchase, outcome).await;
    inner.lines.note_settled();
    if let Err(error) = &settled {
        tracing::error!(call = %purchase.id, cause = %error, "a reservation could not be settled");
    }
    settled.is_ok()
}

async fn opened<T: DeserializeOwned>(inner: &Inner, request: Request) -> Result<(Arc<Shared>, T), Refusal> {
    let attempt = inner.attempt(request.headers())?;
    attempt.note_traffic();
    let (parts, body) = request.into_parts();
    let (body, _weight) = inner.body(&attempt, &parts.headers, body).await?;
    let asked = serde_json::from_slice(&body);
    Ok((attempt, asked.map_err(|error| Refusal::invalid(format!("body: {error}")))?))
}

/// Dollars are text, because a binary fraction is not exact.
fn dollars(field: &str, text: &str) -> Result<Usd, Refusal> {
    text.parse().map_err(|error| Refusal::invalid(format!("{field}: {error}")))
}

fn answer(answer: Result<Value, Refusal>) -> Response {
    let answer = match answer {
        Ok(answer) => answer,
        Err(refusal) => return refusal.problem(),
    };
    let mut response = Response::new(answer.to_string().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
