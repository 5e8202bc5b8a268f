//! What a refused caller is still sending. A connection that is closed while bytes arrive is reset, and the caller may
//! lose the answer. So what a route leaves unread is read for a moment more, and thrown away.

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::EXPECT;
use futures::{Stream, StreamExt};
use tokio::time::timeout;

/// So long it is read on.
const FOR: Duration = Duration::from_secs(1);
/// At most so many bytes are thrown away.
const MOST: usize = 8 << 20;

/// A body whose rest is read and thrown away when it is dropped.
struct ReadOn {
    body: BodyDataStream,
    ended: bool,
}

/// The same body; what its route leaves unread is read for up to a second, up to 8 MiB. A caller that waits until it is
/// asked for its body has sent nothing, so nothing is read on.
pub fn read_on(headers: &HeaderMap, body: Body) -> Body {
    if headers.contains_key(EXPECT) || body.is_end_stream() {
        return body;
    }
    Body::from_stream(ReadOn { body: body.into_data_stream(), ended: false })
}

impl Stream for ReadOn {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let part = ready!(self.body.poll_next_unpin(context));
        self.ended = !matches!(part, Some(Ok(_)));
        Poll::Ready(part)
    }
}

impl Drop for ReadOn {
    fn drop(&mut self) {
        if !self.ended {
            let rest = mem::replace(&mut self.body, Body::empty().into_data_stream());
            tokio::spawn(timeout(FOR, discard(rest)));
        }
    }
}

async fn discard(mut body: BodyDataStream) {
    let mut left = MOST;
    while let Some(Ok(part)) = body.next().await {
        let Some(rest) = left.checked_sub(part.len()) else { return };
        left = rest;
    }
}
