//! A client that costs little, because it shares the machine with what is measured: requests are made once as bytes, and
//! of an answer only its status, its length and its body are read.

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tests::Authority;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::door::Door;

/// A connection that is kept.
pub struct Connection {
    stream: Either<TcpStream, TlsStream<TcpStream>>,
    read: Vec<u8>,
}

/// What was answered.
pub struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// A request with a job.
pub fn post(door: &Door, job: &str) -> Vec<u8> {
    request(door, "/v1/jobs", "application/json", job)
}

/// A request with a batch of lines.
pub fn batch(door: &Door, lines: &str) -> Vec<u8> {
    request(door, "/v1/jobs/batch", "application/x-ndjson", lines)
}

fn request(door: &Door, path: &str, kind: &str, body: &str) -> Vec<u8> {
    let (host, length) = (door.address(), body.len());
    format!(
        "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

impl Connection {
    pub async fn open(address: &str) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(address).await.context("connecting to the API")?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream: Either::Left(stream), read: Vec::new() })
    }

    /// Opens one with TLS, to a server of this authority.
    pub async fn open_tls(address: &str, authority: &Authority) -> Connection {
        let stream = authority.connect(address, Some("http/1.1")).await;
        Connection { stream: Either::Right(stream), read: Vec::new() }
    }

    /// Sends a request and reads its answer.
    pub async fn send(&mut self, request: &[u8]) -> anyhow::Result<Answer> {
        self.write(request).await.context("sending a request")?;
        let (head, status) = self.head().await?;
        let length = header(&head, "content-length").context("an answer without a length")?;
        let length: usize = length.parse().context("a length that is no number")?;
        while self.read.len() < length {
            self.fill().await?;
        }
        let rest = self.read.split_off(length);
        Ok(Answer { status, body: std::mem::replace(&mut self.read, rest) })
    }

    /// Opens a stream of events.
    pub async fn follow(&mut self, address: &str, path: &str) -> anyhow::Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        self.write(request.as_bytes()).await.context("opening a stream")?;
        let (_, status) = self.head().await?;
        ensure!(status == 200, "{path} was answered with {status}");
        Ok(())
    }

    /// Reads more of a stream, chunk heads included. Returns all that was read and not taken out yet.
    pub async fn more(&mut self) -> anyhow::Result<&mut Vec<u8>> {
        self.fill().await?;
        Ok(&mut self.read)
    }

    /// Waits until something of a stream has come, and forgets it.
    pub async fn something(&mut self) -> anyhow::Result<()> {
        if self.read.is_empty() {
            self.fill().await?;
        }
        self.read = Vec::new();
        Ok(())
    }

    async fn write(&mut self, request: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(request).await?;
        // TLS may keep what the socket did not take at once.
        self.stream.flush().await
    }

    async fn head(&mut self) -> anyhow::Result<(String, u16)> {
        loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let rest = self.read.split_off(end + 4);
                let head = String::from_utf8(std::mem::replace(&mut self.read, rest))?;
                let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
                return Ok((head, status.context("an answer without a status")?));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        ensure!(self.stream.read_buf(&mut self.read).await? > 0, "the API has closed a connection");
        Ok(())
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        line.split_once(": ").filter(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    })
}

impl Answer {
    /// Expects that a job was accepted.
    pub fn accepted(self) -> anyhow::Result<()> {
        if self.status != 202 {
            bail!("a job was answered with {}: {}", self.status, String::from_utf8_lossy(&self.body));
        }
        Ok(())
    }

    /// The body, of a success.
    pub fn json(self) -> anyhow::Result<Value> {
        ensure!(self.status == 200, "{}: {}", self.status, String::from_utf8_lossy(&self.body));
        Ok(serde_json::from_slice(&self.body)?)
    }
}
