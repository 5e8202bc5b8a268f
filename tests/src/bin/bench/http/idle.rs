//! What streams cost while nothing happens: each follows a job of its own that waits.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tests::usage;
use tokio::net::TcpStream;

use super::client::batch;
use super::door::Door;
use super::job_of;

/// Streams that are opened at a time.
const AT_ONCE: usize = 100;
/// Streams of one connection over HTTP/2.
const PER_CONNECTION: usize = 250;
/// How long they are idle before memory is read, and while CPU time is measured.
const SETTLED: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(10);

pub struct Idle {
    before_mb: f64,
    mb: f64,
    cpu_percent: f64,
}

impl Idle {
    async fn measure(door: &Door, before_mb: f64) -> Idle {
        tokio::time::sleep(SETTLED).await;
        let (cpu, begun) = (usage::cpu_s(door.pid()), Instant::now());
        tokio::time::sleep(MEASURED).await;
        let cpu = (usage::cpu_s(door.pid()) - cpu) / begun.elapsed().as_secs_f64();
        Idle { before_mb, mb: usage::resident_mb(door.pid()), cpu_percent: cpu * 100.0 }
    }

    pub fn to_json(&self) -> Value {
        let tenth = |figure: f64| (figure * 10.0).round() / 10.0;
        json!({
            "rss_before_mb": tenth(self.before_mb), "rss_mb": tenth(self.mb), "cpu_percent": tenth(self.cpu_percent),
        })
    }
}

/// Submits jobs that wait, because no worker runs. Returns their ids.
pub async fn jobs(door: &Door, count: usize) -> anyhow::Result<Vec<String>> {
    let lines = (job_of(None) + "\n").repeat(count);
    let answer = door.caller().await?.send(&batch(door, &lines)).await?.json()?;
    let items = answer["items"].as_array().context("an answer without items")?;
    let ids: Option<Vec<String>> =
        items.iter().map(|item| item["job_id"].as_str().map(str::to_owned)).collect();
    ids.context("a job was not accepted")
}

/// Each stream on a connection of its own.
pub async fn http1(door: Door, ids: &[String]) -> anyhow::Result<Idle> {
    ready(&door).await?;
    let before = usage::resident_mb(door.pid());
    let mut streams = Vec::with_capacity(ids.len());
    for ids in ids.chunks(AT_ONCE) {
        let opening = ids.iter().map(|id| {
            let door = &door;
            async move {
                let mut connection = door.caller().await?;
                connection.follow(door.address(), &format!("/v1/jobs/{id}/events")).await?;
                connection.something().await?;
                anyhow::Ok(connection)
            }
        });
        streams.extend(try_join_all(opening).await?);
    }
    let measured = Idle::measure(&door, before).await;
    drop(streams);
    Ok(measured)
}

/// Many streams on each connection.
pub async fn http2(database: &str, ids: &[String]) -> anyhow::Result<Idle> {
    let door = Door::start(database).await?;
    ready(&door).await?;
    let before = usage::resident_mb(door.pid());
    let mut streams = Vec::with_capacity(ids.len());
    for ids in ids.chunks(PER_CONNECTION) {
        let stream = TcpStream::connect(door.address()).await?;
        let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = handshake.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        for ids in ids.chunks(AT_ONCE) {
            let opening = ids.iter().map(|id| {
                let (mut sender, address) = (sender.clone(), door.address());
                async move {
                    let request = http::Request::get(format!("http://{address}/v1/jobs/{id}/events"));
                    let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
                    ensure!(answer.status() == 200, "a stream was answered with {}", answer.status());
                    let mut body = answer.into_body();
                    body.frame().await.context("a stream that ends at once")??;
                    anyhow::Ok((sender, body))
                }
            });
            streams.extend(try_join_all(opening).await?);
        }
    }
    let measured = Idle::measure(&door, before).await;
    drop(streams);
    Ok(measured)
}

/// Waits until it answers from Postgres.
async fn ready(door: &Door) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let job = super::client::post(door, &job_of(None));
    while door.caller().await?.send(&job).await?.accepted().is_err() {
        ensure!(Instant::now() < deadline, "`producer serve` has no Postgres");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
