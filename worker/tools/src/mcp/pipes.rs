//! A server over its stdin and stdout, one JSON message a line, in a process group of ours.
//!
//! `rmcp` has such a transport as well, but its processes outlive a worker that is killed, it drops a line that is too
//! long or holds half a character, and then no answer ever comes. Here such an answer becomes an error at once.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use process::{Group, Stderr};
use rmcp::RoleClient;
use rmcp::model::{ErrorCode, ErrorData, RequestId, ServerJsonRpcMessage};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::arguments;
use crate::last_words;
use crate::text;

/// The longest line.
const LINE_BYTES: usize = 16 * 1024 * 1024;
/// What is kept of the ends of a longer one, to find whose answer it is.
const ENDS_BYTES: usize = 512;
/// The most that a server may write without answering anything.
const FLOOD_BYTES: u64 = 64 * 1024 * 1024;
/// The most that it may ask meanwhile. Each is answered, and it may not read the answers.
const FLOOD_REQUESTS: u64 = 10_000;
/// How many messages wait for a server that does not read.
const WAITING: usize = 16;
/// How long what a dead server wrote is still read: a process that left its group may hold the pipe.
const DRAIN: Duration = Duration::from_millis(500);

/// A line for the server, and whom to tell that it is written.
type Message = (Vec<u8>, oneshot::Sender<io::Result<()>>);

/// The transport.
pub struct Pipes {
    lines: Lines,
    messages: Option<mpsc::Sender<Message>>,
    writer: AbortOnDropHandle<()>,
    /// Kills the rest of the group when the server's first process has ended.
    watcher: Option<AbortOnDropHandle<()>>,
    group: Option<Arc<Group>>,
    gone: CancellationToken,
    /// Its last words, for the message when it has failed to start.
    stderr: Arc<Mutex<Option<Stderr>>>,
    grace: Duration,
    unasked: Unasked,
}

/// What a server has written since its last answer.
#[derive(Default)]
struct Unasked {
    bytes: u64,
    requests: u64,
}

impl Pipes {
    /// Speaks with a server that was just started. `name` is its name in the log.
    pub fn new(
        mut group: Group,
        name: String,
        grace: Duration,
        last_words: Arc<Mutex<Option<Stderr>>>,
    ) -> io::Result<Pipes> {
        let (Some(stdin), Some(stdout), Some(stderr)) = group.take_pipes() else {
            return Err(io::Error::other("it has no pipes"));
        };
        let log = move |line: &str| tracing::info!(target: "harness::tools::stderr", server = name, "{line}");
        let stderr = Stderr::keep(stderr, last_words::LINES, last_words::LINE_BYTES, log);
        *last_words.lock().unwrap_or_else(PoisonError::into_inner) = Some(stderr);
        let (messages, waiting) = mpsc::channel(WAITING);
        let writer = AbortOnDropHandle::new(tokio::spawn(write(stdin, waiting)));
        let (group, gone) = (Arc::new(group), CancellationToken::new());
        let (watched, is_gone) = (group.clone(), gone.clone());
        let watcher = AbortOnDropHandle::new(tokio::spawn(async move {
            watched.exited().await;
            watched.kill();
            sleep(DRAIN).await;
            is_gone.cancel();
        }));
        Ok(Pipes {
            lines: Lines::new(stdout),
            messages: Some(messages),
            writer,
            watcher: Some(watcher),
            group: Some(group),
            gone,
            stderr: last_words,
            grace,
            unasked: Unasked::default(),
        })
    }

    /// Returns its group, as long as it lives.
    pub fn group(&self) -> Weak<Group> {
        self.group.as_ref().map(Arc::downgrade).unwrap_or_default()
    }
}

/// Writes one message after the other, each as a whole: a request that is given up leaves no part of a line.
async fn write(mut stdin: ChildStdin, mut waiting: mpsc::Receiver<Message>) {
    while let Some((line, written)) = waiting.recv().await {
        let done = stdin.write_all(&line).await;
        let broken = done.is_err();
        let _ = written.send(done);
        if broken {
            return;
        }
    }
}

impl Transport<RoleClient> for Pipes {
    type Error = io::Error;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let messages = self.messages.clone();
        let line = arguments::line(&message);
        async move {
            let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
            let (written, done) = oneshot::channel();
            messages.ok_or_else(closed)?.send((line?, written)).await.map_err(|_| closed())?;
            done.await.map_err(|_| closed())?
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let line = tokio::select! {
                biased;
                line = self.lines.next() => line?,
                () = self.gone.cancelled() => return None,
            };
            self.unasked.bytes += line.bytes;
            let message = line.message();
            match message {
                Some(ServerJsonRpcMessage::Response(_) | ServerJsonRpcMessage::Error(_)) => {
                    self.unasked = Unasked::default();
                }
                Some(ServerJsonRpcMessage::Request(_)) => self.unasked.requests += 1,
                _ => {}
            }
            if self.unasked.bytes > FLOOD_BYTES || self.unasked.requests > FLOOD_REQUESTS {
                tracing::warn!("an MCP server wrote too much that nobody asked for; it is ended");
                return None;
            }
            if message.is_some() {
                return message;
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        // A server ends when its stdin is closed.
        self.messages = None;
        self.writer.abort();
        let Some(group) = self.group.take() else { return Ok(()) };
        let ended = timeout(self.grace, async {
            // It may wait for its last words to be read.
            tokio::join!(group.exited(), self.lines.discard());
        });
        if ended.await.is_err() {
            group.terminate();
            let _ = timeout(self.grace, group.exited()).await;
        }
        group.kill();
        drop(self.watcher.take());
        // The watcher lets go of the group in a moment; then it is reaped.
        for _ in 0..100 {
            if Arc::strong_count(&group) == 1 {
                break;
            }
            tokio::task::yield_now().await;
        }
        if let Some(group) = Arc::into_inner(group) {
            group.end().await;
        }
        let stderr = self.stderr.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stderr) = stderr {
            stderr.tail().await;
        }
        Ok(())
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        if let Some(group) = &self.group {
            group.kill();
        }
    }
}

/// Lines of at most so many bytes.
struct Lines {
    pipe: BufReader<ChildStdout>,
    line: Line,
}

/// A line, or its ends.
#[derive(Default)]
struct Line {
    start: Vec<u8>,
    /// The end of a line that is too long.
    end: VecDeque<u8>,
    bytes: u64,
}

impl Lines {
    fn new(stdout: ChildStdout) -> Lines {
        Lines { pipe: BufReader::with_capacity(64 * 1024, stdout), line: Line::default() }
    }

    /// Returns the next line; `None` at the end. What was read is kept if the future is dropped.
    async fn next(&mut self) -> Option<Line> {
        loop {
            let chunk = self.pipe.fill_buf().await.ok()?;
            if chunk.is_empty() {
                return None;
            }
            let newline = chunk.iter().position(|byte| *byte == b'\n');
            let used = newline.map_or(chunk.len(), |at| at + 1);
            self.line.push(&chunk[..used]);
            self.pipe.consume(used);
            if newline.is_some() {
                return Some(std::mem::take(&mut self.line));
            }
            if self.line.bytes > FLOOD_BYTES {
                return None;
            }
        }
    }

    /// Reads to the end.
    async fn discard(&mut self) {
        while let Ok(chunk) = self.pipe.fill_buf().await {
            if chunk.is_empty() {
                return;
            }
            let used = chunk.len();
            self.pipe.consume(used);
        }
    }
}

impl Line {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.end.is_empty() && self.start.len() + bytes.len() <= LINE_BYTES {
            self.start.extend_from_slice(bytes);
            return;
        }
        self.start.truncate(ENDS_BYTES);
        self.start.shrink_to_fit();
        self.end.extend(&bytes[bytes.len().saturating_sub(ENDS_BYTES)..]);
        self.end.drain(..self.end.len().saturating_sub(ENDS_BYTES));
    }

    /// Returns the message. What cannot be read but is the answer to a request becomes an error of that request; all
    /// else is no message.
    fn message(self) -> Option<ServerJsonRpcMessage> {
        let problem = if self.end.is_empty() {
            let text = String::from_utf8_lossy(&self.start);
            let text = text::mend_surrogates(text.trim());
            match serde_json::from_str(&text) {
                Ok(message) => return Some(message),
                Err(_) if text.is_empty() => return None,
                Err(error) => format!("the server's answer cannot be read: {error}"),
            }
        } else {
            format!("the server's answer has {} bytes, more than {LINE_BYTES}", self.bytes)
        };
        let end: Vec<u8> = self.end.into_iter().collect();
        let Some(id) = answered(&self.start, &end) else {
            tracing::debug!(bytes = self.bytes, "an MCP server wrote a line that is no message");
            return None;
        };
        let error = ErrorData::new(ErrorCode::INTERNAL_ERROR, problem, None);
        Some(ServerJsonRpcMessage::error(error, Some(id)))
    }
}

/// Returns which request a line answers: the number that stands as `"id"` next to the braces of the whole. A request's
/// id is always a number here.
fn answered(start: &[u8], end: &[u8]) -> Option<RequestId> {
    let is_message = start.trim_ascii_start().starts_with(b"{");
    let head = String::from_utf8_lossy(&start[..start.len().min(ENDS_BYTES)]).into_owned();
    let last = if end.is_empty() { &start[start.len().saturating_sub(ENDS_BYTES)..] } else { end };
    let last = String::from_utf8_lossy(last).into_owned();
    if !is_message || head.contains("\"method\"") {
        return None;
    }
    let number = |text: &str| {
        let text = text.trim_start().strip_prefix(':')?.trim_start();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        text[..digits].parse().ok().map(RequestId::Number)
    };
    // Before the result: {"jsonrpc":"2.0","id":7,"result":…
    let before = head.find("\"result\"").or_else(|| head.find("\"error\"")).map(|at| &head[..at]);
    let first = before.and_then(|before| number(before.split("\"id\"").nth(1)?));
    // After it: …,"id":7}
    first.or_else(|| number(last.rsplit("\"id\"").next().filter(|rest| rest.len() < last.len())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        let mut line = Line::default();
        for piece in text.as_bytes().chunks(64 * 1024) {
            line.push(piece);
        }
        line
    }

    fn error_of(text: &str) -> Option<(RequestId, String)> {
        match line(text).message() {
            Some(ServerJsonRpcMessage::Error(error)) => Some((error.id?, error.error.message.into_owned())),
            Some(other) => panic!("{other:?}"),
            None => None,
        }
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_an_error_of_its_request() {
        let long = "x".repeat(LINE_BYTES);
        for text in [
            format!(r#"{{"jsonrpc":"2.0","id":7,"result":{{"content":"{long}"}}}}"#),
            format!(r#"{{"result":{{"id":3,"content":"{long}"}},"jsonrpc":"2.0","id":7}}"#),
        ] {
            let (id, said) = error_of(&text).unwrap();
            assert!(id == RequestId::Number(7) && said.contains("more than 16777216"), "{said}");
        }
        let deep = format!(r#"{{"id":7,"result":{}{}}}"#, "[".repeat(200), "]".repeat(200));
        assert_eq!(error_of(&deep).unwrap().0, RequestId::Number(7));
        for nothing in
            ["Listening on 8080", "", "{", "[1]", r#"{"jsonrpc":"2.0","method":"x","id":7,"params":"#]
        {
            assert_eq!(error_of(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn half_a_character_is_mended() {
        let text = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"a\ud800b"}]}}"#;
        assert!(matches!(line(text).message(), Some(ServerJsonRpcMessage::Response(_))));
        let mut bytes = line(r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"a"#);
        bytes.push(b"\xc3\"}]}}\n");
        assert!(matches!(bytes.message(), Some(ServerJsonRpcMessage::Response(_))));
    }
}
