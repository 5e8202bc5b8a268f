//! Keys of a request, and the answer to one whose key is held by an earlier job.
//!
//! The answer to a job that is there already is 200 with that job, in both cases. For an idempotency key that is what
//! repeating a request means; another content under the same key is the caller's mistake (409), because it would
//! otherwise believe that the second content is at work. A unique key says that there should be one such job, and there
//! is: the caller has what it wants, and a 409 would make each of its tries an error to be sorted out. (Oban and River
//! answer alike: the job that is there, and a mark. Sidekiq answers nothing, and Stripe has idempotency keys alone.) So
//! `Found-By` and `found_by` are that mark, and contents are not compared: they may differ by a time or a reason.

use axum::http::HeaderMap;
use job::{JobId, RequestedJob};
use store::KeyKind;

use super::Door;
use super::auth::Principal;
use super::jobs::seen;
use super::ledger::Timeout;
use super::problem::{Kind, Problem};
use super::view::Job;

const HEADER: &str = "idempotency-key";

/// By what an earlier job was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    JobId,
    Key(KeyKind),
}

impl FoundBy {
    /// What has found a job of the same id. A key of the request, if it has one, is that job's or was given to it too late
    /// to be taken.
    pub fn of_known(is_idempotent: bool) -> FoundBy {
        if is_idempotent { FoundBy::Key(KeyKind::Idempotency) } else { FoundBy::JobId }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            FoundBy::JobId => "job_id",
            FoundBy::Key(KeyKind::Idempotency) => "idempotency_key",
            FoundBy::Key(KeyKind::Unique) => "unique",
        }
    }
}

/// The key in the header `Idempotency-Key`; in quotes, as a structured field has it, or without.
fn header(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all(HEADER).into_iter();
    let Some(value) = given.next() else { return Ok(None) };
    let wrong =
        |why: &str| Problem::invalid(HEADER, format!("{why}, expected 1 to 255 printable characters"));
    if given.next().is_some() {
        return Err(wrong("given twice"));
    }
    // Printable ASCII alone is a text here.
    let text = value.to_str().map_err(|_| wrong("not ASCII"))?.trim();
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    match quoted.unwrap_or(text) {
        "" => Err(wrong("empty")),
        key if key.len() > 255 || key.contains('\t') => Err(wrong("too long, or with a tab")),
        key => Ok(Some(key.to_owned())),
    }
}

/// The job with the key of its request's header.
pub fn with_header(asked: RequestedJob, headers: &HeaderMap) -> Result<RequestedJob, Problem> {
    let Some(key) = header(headers)? else { return Ok(asked) };
    if asked.idempotency_key.as_ref().is_some_and(|inner| *inner != key) {
        let detail = "another key than the one in the header Idempotency-Key, expected one of them";
        return Err(Problem::invalid("idempotency_key", detail));
    }
    Ok(RequestedJob { idempotency_key: Some(key), ..asked })
}

/// Refuses the header for a batch, because its jobs would be one.
pub fn no_header(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(HEADER) {
        let detail = "each job of a batch has a key of its own, expected it in the field idempotency_key";
        return Err(Problem::invalid(HEADER, detail));
    }
    Ok(())
}

/// Refuses another content than the `same` under a key of a request.
pub fn refuse_another(by: KeyKind, job_id: JobId, same: bool) -> Result<(), Problem> {
    if by == KeyKind::Idempotency && !same {
        let detail = format!("the key was used for the job {job_id}, whose content is another one");
        return Err(Problem::new(Kind::Conflict, detail).at("idempotency_key"));
    }
    Ok(())
}

/// The job that holds a key, for a caller who has sent the `same` or something else.
pub async fn found(
    door: &Door,
    principal: &Principal,
    by: KeyKind,
    job_id: JobId,
    same: bool,
    timeout: Timeout,
) -> Result<Job, Problem> {
    refuse_another(by, job_id, same)?;
    Ok(Job::of(seen(door, principal, job_id, timeout).await?, principal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_quotes_is_the_one_without_and_a_wrong_one_is_refused() {
        let of = |given: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in given {
                headers.append(HEADER, value.parse().expect("a header"));
            }
            header(&headers).map_err(|problem| problem.status())
        };
        assert_eq!(of(&[]), Ok(None));
        for key in ["abc", "\"abc\"", " abc "] {
            assert_eq!(of(&[key]), Ok(Some("abc".to_owned())), "{key}");
        }
        let long = "x".repeat(256);
        for wrong in [&[""][..], &["\"\""], &["a", "b"], &[&long], &["a\tb"], &["\u{e9}"]] {
            assert_eq!(of(wrong), Err(422), "{wrong:?}");
        }
    }
}
