//! Following a job: its events as they come, over connections that are renewed until its end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt, try_unfold, unfold};
use job::{JobId, JobState, Json, Usd};
use reqwest::Response;
use reqwest::header::RETRY_AFTER;
use serde::Deserialize;
use sse_stream::{Sse, SseByteStream};
use tokio::time::timeout;

use crate::client::{Client, of};
use crate::error::{Error, Problem};
use crate::tries::{Tries, is_retried, retry_after};
use crate::view::{Job, said};

/// What happens to a job.
#[derive(Clone, Debug)]
pub enum Event {
    /// It is in another state, or in another attempt.
    State(StateEvent),
    /// A checkpoint is safe in the ledger.
    Iteration(IterationEvent),
    /// The job streams text; for keys with the scope `content`.
    Text(String),
    /// The job's harness shows something else, such as a call of a tool; for keys with the scope `content`.
    Note(NoteEvent),
    /// So many iterations cannot be shown any more.
    Gap(i64),
    /// It has ended. Nothing follows.
    End(Box<Job>),
}

/// Where a job is.
#[derive(Clone, Debug, Deserialize)]
pub struct StateEvent {
    /// The job.
    pub job_id: JobId,
    /// Its state.
    pub state: JobState,
    /// Attempts spent.
    pub attempts: i32,
    /// The code of the last failure.
    pub code: Option<String>,
}

/// What a checkpoint added.
#[derive(Clone, Debug, Deserialize)]
pub struct IterationEvent {
    /// The job.
    pub job_id: JobId,
    /// Iterations it finished.
    pub iterations: i64,
    /// What they cost.
    pub cost_usd: Usd,
    /// Tokens read.
    pub input_tokens: i64,
    /// Tokens written.
    pub output_tokens: i64,
    /// What they changed in `feature_progress`, a JSON merge patch; for keys with the scope `content`.
    #[serde(default, deserialize_with = "said")]
    pub progress: Option<Json>,
    /// The size of that patch.
    pub progress_bytes: Option<u64>,
    /// The SHA-256 of that patch, in hexadecimal.
    pub progress_sha256: Option<String>,
}

/// What a job's harness shows beside its text.
#[derive(Clone, Debug, Deserialize)]
pub struct NoteEvent {
    /// What happened, in the harness's own words, such as `tool_call`.
    pub name: String,
    /// Details, in the harness's own shape.
    pub data: Json,
}

/// An event, and where to go on after it.
#[derive(Clone, Debug)]
pub struct Followed {
    /// The id of this event, or of the last one that has any: for [`Client::follow_from`].
    pub id: String,
    /// What happened.
    pub event: Event,
}

/// A stream under way.
struct Following {
    client: Client,
    job_id: JobId,
    id: String,
    lines: Option<Lines>,
    /// Whether anything came since the last failure. Comments count as well, though they are no events.
    heard: Arc<AtomicBool>,
    tries: Tries,
    /// How long the API asks to wait before the next connection.
    pause: Duration,
    over: bool,
}

type Lines = Pin<Box<SseByteStream<BoxStream<'static, reqwest::Result<Bytes>>>>>;

#[derive(Deserialize)]
struct Text {
    text: String,
}

#[derive(Deserialize)]
struct Gap {
    iterations: i64,
}

impl Client {
    /// What happens to a job, from its first iteration to its end. A connection that breaks is renewed, and goes on
    /// where it was. The job goes on when the stream is dropped.
    pub fn follow(&self, job_id: JobId) -> impl Stream<Item = Result<Followed, Error>> + use<> {
        self.follow_from(job_id, "")
    }

    /// The same, behind the event of this id.
    pub fn follow_from(
        &self,
        job_id: JobId,
        id: &str,
    ) -> impl Stream<Item = Result<Followed, Error>> + use<> {
        let tries = Tries::begin(self.api.retry_for);
        let (client, id, pause) = (self.clone(), id.to_owned(), Duration::ZERO);
        let (lines, heard) = (None, Arc::default());
        let following = Following { client, job_id, id, lines, heard, tries, pause, over: false };
        try_unfold(following, async |mut following| {
            Ok(following.next().await?.map(|followed| (followed, following)))
        })
    }
}

impl Following {
    async fn next(&mut self) -> Result<Option<Followed>, Error> {
        while !self.over {
            let Some(lines) = &mut self.lines else {
                self.connect().await?;
                continue;
            };
            match lines.next().await {
                Some(Ok(sse)) => {
                    if let Some(followed) = self.read(sse)? {
                        return Ok(Some(followed));
                    }
                }
                // It was cut off, or is silent.
                Some(Err(_)) | None => {
                    self.lines = None;
                    if self.heard.swap(false, Ordering::Relaxed) {
                        self.tries = Tries::begin(self.client.api.retry_for);
                    }
                    let pause = std::mem::take(&mut self.pause);
                    self.tries.pause(self.client.api.cut_off(), pause).await?;
                }
            }
        }
        Ok(None)
    }

    async fn connect(&mut self) -> Result<(), Error> {
        let (error, pause) = match self.client.api.stream(&of(self.job_id, "/events"), &self.id).await {
            Ok(answer) if answer.status().is_success() => {
                let bytes = bytes(answer, self.heard.clone(), self.client.api.silent);
                self.lines = Some(Box::pin(SseByteStream::new(bytes)));
                return Ok(());
            }
            Ok(answer) => {
                let pause = retry_after(answer.headers().get(RETRY_AFTER));
                let status = answer.status().as_u16();
                let body = answer.bytes().await.unwrap_or_default();
                let error = Error::Refused(Problem::read(status, &body));
                if !is_retried(status) {
                    return Err(error);
                }
                (error, pause)
            }
            Err(error) => (error, Duration::ZERO),
        };
        self.tries.pause(error, pause).await
    }

    /// Reads an event; of a kind that this release does not know, nothing.
    fn read(&mut self, sse: Sse) -> Result<Option<Followed>, Error> {
        if let Some(ms) = sse.retry {
            self.pause = Duration::from_millis(ms);
        }
        if let Some(id) = sse.id {
            self.id = id;
        }
        let Some(data) = sse.data else { return Ok(None) };
        let api = &self.client.api;
        let event = match sse.event.as_deref() {
            Some("state") => Event::State(api.read(data.as_bytes())?),
            Some("iteration") => Event::Iteration(api.read(data.as_bytes())?),
            Some("text") => Event::Text(api.read::<Text>(data.as_bytes())?.text),
            Some("note") => Event::Note(api.read(data.as_bytes())?),
            Some("gap") => Event::Gap(api.read::<Gap>(data.as_bytes())?.iterations),
            Some("end") => {
                self.over = true;
                Event::End(Box::new(api.read(data.as_bytes())?))
            }
            Some(_) | None => return Ok(None),
        };
        Ok(Some(Followed { id: self.id.clone(), event }))
    }
}

/// The bytes of a stream, which ends when none came for this long. Comments are seen only here: the decoder drops them.
fn bytes(
    answer: Response,
    heard: Arc<AtomicBool>,
    silent: Duration,
) -> BoxStream<'static, reqwest::Result<Bytes>> {
    let reading = unfold(answer.bytes_stream().boxed(), move |mut bytes| {
        let heard = heard.clone();
        async move {
            let piece = timeout(silent, bytes.next()).await.ok()??;
            heard.fetch_or(piece.is_ok(), Ordering::Relaxed);
            Some((piece, bytes))
        }
    });
    reading.boxed()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::TryStreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::sleep;

    use super::*;

    /// How long a stream may be silent here.
    const SILENT: Duration = Duration::from_millis(400);

    async fn say(stream: &mut TcpStream, text: &str) {
        // The client may be gone.
        let _ = stream.write_all(text.as_bytes()).await;
    }

    /// Follows a job on a server whose first connection says something, and then nothing but comments until the end, or
    /// nothing at all. Returns the ids that were seen, and how many connections there were.
    async fn followed(comments: bool) -> (Vec<String>, usize) {
        let job_id = JobId::now();
        let end = format!("event: end\ndata: {{\"job_id\":\"{job_id}\",\"state\":\"succeeded\"}}\nid: 2\n\n");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        tokio::spawn(async move {
            let mut silent = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let is_first = counted.fetch_add(1, Ordering::Relaxed) == 0;
                let _ = stream.read(&mut vec![0; 4_096]).await;
                say(&mut stream, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
                if is_first {
                    say(&mut stream, "event: text\ndata: {\"text\":\"a\"}\nid: 1\n\n").await;
                }
                for _ in 0..if is_first && comments { 20 } else { 0 } {
                    sleep(SILENT / 8).await;
                    say(&mut stream, ":\n\n").await;
                }
                if comments || !is_first {
                    say(&mut stream, &end).await;
                }
                silent.push(stream);
            }
        });
        let mut client = Client::new(&url, None).unwrap();
        client.api.silent = SILENT;
        let events: Vec<Followed> = client.follow(job_id).try_collect().await.unwrap();
        (events.into_iter().map(|followed| followed.id).collect(), connections.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_stream_is_silent_without_any_byte_and_not_with_comments_alone() {
        let ids = || vec!["1".to_owned(), "2".to_owned()];
        assert_eq!(followed(true).await, (ids(), 1));
        assert_eq!(followed(false).await, (ids(), 2));
    }
}
