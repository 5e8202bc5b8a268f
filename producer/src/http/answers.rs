//! How many bytes of answers wait to be taken. A client that reads slowly, or over HTTP/2 nothing at all, leaves its
//! answers in memory for as long as its connection lasts. So there is a bound for all tenants and one for each. What is
//! answered without a look at a key, such as the pages of `/docs`, counts for the caller's address, and for a part that all
//! addresses share: however many they are, tenants have their room.
//!
//! A question that changes nothing is refused when its answer has no room. Any other is refused before it is looked at, while
//! its tenant is at its bound. The answer of one that was begun is given in any case, because it says what was done, and
//! counts as far as there is room. Streams of events have bounds of their own.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use job::Tenant;

use super::Door;
use super::bodies::{Sender, SharedBytes};
use super::problem::{Kind, Problem};
use super::shares::{Full, Share};

/// An answer of at most so many bytes does not count: its request takes as much.
const SMALL: u64 = 4 << 10;
/// How much of an answer the connection is given at a time. What it has is not ours any more.
const PIECE: usize = 32 << 10;
/// When a caller is asked to come back.
const AGAIN: Duration = Duration::from_secs(2);

/// The answers that wait to be taken.
pub struct Answers(SharedBytes);

impl Answers {
    /// So many bytes in all.
    pub fn new(most: usize) -> Answers {
        Answers(SharedBytes::new(most))
    }

    /// Refuses a tenant that is at its bound.
    pub fn room(&self, tenant: &Tenant) -> Result<(), Problem> {
        let sender = Sender::Tenant(tenant.clone());
        let shares = self.0.of(Some(&sender));
        match shares.left(&sender) {
            Some(0) => Err(refused(Full::One(shares.most_of_one()))),
            _ => Ok(()),
        }
    }

    fn begin(&self, sender: Option<&Sender>, bytes: u64) -> Result<Share<Sender>, Problem> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.0.of(sender).take(sender, bytes).map_err(refused)
    }

    /// As much as there is room for.
    fn begin_in_any_case(&self, sender: Option<&Sender>) -> Share<Sender> {
        self.0.of(sender).take_what_is_left(sender, usize::MAX)
    }
}

fn refused(full: Full) -> Problem {
    let one = |most| format!("answers of {most} bytes wait for this caller to take them");
    let all = |most| format!("answers of {most} bytes wait for callers to take them");
    full.problem("answers", Kind::TooManyAnswers, (one, all)).retry_after(AGAIN)
}

/// A request carries this: the look at its key notes the tenant.
#[derive(Clone, Default)]
pub struct Asker(Arc<OnceLock<Tenant>>);

impl Asker {
    /// Notes on whose behalf the request asks.
    pub fn is(&self, tenant: &Tenant) {
        self.0.get_or_init(|| tenant.clone());
    }
}

/// Counts an answer until it is taken.
pub async fn count(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let asker = Asker::default();
    parts.extensions.insert(asker.clone());
    let (address, changes_nothing) = (door.proxies.of(&parts), parts.method == Method::GET);
    let response = next.run(Request::from_parts(parts, body)).await;
    let Some(bytes) = response.body().size_hint().exact().filter(|bytes| *bytes > SMALL) else {
        return response;
    };
    let sender = asker.0.get().cloned().map(Sender::Tenant).or_else(|| address.map(Sender::at));
    let share = match door.answers.begin(sender.as_ref(), bytes) {
        Ok(share) => share,
        Err(problem) if changes_nothing => return problem.into_response(),
        Err(_) => door.answers.begin_in_any_case(sender.as_ref()),
    };
    response.map(|body| Body::new(Counted { body, piece: Bytes::new(), _share: share }))
}

/// An answer that is handed over in pieces, and counts until the last one is.
struct Counted {
    body: Body,
    piece: Bytes,
    _share: Share<Sender>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        while self.piece.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)).transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => self.piece = data,
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
                None => return Poll::Ready(None),
            }
        }
        let bytes = self.piece.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.piece.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.piece.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.body.size_hint().exact();
        rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(rest + self.piece.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn an_answer_comes_in_pieces_with_its_length_and_counts_until_the_last_one() {
        let answers = Answers::new(1 << 20);
        let sender = Sender::Tenant(Tenant::default());
        let text = Bytes::from(vec![b'x'; 2 * PIECE + 7]);
        let share = answers.begin(Some(&sender), 1 << 30).expect("room");
        let mut body = Counted { body: Body::from(text.clone()), piece: Bytes::new(), _share: share };
        assert!(answers.room(&Tenant::default()).is_err() && answers.begin(Some(&sender), 1).is_err());
        let mut got = Vec::new();
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some((text.len() - got.len()) as u64));
            let frame = body.frame().await.expect("a frame").expect("no error");
            let data = frame.into_data().expect("data");
            assert!(data.len() <= PIECE);
            got.extend_from_slice(&data);
        }
        assert_eq!(got, text);
        assert!(body.frame().await.is_none());
        drop(body);
        assert!(answers.room(&Tenant::default()).is_ok() && answers.begin(Some(&sender), 1).is_ok());
    }
}
