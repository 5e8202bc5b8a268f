//! The program's end of an answer.

use std::future::pending;
use std::io;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;

/// Events that may wait for the program; beyond them the provider waits.
const WAITING_EVENTS: usize = 16;

/// The program's end of a stream.
pub(super) struct Program {
    events: mpsc::Sender<io::Result<Bytes>>,
    /// The room for the last word, so that it can be said to a program that reads nothing.
    last: Option<OwnedPermit<io::Result<Bytes>>>,
    gone_since: Option<Instant>,
    patience: Duration,
}

impl Program {
    /// Begins an answer. A program that leaves it unread for longer than `patience` counts as gone: what it was sent is held,
    /// and its place at the provider is taken, for as long as its answer lasts.
    pub fn begin(patience: Duration) -> (Program, Body) {
        let (events, passed) = mpsc::channel::<io::Result<Bytes>>(WAITING_EVENTS + 1);
        let last = events.clone().try_reserve_owned().ok();
        let patience = patience.max(Duration::from_secs(1));
        (Program { events, last, gone_since: None, patience }, Body::from_stream(ReceiverStream::new(passed)))
    }

    pub async fn pass(&mut self, bytes: Bytes) {
        if bytes.is_empty() || self.gone_since.is_some() {
            return;
        }
        match timeout(self.patience, self.events.send(Ok(bytes))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => self.gone_since = Some(Instant::now()),
            Err(_) => {
                self.gone_since = Some(Instant::now());
                self.cut("the answer was not read");
            }
        }
    }

    /// Ends the program's connection in a way that no client takes for the end of an answer.
    pub fn cut(&mut self, why: &str) {
        if let Some(last) = self.last.take() {
            last.send(Err(io::Error::other(why.to_owned())));
        }
    }

    /// Returns when the program has been gone for as long as its answer is read on.
    pub async fn given_up(&mut self, drain: Duration) {
        if self.gone_since.is_none() {
            self.events.closed().await;
            self.gone_since = Some(Instant::now());
        }
        match self.gone_since {
            Some(gone) => sleep_until(gone + drain).await,
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_reads_nothing_counts_as_gone_and_its_answer_ends_in_an_error() {
        let (mut program, body) = Program::begin(Duration::ZERO);
        for number in 0..100 {
            program.pass(Bytes::from(format!("{number} "))).await;
        }
        assert!(program.gone_since.is_some());
        program.given_up(Duration::ZERO).await;
        program.cut("it is over");
        drop(program);
        assert!(axum::body::to_bytes(body, usize::MAX).await.is_err());
    }

    #[tokio::test]
    async fn one_that_reads_gets_all_and_the_end_as_it_is() {
        let (mut program, body) = Program::begin(Duration::from_secs(60));
        let read = tokio::spawn(axum::body::to_bytes(body, usize::MAX));
        for _ in 0..100 {
            program.pass(Bytes::from_static(b"x")).await;
        }
        assert!(program.gone_since.is_none());
        drop(program);
        assert_eq!(read.await.expect("joined").expect("whole").len(), 100);
    }
}
