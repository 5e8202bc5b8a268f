//! Reading what a caller sends: of the right media type, within a size, within a time.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use job::shown;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout};

use super::Door;
use super::auth::Principal;
use super::problem::{Kind, Problem};
use super::unread::read_on;

/// A body of at most so many bytes is small.
const SMALL: u64 = 64 << 10;
/// How long a body may take to arrive.
pub const ARRIVES_WITHIN: Duration = Duration::from_secs(30);

/// The media type of a body, without its parameters, in lower case.
pub fn media_type(headers: &HeaderMap) -> String {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Refuses a body of another media type.
fn expect_json(headers: &HeaderMap) -> Result<(), Problem> {
    match media_type(headers).as_str() {
        "application/json" => Ok(()),
        given => Err(other_media_type(given, "application/json")),
    }
}

/// The answer to another media type than these.
pub fn other_media_type(given: &str, expected: &str) -> Problem {
    let got = if given.is_empty() { "none".to_owned() } else { format!("\"{}\"", shown(given)) };
    let detail = format!("got {got}, expected {expected}");
    Problem::new(Kind::UnsupportedMediaType, detail).at("content-type")
}

/// Reads a small body before its route sees the request, so that no refusal leaves it unread. Of a larger one the rest is
/// read on, and so is that of a small one where bodies whose senders are not known yet have no room: its route looks at
/// the key first.
pub async fn arrive(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = read_on(&parts.headers, body);
    let room = match announced(&parts.headers) {
        Some(bytes @ 1..=SMALL) => door.bodies.begin_early(door.proxies.of(&parts), bytes as usize),
        _ => None,
    };
    let body = match room {
        Some(_room) => match whole(body, SMALL as usize).await {
            Ok(bytes) => Body::from(bytes),
            Err(problem) => return problem.into_response(),
        },
        None => body,
    };
    next.run(Request::from_parts(parts, body)).await
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// A whole body of at most so many bytes.
async fn whole(body: Body, most: usize) -> Result<Bytes, Problem> {
    match timeout(ARRIVES_WITHIN, to_bytes(body, most)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if error.source().is_some_and(<dyn Error>::is::<LengthLimitError>) => {
            Err(too_large(most))
        }
        Ok(Err(_)) => Err(Problem::new(Kind::Malformed, "the body did not arrive whole").at("body")),
        Err(_) => Err(too_slow(ARRIVES_WITHIN)),
    }
}

/// Takes apart a request whose body is JSON of at most so many bytes. The time in which the body arrives does not count
/// against what is asked of the ledger; the key must not have been revoked in it.
pub async fn receive(
    door: &Door,
    principal: &mut Principal,
    request: Request,
    most: usize,
) -> Result<(Parts, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    expect_json(&parts.headers)?;
    let announced =
        announced(&parts.headers).map_or(most, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if announced > most {
        return Err(too_large(most));
    }
    let arriving = Instant::now();
    let body = {
        let _room = door.bodies.begin(principal.tenant(), announced)?;
        whole(body, most).await?
    };
    principal.waited(arriving.elapsed());
    principal.still_counts(&door.keys, principal.timeout()).await?;
    Ok((parts, body))
}

/// Reads the fields of a body of at most so many bytes.
pub async fn read_json<T: DeserializeOwned>(
    door: &Door,
    principal: &mut Principal,
    request: Request,
    most: usize,
) -> Result<T, Problem> {
    let (_, body) = receive(door, principal, request, most).await?;
    serde_json::from_str(json_text(&body)?).map_err(|error| {
        let text = error.to_string();
        // serde names the field in the text alone.
        let named = ["unknown field `", "missing field `", "duplicate field `"];
        let named = named.iter().find_map(|kind| text.strip_prefix(kind)?.split_once('`'));
        let field = named.map_or("body", |(field, _)| field);
        Problem::invalid(shown(field), shown(&text))
    })
}

/// The text of a body, which must be JSON.
pub fn json_text(body: &[u8]) -> Result<&str, Problem> {
    let text = utf8(body)?;
    serde_json::from_str::<&RawValue>(text).map_err(|error| malformed(format!("not JSON: {error}")))?;
    Ok(text)
}

/// The text of a body.
pub fn utf8(body: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(body).map_err(|error| malformed(format!("not UTF-8: {error}")))
}

fn malformed(why: String) -> Problem {
    Problem::new(Kind::Malformed, why).at("body")
}

/// The answer to a body that is larger than this.
pub fn too_large(most: usize) -> Problem {
    Problem::new(Kind::TooLarge, format!("expected at most {most} bytes")).at("body")
}

/// The answer to a body that takes longer than this.
pub fn too_slow(within: Duration) -> Problem {
    let detail = format!("the body did not arrive within {} s", within.as_secs());
    Problem::new(Kind::TooSlow, detail).at("body")
}
