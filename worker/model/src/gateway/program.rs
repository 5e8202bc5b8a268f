//! The program's end of an answer.

use std::future::pending;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// The program's end of a stream.
pub(super) struct Program {
    events: mpsc::Sender<io::Result<Bytes>>,
    gone_since: Option<Instant>,
}

impl Program {
    pub fn new(events: mpsc::Sender<io::Result<Bytes>>) -> Program {
        Program { events, gone_since: None }
    }

    pub async fn pass(&mut self, bytes: Bytes) {
        if !bytes.is_empty() && self.gone_since.is_none() && self.events.send(Ok(bytes)).await.is_err() {
            self.gone_since = Some(Instant::now());
        }
    }

    /// Ends the program's connection in a way that no client takes for the end of an answer.
    pub async fn cut(&mut self, why: &str) {
        let _gone = self.events.send(Err(io::Error::other(why.to_owned()))).await;
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
