//! What the model calls of a tenant have cost.

use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::RawQuery;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use job::Usd;
use serde::Serialize;
use store::{SpendBy, SpendPage, SpendPlace, SpendRow};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Principal, Scope};
use super::problem::Problem;
use super::query::Query;
use super::{Door, Shared};

/// Rows that a request looks at, at most: of calls, and of daily sums.
const ROWS: u32 = 10_000;
/// Days that are summed up, at most.
const MOST_DAYS: u32 = 366;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Door>> {
    OpenApiRouter::new().routes(routes!(read_spend))
}

/// What is summed up.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `Query` reads")]
struct Summed {
    /// What the sums are taken by, with commas between them: day, agent, user, model, job; day when absent
    #[param(
        pattern = "^(day|agent|user|model|job)( *, *(day|agent|user|model|job))*$",
        example = "day,model"
    )]
    by: Option<String>,
    /// How many days, today among them: 1 to 366, 1 when absent
    #[param(minimum = 1, maximum = 366)]
    days: Option<u32>,
    /// `next` of the answer before, to go on with the calls that it did not look at
    cursor: Option<String>,
}

/// Sums of model calls.
#[derive(Debug, Serialize, ToSchema)]
pub struct Spend {
    /// One for each value of what they are taken by, in its order; of the calls that this request has looked at.
    items: Vec<SpendEntry>,
    /// Present if there are more calls: give it as `cursor` to get their sums, and add them up.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Where the sums of a request begin.
struct Cursor(SpendPlace);

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Cursor, &'static str> {
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        let place = decoded.and_then(|json| serde_json::from_slice::<SpendPlace>(&json).ok());
        place.filter(SpendPlace::is_valid).map(Cursor).ok_or("expected `next` of the answer before")
    }
}

impl Cursor {
    fn text(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&self.0).expect("a place is plain JSON"))
    }
}

/// The sum of some calls. The first fields are there where the sums are taken by them.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct SpendEntry {
    /// The day of the calls, in the time zone of the fleet's budgets.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-31")]
    day: Option<String>,
    /// The agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<String>,
    /// The user; empty for jobs without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    /// The model that the request named.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The job; empty for calls that are so old that only their sums are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<String>,
    /// Calls.
    calls: i64,
    /// What they cost, in dollars. What is not known counts in full.
    #[schema(value_type = f64)]
    cost_usd: Usd,
    /// The part of the cost that is not known.
    #[schema(value_type = f64)]
    unknown_usd: Usd,
    /// What is held for calls under way.
    #[schema(value_type = f64)]
    held_usd: Usd,
    /// Input that no cache had.
    input_tokens: i64,
    /// Input from a cache.
    cache_read_tokens: i64,
    /// Input that was written into a cache.
    cache_write_tokens: i64,
    /// Output.
    output_tokens: i64,
}

/// Sum up what model calls have cost
///
/// Those of the key's tenant. They count as soon as they are settled. A request looks at 10,000 calls, newest first, and 10,000
/// daily sums of those that are no longer kept. If there are more, `next` leads to the sums of the others, and all answers
/// together are the sums of the days asked for.
#[utoipa::path(
    get,
    path = "/v1/spend",
    tag = "spend",
    params(Summed),
    responses(
        (status = 200, description = "The sums", body = Spend),
        (status = 422, description = "A parameter is unknown or wrong", body = Problem),
    )
)]
async fn read_spend(
    door: Shared,
    principal: Principal,
    RawQuery(given): RawQuery,
) -> Result<Json<Spend>, Problem> {
    principal.needs(Scope::Read)?;
    let query = Query::parse(given.as_deref())?;
    let by = columns(query.all::<String>("by")?)?;
    let days = match query.one("days")? {
        None => 1,
        Some(days @ 1..=MOST_DAYS) => days,
        Some(other) => {
            return Err(Problem::invalid("days", format!("got {other}, expected 1 to {MOST_DAYS}")));
        }
    };
    let from = query.one("cursor")?.map(|Cursor(place)| place);
    let summing = door.dispatch.store.spend_of(principal.tenant(), &by, days, from.as_ref(), ROWS);
    let SpendPage { rows, next } = principal.timeout().ask(summing).await?;
    let items = rows.into_iter().map(|row| entry(&by, row)).collect();
    Ok(Json(Spend { items, next: next.map(|place| Cursor(place).text()) }))
}

fn columns(given: Vec<String>) -> Result<Vec<SpendBy>, Problem> {
    let mut by = Vec::new();
    for name in given {
        let column = match name.as_str() {
            "day" => SpendBy::Day,
            "agent" => SpendBy::Agent,
            "user" => SpendBy::User,
            "model" => SpendBy::Model,
            "job" => SpendBy::Job,
            _ => {
                let got = job::shown(&name);
                let expected = "expected day, agent, user, model or job, with commas between them";
                return Err(Problem::invalid("by", format!("got \"{got}\", {expected}")));
            }
        };
        if by.contains(&column) {
            return Err(Problem::invalid("by", format!("got \"{name}\" twice, expected each once")));
        }
        by.push(column);
    }
    Ok(if by.is_empty() { vec![SpendBy::Day] } else { by })
}

fn entry(by: &[SpendBy], row: SpendRow) -> SpendEntry {
    let usd = |micros: i64| Usd::from_micros(micros.max(0).unsigned_abs());
    let mut entry = SpendEntry {
        calls: row.calls,
        cost_usd: usd(row.cost_microusd),
        unknown_usd: usd(row.unknown_microusd),
        held_usd: usd(row.held_microusd),
        input_tokens: row.input_tokens,
        cache_read_tokens: row.cache_read_tokens,
        cache_write_tokens: row.cache_write_tokens,
        output_tokens: row.output_tokens,
        ..SpendEntry::default()
    };
    for (by, of) in by.iter().zip(row.of) {
        let field = match by {
            SpendBy::Day => &mut entry.day,
            SpendBy::Agent => &mut entry.agent_id,
            SpendBy::User => &mut entry.user_id,
            SpendBy::Model => &mut entry.model,
            SpendBy::Job => &mut entry.job_id,
            // It is the key's.
            SpendBy::Tenant => continue,
        };
        *field = Some(of);
    }
    entry
}
