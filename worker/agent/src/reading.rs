//! Reads an answer as it comes. Where the meter offers it before its end is seen, it is taken into the session.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use harness::{Offer, Run, Taken};
use model::Frames;
use reqwest::Response;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::answer::NoAnswer;
use crate::ask::{Asked, Take};
use crate::fault::Fault;
use crate::wire::{Assembly, Wire};

/// How long the last event of an answer that is in the session is waited for, so that its connection can be used again.
const CLOSING: Duration = Duration::from_secs(1);

/// How an answer is taken into the session.
pub(crate) struct Taking<'a> {
    pub take: &'a Take<'a>,
    pub offered: Option<oneshot::Receiver<Offer>>,
    /// Set while what is added to the session is on its way into the ledger.
    pub is_taking: &'a AtomicBool,
}

impl Taking<'_> {
    /// Returns the offer, once there is one.
    async fn offer(&mut self) -> Offer {
        if let Some(offered) = &mut self.offered {
            let offer = offered.await;
            self.offered = None;
            if let Ok(offer) = offer {
                return offer;
            }
        }
        std::future::pending().await
    }

    /// Takes an answer. If it is not written, the meter stores it.
    async fn take(&self, offer: Offer, asked: &mut Asked) -> Result<(), Fault> {
        let Some((prepared, added)) = (self.take)(asked, offer.usage) else { return Ok(()) };
        let (durable, is_durable) = oneshot::channel();
        let taken = Taken { delta: prepared.delta().clone(), durable };
        self.is_taking.store(true, Ordering::Relaxed);
        let written = match offer.taken.send(taken) {
            Ok(()) => is_durable.await.ok(),
            Err(_) => None,
        };
        self.is_taking.store(false, Ordering::Relaxed);
        match written {
            Some(Ok(())) => asked.written = Some((prepared, added)),
            Some(Err(stop)) => return Err(Fault::Stopped(stop)),
            None => {}
        }
        Ok(())
    }
}

/// An answer that is being read.
pub(crate) struct Reading<'a> {
    pub wire: Wire,
    pub run: &'a Run,
    pub begun: Instant,
    /// Whether its text is shown to those who follow the job.
    pub is_shown: bool,
    /// Counts the characters of it that were shown.
    pub streamed: &'a mut usize,
}

/// How far it is read.
struct Progress<'a> {
    run: &'a Run,
    begun: Instant,
    is_shown: bool,
    streamed: &'a mut usize,
    headers: HeaderMap,
    frames: Frames,
    assembly: Assembly,
    first_token: Option<Duration>,
    /// Bytes so far.
    read: usize,
}

impl Reading<'_> {
    /// Reads an answer to its end.
    pub async fn answer(self, response: Response, mut taking: Option<Taking<'_>>) -> Result<Asked, Fault> {
        let Reading { wire, run, begun, is_shown, streamed } = self;
        let (status, headers) = (response.status(), response.headers().clone());
        if !status.is_success() {
            let body = response.text().await.unwrap_or_default();
            return Err(Fault::refusal(status.as_u16(), &body, retry_after(&headers)));
        }
        let (frames, assembly) = (Frames::default(), wire.assembly());
        let mut progress = Progress {
            run,
            begun,
            is_shown,
            streamed,
            headers,
            frames,
            assembly,
            first_token: None,
            read: 0,
        };
        let (mut chunks, mut offer) = (response.bytes_stream(), None::<Offer>);
        // What follows the end says nothing, and the connection may stay open.
        while !progress.assembly.has_ended() {
            if let Some(offer) = offer.take_if(|offer| offer.passed <= progress.read) {
                let rest = offer.last.get(progress.read - offer.passed..).unwrap_or_default();
                let missing = rest.len();
                progress.push(rest)?;
                let mut asked = progress.asked()?;
                if let Some(taking) = &taking {
                    taking.take(offer, &mut asked).await?;
                }
                if asked.written.is_none() {
                    pass(chunks, missing).await?;
                } else {
                    // Nobody waits for it: the answer is in the session.
                    tokio::spawn(timeout(CLOSING, pass(chunks, missing)));
                }
                return Ok(asked);
            }
            let offered = async {
                match &mut taking {
                    Some(taking) => taking.offer().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                chunk = chunks.next() => match chunk {
                    Some(chunk) => progress.push(&chunk.map_err(broken)?)?,
                    None => break,
                },
                offered = offered => offer = Some(offered),
            }
        }
        progress.asked()
    }
}

impl Progress<'_> {
    fn has(&self, header: &str) -> bool {
        self.headers.contains_key(header)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.read += bytes.len();
        self.frames.push(bytes).map_err(NoAnswer::garbage)?;
        while let Some(frame) = self.frames.take() {
            let data = frame.data();
            if data.is_empty() {
                continue;
            }
            if let Some(text) = self.assembly.event(&data)? {
                self.first_token.get_or_insert_with(|| self.begun.elapsed());
                // Who follows the job has seen what an earlier attempt was answered.
                if self.is_shown && !self.has(REPLAYED) {
                    *self.streamed += text.chars().count();
                    self.run.text(&text);
                }
            }
        }
        Ok(())
    }

    fn asked(self) -> Result<Asked, Fault> {
        let instead = self.headers.get("x-harness-model").and_then(|name| name.to_str().ok());
        Ok(Asked {
            is_replayed: self.has(REPLAYED),
            is_cached: self.has("x-harness-cached"),
            instead: instead.map(str::to_owned),
            first_token: self.first_token,
            written: None,
            answer: self.assembly.finish()?,
        })
    }
}

const REPLAYED: &str = "x-harness-replayed";

/// Waits until so many bytes have come: the gateway passes the last event once the answer is in the ledger.
async fn pass(
    mut chunks: impl Stream<Item = reqwest::Result<Bytes>> + Unpin,
    mut missing: usize,
) -> Result<(), Fault> {
    while missing > 0 {
        let chunk = chunks.next().await.ok_or(NoAnswer::NoEnd)?;
        missing = missing.saturating_sub(chunk.map_err(broken)?.len());
    }
    Ok(())
}

pub(crate) fn broken(error: reqwest::Error) -> Fault {
    Fault::Broken(http_client::cause(&error))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}
