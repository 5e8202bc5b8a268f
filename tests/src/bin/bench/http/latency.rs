//! How long things take, and how long after its end a job's end is seen.
//!
//! The time of an end is the time at which its transaction began, by Postgres's clock, which is this machine's. So the
//! figure includes the commit.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use futures::future::try_join_all;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::Connection;
use super::door::Door;

/// How long the last end may take.
const LAST_WITHIN: Duration = Duration::from_secs(10);

/// Times.
#[derive(Default)]
pub struct Latencies(Vec<f64>);

impl Latencies {
    pub fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    pub fn all(parts: Vec<Latencies>) -> Latencies {
        let mut all: Vec<f64> = parts.into_iter().flat_map(|part| part.0).collect();
        all.sort_by(f64::total_cmp);
        Latencies(all)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A quantile of those that were put together with [`Latencies::all`].
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        let at = ((self.0.len() as f64 - 1.0) * quantile).round() as usize;
        (self.0.get(at).copied().unwrap_or(f64::NAN) * 10.0).round() / 10.0
    }
}

/// Streams under way.
pub struct Following {
    ends: mpsc::UnboundedReceiver<f64>,
    _streams: JoinSet<anyhow::Result<()>>,
}

/// Follows sessions, from when all their jobs have ended.
pub async fn follow(door: &Door, sessions: &[String]) -> anyhow::Result<Following> {
    let (sender, ends) = mpsc::unbounded_channel();
    let opening = sessions.iter().map(|session| async move {
        let mut connection = door.caller().await?;
        connection.follow(door.address(), &format!("/v1/sessions/{session}/events")).await?;
        anyhow::Ok(connection)
    });
    let mut streams = JoinSet::new();
    for connection in try_join_all(opening).await? {
        streams.spawn(read(connection, sender.clone()));
    }
    Ok(Following { ends, _streams: streams })
}

#[derive(Deserialize)]
struct End {
    /// RFC 3339.
    finished_at: String,
}

async fn read(mut connection: Connection, ends: mpsc::UnboundedSender<f64>) -> anyhow::Result<()> {
    loop {
        let read = connection.more().await?;
        let now = SystemTime::now();
        // Events end with an empty line. A chunk's head is a line of its own, and never begins like a field.
        let Some(whole) = read.windows(2).rposition(|bytes| bytes == b"\n\n") else { continue };
        let rest = read.split_off(whole + 2);
        let text = String::from_utf8_lossy(&std::mem::replace(read, rest)).into_owned();
        for event in text.split("\n\n").filter(|event| event.contains("event: end")) {
            let data =
                event.lines().find_map(|line| line.strip_prefix("data: ")).context("an end without data")?;
            let End { finished_at } = serde_json::from_str(data)?;
            let ended = humantime::parse_rfc3339(&finished_at)?;
            let _ = ends.send(now.duration_since(ended).unwrap_or_default().as_secs_f64() * 1e3);
        }
    }
}

impl Following {
    /// Waits until so many ends were seen.
    pub async fn finish(mut self, count: usize) -> anyhow::Result<Latencies> {
        let mut seen = Vec::with_capacity(count);
        while seen.len() < count {
            let end = timeout(LAST_WITHIN, self.ends.recv()).await;
            let end = end.with_context(|| format!("only {} of {count} ends were seen", seen.len()))?;
            seen.push(end.context("the streams ended")?);
        }
        Ok(Latencies::all(vec![Latencies(seen)]))
    }
}
